"""What a player and the decision service say to each other: JSON over HTTP, each message checked to the last number before use.

Scheduling and viewport prediction have the same paths and failures, with messages of their own (`protocol_cjs`, `protocol_vp`).

| request | body | answer |
| --- | --- | --- |
| `POST /sessions` | `Open` | 201 `Opened`; a session of the same id is replaced |
| `POST /sessions/{id}/decide` | `Decide` | 200 `Answer` |
| `DELETE /sessions/{id}` | | 200 `Closed`, also when there was none |
| `GET /health` | | 200, `controllers.health.Health` |

A decision is asked once for all by its header `Idempotency-Key`: a request with the key of the session's newest decision, as a client sends
it again after a broken connection, gets that one's answer, and the policy draws no second time.

Whatever goes wrong is a `Failure` with the status of `STATUS`. A `Decide` holds the whole history, so a session that the service lost
(it was restarted) goes on after a second `Open`.
"""

import math
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import msgspec

from controllers.api import AbrObservation, AbrSession, Chunk, Manifest
from testbed.errors import AnswerError
from testbed.sim.abr import level_number

IDEMPOTENCY_KEY = "Idempotency-Key"
VERSION = 1
"""Of the messages; another one is refused."""
MAX_MESSAGE_BYTES = 4 << 20
"""Longest message: the manifest of a video of ten hours in ten levels, or its history, is about half of it."""
MAX_CHUNKS = 10_000
MAX_LEVELS = 100
MAX_SECONDS = 1e6
MAX_TEXT = 500
"""Characters of a policy reference or the name of a video."""
SESSION_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}", re.ASCII)
STATUS = {
    "malformed": 400,
    "unknown_session": 404,
    "unknown_policy": 404,
    "no_such_path": 404,
    "busy": 503,
    "late": 503,
    "error": 500,
    "invalid": 500,
}
"""Code of a `Failure` to HTTP status. `error`: the policy raised; `invalid`: it answered what is no level; `late`: past the deadline."""

T = TypeVar("T")


