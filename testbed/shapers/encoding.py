"""Traces as the relay gets them: integers, in ns, in 1e-3 bit/s and in 2^-53 of a probability."""

import math

from testbed.errors import UserError
from testbed.link import check_size
from testbed.shapers.capacity import RATE_SCALE
from testbed.shapers.conditions import THRESHOLD_BITS
from testbed.shapers.messages import PATHS_DELAY, Course, Load
from testbed.units import ns_from_s
from traces.trace import Conditions, RateTrace, Trace

DIRECTIONS = 2


def encode(lane: int, trace: Trace, uplink: Trace | None, offset_s: float, seed: int) -> Load:
    """The request that arms a lane. UserError when the link can't carry the trace from there."""
    if not (math.isfinite(offset_s) and offset_s >= 0):
        raise UserError(f"trace {trace.name}: the offset is {offset_s} s, wanted a finite number of at least 0")
    if not 0 <= seed < 2**63:
        raise UserError(f"trace {trace.name}: the seed of its losses is {seed}, wanted 0 to 2^63-1")
    down, up = course(trace, seed * DIRECTIONS), course(uplink, seed * DIRECTIONS + 1) if uplink else Course()
    return Load(lane=lane, offset_ns=ns_from_s(offset_s), down=down, up=up)


def course(trace: Trace, seed: int) -> Course:
    """A trace in integers."""
    check_size(trace)
    if isinstance(trace, RateTrace):
        times, rates = [ns_from_s(t) for t in trace.edges_s], [round(rate * RATE_SCALE) for rate in trace.rates_bps]
    else:
        times, rates = [ns_from_s(t) for t in trace.times_s], []
    if times[-1] <= 0 or (rates and not any(rate > 0 and b > a for rate, a, b in zip(rates, times, times[1:], strict=False))):
        raise UserError(f"trace {trace.name}: carries nothing at a resolution of 1 ns and {1 / RATE_SCALE} bit/s, wanted more")
    mean_rate = max(round(trace.mean_rate_bps * RATE_SCALE), RATE_SCALE)
    if trace.conditions is None:
        return Course(times=times, rates=rates, mean_rate=mean_rate)
    edges, delays, enter, stay = _columns(trace.conditions)
    return Course(times=times, rates=rates, mean_rate=mean_rate, edges=edges, delays=delays, enter=enter, stay=stay, seed=seed)


def _columns(conditions: Conditions) -> tuple[list[int], list[int], list[int], list[int]]:
    """Edges, delays, and the two thresholds of the losses' chain."""
    segments = len(conditions.edges_s) - 1
    delays = [ns_from_s(d) for d in conditions.delay_s] if conditions.delay_s else [PATHS_DELAY] * segments
    losses = conditions.loss or (0.0,) * segments
    bursts = conditions.burst_packets or (None,) * segments
    chains = [chain(loss, burst) for loss, burst in zip(losses, bursts, strict=True)]
    enter, stay = ([round(probability * 2**THRESHOLD_BITS) for probability in column] for column in zip(*chains, strict=True))
    return [ns_from_s(edge) for edge in conditions.edges_s], delays, enter, stay


def chain(loss: float, burst_packets: float | None) -> tuple[float, float]:
    """Probability that a packet is lost after one that was not, and after one that was: a share of `loss` in runs of `burst_packets`."""
    if burst_packets is None or loss in (0, 1):
        return loss, loss
    return min(loss / (burst_packets * (1 - loss)), 1.0), 1 - 1 / burst_packets
