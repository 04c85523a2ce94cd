"""The offline optimum: what a player that knows the whole trace could score. An upper line for reports, no policy and no teacher.

Dynamic programming through the exact simulator. After each chunk, states of one level whose trace time falls into one cell of a grid
compete, and those that another one outdoes are given up; who stays keeps exact time and buffer. States that can't reach any more what one
level throughout scores are given up, too. So every value is the score of a playback that really exists, a lower bound of the true optimum,
and no less than any constant level's. On the traces of the golden tests a grid of 0.2 s finds what 0.05 s finds, and what an independent
program found at 0.1 s.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from controllers.api import AbrSession
from testbed.metrics import REBUF_PENALTY, SWITCH_PENALTY
from testbed.sim.abr import OPTIMUM_GRID_S as GRID_S
from testbed.sim.abr import PAYLOAD_SHARE, rates_of
from testbed.sim.batch import Floats, Integers, State, Traces, advance
from testbed.sim.compiled import compiled
from testbed.units import bytes_per_s_from_bps, mbps_from_bps
from traces.trace import Trace

ROUNDING = 1e-9
"""Equal scores differ by so much after some hundred additions."""
MARGIN = 1e-6
"""So much a state must fall short of a known playback, whatever comes, before it is given up: sums of bytes round, too."""


class Optimum(NamedTuple):
    """The best playback found."""

    qoe: float
    """Mean QoE_lin per chunk over chunks 1 .. N-1."""
    levels: tuple[int, ...]
    """Of all chunks, chunk 0 included."""


def offline_optimum(trace: Trace, session: AbrSession, offset_s: float = 0.0, grid_s: float = GRID_S) -> float:
    """Mean QoE_lin per chunk over chunks 1 .. N-1, chunk 0 at the session's first level, any jump allowed."""
    return best_playback(trace, session, offset_s, grid_s).qoe


def best_playback(
    trace: Trace, session: AbrSession, offset_s: float = 0.0, grid_s: float = GRID_S, alive: Callable[[], None] = lambda: None
) -> Optimum:
    """The offline optimum with its levels. `alive` is called after each chunk. Raises `ValueError` for a session of one chunk."""
    if session.chunks < 2:
        raise ValueError(f"a session of {session.chunks} chunks has nothing to rate, wanted at least 2")
    search = _Search(trace, session, offset_s)
    fixed = search.constant()
    kept = [_Kept(np.zeros(1, np.int64), np.array([session.first_level]))]
    now = search.begun()
    for number in range(1, session.chunks):
        now, parent, level = search.advanced(now, kept[-1].level, number)
        worthy = np.flatnonzero(search.most(now, number) > fixed.score - MARGIN)
        now, parent, level = now.take(worthy), parent[worthy], level[worthy]
        stay = best_of_cells(now.played_s, now.state.buffer_s, level, now.score, grid_s)
        now = now.take(stay)
        kept.append(_Kept(parent[stay], level[stay]))
        alive()
        if not len(stay):
            break
    best = int(np.argmax(now.score)) if len(now.score) else -1
    if best < 0 or now.score[best] < fixed.score:
        return Optimum(fixed.score / (session.chunks - 1), fixed.levels)
    return Optimum(float(now.score[best]) / (session.chunks - 1), _path(kept, best))


class _Now(NamedTuple):
    """Where playbacks stand; arrays of shape (states,)."""

    state: State
    played_s: Floats
    """In the trace, laps included."""
    score: Floats

    def take(self, which: Integers) -> "_Now":
        return _Now(self.state.take(which), self.played_s[which], self.score[which])


class _Kept(NamedTuple):
    """The states that stayed after a chunk: where each came from among those before, and its chunk's level; shape (states,)."""

    parent: Integers
    level: Integers


class _Fixed(NamedTuple):
    """The best playback of one level throughout."""

    score: float
    levels: tuple[int, ...]


