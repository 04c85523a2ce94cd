"""The decision service on real sockets: sessions that never mix, bad policies, bad messages, a bad network; and its client."""

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from controllers.api import AbrObservation, AbrPolicy, AbrSession, Chunk
from controllers.client import DecisionClient, DecisionFailed
from controllers.config import ControllerConfig, ControllerReady
from controllers.health import Health
from controllers.protocol import Answer, Decide, Failure, Open, Refusal, decode_answer, decode_decide, decode_open
from controllers.server import application
from controllers.sessions import Sessions
from testbed.clock import now_s
from tests.unit.loopback import VIDEO, listening, running

SESSION = AbrSession("s", VIDEO, chunks=12)
HISTORY = tuple(Chunk(i, i % 3, 1000 + i, 0.5, 0.0, 4.0) for i in range(11))


class Dice(AbrPolicy):
    """Keeps all the state a policy may keep, and lets every bit of it decide."""

    def reset(self, session: AbrSession, seed: int) -> None:
        super().reset(session, seed)
        self.asked = 0

    def decide(self, observation: AbrObservation) -> int:
        self.asked += 1
        seen = round(observation.buffer_s * 10) + sum(chunk.level for chunk in observation.history) + len(self.session.session_id)
        return int(self.rng.integers(100) + self.asked + seen) % observation.video.levels


class Numb(AbrPolicy):
    """Answers what it is made with."""

    def __init__(self, answer: object) -> None:
        self.answer = answer

    def decide(self, observation: AbrObservation) -> int:
        return self.answer() if callable(self.answer) else self.answer  # type: ignore[return-value]


def raises(error: BaseException) -> Callable[[], int]:
    def answer() -> int:
        raise error

    return answer


@contextlib.asynccontextmanager
async def service(max_sessions: int = 100, idle_s: float = 100.0, **policies: Callable[[], AbrPolicy]) -> AsyncIterator[str]:
    sessions = Sessions(max_sessions, idle_s)
    for name in policies:
        await sessions.preload(name, policies.__getitem__)
    async with listening(application(sessions)) as url:
        yield url
    sessions.shutdown()


@contextlib.asynccontextmanager
async def client(url: str, policy: str, session: AbrSession = SESSION, seed: int = 1) -> AsyncIterator[DecisionClient]:
    client = DecisionClient(url, session, policy, seed)
    try:
        yield client
    finally:
        await client.close(0.3)


async def failure(client: DecisionClient, deadline_s: float = 5.0) -> DecisionFailed:
    with pytest.raises(DecisionFailed) as raised:
        await client.decide(HISTORY[:3], 2.0, deadline_s)
    return raised.value


async def health(url: str) -> Health:
    async with aiohttp.ClientSession() as http, http.get(f"{url}/health") as response:
        return msgspec.json.decode(await response.read(), type=Health)


def alone(session: AbrSession, seed: int, buffers_s: list[float]) -> list[int]:
    """The levels of a session that has a policy to itself, without any service."""
    policy = Dice()
    policy.reset(session, seed)
    return [policy.decide(AbrObservation(session, HISTORY[: i + 1], buffer_s)) for i, buffer_s in enumerate(buffers_s)]


async def test_sessions_interleaved_decide_as_if_alone() -> None:
    async with service(dice=Dice) as url:
        plans = [
            (AbrSession(f"s{'x' * i}", VIDEO, 12), seed, [0.3 * i + 0.1 * j for j in range(11)])
            for i, seed in enumerate((5, 5, 6, 7, 0, 9))
        ]

        async def play(session: AbrSession, seed: int, buffers_s: list[float]) -> list[int]:
            async with client(url, "dice", session, seed) as asking:
                await asking.open(5.0)
                levels = []
                for i, buffer_s in enumerate(buffers_s):
                    await asyncio.sleep(0)
                    levels.append((await asking.decide(HISTORY[: i + 1], buffer_s, 5.0)).level)
                return levels

        together = await asyncio.gather(*(play(*plan) for plan in plans))
        assert together == [alone(*plan) for plan in plans]
        assert together[0] != together[2]
        counts = (await health(url)).policies["dice"]
        assert counts.decisions == 66
        assert sum(counts.histogram.values()) == 66
        assert counts.p50_ms is not None and counts.p99_ms is not None and counts.max_ms is not None
        assert 0 <= counts.p50_ms <= counts.p99_ms <= counts.max_ms
        assert (await health(url)).sessions == 0


