"""The headless player against real origins and controllers on loopback, good ones and bad ones. Chunks last 0.05 s to be quick."""

import asyncio
import contextlib
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from controllers.api import AbrObservation, AbrPolicy, AbrSession, Chunk
from controllers.config import ControllerConfig, read_config
from controllers.server import application as controller_application
from controllers.sessions import Sessions
from players import origin
from players.config import OriginConfig, PlayerConfig
from players.headless import PlayerRow, play
from players.throughput import ThroughputEstimate
from testbed.errors import UserError
from testbed.records import ChunkRow, DecisionRow, PlaybackEndRow, StallRow
from tests.unit.loopback import VIDEO, Process, listening, running
from tests.unit.schedstat import Kernel

SHORT = replace(VIDEO, name="short", chunk_s=0.05)
CONFIG = PlayerConfig(
    trial_id="t0",
    origin_url="",
    controller_url="http://127.0.0.1:9",
    policy="up",
    seed=1,
    video="short",
    chunks=12,
    buffer_cap_s=0.15,
    poll_s=0.01,
    retry_s=0.01,
)


class Up(AbrPolicy):
    """Chunk i at level i mod 3; remembers what it saw."""

    seen: list[AbrObservation]

    def reset(self, session: AbrSession, seed: int) -> None:
        super().reset(session, seed)
        Up.seen = []

    def decide(self, observation: AbrObservation) -> int:
        Up.seen.append(observation)
        return observation.chunk_index % 3


class Rows(list[PlayerRow]):
    """What a player wrote, by kind."""

    @property
    def chunks(self) -> list[ChunkRow]:
        return [row for row in self if isinstance(row, ChunkRow)]

    @property
    def decisions(self) -> list[DecisionRow]:
        return [row for row in self if isinstance(row, DecisionRow)]

    @property
    def stalls(self) -> list[StallRow]:
        return [row for row in self if isinstance(row, StallRow)]

    @property
    def end(self) -> PlaybackEndRow:
        assert isinstance(self[-1], PlaybackEndRow)
        return self[-1]


@contextlib.asynccontextmanager
async def controller(policy: Callable[[], AbrPolicy]) -> AsyncIterator[str]:
    sessions = Sessions(10, 100.0)
    await sessions.preload("up", lambda _: policy)
    async with listening(controller_application(sessions)) as url:
        yield url
    sessions.shutdown()


async def rows_of(emit: Callable[[PlayerRow], None] | None = None, config: PlayerConfig = CONFIG, **changes: Any) -> Rows:
    """Play to the end; `emit` sees each row as it is made. The rows must balance."""
    rows = Rows()

    def keep(row: PlayerRow) -> None:
        rows.append(row)
        if emit:
            emit(row)

    await play(msgspec.structs.replace(config, **changes), keep)
    assert_sound(rows)
    return rows


def assert_sound(rows: Rows) -> None:
    """What holds for every playback, however it ends."""
    end = rows.end
    assert end.startup_s + end.played_s + end.rebuffer_s == pytest.approx(end.wall_s, abs=1e-6)
    assert [row.index for row in rows.chunks] == list(range(len(rows.chunks)))
    assert [row.chunk_index for row in rows.decisions] == list(range(1, len(rows.decisions) + 1))
    assert [row.level for row in rows.chunks[1:]] == [row.level for row in rows.decisions[: len(rows.chunks) - 1]]
    assert sum(stall.end_s - stall.start_s for stall in rows.stalls) == pytest.approx(end.rebuffer_s, abs=1e-6)
    for row in rows.chunks:
        assert row.size_bytes == SHORT.sizes_bytes[row.index][row.level]
        assert row.bitrate_bps == SHORT.bitrates_bps[row.level]
        assert row.request_s <= row.first_byte_s <= row.end_s
        assert row.end_s - row.request_s == pytest.approx(row.download_s, abs=1e-9)
        assert row.end_s <= end.wall_s + 1e-6
    for a, b in zip(rows.chunks, rows.chunks[1:], strict=False):
        assert b.request_s >= a.end_s + a.waited_s