class Open(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Start a session."""

    version: int = VERSION
    session: AbrSession
    policy: str
    """One of the references that the service preloaded."""
    seed: int


class Opened(msgspec.Struct, frozen=True, kw_only=True):
    """The session is ready for decisions."""

    session_id: str


class Decide(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is the level of chunk `len(history)`?"""

    version: int = VERSION
    history: tuple[Chunk, ...]
    buffer_s: float
    deadline_s: float
    """How long the player waits; a decision that has not begun by then is not begun."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """The level, and how long the policy computed."""

    level: int
    policy_s: float


class Closed(msgspec.Struct, frozen=True, kw_only=True):
    """The session is forgotten."""

    session_id: str


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why there is no answer."""

    code: str
    """A key of `STATUS`."""
    message: str
    """One sentence."""


@dataclass(eq=False)
class Refusal(Exception):
    """A request that is answered by a `Failure`."""

    code: str
    message: str


def decode_open(body: bytes) -> Open:
    """A checked `Open`; `Refusal` names the first field that is wrong."""
    message = decode(body, Open)
    check_opening(message.version, message.policy, message.seed)
    check_session(message.session)
    return message


def decode_decide(body: bytes) -> Decide:
    """A `Decide` with finite numbers in range; whether it fits its session says `observation`."""
    message = decode(body, Decide)
    check_asking(message.version, message.deadline_s)
    check_s("buffer_s", message.buffer_s)
    for i, chunk in enumerate(message.history):
        field = f"history[{i}]"
        check(f"{field}.index", chunk.index, chunk.index == i, f"{i}")
        check(f"{field}.size_bytes", chunk.size_bytes, 1 <= chunk.size_bytes <= 2**40, "1 to 2^40")
        check(f"{field}.download_s", chunk.download_s, 0 < chunk.download_s <= MAX_SECONDS, f"more than 0, at most {MAX_SECONDS:g} s")
        for name in ("rebuffer_s", "buffer_s", "waited_s"):
            check_s(f"{field}.{name}", getattr(chunk, name))
    return message


def observation(session: AbrSession, message: Decide) -> AbrObservation:
    """What the policy is told; `Refusal` when the history is not one of this session."""
    most = session.chunks - 1
    check("history", len(message.history), 1 <= len(message.history) <= most, f"1 to {most} chunks")
    for i, chunk in enumerate(message.history):
        _check_level(f"history[{i}].level", chunk.level, session.video)
    return AbrObservation(session, message.history, message.buffer_s)


def check_session(session: AbrSession) -> None:
    """A `Refusal` names the first field of a session that is out of range."""
    check_session_id(session.session_id)
    check_manifest(session.video, "session.video")
    most = len(session.video.sizes_bytes)
    check("session.chunks", session.chunks, 1 <= session.chunks <= most, f"1 to {most}")
    check("session.buffer_cap_s", session.buffer_cap_s, 0 < session.buffer_cap_s <= MAX_SECONDS, f"more than 0, at most {MAX_SECONDS:g} s")
    check_s("session.rtt_s", session.rtt_s)
    _check_level("session.first_level", session.first_level, session.video)


def check_manifest(video: Manifest, field: str = "video") -> None:
    """A `Refusal` names the first field of a manifest that is out of range: ladder rising, table whole, sizes of at least a byte."""
    check(f"{field}.name", len(video.name), 1 <= len(video.name) <= MAX_TEXT, f"1 to {MAX_TEXT} characters")
    check(f"{field}.chunk_s", video.chunk_s, 0.01 <= video.chunk_s <= 1e4, "0.01 to 10000 s")
    check(f"{field}.bitrates_bps", video.levels, 1 <= video.levels <= MAX_LEVELS, f"1 to {MAX_LEVELS} levels")
    for i, (lower, bitrate) in enumerate(pairwise((0, *video.bitrates_bps))):
        check(f"{field}.bitrates_bps[{i}]", bitrate, lower < bitrate <= 10**12, f"more than {lower}, at most 10^12 bit/s")
    chunks = len(video.sizes_bytes)
    check(f"{field}.sizes_bytes", chunks, 1 <= chunks <= MAX_CHUNKS, f"1 to {MAX_CHUNKS} chunks")
    for i, sizes_bytes in enumerate(video.sizes_bytes):
        check(f"{field}.sizes_bytes[{i}]", len(sizes_bytes), len(sizes_bytes) == video.levels, f"{video.levels} sizes")
        for level, size_bytes in enumerate(sizes_bytes):
            check(f"{field}.sizes_bytes[{i}][{level}]", size_bytes, 1 <= size_bytes <= 2**40, "1 to 2^40")


def _check_level(field: str, level: int, video: Manifest) -> None:
    check(field, level, 0 <= level < video.levels, f"0 to {video.levels - 1}")


def check_opening(version: int, policy: str, seed: int) -> None:
    """What the openings of all tasks say."""
    _check_version(version)
    check("policy", len(policy), 1 <= len(policy) <= MAX_TEXT, f"1 to {MAX_TEXT} characters")
    check("seed", seed, 0 <= seed < 2**63, "0 to 2^63 - 1")


def check_session_id(session_id: str) -> None:
    """As it may stand in a path."""
    check("session.session_id", session_id[:200], bool(SESSION_ID.fullmatch(session_id)), "1 to 128 of A-Za-z0-9._:-")


def check_asking(version: int, deadline_s: float) -> None:
    """What the questions of all tasks say."""
    _check_version(version)
    check("deadline_s", deadline_s, 0 < deadline_s <= MAX_SECONDS, f"more than 0, at most {MAX_SECONDS:g} s")


def check_policy_s(policy_s: float) -> None:
    """What the answers of all tasks say."""
    check("policy_s", policy_s, policy_s >= 0 and math.isfinite(policy_s), "0 or more")


def _check_version(version: int) -> None:
    check("version", version, version == VERSION, f"{VERSION}")


def check_s(field: str, seconds: float) -> None:
    """A time that may be 0."""
    check(field, seconds, 0 <= seconds <= MAX_SECONDS, f"0 to {MAX_SECONDS:g} s")


def check(field: str, seen: Any, ok: bool, wanted: str) -> None:
    """`Refusal` unless `ok`, which is False for NaN too, as every comparison with it is."""
    if not ok:
        raise Refusal("malformed", f"{field} is {seen!r}, wanted {wanted}")


def decode(body: bytes, kind: type[T]) -> T:
    """A message of this kind, or a `Refusal`."""
    if len(body) > MAX_MESSAGE_BYTES:
        raise Refusal("malformed", f"{kind.__name__}: the message has {len(body)} bytes, wanted at most {MAX_MESSAGE_BYTES}")
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise Refusal("malformed", f"{kind.__name__}: {error}") from None


def decode_answer(body: bytes, session: AbrSession) -> Answer:
    """A checked `Answer`; `Refusal("invalid")` when it is garbage or no level of the ladder."""
    try:
        answer = decode(body, Answer)
        _check_level("level", answer.level, session.video)
        check_policy_s(answer.policy_s)
    except Refusal as refusal:
        raise Refusal("invalid", refusal.message) from None
    return answer


def answer(decided: Any, seen: AbrObservation, policy_s: float) -> Answer:
    """What the policy decided, if it is a level of the ladder; else `Refusal`."""
    try:
        return Answer(level=level_number(decided, seen.video.levels), policy_s=policy_s)
    except AnswerError as error:
        raise Refusal("invalid", f"the policy {error}") from None


def decode_failure(body: bytes) -> Failure:
    """A `Failure`; what is none becomes one that says so."""
    try:
        return decode(body, Failure)
    except Refusal as refusal:
        return Failure(code="invalid", message=refusal.message)
