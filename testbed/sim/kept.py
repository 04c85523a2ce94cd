"""Offline optima that were found before, kept in the project's cache folder. A run pays once for each trace."""

import contextlib
import hashlib
import math
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import msgspec

from controllers.api import AbrSession
from testbed.cache import CHECKOUT, cache_folder
from testbed.metrics import summarise
from testbed.sim.abr import OPTIMUM_GRID_S, AbrSimulator
from testbed.sim.optimum import Optimum, best_playback
from traces.trace import Trace

CODE = (
    *("testbed/sim/optimum.py", "testbed/sim/batch.py", "testbed/sim/abr.py"),
    *("testbed/metrics.py", "testbed/units.py", "traces/formats.py"),
)
"""The files that an optimum depends on: a change in one of them forgets all that is kept."""
ROUNDING = 1e-6
"""Share by which the score of a kept playback may differ from what the simulator gives it now."""


class _Entry(msgspec.Struct, frozen=True):
    """One file of the cache. The score is there to tell damaged levels."""

    qoe: float
    levels: tuple[int, ...]


def kept_optimum(
    trace: Trace, session: AbrSession, offset_s: float = 0.0, grid_s: float = OPTIMUM_GRID_S, alive: Callable[[], None] = lambda: None
) -> Optimum:
    """`best_playback`, from the cache where it is known. An entry that is damaged, or whose levels score otherwise, is made anew.

    A cache that can't be written costs time and nothing else.
    """
    path = cache_folder() / "optimum" / f"{_key(trace, session, offset_s, grid_s)}.json"
    known = _read(path)
    if known is not None and _holds(known, trace, session, offset_s):
        return known
    found = best_playback(trace, session, offset_s, grid_s, alive)
    with contextlib.suppress(OSError):
        _keep(path, found)
    return found


def _key(trace: Trace, session: AbrSession, offset_s: float, grid_s: float) -> str:
    """A hash of all that an optimum depends on."""
    video = session.video
    facts = (
        _code(),
        trace.sha256,
        (offset_s % trace.duration_s, grid_s),
        (session.chunks, session.buffer_cap_s, session.rtt_s, session.first_level),
        (video.chunk_s, video.bitrates_bps, video.sizes_bytes[: session.chunks]),
    )
    return hashlib.sha256(msgspec.json.encode(facts)).hexdigest()


@cache
def _code() -> str:
    """A hash of the code."""
    return hashlib.sha256(b"".join((CHECKOUT / name).read_bytes() for name in CODE)).hexdigest()


def _read(path: Path) -> Optimum | None:
    """What is kept; None where there is nothing, or nothing that can be read."""
    try:
        entry = msgspec.json.decode(path.read_bytes(), type=_Entry)
    except (OSError, UnicodeDecodeError, msgspec.DecodeError):
        return None
    return Optimum(entry.qoe, entry.levels)


def _holds(known: Optimum, trace: Trace, session: AbrSession, offset_s: float) -> bool:
    """Whether the kept levels are a playback of this session that scores what is kept with them."""
    in_ladder = all(0 <= level < session.video.levels for level in known.levels)
    if len(known.levels) != session.chunks or known.levels[0] != session.first_level or not in_ladder:
        return False
    simulator = AbrSimulator(trace, session, offset_s)
    for level in known.levels:
        simulator.step(level)
    return math.isclose(summarise(simulator.history, session.video).qoe, known.qoe, rel_tol=ROUNDING, abs_tol=ROUNDING)


def _keep(path: Path, found: Optimum) -> None:
    """Write beside the target, then rename: nobody ever reads half an entry, and two at once do no harm."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}")
    try:
        temporary.write_bytes(msgspec.json.encode(_Entry(found.qoe, found.levels)))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