async def test_a_whole_playback() -> None:
    app = origin.application(OriginConfig(host="", videos=(SHORT,)))
    async with listening(app) as url, controller(Up) as asked:
        rows = await rows_of(origin_url=url, controller_url=asked)
    assert rows.end.end_reason == "complete"
    assert [row.level for row in rows.chunks] == [0, 1, 2] * 4
    assert {row.source for row in rows.decisions} == {"policy"}
    assert all(row.policy_s is not None and 0 <= row.policy_s <= row.latency_s for row in rows.decisions)
    assert rows.end.startup_s == pytest.approx(rows.chunks[0].end_s + CONFIG.start_lag_s)
    assert rows.chunks[0].rebuffer_s == rows.end.startup_s
    assert sum(row.rebuffer_s for row in rows.chunks[1:]) == pytest.approx(rows.end.rebuffer_s)
    assert rows.chunks[0].request_s == 0.0
    assert rows.end.began_at_s is not None
    estimate = ThroughputEstimate()
    for row in rows.chunks:
        estimate.add(row.size_bytes, row.end_s - row.first_byte_s)  # the time to the first byte is left out
    assert rows.end.throughput_bps == pytest.approx(estimate.average_bps, rel=1e-3)
    mbps = [bitrate_bps / 1e6 for bitrate_bps in SHORT.bitrates_bps]
    row = rows.chunks[1]
    assert row.qoe == pytest.approx(mbps[1] - 4.3 * row.rebuffer_s - (mbps[1] - mbps[0]))
    assert rows.chunks[0].qoe == pytest.approx(mbps[0] - 4.3 * rows.end.startup_s)
    # the buffer cap held the requests back
    assert max(row.buffer_s for row in rows.chunks) < CONFIG.buffer_cap_s + SHORT.chunk_s + 0.03
    assert any(row.waited_s > 0 for row in rows.chunks)


async def test_what_a_player_waits_for_a_core_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(tmp_path, monkeypatch)

    class Starving(Up):
        """While it decides, the player waits for a core."""

        def decide(self, observation: AbrObservation) -> int:
            kernel.wait(50)
            return super().decide(observation)

    app = origin.application(OriginConfig(host="", videos=(SHORT,)))
    async with listening(app) as url, controller(Starving) as asked:
        rows = await rows_of(origin_url=url, controller_url=asked)
    assert rows.end.waited_for_core_s == pytest.approx(11 * 0.05)


async def test_the_policy_sees_what_the_rows_say() -> None:
    app = origin.application(OriginConfig(host="", videos=(SHORT,)))
    async with listening(app) as url, controller(Up) as asked:
        rows = await rows_of(origin_url=url, controller_url=asked, rtt_s=0.123, first_level=2)
    assert rows.chunks[0].level == 2
    assert Up.seen[0].session == AbrSession("t0", SHORT, 12, CONFIG.buffer_cap_s, 0.123, 2)
    for i, seen in enumerate(Up.seen):
        told = [Chunk(r.index, r.level, r.size_bytes, r.download_s, r.rebuffer_s, r.buffer_s, r.waited_s) for r in rows.chunks[: i + 1]]
        assert list(seen.history) == told
        assert 0 <= seen.buffer_s < CONFIG.buffer_cap_s


class Odd(AbrPolicy):
    """Well behaved, but for chunks 3 and 4."""

    def __init__(self, answer: Callable[[], Any]) -> None:
        self.answer = answer

    def decide(self, observation: AbrObservation) -> int:
        return self.answer() if observation.chunk_index in (3, 4) else 1


