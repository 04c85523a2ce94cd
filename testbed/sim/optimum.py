"""The offline optimum: what a player that knows the whole trace could score. An upper line for reports, no policy and no teacher.

Dynamic programming through the exact simulator. After each chunk, states of one level whose trace time falls into one cell of a grid
compete, and those that another one outdoes are given up; who stays keeps exact time and buffer. So every value is the score of a playback
that really exists, a lower bound of the true optimum. On the traces of the golden tests a grid of 0.2 s finds what 0.05 s finds, and what
an independent program found at 0.1 s.
"""

import numpy as np
from numba import njit

from controllers.api import AbrSession
from testbed.metrics import REBUF_PENALTY, SWITCH_PENALTY
from testbed.sim.batch import Floats, Integers, State, Traces, advance
from testbed.units import mbps_from_bps
from traces.trace import Trace

GRID_S = 0.2
"""Of trace time."""
ROUNDING = 1e-9
"""Equal scores differ by so much after some hundred additions."""


def offline_optimum(trace: Trace, session: AbrSession, offset_s: float = 0.0, grid_s: float = GRID_S) -> float:
    """Mean QoE_lin per chunk over chunks 1 .. N-1, chunk 0 at the session's first level, any jump allowed."""
    traces = Traces([trace])
    sizes = np.asarray(session.video.sizes_bytes, np.float64)  # (chunks, levels)
    mbps = mbps_from_bps(np.asarray(session.video.bitrates_bps, np.float64))  # (levels,)
    switch = SWITCH_PENALTY * np.abs(mbps[:, None] - mbps[None, :])  # (levels before, levels)
    state = traces.start(np.zeros(1, np.int64), np.array([offset_s], np.float64))
    played_s = np.zeros(1)  # in the trace, laps included
    advance_s(traces, session, state, played_s, sizes[0, [session.first_level]])
    score, level = np.zeros(1), np.array([session.first_level])
    for number in range(1, session.chunks):
        parent = np.repeat(np.arange(len(score)), len(mbps))  # (states x levels,)
        choice = np.tile(np.arange(len(mbps)), len(score))
        state, played_s = state.take(parent), played_s[parent]
        rebuffer_s = advance_s(traces, session, state, played_s, sizes[number, choice])
        score = score[parent] + mbps[choice] - REBUF_PENALTY * rebuffer_s - switch[level[parent], choice]
        kept = best_of_cells(played_s, state.buffer_s, choice, score, grid_s)
        state, played_s, score, level = state.take(kept), played_s[kept], score[kept], choice[kept]
    return float(score.max()) / (session.chunks - 1)


def advance_s(traces: Traces, session: AbrSession, state: State, played_s: Floats, sizes_bytes: Floats) -> Floats:
    """Download a chunk for each state, add the trace's time that it took to `played_s`; returns the stalls."""
    done = advance(traces, session, state, sizes_bytes)
    played_s += done.download_s - session.rtt_s + done.waited_s
    return done.rebuffer_s


def best_of_cells(played_s: Floats, buffer_s: Floats, level: Integers, score: Floats, grid_s: float) -> Integers:
    """Indices of the states worth keeping: the best of each cell, without those that another one of the same level and time outdoes.

    A state is outdone by one with no less buffer and no lower score; and by one with less buffer whose score is higher by what it would
    cost to stall for the difference, because at worst it stalls for that long later.
    """
    time = np.floor(played_s / grid_s).astype(np.int64)
    order = np.lexsort((-score, -buffer_s, time, level))
    return _worth_keeping(order, level, time, buffer_s, score)


@njit(cache=True)
def _worth_keeping(order, level, time, buffer_s, score):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """`order` goes by level, time and falling buffer; the indices that stay, in that order but for each cell's own."""
    kept = np.empty(len(order), np.int64)
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