async def test_opening_again_starts_afresh_and_a_lost_session_is_opened_by_the_client() -> None:
    async with service(dice=Dice) as url, client(url, "dice") as asking:
        first = [(await asking.decide(HISTORY[:1], 1.0, 5.0)).level for _ in range(8)]  # never opened: the client does
        await asking.open(5.0)
        assert [(await asking.decide(HISTORY[:1], 1.0, 5.0)).level for _ in range(8)] == first
        async with aiohttp.ClientSession() as http, http.delete(f"{url}/sessions/s") as response:
            assert response.status == 200
        assert (await asking.decide(HISTORY[:1], 1.0, 5.0)).level == first[0]


@pytest.mark.parametrize(
    ("answer", "reason", "message"),
    [
        (3, "invalid", "the policy answered 3, wanted a level of 0 to 2"),
        (-1, "invalid", "the policy answered -1"),
        (1.0, "invalid", "the policy answered 1.0"),
        (None, "invalid", "the policy answered None"),
        ("2", "invalid", "the policy answered '2'"),
        (raises(ZeroDivisionError("by nothing")), "error", "the policy raised ZeroDivisionError: by nothing (test_decision_service.py:"),
        (raises(ValueError("two\nlines")), "error", "the policy raised ValueError: two lines (test_decision_service.py:"),
        (raises(ValueError("x" * 9999)), "error", f"the policy raised ValueError: {'x' * 500} (test_decision_service.py:"),
        (raises(SystemExit(3)), "error", "the policy raised SystemExit: 3"),
        (raises(MemoryError()), "error", "the policy raised MemoryError"),
        (raises(StopIteration(7)), "error", "the policy raised StopIteration"),
        (raises(asyncio.CancelledError()), "error", "the policy raised CancelledError"),
        (raises(KeyboardInterrupt()), "error", "the policy raised KeyboardInterrupt"),
    ],
)
async def test_a_policy_that_misbehaves_is_a_failure_and_the_service_goes_on(answer: object, reason: str, message: str) -> None:
    async with service(bad=lambda: Numb(answer), dice=Dice) as url:
        async with client(url, "bad") as asking:
            failed = await failure(asking)
            assert (failed.reason, failed.message[: len(message)]) == (reason, message)
            assert (await failure(asking)).reason == reason
        async with client(url, "dice") as asking:
            assert (await asking.decide(HISTORY[:1], 1.0, 5.0)).level in (0, 1, 2)
        counts = (await health(url)).policies["bad"]
        assert (counts.errors, counts.invalid) == ((2, 0) if reason == "error" else (0, 2))


async def test_numpy_integers_are_levels() -> None:
    import numpy as np

    async with service(numb=lambda: Numb(np.int64(2))) as url, client(url, "numb") as asking:
        answer = await asking.decide(HISTORY[:1], 1.0, 5.0)
        assert answer.level == 2
        assert answer.policy_s >= 0


class Lazy:
    """A level that is computed, in `where`, when it is looked at."""

    def __init__(self) -> None:
        self.where: list[int] = []

    def __index__(self) -> int:
        self.where.append(threading.get_ident())
        begun_s = now_s()
        while now_s() - begun_s < 0.02:
            pass
        return 2


async def test_an_answer_is_computed_in_the_policys_thread_and_time() -> None:
    level = Lazy()
    async with service(lazy=lambda: Numb(lambda: level)) as url, client(url, "lazy") as asking:
        answer = await asking.decide(HISTORY[:1], 1.0, 5.0)
    assert answer.level == 2
    assert answer.policy_s >= 0.02
    assert level.where and threading.get_ident() not in level.where


class Broken:
    def __index__(self) -> int:
        raise RuntimeError("no level yet")


async def test_an_answer_that_raises_when_it_is_looked_at_is_an_error_of_the_policy() -> None:
    async with service(broken=lambda: Numb(Broken())) as url, client(url, "broken") as asking:
        failed = await failure(asking)
        assert failed.reason == "error"
        assert failed.message.startswith("the policy raised RuntimeError: no level yet")
        counts = (await health(url)).policies["broken"]
    assert (counts.errors, counts.invalid, counts.decisions) == (1, 0, 0)


