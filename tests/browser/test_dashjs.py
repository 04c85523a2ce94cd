"""The real dash.js in the real browser on loopback: it obeys, tells the truth, and ends with a reason whatever happens to it."""

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from controllers.api import AbrObservation, AbrPolicy
from controllers.server import application as controller_application
from controllers.sessions import Sessions
from players import origin
from players.config import OriginConfig, OriginRequest, PlayerConfig
from players.dash.messages import DashConfig
from players.dash.player import play
from players.headless import PlayerRow
from players.media import synthetic_manifest
from players.throughput import ThroughputEstimate
from testbed.records import ChunkRow, DecisionRow, PlaybackEndRow
from testbed.setup import dashjs, encode
from testbed.units import kbps_from_bps
from tests.unit.loopback import listening

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (dashjs.fetched() and encode.made()), reason="needs dash.js and the film: scripts/setup browser"),
]
VIDEO = synthetic_manifest()
CHUNKS = 6
LEVELS = (5, 0, 3, 1, 4)


class Jumping(AbrPolicy):
    """Levels up and down; remembers what it saw."""

    seen: list[AbrObservation]

    def reset(self, session: Any, seed: int) -> None:
        super().reset(session, seed)
        Jumping.seen = []

    def decide(self, observation: AbrObservation) -> int:
        Jumping.seen.append(observation)
        return LEVELS[(observation.chunk_index - 1) % len(LEVELS)]


class Broken(AbrPolicy):
    """Has no idea."""

    def decide(self, observation: AbrObservation) -> int:
        raise RuntimeError("no idea")


@contextlib.asynccontextmanager
async def controller(policy: Callable[[], AbrPolicy]) -> AsyncIterator[str]:
    sessions = Sessions(10, 100.0)
    await sessions.preload("p", lambda _: policy)
    async with listening(controller_application(sessions)) as url:
        yield url
    sessions.shutdown()


def played(
    keep: Path,
    policy: Callable[[], AbrPolicy] = Jumping,
    fault: Callable[[], None] | None = None,
    serve: Callable[[OriginConfig], web.Application] = origin.application,
    chunks: int = CHUNKS,
    **changes: Any,
) -> tuple[list[PlayerRow], list[OriginRequest]]:
    """A playback in a browser. `fault` is called when the second chunk was written."""
    rows: list[PlayerRow] = []
    log: list[OriginRequest] = []

    def emit(row: PlayerRow) -> None:
        rows.append(row)
        if fault and isinstance(row, ChunkRow) and row.index == 1:
            fault()

    async def run() -> None:
        app = serve(OriginConfig(host="127.0.0.1", videos=(VIDEO,), film=str(encode.film_folder())))
        async with listening(app) as origin_url, controller(policy) as controller_url:
            player = PlayerConfig(
                trial_id="t0",
                origin_url=origin_url,
                controller_url=controller_url,
                policy="p",
                seed=1,
                video=VIDEO.name,
                chunks=chunks,
                retry_s=0.05,
                no_progress_s=changes.pop("no_progress_s", 120.0),
            )
            await play(DashConfig(player=player, library=str(dashjs.library()), keep=str(keep), **changes), emit)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(origin, "emit", log.append)
        asyncio.run(run())
    return rows, log


def of(kind: type, rows: list[PlayerRow]) -> list[Any]:
    return [row for row in rows if isinstance(row, kind)]


def messages(keep: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (keep / "t0.page.jsonl").read_text().splitlines()]


