"""RobustMPC for many sessions at once, compiled: the baseline that Genet's curriculum measures its model against.

Decides exactly as `controllers.abr.robust_mpc` with `jumps=adjacent` does, which has the same moves as Genet; a test holds it to that.
"""

import numpy as np

from controllers.learning.playbacks import Playbacks
from testbed.metrics import REBUF_PENALTY, SWITCH_PENALTY
from testbed.sim.batch import Floats, Integers
from testbed.sim.compiled import compiled
from testbed.units import bits_from_bytes, bps_from_mbps, bytes_per_s_from_bps

HORIZON = 5
WINDOW = 5


def play_baseline(plays: Playbacks) -> Floats:
    """QoE per chunk of each session when RobustMPC decides, (sessions,)."""
    plays.begin()
    while not plays.done:
        plays.step(robust_mpc(plays))
    return plays.mean_qoe


def robust_mpc(plays: Playbacks) -> Integers:
    """Level of the next chunk of each session, (sessions,). The videos must fill the ladder."""
    if not plays.exists.all():
        raise ValueError("a video lacks levels of the ladder, wanted all of them")
    steps = min(HORIZON, plays.session.chunks - plays.chunk)
    ahead = plays.videos.sizes_bytes[plays.video, plays.chunk : plays.chunk + steps]  # (sessions, steps, levels)
    seen = slice(max(plays.chunk - 2 * WINDOW, 0), plays.chunk)
    measured_bps = bits_from_bytes(plays.sizes_bytes[seen]) / plays.download_s[seen]  # (chunks, sessions)
    bytes_per_s = bytes_per_s_from_bps(_bounds_bps(np.ascontiguousarray(measured_bps.T)))
    bitrates_bps = bps_from_mbps(plays.slot_mbps)
    chosen: Integers = _plan(
        ahead, bytes_per_s, plays.buffer_s, bitrates_bps, plays.slots[plays.chunk - 1], plays.videos.chunk_s, REBUF_PENALTY, SWITCH_PENALTY
    )
    return chosen


@compiled
def _harmonic_mean(rates: Floats) -> float:
    inverse = 0.0
    for rate in rates:
        inverse += 1 / rate
    return len(rates) / inverse


@compiled
def _bounds_bps(measured_bps: Floats) -> Floats:
    """The prediction for the next chunk over 1 + the largest error of the last ones, (sessions,), of (sessions, chunks)."""
    count = measured_bps.shape[1]
    bounds = np.empty(len(measured_bps))
    for i in range(len(measured_bps)):
        rates = measured_bps[i]
        worst = 0.0
        for k in range(max(1, count - WINDOW), count):
            worst = max(worst, abs(_harmonic_mean(rates[max(0, k - WINDOW) : k]) - rates[k]) / rates[k])
        bounds[i] = _harmonic_mean(rates[max(0, count - WINDOW) :]) / (1 + worst)
    return bounds


@compiled
def _plan(
    ahead: Floats,
    bytes_per_s: Floats,
    buffer_s: Floats,
    bitrates_bps: Floats,
    last: Integers,
    chunk_s: float,
    stall_penalty: float,
    switch_penalty: float,
) -> Integers:
    """First level of the best plan of each session. Plans are walked in lexicographic order, depth first; of equal ones the last wins."""
    sessions, steps, levels = ahead.shape
    chosen = np.empty(sessions, np.int64)
    level = np.empty(steps + 1, np.int64)  # level[0] is the last chunk's
    left_s, stall_s, bits, switches = np.zeros(steps + 1), np.zeros(steps + 1), np.zeros(steps + 1), np.zeros(steps + 1)
    for i in range(sessions):
        best = -np.inf
        level[0], left_s[0] = last[i], buffer_s[i]
        depth = 1
        level[1] = max(level[0] - 1, 0)
        while depth > 0:
            if level[depth] > min(level[depth - 1] + 1, levels - 1):
                depth -= 1
                level[depth] += 1
                continue
            here = level[depth]
            after_s = left_s[depth - 1] - ahead[i, depth - 1, here] / bytes_per_s[i]
            stall_s[depth] = stall_s[depth - 1] + max(-after_s, 0.0)
            left_s[depth] = max(after_s, 0.0) + chunk_s
            bits[depth] = bits[depth - 1] + bitrates_bps[i, here]
            switches[depth] = switches[depth - 1] + abs(bitrates_bps[i, here] - bitrates_bps[i, level[depth - 1]])
            if depth < steps:
                depth += 1
                level[depth] = max(here - 1, 0)
                continue
            qoe = bits[depth] / 1e6 - stall_penalty * stall_s[depth] - switch_penalty * (switches[depth] / 1e6)
            if qoe >= best:
                best, chosen[i] = qoe, level[1]
            level[depth] += 1
    return chosen
