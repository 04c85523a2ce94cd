"""From a link's counters to its report: lateness, windows, rate error."""

from array import array
from collections.abc import Sequence
from itertools import accumulate

from testbed.link import LATE_S, LinkReport, Punctuality, RateError, beyond_p99
from testbed.records import LatenessRow, LinkRow
from testbed.shapers import messages
from testbed.shapers.ledger import COLUMNS, FINE_US, WINDOW_NS, Lateness
from testbed.units import ms_from_s, s_from_ns

US = 1e-6


def report(
    trial_id: str, result: messages.Result, interface_drops: int, problems: Sequence[str] = (), notes: Sequence[str] = ()
) -> LinkReport:
    """The relay's counters as a report. `problems`: what of its real-time set-up was refused; `notes`: what else is to be said of it."""
    halves = {"down": result.down, "up": result.up}
    lateness = {direction: Histogram.of(half) for direction, half in halves.items()}
    missing = sum(half.packets_in - half.packets_out - half.inside - sum(half.drops.values()) for half in halves.values())
    refused = sum(half.drops["transmit"] for half in halves.values())  # which the interface counts too
    unrecorded = max(half.windows_lost for half in halves.values())
    return LinkReport(
        trial_id=trial_id,
        started_at=None if result.started_ns is None else s_from_ns(result.started_ns),
        windows=tuple(row for direction, half in halves.items() for row in link_rows(trial_id, direction, half.rows)),
        lateness=tuple(histogram.row(trial_id, direction) for direction, histogram in lateness.items()),
        punctuality={direction: lateness[direction].punctuality(half.packets_out) for direction, half in halves.items()},
        packets_in=sum(half.packets_in for half in halves.values()),
        packets_out=sum(half.packets_out for half in halves.values()),
        packets_inside=sum(half.inside for half in halves.values()),
        drops={cause: sum(half.drops[cause] for half in halves.values()) for cause in messages.CAUSES},
        uncounted_losses=abs(missing) + max(interface_drops - refused, 0),
        rate_errors={direction: rate_error(half.rows) for direction, half in halves.items()},
        trace_wraps=result.down.wraps,
        realtime=not problems,
        duration_s=0.0 if result.started_ns is None else s_from_ns(result.stopped_ns - result.started_ns),
        stalled_s=s_from_ns(result.stalled_ns),
        max_stall_s=s_from_ns(result.max_stall_ns),
        notes=(*problems, *notes, *([f"the last {unrecorded} windows of 100 ms were not recorded"] if unrecorded else [])),
    )


def link_rows(trial_id: str, direction: str, rows: "array[float]") -> tuple[LinkRow, ...]:
    """Windows as records."""
    return tuple(
        LinkRow(
            trial_id=trial_id,
            direction=direction,
            start_s=s_from_ns(i // COLUMNS * WINDOW_NS),
            allowed_bytes=rows[i],
            delivered_bytes=rows[i] - rows[i + 1],
            wasted_bytes=rows[i + 1],
            dropped_bytes=rows[i + 2],
            lost_bytes=rows[i + 3],
            queue_bytes=rows[i + 4],
        )
        for i in range(0, len(rows), COLUMNS)
    )


def rate_error(rows: "array[float]") -> RateError:
    """Of a direction's windows."""
    error_bytes, due_bytes, behind_before, backlogged = 0.0, 0.0, 0.0, 0
    for i in range(0, len(rows), COLUMNS):
        allowed, wasted, _, _, _, behind = rows[i : i + COLUMNS]
        if wasted == 0 and allowed > 0:
            error_bytes += abs(behind - behind_before)
            due_bytes += allowed
            backlogged += 1
        behind_before = behind
    return RateError(error_bytes, due_bytes, backlogged * s_from_ns(WINDOW_NS))


class Histogram:
    """Lateness: `counts[i]` packets were late by at most `upper_s[i]`, and more than the bin before."""

    def __init__(self, upper_s: list[float], counts: list[int], max_s: float) -> None:
        self.upper_s, self.counts, self.max_s = upper_s, counts, max_s

    @classmethod
    def of(cls, counters: messages.Counters) -> "Histogram":
        """As the relay counted it."""
        return cls._of(counters.fine_us, counters.coarse_us, counters.max_late_ns)

    @classmethod
    def of_counts(cls, lateness: Lateness) -> "Histogram":
        """As counted here."""
        return cls._of(lateness.fine, lateness.coarse, lateness.max_ns)

    @classmethod
    def _of(cls, fine: "array[int]", coarse: "array[int]", max_ns: int) -> "Histogram":
        upper_s = [(i + 1) * US for i in range(FINE_US)] + [2**i * US for i in range(FINE_US.bit_length(), len(coarse))]
        return cls(upper_s, [*fine, *coarse[FINE_US.bit_length() :]], s_from_ns(max_ns))

    def later_than(self, limit_s: float) -> int:
        """So many packets."""
        return sum(count for upper_s, count in zip(self.upper_s, self.counts, strict=True) if upper_s > limit_s * (1 + 1e-9))

    def all_but_s(self, packets: int) -> float:
        """Upper edge of the bin up to which all but so many packets lie, at most the maximum; 0 without packets."""
        total = sum(self.counts)
        for upper_s, below in zip(self.upper_s, accumulate(self.counts), strict=True):
            if total and total - below <= packets:
                return min(upper_s, self.max_s)
        return 0.0

    def punctuality(self, packets: int) -> Punctuality:
        """Of a direction that so many packets came out of."""
        total = sum(self.counts)
        p50_s, p99_s = self.all_but_s(total // 2), self.all_but_s(beyond_p99(total))
        return Punctuality(packets, p50_s, p99_s, self.max_s, self.later_than(LATE_S))

    def row(self, trial_id: str, direction: str) -> LatenessRow:
        """As a record with bins that are powers of two of a microsecond; the empty ones at the end left out."""
        bins: dict[int, int] = {}
        for upper_s, count in zip(self.upper_s, self.counts, strict=True):
            exponent = max(round(upper_s / US) - 1, 0).bit_length()
            bins[exponent] = bins.get(exponent, 0) + count
        used = [exponent for exponent, count in bins.items() if count]
        shown = range(max(used, default=0) + 1)
        upper_ms = [ms_from_s(2**i * US) for i in shown]
        return LatenessRow(trial_id=trial_id, direction=direction, upper_ms=upper_ms, counts=[bins.get(i, 0) for i in shown])
