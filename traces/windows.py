"""Cuts viewings into windows: some samples of history, and those that follow as the truth.

| rule | first | step | last | where it is used |
| --- | --- | --- | --- | --- |
| `code` | 30 | 15 | 60 before the end | NetLLM's published code, whatever the horizon (three times its 10 and 20 samples) |
| `figures` | 30 | 15 | 30 before the end | the numbers of NetLLM's figures 1 and 2 (inferred: no other rule fits both) |
| `every` | 30 | 1 | 30 before the end | training here |

A window is named by its first future sample, counted from 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from testbed.errors import UserError, suggestion
from traces.viewports import FRONT_DEG, RATE_HZ, Floats, HeadMovement

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class WindowRule:
    """Where windows lie in a viewing, in samples."""

    name: str
    head: int
    step: int
    tail: int


RULES = {rule.name: rule for rule in (WindowRule("code", 30, 15, 60), WindowRule("figures", 30, 15, 30), WindowRule("every", 30, 1, 30))}


@dataclass(frozen=True, eq=False)
class Windows:
    """N windows, those of one viewing together and in order of time. Arrays are read-only."""

    rule: WindowRule
    rate_hz: float
    history_deg: Floats
    """(N, history, 3): roll, pitch, yaw."""
    times_s: Floats
    """When the history was sampled, (N, history)."""
    future_deg: Floats
    """(N, horizon, 3)"""
    video: Integers
    """(N,)"""
    user: Integers
    """(N,)"""
    at: Integers
    """The first future sample's number in its viewing, (N,)."""
    front_deg: float | None = FRONT_DEG
    """The yaw at which viewers look ahead; None: not known."""

    def __len__(self) -> int:
        return len(self.at)

    @property
    def history(self) -> int:
        """Samples of history."""
        return int(self.history_deg.shape[1])

    @property
    def horizon(self) -> int:
        """Samples to predict."""
        return int(self.future_deg.shape[1])

    def viewings(self) -> list[slice]:
        """The rows of each viewing."""
        changed = (np.diff(self.video) != 0) | (np.diff(self.user) != 0)
        edges = [0, *(np.flatnonzero(changed) + 1).tolist(), len(self)]
        return [slice(first, end) for first, end in pairwise(edges) if end > first]


def find_rule(name: str) -> WindowRule:
    """The rule called `name`."""
    if name not in RULES:
        raise UserError(f"windows {name!r} are unknown: {suggestion(name, RULES)}")
    return RULES[name]


def samples(seconds: float, what: str) -> int:
    """A length in whole samples; raises `UserError` for one that is none."""
    count = round(seconds * RATE_HZ)
    if count < 1 or abs(count - seconds * RATE_HZ) > 1e-6:
        raise UserError(f"the {what} is {seconds:g} s, wanted a multiple of {1 / RATE_HZ:g} s above 0 (samples come {RATE_HZ} a second)")
    return count


def cut(
    viewings: Sequence[HeadMovement], rule: WindowRule, history_s: float = 2.0, horizon_s: float = 4.0, front_deg: float | None = FRONT_DEG
) -> Windows:
    """All windows of `viewings`. Raises `UserError` when the rule leaves no room for the history or the horizon, or no window at all."""
    history, horizon = samples(history_s, "history"), samples(horizon_s, "horizon")
    for what, length, room in (("history", history, rule.head), ("horizon", horizon, rule.tail)):
        if length > room:
            most_s = room / RATE_HZ
            raise UserError(f"the {what} is {length / RATE_HZ:g} s, wanted at most the {most_s:g} s that windows {rule.name!r} leave")
    starts = [np.arange(rule.head, len(each.times_s) - rule.tail, rule.step) for each in viewings]
    if not sum(map(len, starts)):
        least = rule.head + rule.tail + 1
        raise UserError(f"windows {rule.name!r} of {len(viewings)} viewings are none, wanted a viewing of at least {least} samples")
    before, after = np.arange(-history, 0), np.arange(horizon)
    parts = list(zip(viewings, starts, strict=True))
    columns = {
        "history_deg": np.concatenate([each.angles_deg[at[:, None] + before] for each, at in parts]),
        "times_s": np.concatenate([each.times_s[at[:, None] + before] for each, at in parts]),
        "future_deg": np.concatenate([each.angles_deg[at[:, None] + after] for each, at in parts]),
        "video": np.concatenate([np.full(len(at), each.video) for each, at in parts]),
        "user": np.concatenate([np.full(len(at), each.user) for each, at in parts]),
        "at": np.concatenate(starts),
    }
    for column in columns.values():
        column.setflags(write=False)
    return Windows(rule, RATE_HZ, **columns, front_deg=front_deg)