async def test_policies_have_threads_of_their_own_and_share_them_with_their_options() -> None:
    threads: dict[str, int] = {}

    def load(reference: str) -> Callable[[], AbrPolicy]:
        threads[reference] = threading.get_ident()
        return Dice

    sessions = Sessions(9, 100.0)
    one, other = "/home/c++/one.py", "/home/c++/other.py"
    for reference in (one, other, f"{one}+level=2", "dice", "dice+level=2"):
        await sessions.preload(reference, load)
    assert threads[one] == threads[f"{one}+level=2"] != threads[other]
    assert threads["dice"] == threads["dice+level=2"] not in (threads[one], threads[other])
    sessions.shutdown()


async def test_a_policy_that_cannot_start_its_session_is_an_error() -> None:
    class Stubborn(Dice):
        def reset(self, session: AbrSession, seed: int) -> None:
            raise RuntimeError("no")

    async with service(stubborn=Stubborn) as url, client(url, "stubborn") as asking:
        failed = await failure(asking)
        assert failed.reason == "error"
        assert failed.message.startswith("the policy raised RuntimeError: no")


async def test_a_slow_decision_is_late_others_are_not_and_what_waits_too_long_is_not_computed() -> None:
    go = threading.Event()
    computed = []

    def slow() -> int:
        computed.append(1)
        assert go.wait(30)
        return 1

    other = AbrSession("t", VIDEO, 12)
    async with service(slow=lambda: Numb(slow), dice=Dice) as url, client(url, "slow") as stuck, client(url, "dice", other) as free:
        await stuck.open(5.0)
        failed = await failure(stuck, 0.5)  # less, and a host that pauses keeps the question from the service
        assert (failed.reason, failed.message) == ("late", "no decision within 0.5 s")
        assert (await free.decide(HISTORY[:1], 1.0, 5.0)).level in (0, 1, 2)  # meanwhile
        assert (await failure(stuck, 0.5)).reason == "late"  # waits behind the first
        go.set()
        while (await health(url)).policies["slow"].late == 0:
            await asyncio.sleep(0.005)
        assert len(computed) == 1
        assert (await stuck.decide(HISTORY[:4], 1.0, 5.0)).level == 1


async def test_idle_sessions_expire_and_too_many_are_refused() -> None:
    async with (
        service(max_sessions=1, dice=Dice) as url,
        client(url, "dice") as first,
        client(url, "dice", AbrSession("t", VIDEO, 12)) as second,
    ):
        await first.open(5.0)
        await first.open(5.0)
        with pytest.raises(DecisionFailed) as raised:
            await second.open(5.0)
        assert (raised.value.reason, raised.value.message) == ("error", "there are 1 sessions, wanted fewer than 1")
    async with (
        service(max_sessions=1, idle_s=-1.0, dice=Dice) as url,
        client(url, "dice") as first,
        client(url, "dice", AbrSession("t", VIDEO, 12)) as second,
    ):
        await first.open(5.0)
        await second.open(5.0)
        assert (await health(url)).sessions == 1


class Held(Dice):
    """Starts, with `failing` set not even that, once it may."""

    go = threading.Event()
    failing = False

    def reset(self, session: AbrSession, seed: int) -> None:
        super().reset(session, seed)
        assert self.go.wait(30)
        if self.failing:
            raise RuntimeError("no")


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> type[Held]:
    monkeypatch.setattr(Held, "go", threading.Event())
    return Held


def opening(session_id: str = "s", seed: int = 1) -> Open:
    return Open(session=AbrSession(session_id, VIDEO, 12), policy="held", seed=seed)


ASK = Decide(history=HISTORY[:1], buffer_s=1.0, deadline_s=5.0)


async def begun(sessions: Sessions, *messages: Open) -> list[asyncio.Task[None]]:
    """Openings that are under way."""
    tasks = [asyncio.create_task(sessions.open(message)) for message in messages]
    await asyncio.sleep(0)
    return tasks


async def preloaded(held: type[Held], max_sessions: int = 9) -> Sessions:
    sessions = Sessions(max_sessions, 100.0)
    await sessions.preload("held", lambda reference: held)
    return sessions


