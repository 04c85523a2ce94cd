"""Whether a link did what it says it did: the captures' account of a trial beside the link's own. Pure, apart from reading files.

What the captures can't share with the link: they stamp a packet in the kernel as the sender's interface hands it over and as the receiver's
interface gets it. The link's clock begins when it has read the packet and ends just before it writes it. So the captured delay error is
the link's lateness, and on top of it the way into the link (a wake-up and a read) and the write: tens of microseconds on a quiet host.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from testbed.fidelity.evidence import Capture, Course, Evidence, Reader, read_packets, sightings
from testbed.fidelity.replay import Matching, Model, Served, alone, by_window, curve, match, served
from testbed.link import LATE_S, MAX_LATE_SHARE, MAX_LATENESS_P99_S, MAX_RATE_ERROR_PCT, beyond_p99
from testbed.shapers.ledger import WINDOW_NS
from testbed.units import MTU_BYTES, ms_from_s, ns_from_s, s_from_ns

Verdict = Literal["agrees", "disagrees", "void"]
MAX_CLOCK_DRIFT_S = 5e-6
"""Both clocks are slewed alike, so that more than the reading's own error means that the wall clock was set."""
EARLY_S = 2e-5
"""A packet that comes earlier than due by more was early; the two clocks are told apart to a fraction of it."""
P50_TOLERANCE_S = (-5e-5, 3e-4)
P99_TOLERANCE_S = (-1e-4, MAX_LATENESS_P99_S)
LATE_TOLERANCE = 0.1
BLURRED = "not judged: packets lost at random can't be told for certain from those that the full queue dropped, which moves due times"
SUM_TOLERANCE_PCT = 1.0
RATE_ERROR_TOLERANCE_PCT = MAX_RATE_ERROR_PCT / 2


@dataclass(frozen=True)
class Comparison:
    """One number by both accounts."""

    what: str
    unit: str
    captured: float
    said: float | None
    """By the link; None: it says nothing about this."""
    agrees: bool | None
    """None: shown, not judged."""
    tolerance: str
    """And why."""