async def test_bad_decisions_fall_back_and_only_these() -> None:
    app = origin.application(OriginConfig(host="", videos=(SHORT,)))
    async with listening(app) as url:
        for answer, reason in ((lambda: 3, "invalid"), (lambda: 1 // 0, "error"), (lambda: "2", "invalid")):
            async with controller(lambda answer=answer: Odd(answer)) as asked:
                rows = await rows_of(origin_url=url, controller_url=asked, chunks=6)
            assert [row.reason for row in rows.decisions] == ["", "", reason, reason, ""]
            assert [row.source for row in rows.decisions] == ["policy", "policy", "fallback", "fallback", "policy"]
            assert [row.policy_s is None for row in rows.decisions] == [False, False, True, True, False]
            assert rows.end.end_reason == "complete"


async def test_a_late_decision_falls_back_after_the_deadline(tmp_path: Path) -> None:
    """A process of its own: the policy holds no lock of ours. It sleeps once, past the deadline."""
    policy = tmp_path / "slow.py"
    policy.write_text(
        "import time\nfrom controllers.api import AbrPolicy\nclass Slow(AbrPolicy):\n    def decide(self, observation):\n"
        "        time.sleep(0.5 if observation.chunk_index == 2 else 0)\n        return 1\n"
    )
    app = origin.application(OriginConfig(host="", videos=(SHORT,)))
    config = ControllerConfig(host="127.0.0.1", policies=(str(policy),))
    async with listening(app) as url:
        with running("controllers.server", config) as process:
            asked = f"http://127.0.0.1:{process.line()['port']}"
            rows = await rows_of(origin_url=url, controller_url=asked, policy=str(policy), deadline_s=0.2, chunks=8)
    late = rows.decisions[1]
    assert (late.source, late.reason, late.policy_s) == ("fallback", "late", None)
    assert late.latency_s >= 0.2
    assert {row.reason for row in rows.decisions} <= {"", "late"}
    assert rows.decisions[-1].source == "policy"
    assert rows.stalls  # 0.2 s is more than the buffer held
    assert rows.chunks[2].rebuffer_s > 0
    assert rows.end.end_reason == "complete"


async def test_the_controller_is_killed_and_restarted_mid_session(tmp_path: Path) -> None:
    policy = tmp_path / "two.py"
    policy.write_text(
        "from controllers.api import AbrPolicy\nclass Two(AbrPolicy):\n    def decide(self, observation):\n        return 2\n"
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = ControllerConfig(host="127.0.0.1", port=port, policies=(str(policy),))
    app = origin.application(OriginConfig(host="", videos=(SHORT,)))
    with contextlib.ExitStack() as processes:

        def start() -> Process:
            process = processes.enter_context(running("controllers.server", config))
            assert process.line()["event"] == "ready"
            return process

        first = start()

        def meddle(row: PlayerRow) -> None:
            if isinstance(row, DecisionRow) and row.chunk_index == 3:
                first.child.send_signal(signal.SIGKILL)
                first.child.wait()
            if isinstance(row, DecisionRow) and row.chunk_index == 7:
                start()

        async with listening(app) as url:
            rows = await rows_of(meddle, origin_url=url, controller_url=f"http://127.0.0.1:{port}", policy=str(policy))
    assert rows.end.end_reason == "complete"
    assert [row.reason for row in rows.decisions] == [""] * 3 + ["unreachable"] * 4 + [""] * 4
    assert all(row.level == 2 for row in rows.decisions if row.source == "policy")


async def test_no_controller_at_all_is_played_by_the_local_rule() -> None:
    app = origin.application(OriginConfig(host="", videos=(SHORT,)))
    async with listening(app) as url:
        rows = await rows_of(origin_url=url, chunks=5)
    assert rows.end.end_reason == "complete"
    assert {(row.source, row.reason) for row in rows.decisions} == {("fallback", "unreachable")}
    assert rows.decisions[-1].level == 2  # loopback carries the highest level


# --- bad origins ---

Handler = Callable[[web.Request, bytes], Awaitable[web.StreamResponse]]


@contextlib.asynccontextmanager
async def bad_origin(handler: Handler) -> AsyncIterator[str]:
    """Serves the manifest, and each chunk as `handler(request, right_body)` likes."""

    async def serve(request: web.Request) -> web.StreamResponse:
        if request.path.endswith("manifest.json"):
            return web.Response(body=msgspec.json.encode(SHORT))
        _, _, level, index = request.path.split("/")
        return await handler(request, b"x" * SHORT.sizes_bytes[int(index)][int(level)])

    app = web.Application()
    app.router.add_get("/{path:.*}", serve)
    async with listening(app) as url:
        yield url


def is_chunk(request: web.Request, index: int) -> bool:
    return request.path.endswith(f"/{index}")


async def test_a_stall_is_recorded_and_counted() -> None:
    async def slow_at_3(request: web.Request, body: bytes) -> web.StreamResponse:
        if is_chunk(request, 3):
            await asyncio.sleep(0.4)
        return web.Response(body=body)

    async with bad_origin(slow_at_3) as url, controller(Up) as asked:
        rows = await rows_of(origin_url=url, controller_url=asked)
    assert rows.end.end_reason == "complete"
    stall = next(stall for stall in rows.stalls if stall.end_s == pytest.approx(rows.chunks[3].end_s + CONFIG.resume_lag_s))
    assert stall.end_s - stall.start_s == pytest.approx(rows.chunks[3].rebuffer_s)
    assert stall.end_s - stall.start_s >= 0.4 - CONFIG.buffer_cap_s - SHORT.chunk_s
    assert rows.chunks[3].buffer_s == pytest.approx(SHORT.chunk_s)
    assert rows.chunks[3].qoe < -0.3


async def test_a_kept_connection_that_the_origin_closes_is_made_anew() -> None:
    async def close(request: web.Request, body: bytes) -> web.StreamResponse:
        response = web.Response(body=body)
        response.force_close()
        return response

    async with bad_origin(close) as url, controller(Up) as asked:
        rows = await rows_of(origin_url=url, controller_url=asked)
    assert rows.end.end_reason == "complete"
    assert len(rows.chunks) == 12


async def test_a_broken_download_is_fetched_again_and_counts_once() -> None:
    broken = []

    async def break_once(request: web.Request, body: bytes) -> web.StreamResponse:
        if is_chunk(request, 4) and not broken:
            broken.append(1)
            response = web.StreamResponse()
            response.content_length = len(body)
            await response.prepare(request)
            await response.write(body[:5000])
            assert request.transport
            request.transport.abort()
            return response
        return web.Response(body=body)

    async with bad_origin(break_once) as url, controller(Up) as asked:
        rows = await rows_of(origin_url=url, controller_url=asked)
    assert broken
    assert rows.end.end_reason == "complete"
    assert rows.chunks[4].download_s >= CONFIG.retry_s


async def test_an_origin_that_dies_ends_the_playback() -> None:
    with running("players.origin", OriginConfig(host="127.0.0.1", videos=(SHORT,))) as process:

        def kill(row: PlayerRow) -> None:
            if isinstance(row, ChunkRow) and row.index == 4:
                process.child.kill()
                process.child.wait()

        url = f"http://127.0.0.1:{process.line()['port']}"
        async with controller(Up) as asked:
            rows = await rows_of(kill, origin_url=url, controller_url=asked)
    assert rows.end.end_reason == "origin_unreachable"
    assert rows.end.detail.startswith("short/2/5: ClientConnectorError: ")
    assert len(rows.chunks) == 5


async def test_silence_ends_the_playback_by_progress_not_by_time() -> None:
    """Chunk 2 drips for longer than `no_progress_s` and is fine; chunk 5 stops half way."""
    never = asyncio.Event()

    async def drip(request: web.Request, body: bytes) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = len(body)
        await response.prepare(request)
        if is_chunk(request, 2):
            for at in range(0, len(body), len(body) // 6):
                await asyncio.sleep(0.1)
                await response.write(body[at : at + len(body) // 6])
            return response
        await response.write(body[:100] if is_chunk(request, 5) else body)
        if is_chunk(request, 5):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(never.wait(), 2.0)
        return response

    async with bad_origin(drip) as url, controller(Up) as asked:
        rows = await rows_of(origin_url=url, controller_url=asked, no_progress_s=0.5)
        never.set()
    assert rows.end.end_reason == "stalled_too_long"
    assert rows.end.detail == "short/2/5: no byte for 0.5 s"
    assert len(rows.chunks) == 5
    assert rows.chunks[2].download_s > 0.5
    assert rows.stalls[-1].end_s == pytest.approx(rows.end.wall_s)  # it stood still when it ended


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        (lambda body: body + b"x", "short/0/0: 7501 bytes came, wanted the manifest's 7500"),
        (lambda body: body[:-1], "short/0/0: 7499 bytes came, wanted the manifest's 7500"),
        (lambda body: b"", "short/0/0: 0 bytes came, wanted the manifest's 7500"),
    ],
)
async def test_bytes_that_are_not_the_manifests_end_the_playback(change: Callable[[bytes], bytes], detail: str) -> None:
    async def wrong(request: web.Request, body: bytes) -> web.StreamResponse:
        return web.Response(body=change(body))

    async with bad_origin(wrong) as url, controller(Up) as asked:
        rows = await rows_of(origin_url=url, controller_url=asked)
    assert (rows.end.end_reason, rows.end.detail) == ("origin_error", detail)
    assert not rows.chunks


@pytest.mark.parametrize(
    ("manifest", "detail"),
    [
        (b"hello", "short/manifest.json: JSON is malformed"),
        (b"{}", "short/manifest.json: Object missing required field `name`"),
        (msgspec.json.encode(replace(SHORT, chunk_s=0.0)), "short/manifest.json: video.chunk_s is 0.0, wanted 0.01 to 10000 s"),
        (b'{"name":' * 100_000, "short/manifest.json: "),
    ],
)
async def test_a_bad_manifest_ends_the_playback(manifest: bytes, detail: str) -> None:
    async def serve(request: web.Request) -> web.Response:
        return web.Response(body=manifest)

    app = web.Application()
    app.router.add_get("/{path:.*}", serve)
    async with listening(app) as url:
        rows = await rows_of(origin_url=url)
    assert rows.end.end_reason == "origin_error"
    assert rows.end.detail.startswith(detail)
    assert rows.end.began_at_s is None
    assert len(rows) == 1


async def test_an_unknown_video_and_no_origin() -> None:
    app = origin.application(OriginConfig(host="", videos=(SHORT,)))
    async with listening(app) as url:
        rows = await rows_of(origin_url=url, video="long")
    assert (rows.end.end_reason, rows.end.detail) == (
        "origin_error",
        "long/manifest.json: status 404, no video 'long', wanted one of short",
    )
    rows = await rows_of(origin_url=url)  # nobody listens there any more
    assert rows.end.end_reason == "origin_unreachable"


# --- the process ---


async def test_the_process_plays_and_is_interrupted(tmp_path: Path) -> None:
    link = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    link.bind(str(tmp_path / "link"))
    served = OriginConfig(host="127.0.0.1", videos=(SHORT,), start_socket=str(tmp_path / "link"))
    with (
        link,
        running("players.origin", served) as from_origin,
        running("controllers.server", ControllerConfig(host="127.0.0.1", policies=("fixed+level=1",))) as asked,
    ):
        config = msgspec.structs.replace(
            CONFIG,
            origin_url=f"http://127.0.0.1:{from_origin.line()['port']}",
            controller_url=f"http://127.0.0.1:{asked.line()['port']}",
            policy="fixed+level=1",
        )
        with running("players.headless", config) as player:
            code, lines, errors = player.wait()
        rows = Rows(msgspec.convert(lines, list[PlayerRow]))
        assert (code, errors) == (0, "")
        assert_sound(rows)
        assert rows.end.end_reason == "complete"
        assert [row.level for row in rows.chunks] == [0] + [1] * 11
        assert link.recv(100) == b"start"

        waiting = msgspec.structs.replace(config, trial_id="t1", poll_s=60.0)  # it stops at the buffer cap
        with running("players.headless", waiting) as player:
            head = [player.line()]
            while head[-1].get("chunk_index") != 2:
                head.append(player.line())
            code, lines, errors = player.end(signal.SIGTERM)
        rows = Rows(msgspec.convert(head + lines, list[PlayerRow]))
        assert (code, errors) == (0, "")
        assert_sound(rows)
        assert rows.end.end_reason == "interrupted"
        _, requests, _ = from_origin.end()
    media = [(request["session"], request["path"]) for request in requests if not request["path"].endswith("json")]
    assert media[:3] == [("t0", "/short/0/0"), ("t0", "/short/1/1"), ("t0", "/short/1/2")]
    assert [request["session"] for request in requests if request["started"]] == ["t0", "t1"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"chunks": 13}, "PlayerConfig: session.chunks is 13, wanted 1 to 12"),
        ({"trial_id": "a b"}, "PlayerConfig: session.session_id is 'a b', wanted 1 to 128 of A-Za-z0-9._:-"),
        ({"first_level": 3}, "PlayerConfig: session.first_level is 3, wanted 0 to 2"),
        ({"deadline_s": 0}, "PlayerConfig: Expected `float` > 0.0 - at `$.deadline_s`"),
        ({"colour": 0}, "PlayerConfig: Object contains unknown field `colour`"),
    ],
)
async def test_a_bad_config_is_one_sentence(change: dict[str, Any], sentence: str) -> None:
    app = origin.application(OriginConfig(host="", videos=(SHORT,)))
    async with listening(app) as url:
        config = msgspec.json.encode(msgspec.to_builtins(CONFIG) | {"origin_url": url} | change).decode()
        with pytest.raises(UserError) as raised:
            await play(read_config(PlayerConfig, [config]), Rows().append)
    assert str(raised.value) == sentence


def test_a_bad_config_ends_the_process_with_code_2() -> None:
    with running("players.headless", b"{}") as player:
        assert player.wait() == (2, [], "PlayerConfig: Object missing required field `trial_id`\n")


def test_a_player_that_is_told_to_stop_when_its_last_row_is_written_ends_well() -> None:
    code = """
import asyncio, os, signal, sys
from players.config import PlayerConfig
from players.process import run
async def play(config, emit):
    emit(config)
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(60)  # as for the controller's answer to its goodbye
sys.exit(run(PlayerConfig, play))
"""
    done = subprocess.run([sys.executable, "-c", code, msgspec.json.encode(CONFIG).decode()], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert msgspec.json.decode(done.stdout, type=PlayerConfig) == CONFIG


def test_the_player_is_light_and_configs_are_lighter() -> None:
    """What main (root) imports has no aiohttp, and no process of a lane has torch."""
    for modules, banned in (
        ("players.config, controllers.config", "aiohttp torch transformers matplotlib scipy polars"),
        ("players.headless, players.origin, controllers.server", "torch transformers matplotlib scipy polars"),
    ):
        code = f"import {modules}, sys; print([name for name in {banned.split()} if name in sys.modules])"
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert re.fullmatch(r"\[\]\n", out), (modules, out)