async def test_sessions_that_are_being_opened_count(held: type[Held]) -> None:
    sessions = await preloaded(held, 1)
    tasks = await begun(sessions, *(opening(f"s{i}") for i in range(4)))
    held.go.set()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert ended[0] is None
    assert [error.code for error in ended[1:] if isinstance(error, Refusal)] == ["busy"] * 3
    assert sessions.health(0).sessions == 1
    sessions.shutdown()


async def test_a_session_closed_while_it_is_opened_stays_closed(held: type[Held]) -> None:
    sessions = await preloaded(held)
    (task,) = await begun(sessions, opening())
    sessions.close("s")
    held.go.set()
    with pytest.raises(Refusal, match="session s was closed or opened anew before it had started"):
        await task
    assert sessions.health(0).sessions == 0
    sessions.shutdown()


async def test_of_two_openings_the_second_stands_and_a_decision_waits_for_it(held: type[Held]) -> None:
    sessions = await preloaded(held)
    first, second = await begun(sessions, opening(seed=1), opening(seed=2))
    decision = asyncio.create_task(sessions.decide("s", ASK))
    await asyncio.sleep(0)
    held.go.set()
    with pytest.raises(Refusal):
        await first
    await second
    assert (await decision).level == alone(SESSION, 2, [1.0])[0]
    sessions.shutdown()


async def test_a_session_that_fails_to_start_leaves_nothing(held: type[Held], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held, "failing", True)
    sessions = await preloaded(held)
    (task,) = await begun(sessions, opening())
    decision = asyncio.create_task(sessions.decide("s", ASK))
    await asyncio.sleep(0)
    held.go.set()
    for waiting in (task, decision):
        with pytest.raises(Refusal, match="the policy raised RuntimeError: no"):
            await waiting
    assert sessions.health(0).sessions == 0
    sessions.shutdown()


async def test_an_answer_lost_on_its_way_is_given_again_and_not_drawn_again() -> None:
    lost = 0

    @web.middleware
    async def losing(request: web.Request, handler: Any) -> web.StreamResponse:
        """Every second answer to a decision is lost with its connection."""
        nonlocal lost
        response = await handler(request)
        if request.path.endswith("/decide"):
            lost += 1
            if lost % 2 and request.transport:
                request.transport.abort()
        return response

    sessions = Sessions(9, 100.0)
    await sessions.preload("dice", lambda reference: Dice)
    app = application(sessions)
    app.middlewares.insert(0, losing)
    buffers_s = [0.3 * i for i in range(11)]
    async with listening(app) as url, client(url, "dice") as asking:
        await asking.open(5.0)
        levels = [(await asking.decide(HISTORY[: i + 1], buffer_s, 5.0)).level for i, buffer_s in enumerate(buffers_s)]
    assert lost == 22
    assert levels == alone(SESSION, 1, buffers_s)
    sessions.shutdown()


# --- the messages ---

OPEN: dict[str, Any] = json.loads(msgspec.json.encode(Open(session=SESSION, policy="dice", seed=1)))
DECIDE: dict[str, Any] = json.loads(msgspec.json.encode(Decide(history=HISTORY[:3], buffer_s=1.0, deadline_s=1.0)))