class _Search:
    """One trace and session: how playbacks go on, and what they can still reach."""

    def __init__(self, trace: Trace, session: AbrSession, offset_s: float) -> None:
        self.session, self.offset_s = session, offset_s
        self.traces = Traces([trace])
        self.sizes = np.asarray(session.video.sizes_bytes, np.float64)  # (chunks, levels)
        self.mbps = mbps_from_bps(np.asarray(session.video.bitrates_bps, np.float64))  # (levels,)
        self.switch = SWITCH_PENALTY * np.abs(self.mbps[:, None] - self.mbps[None, :])  # (levels before, levels)
        least = self.sizes[: session.chunks].min(axis=1)  # (chunks,)
        self.least_left = least[::-1].cumsum()[::-1] - least  # (chunks,): bytes that come after a chunk, at the least
        rates = rates_of(trace)
        widths_s = np.diff(rates.edges_s)
        carried = np.cumsum(widths_s * bytes_per_s_from_bps(np.asarray(rates.rates_bps, np.float64))) * PAYLOAD_SHARE
        self.edges_s, self.carried = np.asarray(rates.edges_s), np.concatenate([[0.0], carried])  # (edges,)
        self.rising = np.concatenate([[True], np.diff(self.carried) > 0])  # (edges,): an outage has one amount at both ends

    def begun(self) -> _Now:
        """After chunk 0."""
        state = self.traces.start(np.zeros(1, np.int64), np.array([self.offset_s], np.float64))
        now = _Now(state, np.zeros(1), np.zeros(1))
        self._download(now, self.sizes[0, [self.session.first_level]])
        return now

    def advanced(self, now: _Now, level: Integers, number: int) -> tuple[_Now, Integers, Integers]:
        """Each state after chunk `number` at each level: (states x levels,), with its parent and its level."""
        parent = np.repeat(np.arange(len(now.score)), len(self.mbps))
        choice = np.tile(np.arange(len(self.mbps)), len(now.score))
        after = now.take(parent)
        rebuffer_s = self._download(after, self.sizes[number, choice])
        gain = self.mbps[choice] - REBUF_PENALTY * rebuffer_s - self.switch[level[parent], choice]
        return after._replace(score=after.score + gain), parent, choice

    def constant(self) -> _Fixed:
        """The best of those that choose one level for all chunks but the first."""
        choice = np.arange(len(self.mbps))
        now, level = self.begun().take(np.zeros(len(choice), np.int64)), np.full(len(choice), self.session.first_level)
        score = now.score
        for number in range(1, self.session.chunks):
            rebuffer_s = self._download(now, self.sizes[number])
            score = score + self.mbps - REBUF_PENALTY * rebuffer_s - self.switch[level, choice]
            level = choice
        best = int(np.argmax(score))
        return _Fixed(float(score[best]), (self.session.first_level, *[best] * (self.session.chunks - 1)))

    def most(self, now: _Now, number: int) -> Floats:
        """Upper bound of the final score of each state, (states,): the highest level without a switch to the end, and no more stall than
        the lowest level's bytes take when they come one after another."""
        left = self.session.chunks - 1 - number
        end = np.interp(now.state.trace_s, self.edges_s, self.carried) + self.least_left[number]
        laps, rest = np.divmod(end, self.carried[-1])
        arrived_s = laps * self.edges_s[-1] + np.interp(rest, self.carried[self.rising], self.edges_s[self.rising])
        busy_s = arrived_s - now.state.trace_s + left * self.session.rtt_s
        media_s = now.state.buffer_s + max(left - 1, 0) * self.session.video.chunk_s
        return now.score + left * self.mbps.max() - REBUF_PENALTY * np.maximum(busy_s - media_s, 0.0) * (left > 0)

    def _download(self, now: _Now, sizes_bytes: Floats) -> Floats:
        """Download a chunk for each state, add the trace's time that it took to `played_s`; returns the stalls."""
        done = advance(self.traces, self.session, now.state, sizes_bytes)
        now.played_s[:] += done.download_s - self.session.rtt_s + done.waited_s
        return done.rebuffer_s


def _path(kept: list[_Kept], best: int) -> tuple[int, ...]:
    """The levels that led to state `best` of the last chunk."""
    levels = []
    for parent, level in reversed(kept):
        levels.append(int(level[best]))
        best = int(parent[best])
    return tuple(reversed(levels))


def best_of_cells(played_s: Floats, buffer_s: Floats, level: Integers, score: Floats, grid_s: float) -> Integers:
    """Indices of the states worth keeping: the best of each cell, without those that another one of the same level and time outdoes.

    A state is outdone by one with no less buffer and no lower score; and by one with less buffer whose score is higher by what it would
    cost to stall for the difference, because at worst it stalls for that long later.
    """
    time = np.floor(played_s / grid_s).astype(np.int64)
    order = np.lexsort((-score, -buffer_s, time, level))
    return _worth_keeping(order, level, time, buffer_s, score)


@compiled
def _worth_keeping(order, level, time, buffer_s, score):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """`order` goes by level, time and falling buffer; the indices that stay, in that order but for each cell's own."""
    kept = np.empty(len(order), np.int64)
    if not len(order):
        return kept
    count, first = 0, 0
    for k in range(1, len(order) + 1):
        if k < len(order) and level[order[k]] == level[order[first]] and time[order[k]] == time[order[first]]:
            continue
        begin, best = count, -np.inf
        for i in order[first:k]:  # a larger buffer outdoes a smaller one of no higher score
            if score[i] > best:
                best = score[i]
                kept[count] = i
                count += 1
        write, most = count, -np.inf
        for i in kept[begin:count][::-1]:  # a smaller buffer outdoes a larger one that is not worth its stall
            worth = score[i] + REBUF_PENALTY * buffer_s[i]
            if worth > most + ROUNDING:
                most = worth
                write -= 1
                kept[write] = i
        kept[begin : begin + count - write] = kept[write:count].copy()
        count, first = begin + count - write, k
    return kept[:count]