@dataclass(frozen=True)
class Delay:
    """Delivered - due."""

    packets: int
    p50_s: float
    p99_s: float
    max_s: float
    min_s: float
    early_share: float
    """Earlier than due by more than the clocks' error."""
    late_share: float
    """Later than 5 ms."""

    @classmethod
    def of(cls, error_ns: np.ndarray) -> "Delay":
        """All 0 without packets."""
        if not len(error_ns):
            return cls(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
        p50, p99 = np.sort(error_ns)[[(len(error_ns) - 1) // 2, max(len(error_ns) - 1 - beyond_p99(len(error_ns)), 0)]]
        early, late = float(np.mean(error_ns < -ns_from_s(EARLY_S))), float(np.mean(error_ns > ns_from_s(LATE_S)))
        p50_s, p99_s, max_s, min_s = (s_from_ns(float(ns)) for ns in (p50, p99, error_ns.max(), error_ns.min()))
        return cls(len(error_ns), p50_s, p99_s, max_s, min_s, early, late)

    @classmethod
    def worst(cls, sides: "Sequence[Delay]") -> "Delay":
        """Each number of the direction in which it is worse, as `LinkReport` has it: one must not outvote the other."""
        sides = [side for side in sides if side.packets] or sides
        columns = {name: [getattr(side, name) for side in sides] for name in cls.__dataclass_fields__}
        return cls(**{name: (min if name == "min_s" else sum if name == "packets" else max)(values) for name, values in columns.items()})


@dataclass(frozen=True)
class Rates:
    """A trace-driven direction in windows of 100 ms from the trace's start. Bytes; arrays (windows,)."""

    direction: str
    allowed: np.ndarray
    """By the trace."""
    captured: np.ndarray
    """Served, by the captures; lateness of up to 1 ms, which a link may have, is not held against it. It would move all that the trace
    carries at a window's edge, and traces in whole ms carry much just there."""
    said: np.ndarray
    """Served, by the link."""
    error_pct_100ms: float
    """|served - due| in windows in which something waited throughout, in percent of what was due in them; `LinkReport` defines it."""
    error_pct_1s: float
    backlogged: int
    """How many windows that were."""
    slack_bytes: float
    """By which a window of one account may differ from the other's."""


@dataclass(frozen=True)
class Side:
    """One direction, from its captures alone."""

    name: str
    entered: int
    left: int
    """Until the link was told to stop."""
    matching: Matching
    error_ns: np.ndarray
    model_drops: dict[str, int]
    """By the model alone."""
    fates: int
    """Packets that the model alone would have treated otherwise."""
    rates: Rates | None

    @property
    def missing(self) -> int:
        """Packets that went in and had not come out."""
        return self.entered - self.left


@dataclass(frozen=True)
class Audit:
    """The judgement on one lane under one kind of traffic."""

    evidence: Evidence
    sides: tuple[Side, ...]
    delay: Delay
    """Of the worse direction, as the link's is."""
    comparisons: tuple[Comparison, ...]
    voids: tuple[str, ...]
    """Why the captures prove nothing; empty when they do."""

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the two accounts don't agree."""
        return tuple(_sentence(row) for row in self.comparisons if row.agrees is False)

    @property
    def verdict(self) -> Verdict:
        """Of the captures on the link's account of itself."""
        return "void" if self.voids else "disagrees" if self.reasons else "agrees"

    @property
    def passed(self) -> bool:
        """Whether the link did what was asked for, by its own account and by the captures."""
        return self.verdict == "agrees" and self.evidence.said.verdict == "pass"

    def to_json(self) -> dict[str, Any]:
        """For `fidelity.json`."""
        rates = [side.rates for side in self.sides if side.rates]
        return {
            "name": self.evidence.name,
            "verdict": self.verdict,
            "link_verdict": self.evidence.said.verdict,
            "reasons": [*self.voids, *self.reasons, *self.evidence.said.reasons],
            "delay_error": vars(self.delay),
            "delay_error_by_direction": {side.name: vars(Delay.of(side.error_ns)) for side in self.sides},
            "comparisons": [vars(row) for row in self.comparisons],
            "clock_drift_ns": self.evidence.clock_drift_ns,
            "windows": {
                rate.direction: {
                    "allowed_bytes": rate.allowed.round(1).tolist(),
                    "captured_bytes": rate.captured.round(1).tolist(),
                    "said_bytes": rate.said.round(1).tolist(),
                }
                for rate in rates
            },
        }


def _sentence(row: Comparison) -> str:
    return f"{row.what}: {row.captured:.6g} {row.unit} captured, {row.said:.6g} said by the link; wanted {row.tolerance}".replace("  ", " ")


def audit(folder: Path, evidence: Evidence, reader: Reader = read_packets) -> Audit:
    """Judge one lane's trial by the captures in `folder`."""
    at_server = sightings(folder, evidence.server, evidence, reader)
    at_client = sightings(folder, evidence.client, evidence, reader)
    ends = {"down": (at_server["down"], at_client["down"]), "up": (at_client["up"], at_server["up"])}
    voids = _voids(evidence)
    if others := len(at_server["other"]) + len(at_client["other"]):
        voids.append(f"{others} frames were neither IPv4 between the hosts nor ARP, wanted none")
    sides = []
    for name, (entered, left) in ends.items():
        matching = match(entered, [sighting for sighting in left if sighting.at_ns <= ns_from_s(evidence.stopped_s)])
        side = _side(name, evidence, matching)
        sides.append(side)
        voids += _side_voids(side, evidence)
    delay = Delay.worst([Delay.of(side.error_ns) for side in sides])
    return Audit(evidence, tuple(sides), delay, tuple(_compare(evidence, sides, delay)), tuple(voids))


def _voids(evidence: Evidence) -> list[str]:
    """What makes the captures useless as proof."""
    found = []
    if evidence.started_ns is None:
        found.append("the trace never started")
    if abs(evidence.clock_drift_ns) > ns_from_s(MAX_CLOCK_DRIFT_S):
        found.append(f"the wall clock was set by {ms_from_s(s_from_ns(evidence.clock_drift_ns)):.3f} ms meanwhile, wanted it left alone")
    return found + [reason for capture in (evidence.server, evidence.client) if (reason := _incomplete(capture))]


def _incomplete(capture: Capture) -> str:
    missed = capture.dropped + max(capture.received - capture.captured, 0)
    told = f"the capture at {capture.interface} missed {missed} of {capture.received + capture.dropped} packets, wanted all"
    return told if missed else ""


def _side_voids(side: Side, evidence: Evidence) -> list[str]:
    start_ns = evidence.started_ns or 0
    early = sum(passage.in_ns < start_ns for passage in side.matching.passages)
    counts = (
        (side.matching.strays, "came out without having gone in"),
        (early if side.rates else 0, "came before the trace started"),
    )
    return [f"{count} packets {side.name} {what}, wanted none" for count, what in counts if count]


def model_of(evidence: Evidence, direction: str) -> Model:
    """What was asked of the link in this direction."""
    path, course = evidence.path, evidence.down if direction == "down" else evidence.up
    return Model(
        trace=course.trace if isinstance(course, Course) else None,
        offset_ns=ns_from_s(evidence.offset_s),
        delay_ns=ns_from_s(path.rtt_s / 2),
        queue_bytes=path.queue_bytes,
        queue_packets=path.queue_packets or 0,
        codel=path.discipline == "codel",
    )


def _side(name: str, evidence: Evidence, matching: Matching) -> Side:
    passages, start_ns = matching.passages, evidence.started_ns or 0
    model = model_of(evidence, name)
    said = [row for row in evidence.said.windows if row.direction == name]
    edges_ns = start_ns + WINDOW_NS * np.arange(len(said) + 1)
    kept = alone(model, passages, start_ns)
    came = np.array([passage.out_ns is not None for passage in passages], dtype=bool)
    packets = served(model, passages, start_ns, edges_ns.tolist())
    rates = None
    if model.trace and len(said):
        rates = _rates(name, model, packets, edges_ns, start_ns, np.array([row.delivered_bytes for row in said]), _slack_s(evidence))
    return Side(
        name=name,
        entered=len(passages),
        left=int(came.sum()),
        matching=matching,
        error_ns=packets.error_ns,
        model_drops=kept.drops,
        fates=int(np.sum(kept.kept != packets.kept)),
        rates=rates,
    )


def _rates(name: str, model: Model, packets: Served, edges_ns: np.ndarray, start_ns: int, said: np.ndarray, slack_s: float) -> Rates:
    late_ns = np.where(packets.arrived, packets.out_ns - packets.due_ns, 0)
    carried = curve(model, start_ns)
    due, done = (by_window(packets, edges_ns, late) for late in (np.zeros_like(late_ns), late_ns))
    backlogged = packets.wasted_bytes == 0
    edge_ns = ns_from_s(slack_s)
    return Rates(
        direction=name,
        allowed=np.diff(carried(edges_ns)),
        captured=by_window(packets, edges_ns, np.maximum(late_ns - ns_from_s(MAX_LATENESS_P99_S), 0), carried),
        said=said,
        error_pct_100ms=_error_pct(due, done, backlogged),
        error_pct_1s=_error_pct(_by_ten(due), _by_ten(done), _by_ten(~backlogged) == 0),
        backlogged=int(backlogged.sum()),
        slack_bytes=MTU_BYTES + float(np.max(carried(edges_ns + edge_ns) - carried(edges_ns), initial=0)),
    )


def _by_ten(windows: np.ndarray) -> np.ndarray:
    """(windows,) -> (windows // 10,)"""
    whole = windows[: len(windows) // 10 * 10].reshape(-1, 10)
    return np.asarray(whole.sum(axis=1))


def _error_pct(due: np.ndarray, done: np.ndarray, backlogged: np.ndarray) -> float:
    chosen = backlogged & (due > 0)
    return 100 * float(np.abs(done - due)[chosen].sum() / due[chosen].sum()) if chosen.any() else 0.0


def _compare(evidence: Evidence, sides: Sequence[Side], delay: Delay) -> list[Comparison]:
    """All that both accounts say something about, and what only the captures do."""
    return [
        *_counts(evidence, sides),
        *_delays(evidence, delay),
        *(row for side in sides if side.rates for row in _windows(evidence, side.rates)),
        *(row for side in sides for row in _model(side)),
    ]


def _counts(evidence: Evidence, sides: Sequence[Side]) -> list[Comparison]:
    said, entered, left = evidence.said, sum(side.entered for side in sides), sum(side.left for side in sides)
    dropped, missing = sum(said.drops.values()), entered - left
    equal = "the same: each packet is seen by both"
    uncounted = missing - dropped - said.packets_inside
    rows = (
        ("packets in", entered, said.packets_in, equal),
        ("packets out", left, said.packets_out, equal),
        ("packets in less out", missing, dropped + said.packets_inside, "the drops by cause and what was inside at the stop"),
        ("uncounted losses", uncounted, said.uncounted_losses, equal),
        ("packets that overtook another", sum(side.matching.swapped for side in sides), 0, "first in, first out"),
    )
    return [Comparison(what, "", seen, told, seen == told, wanted) for what, seen, told, wanted in rows]


def _delays(evidence: Evidence, delay: Delay) -> list[Comparison]:
    """The link's lateness is that of packets, except at the `kernel` back end: there it is that of rate changes."""
    said, timed, exact = evidence.said, evidence.path.back_end != "kernel", not _blurred(evidence)
    rows = []
    way = "the way into the link and out of it, which only the captures see" if exact else BLURRED
    for what, seen, told, (low, high) in (
        ("delay error p50", delay.p50_s, said.lateness_p50_s, P50_TOLERANCE_S),
        ("delay error p99", delay.p99_s, said.lateness_p99_s, P99_TOLERANCE_S),
    ):
        coarse = told / 2 if told > LATE_S else 0.0  # there the link's bins are powers of two, and it names the upper end
        low -= coarse
        wanted = f"{ms_from_s(low):+.3g} to {ms_from_s(high):+g} ms from it: {way}"
        agrees = low <= seen - told <= high if timed and exact else None
        rows.append(Comparison(what, "ms", ms_from_s(seen), ms_from_s(told) if timed else None, agrees, wanted))
    share, told_share = 100 * delay.late_share, 100 * said.late_share
    allowed = 100 * MAX_LATE_SHARE + LATE_TOLERANCE * told_share
    wanted = f"within {allowed:.2g} percentage points: what the verdict allows, and a tenth of what the link says"
    agrees = abs(share - told_share) <= allowed if timed and exact else None
    rows.append(Comparison("packets later than 5 ms", "%", share, told_share if timed else None, agrees, wanted))
    told_max = ms_from_s(said.lateness_max_s) if timed else None
    rows.append(Comparison("delay error max", "ms", ms_from_s(delay.max_s), told_max, None, "one packet: shown, not judged"))
    seen, allowed = 100 * delay.early_share, 100 * MAX_LATE_SHARE
    wanted = f"at most {allowed:g}: none comes before it is due, but at a full queue a microsecond can turn which packet was dropped"
    early = seen <= allowed if timed and exact else None
    rows.append(Comparison("packets earlier than due", "%", seen, 0.0 if timed else None, early, wanted))
    return rows


def _blurred(evidence: Evidence) -> bool:
    """Whether packets were lost at random and others dropped by a queue: which were which the captures can only guess, packet by packet."""
    drops = evidence.said.drops
    return bool(drops.get("loss") and (drops.get("queue") or drops.get("codel")))


def _windows(evidence: Evidence, rates: Rates) -> list[Comparison]:
    """Bytes per 100 ms, and the rate errors."""
    name, off = rates.direction, np.abs(rates.captured - rates.said)
    total = max(float(rates.captured.sum()), 1.0)
    largest, summed = float(off.max(initial=0)), 100 * float(off.sum()) / total
    far = f"at most {rates.slack_bytes:,.0f}: a packet, and what the trace allows in {ms_from_s(_slack_s(evidence)):.3g} ms of lateness"
    pct, told_pct = rates.error_pct_100ms, evidence.said.rate_error_pct_100ms
    allowed_pct = SUM_TOLERANCE_PCT + told_pct
    near = f"at most {allowed_pct:.3g}: packets that may be later than 1 ms, which is forgiven, and the rate error the link itself says"
    close = f"within {RATE_ERROR_TOLERANCE_PCT:g} percentage points, half of what the verdict allows"
    both_ways = evidence.up is not None  # then the link says one number for both directions
    same_rate = None if both_ways else abs(pct - told_pct) <= RATE_ERROR_TOLERANCE_PCT
    return [
        Comparison(f"{name}: bytes in 100 ms, largest difference", "bytes", largest, 0.0, largest <= rates.slack_bytes, far),
        Comparison(f"{name}: bytes in 100 ms, summed differences", "%", summed, 0.0, summed <= allowed_pct, near),
        Comparison(f"{name}: rate error 100 ms, backlogged", "%", pct, None if both_ways else told_pct, same_rate, close),
        Comparison(f"{name}: rate error 1 s, backlogged", "%", rates.error_pct_1s, None, None, "shown, not judged"),
    ]


def _slack_s(evidence: Evidence) -> float:
    """By how much a packet may be late, the link itself saying so, and thus fall into another window."""
    return max(LATE_S, evidence.said.lateness_max_s + MAX_LATENESS_P99_S)


def _model(side: Side) -> list[Comparison]:
    """The reference model's own decisions on the captured arrivals; of packets lost at random it knows nothing."""
    dropped = sum(side.model_drops.values())
    if not side.missing and not dropped:
        return []
    wanted = "shown, not judged: arrivals are captured some microseconds before the link reads them"
    return [Comparison(f"{side.name}: packets whose fate the model alone would change", "", side.fates, None, None, wanted)]