def changed(message: dict[str, Any], path: str, value: object) -> bytes:
    """The message with the field at `path` replaced (removed for ...)."""
    copy = json.loads(json.dumps(message))
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    place = copy
    for part in parents:
        place = place[part]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return json.dumps(copy).encode()


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("version", 2, "version is 2, wanted 1"),
        ("policy", "", "policy is 0, wanted 1 to 500 characters"),
        ("policy", 3, "Open: Expected `str`, got `int` - at `$.policy`"),
        ("seed", -1, "seed is -1, wanted 0 to 2^63 - 1"),
        ("seed", 2**70, "seed"),
        ("seed", ..., "Open: Object missing required field `seed`"),
        ("colour", 1, "Open: Object contains unknown field `colour`"),
        ("session.session_id", "../x", "session.session_id is '../x', wanted 1 to 128 of A-Za-z0-9._:-"),
        ("session.chunks", 13, "session.chunks is 13, wanted 1 to 12"),
        ("session.chunks", 0, "session.chunks is 0, wanted 1 to 12"),
        ("session.first_level", 3, "session.first_level is 3, wanted 0 to 2"),
        ("session.buffer_cap_s", 0, "session.buffer_cap_s is 0.0, wanted more than 0"),
        ("session.buffer_cap_s", float("nan"), "Open: JSON is malformed"),
        ("session.rtt_s", -0.1, "session.rtt_s is -0.1, wanted 0 to 1e+06 s"),
        ("session.rtt_s", 1e300, "session.rtt_s is 1e+300, wanted 0 to 1e+06 s"),
        ("session.video.chunk_s", 0, "session.video.chunk_s is 0.0, wanted 0.01 to 10000 s"),
        ("session.video.bitrates_bps", [], "session.video.bitrates_bps is 0, wanted 1 to 100 levels"),
        ("session.video.bitrates_bps.1", 300_000, "session.video.bitrates_bps[1] is 300000, wanted more than 300000"),
        ("session.video.sizes_bytes", [], "session.video.sizes_bytes is 0, wanted 1 to 10000 chunks"),
        ("session.video.sizes_bytes.4", [1, 2], "session.video.sizes_bytes[4] is 2, wanted 3 sizes"),
        ("session.video.sizes_bytes.4.1", 0, "session.video.sizes_bytes[4][1] is 0, wanted 1 to 2^40"),
        ("session.video.sizes_bytes.4.1", 0.5, "Open: Expected `int`, got `float` - at `$.session.video.sizes_bytes[4][1]`"),
    ],
)
def test_a_malformed_open_names_the_field(path: str, value: object, sentence: str) -> None:
    with pytest.raises(Refusal) as raised:
        decode_open(changed(OPEN, path, value))
    assert raised.value.code == "malformed"
    assert raised.value.message.startswith(sentence)


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("version", 0, "version is 0, wanted 1"),
        ("buffer_s", -1, "buffer_s is -1.0, wanted 0 to 1e+06 s"),
        ("buffer_s", None, "Decide: Expected `float`, got `null` - at `$.buffer_s`"),
        ("deadline_s", 0, "deadline_s is 0.0, wanted more than 0"),
        ("history.1.index", 0, "history[1].index is 0, wanted 1"),
        ("history.2.download_s", 0, "history[2].download_s is 0.0, wanted more than 0"),
        ("history.2.size_bytes", 0, "history[2].size_bytes is 0, wanted 1 to 2^40"),
        ("history.0.rebuffer_s", -1e-9, "history[0].rebuffer_s is -1e-09, wanted 0"),
        ("history.0.waited_s", 1e7, "history[0].waited_s is 10000000.0, wanted 0"),
    ],
)
def test_a_malformed_decide_names_the_field(path: str, value: object, sentence: str) -> None:
    with pytest.raises(Refusal) as raised:
        decode_decide(changed(DECIDE, path, value))
    assert raised.value.code == "malformed"
    assert raised.value.message.startswith(sentence)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("history", []), "history is 0, wanted 1 to 11 chunks"),
        (("history.1.level", 3), "history[1].level is 3, wanted 0 to 2"),
        (("history.1.level", -1), "history[1].level is -1, wanted 0 to 2"),
    ],
)
async def test_a_history_of_another_session_is_400_and_a_sentence(change: tuple[str, object], sentence: str) -> None:
    async with service(dice=Dice) as url, client(url, "dice") as asking, aiohttp.ClientSession() as http:
        await asking.open(5.0)
        async with http.post(f"{url}/sessions/s/decide", data=changed(DECIDE, *change)) as response:
            assert response.status == 400
            assert msgspec.json.decode(await response.read(), type=Failure) == Failure(code="malformed", message=sentence)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "/sessions", b"", 400, "malformed"),
        ("POST", "/sessions", b"[" * 100_000, 400, "malformed"),
        ("POST", "/sessions", b'{"session":' * 50_000, 400, "malformed"),
        ("POST", "/sessions", b"\xff\xfe", 400, "malformed"),
        ("POST", "/sessions", b"x" * (5 << 20), 413, "malformed"),
        ("POST", "/sessions", changed(OPEN, "policy", "os:system"), 404, "unknown_policy"),
        ("POST", "/sessions", changed(OPEN, "policy", "/etc/passwd.py"), 404, "unknown_policy"),
        ("POST", "/sessions/s/decide", b"{}", 400, "malformed"),
        ("POST", "/sessions/s/decide", json.dumps(DECIDE).encode(), 404, "unknown_session"),
        ("POST", "/sessions/%00/decide", json.dumps(DECIDE).encode(), 404, "unknown_session"),
        ("GET", "/sessions", b"", 405, "no_such_path"),
        ("POST", "/health", b"", 405, "no_such_path"),
        ("GET", "/nothing", b"", 404, "no_such_path"),
        ("GET", "/../../etc/passwd", b"", 404, "no_such_path"),
    ],
)
async def test_garbage_is_refused_and_the_service_goes_on(method: str, path: str, body: bytes, status: int, code: str) -> None:
    async with service(dice=Dice) as url, aiohttp.ClientSession() as http:
        async with http.request(method, url + path, data=body) as response:
            assert response.status == status
            refused = msgspec.json.decode(await response.read(), type=Failure)
        assert refused.code == code
        assert "\n" not in refused.message
        assert len(refused.message) < 400
        assert (await health(url)).sessions == 0


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def paths(message: Any, prefix: str = "") -> list[str]:
    """Every field of a message."""
    items = message.items() if isinstance(message, dict) else enumerate(message) if isinstance(message, list) else ()
    return [path for key, value in items for path in (f"{prefix}{key}", *paths(value, f"{prefix}{key}."))]