def browsers() -> list[int]:
    """Processes of this test's browser: its profile has a name of its own."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if b"netllm-browser-" in (entry / "cmdline").read_bytes() and _descends(int(entry.name)):
                found.append(int(entry.name))
    return found


def _descends(pid: int) -> bool:
    while pid > 1:
        if pid == os.getpid():
            return True
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return False


@pytest.fixture(autouse=True)
def nothing_left() -> Any:
    yield
    assert browsers() == []


@pytest.mark.parametrize("waits", ["gate", "sync"])
def test_every_decision_is_obeyed_and_every_row_is_true(tmp_path: Path, waits: str) -> None:
    picture = tmp_path / "lane0.jpg"
    rows, log = played(tmp_path, waits=waits, picture=str(picture))
    chunks, decisions, (end,) = of(ChunkRow, rows), of(DecisionRow, rows), of(PlaybackEndRow, rows)
    assert (end.end_reason, end.detail) == ("complete", "")
    assert [row.level for row in chunks] == [0, *LEVELS]
    assert [(row.chunk_index, row.level, row.source) for row in decisions] == [(i + 1, level, "policy") for i, level in enumerate(LEVELS)]
    assert [row.size_bytes for row in chunks] == [VIDEO.sizes_bytes[i][row.level] for i, row in enumerate(chunks)]
    for before, row in pairwise(chunks):
        assert before.end_s <= row.request_s <= row.first_byte_s <= row.end_s
    assert end.startup_s + end.played_s + end.rebuffer_s + end.hiccup_s == pytest.approx(end.wall_s)
    assert abs(end.hiccup_s) < 1 and end.played_s > 0
    media = [row for row in log if row.path.split("/")[-1].isdigit()]
    assert [row.path for row in media] == [f"/{VIDEO.name}/{row.level}/{row.index}" for row in chunks], "each chunk once, nothing else"
    assert all(row.session == "t0" and row.complete for row in media)
    paths = [row.path for row in log if row not in media]
    assert paths == [f"/{VIDEO.name}/{name}" for name in ("manifest.json", "manifest.mpd", "init.mp4")], "one init segment for all levels"
    assert [len(each.history) for each in Jumping.seen] == list(range(1, CHUNKS))
    assert end.began_at_s == pytest.approx(media[0].at_s, abs=0.5)
    check_estimates(tmp_path, chunks, end)
    check_kept(tmp_path, picture)


def check_estimates(keep: Path, chunks: list[ChunkRow], end: PlaybackEndRow) -> None:
    """dash.js's throughput estimate is computed here from the page's timing, equal to the kbit/s at each decision."""
    asked = [each["throughput_kbps"] for each in messages(keep) if each["message"] == "decide"]
    assert [each["here"] for each in asked] == [each["dashjs"] for each in asked] and len(asked) == CHUNKS - 1
    estimate = ThroughputEstimate()
    for row in chunks:
        estimate.add(row.size_bytes, row.end_s - row.first_byte_s)
    assert kbps_from_bps(estimate.average_bps) == pytest.approx(kbps_from_bps(end.throughput_bps), rel=1e-3)


def check_kept(keep: Path, picture: Path) -> None:
    """Screenshot, pictures on the way, messages; and nothing that the console complains of."""
    png = (keep / "t0.png").read_bytes()
    assert png.startswith(b"\x89PNG") and len(png) > 5_000, "a picture with something in it"
    assert picture.read_bytes().startswith(b"\xff\xd8")
    assert [each["message"] for each in messages(keep)] == ["decide"] * (CHUNKS - 1) + ["end"]
    console = keep / "t0.console.jsonl"
    errors = [line for line in (console.read_text().splitlines() if console.exists() else []) if json.loads(line).get("type") == "error"]
    assert errors == []


@pytest.mark.parametrize("decides", ["bola", "throughput"])
def test_dashjs_own_rules_decide_without_the_controller(tmp_path: Path, decides: str) -> None:
    rows, _ = played(tmp_path, policy=Broken, decides=decides)
    decisions, chunks = of(DecisionRow, rows), of(ChunkRow, rows)
    assert of(PlaybackEndRow, rows)[0].end_reason == "complete"
    assert [row.level for row in chunks[1:]] == [row.level for row in decisions]
    assert all(row.source == "policy" and 0 <= row.latency_s < 1 for row in decisions)
    assert max(row.level for row in chunks) > 0, "loopback is quick: they go up"


def test_a_failing_controller_is_replaced_by_the_local_rule(tmp_path: Path) -> None:
    rows, _ = played(tmp_path, policy=Broken)
    decisions = of(DecisionRow, rows)
    assert of(PlaybackEndRow, rows)[0].end_reason == "complete"
    assert {(row.source, row.reason) for row in decisions} == {("fallback", "error")} and len(decisions) == CHUNKS - 1


def kill_renderers() -> None:
    for pid in browsers():
        if b"--type=renderer" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)


def stop_browser() -> None:
    for pid in browsers():
        os.kill(pid, signal.SIGSTOP)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [(kill_renderers, "browser_crashed"), (stop_browser, "browser_stuck")],
    ids=["page", "stopped"],
)
def test_a_browser_that_dies_or_hangs_ends_the_trial_with_its_name(tmp_path: Path, fault: Callable[[], None], reason: str) -> None:
    rows, _ = played(tmp_path, fault=fault, chunks=40, answer_s=3.0, serve=slow_from(4))
    assert of(PlaybackEndRow, rows) == [rows[-1]]
    assert rows[-1].end_reason == reason and "browser" in rows[-1].detail
    assert 2 <= len(of(ChunkRow, rows)) < 40


def slow_from(chunk: int) -> Callable[[OriginConfig], web.Application]:
    """An origin that never answers for this chunk and those after it."""

    def serve(config: OriginConfig) -> web.Application:
        @web.middleware
        async def silent(request: web.Request, handler: Any) -> web.StreamResponse:
            last = request.path.split("/")[-1]
            if last.isdigit() and int(last) >= chunk:
                await asyncio.sleep(600)
            return await handler(request)

        app = web.Application(middlewares=[silent])
        app.router.add_route("*", "/{path:.*}", origin.Origin(config).handle)
        return app

    return serve


def test_an_origin_that_falls_silent_ends_the_trial(tmp_path: Path) -> None:
    rows, _ = played(tmp_path, serve=slow_from(3), no_progress_s=1.5)
    assert (rows[-1].end_reason, len(of(ChunkRow, rows))) == ("stalled_too_long", 3)


def test_an_origin_that_refuses_ends_the_trial_with_the_word_of_dashjs(tmp_path: Path) -> None:
    def serve(config: OriginConfig) -> web.Application:
        @web.middleware
        async def refusing(request: web.Request, handler: Any) -> web.StreamResponse:
            if request.path.endswith("/2"):
                raise web.HTTPNotFound(headers=origin.HEADERS)
            return await handler(request)

        app = web.Application(middlewares=[refusing])
        app.router.add_route("*", "/{path:.*}", origin.Origin(config).handle)
        return app

    rows, _ = played(tmp_path, serve=serve)
    assert rows[-1].end_reason == "origin_error" and "is not available" in rows[-1].detail and "status 404" in rows[-1].detail


def test_a_config_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    player = PlayerConfig(trial_id="t", origin_url="o", controller_url="c", policy="p", seed=1, video="v", chunks=2)
    config = DashConfig(player=player, library="l", keep=str(tmp_path), decides="bola", waits="sync")
    assert msgspec.json.decode(msgspec.json.encode(config), type=DashConfig) == config