@given(st.binary(max_size=200))
def test_no_bytes_break_the_decoders(body: bytes) -> None:
    for decode in (decode_open, decode_decide, lambda body: decode_answer(body, SESSION)):
        with pytest.raises(Refusal) as raised:
            decode(body)
        assert raised.value.code in ("malformed", "invalid")


@given(st.data())
def test_no_value_in_any_field_breaks_the_decoders(data: st.DataObject) -> None:
    for message, decode in ((OPEN, decode_open), (DECIDE, decode_decide)):
        body = changed(message, data.draw(st.sampled_from(paths(message))), data.draw(json_values | st.just(...)))
        try:
            decode(body)
        except Refusal as refusal:
            assert refusal.code == "malformed"


def test_what_is_sent_is_what_arrives() -> None:
    chunk = Chunk(0, 1, 5, 0.1 + 0.2, 1 / 3, 2 / 3, 1e-17)
    sent = Decide(history=(chunk,), buffer_s=0.1 + 0.7, deadline_s=1.0)
    assert decode_decide(msgspec.json.encode(sent)) == sent
    opened = Open(session=SESSION, policy="bba", seed=2**63 - 1)
    assert decode_open(msgspec.json.encode(opened)) == opened


# --- the client against a controller that is wrong or gone ---


@pytest.mark.parametrize(
    "body", [b"", b"hello", b"{}", b'{"level":3,"policy_s":0}', b'{"level":1,"policy_s":-1}', b'{"level":"1","policy_s":0}', b"\x00" * 1000]
)
async def test_a_garbage_answer_is_invalid(body: bytes) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=body)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    async with listening(app) as url, client(url, "dice") as asking:
        assert (await failure(asking)).reason == "invalid"


@pytest.mark.parametrize(
    ("reply", "reason"),
    [(b"", "unreachable"), (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", "unreachable"), (b"\x00\x01 what?\r\n\r\n", "invalid")],
)
async def test_a_connection_that_breaks_or_talks_nonsense(reply: bytes, reason: str) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(reply)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server, client(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "dice") as asking:
        assert (await failure(asking)).reason == reason


async def test_a_connection_left_over_from_before_a_restart_is_made_anew() -> None:
    """The service closes the kept connection just as the next question arrives, as a restart may."""
    answered = 0

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal answered
        body = msgspec.json.encode(Answer(level=2, policy_s=0.0))
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]))
        answered += 1
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        await reader.readuntil(b"\r\n\r\n")  # the second question on this connection is never answered
        writer.transport.abort()

    server = await asyncio.start_server(once, "127.0.0.1", 0)
    async with server, client(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "dice") as asking:
        assert [(await asking.decide(HISTORY[:1], 1.0, 5.0)).level for _ in range(3)] == [2, 2, 2]
        assert answered == 3


async def test_nobody_listens_and_nobody_accepts() -> None:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    async with client(f"http://127.0.0.1:{port}", "dice") as asking:
        failed = await failure(asking)
    assert (failed.reason, failed.message) == ("unreachable", f"http://127.0.0.1:{port}: Connect call failed ('127.0.0.1', {port})")


async def test_a_client_that_is_stopped_while_it_says_goodbye_closes_its_connection() -> None:
    """The service reads, and answers nothing."""
    came = asyncio.Event()
    server = await asyncio.start_server(lambda *_: came.set(), "127.0.0.1", 0)
    async with server:
        asking = DecisionClient(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", SESSION, "dice", 1)
        closing = asyncio.create_task(asking.close(60.0))
        await came.wait()
        closing.cancel()
        await asyncio.wait([closing])
        assert asking._http.closed


async def test_a_controller_that_accepts_no_connection_is_unreachable_not_late() -> None:
    """A full backlog drops every further SYN, as a controller that is gone without a word does."""
    with socket.socket() as full, contextlib.ExitStack() as filling:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):
            filler = filling.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        async with client("http://127.0.0.1:{1}".format(*full.getsockname()), "dice") as asking:
            failed = await failure(asking, 0.2)
    assert failed.reason == "unreachable"
    assert failed.message.endswith("no connection within 0.1 s")


# --- the process ---

MINE = """
from controllers.api import AbrPolicy
class Mine(AbrPolicy):
    def __init__(self, level: int = 1):
        self.level = level
    def decide(self, observation):
        return self.level
"""


async def test_the_process_serves_tcp_and_a_unix_socket_and_ends_on_sigterm(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    mine = f"{tmp_path}/mine.py"
    config = ControllerConfig(host="127.0.0.1", unix_socket=str(tmp_path / "socket"), policies=("bba", mine, f"{mine}+level=2"))
    for number, code in ((signal.SIGKILL, -9), (signal.SIGTERM, 0)):  # the second finds the first one's socket file
        with running("controllers.server", config) as process:
            ready = process.line()
            assert ready["event"] == "ready"
            assert list(ready["load_s"]) == list(config.policies)
            url = f"http://127.0.0.1:{ready['port']}"
            async with client(url, mine) as one, client(url, f"{mine}+level=2", AbrSession("t", VIDEO, 12)) as two:
                assert (await one.decide(HISTORY[:1], 1.0, 5.0)).level == 1
                assert (await two.decide(HISTORY[:1], 1.0, 5.0)).level == 2
                unix = aiohttp.ClientSession(connector=aiohttp.UnixConnector(config.unix_socket))
                async with unix, unix.get("http://controller/health") as response:
                    seen = msgspec.json.decode(await response.read(), type=Health)
            assert (seen.pid, seen.sessions) == (process.child.pid, 2)
            assert {name: policy.decisions for name, policy in seen.policies.items()} == {"bba": 0, mine: 1, f"{mine}+level=2": 1}
            assert process.end(number) == (code, [], "")


async def test_torch_has_the_threads_that_a_policy_gives_it(tmp_path: Path) -> None:
    threads = MINE.replace("self.level = level", "torch.set_num_threads(level)").replace("self.level", "torch.get_num_threads()")
    (tmp_path / "mine.py").write_text("import torch\n" + threads)
    mine = f"{tmp_path}/mine.py+level=2"
    with running("controllers.server", ControllerConfig(host="127.0.0.1", policies=(mine,))) as process:
        async with client(f"http://127.0.0.1:{process.line()['port']}", mine) as asking:
            assert (await asking.decide(HISTORY[:1], 1.0, 5.0)).level == 2


async def test_what_a_policy_prints_and_reads_is_no_message(tmp_path: Path) -> None:
    """Nobody reads stdout after the first line: what is printed there would fill the pipe and stop the service."""
    loud = "import os, sys\nprint('hello')\nos.write(1, b'{}')\nassert sys.stdin.read() == '' and os.read(0, 1) == b''\n"
    (tmp_path / "mine.py").write_text(loud + MINE.replace("return self.level", "print('x' * 300_000, flush=True); return self.level"))
    config = ControllerConfig(host="127.0.0.1", policies=(f"{tmp_path}/mine.py",))
    command = [sys.executable, "-m", "controllers.server"]
    with (tmp_path / "said").open("wb") as said, subprocess.Popen(command, stdin=-1, stdout=-1, stderr=said) as child:
        assert child.stdin and child.stdout
        child.stdin.write(msgspec.json.encode(config))
        child.stdin.close()
        try:
            ready = msgspec.json.decode(child.stdout.readline(), type=ControllerReady)
            async with client(f"http://127.0.0.1:{ready.port}", config.policies[0]) as asking:
                assert [(await asking.decide(HISTORY[:1], 1.0, 5.0)).level for _ in range(3)] == [1, 1, 1]
        finally:
            child.terminate()
        assert (child.stdout.read(), child.wait()) == (b"", 0)
    assert (tmp_path / "said").stat().st_size > 900_000


def test_a_config_as_argument_leaves_an_open_stdin_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import sys\nassert sys.stdin.read() == ''\n" + MINE)
    config = msgspec.json.encode(ControllerConfig(host="127.0.0.1", policies=(f"{tmp_path}/mine.py",)))
    with subprocess.Popen([sys.executable, "-m", "controllers.server", config], stdin=-1, stdout=-1) as child:
        assert child.stdin and child.stdout
        watch = threading.Timer(30, child.kill)
        watch.start()
        try:
            assert msgspec.json.decode(child.stdout.readline(), type=ControllerReady).pid == child.pid
            assert not child.stdin.closed
        finally:
            watch.cancel()
            child.terminate()


def test_sigterm_ends_a_load_that_takes_long(tmp_path: Path) -> None:
    waits = "sys.stderr.write('loading\\n'); sys.stderr.flush(); threading.Event().wait()"
    (tmp_path / "mine.py").write_text("import sys, threading\n" + MINE.replace("self.level = level", waits))
    with running("controllers.server", ControllerConfig(host="127.0.0.1", policies=(f"{tmp_path}/mine.py", "bba"))) as process:
        assert process.child.stderr and process.child.stderr.readline() == b"loading\n"
        assert process.end() == (0, [], "")


async def test_a_call_that_nobody_awaits_any_more_still_counts() -> None:
    begun, go = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def slow() -> int:
        loop.call_soon_threadsafe(begun.set)
        assert go.wait(30)
        return 1

    sessions = Sessions(9, 100.0)
    await sessions.preload("slow", lambda reference: lambda: Numb(slow))
    await sessions.open(Open(session=SESSION, policy="slow", seed=1))
    asked = asyncio.create_task(sessions.decide("s", Decide(history=HISTORY[:1], buffer_s=1.0, deadline_s=9.0)))
    await begun.wait()
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    assert sessions.computing == 1
    go.set()
    while sessions.computing:
        await asyncio.sleep(0)
    sessions.shutdown()


@pytest.mark.parametrize(
    ("policies", "sentence"),
    [
        (("bbaa",), "policy 'bbaa' is unknown"),
        (("{}/gone.py",), "policy file {}/gone.py does not exist"),
        (("bba+fill=3",), "policy 'bba+fill=3': option 'fill' is unknown"),
    ],
)
def test_a_policy_that_cannot_be_loaded_is_one_sentence(policies: tuple[str, ...], sentence: str, tmp_path: Path) -> None:
    config = ControllerConfig(host="127.0.0.1", policies=tuple(policy.format(tmp_path) for policy in policies))
    with running("controllers.server", config) as process:
        code, lines, errors = process.wait()
    assert (code, lines) == (2, [])
    assert errors.startswith(sentence.format(tmp_path))
    assert errors.count("\n") == 1


def test_an_address_in_use_is_one_sentence(tmp_path: Path) -> None:
    with running("controllers.server", ControllerConfig(host="127.0.0.1", policies=())) as first:
        port = first.line()["port"]
        with running("controllers.server", ControllerConfig(host="127.0.0.1", port=port, policies=())) as second:
            assert second.wait() == (2, [], f"decision service: can't listen on 127.0.0.1 port {port}: Address already in use\n")
    gone = str(tmp_path / "no" / "folder")
    with running("controllers.server", ControllerConfig(host="127.0.0.1", unix_socket=gone, policies=())) as third:
        assert third.wait() == (2, [], f"decision service: can't listen on {gone}: No such file or directory\n")


async def test_a_policy_that_never_returns_does_not_keep_the_process_alive(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE.replace("return self.level", "import threading; threading.Event().wait()"))
    with running("controllers.server", ControllerConfig(host="127.0.0.1", policies=(f"{tmp_path}/mine.py",))) as process:
        url = f"http://127.0.0.1:{process.line()['port']}"
        async with client(url, f"{tmp_path}/mine.py") as asking:
            assert (await failure(asking, 0.2)).reason == "late"
        code, lines, _ = process.end()
    assert (code, lines) == (0, [])
