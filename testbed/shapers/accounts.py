"""From a link's counters to its report: lateness, windows, rate error."""

from array import array
from itertools import accumulate

from testbed.link import LATE_S, LinkReport
from testbed.records import LatenessRow, LinkRow
from testbed.shapers import messages
from testbed.shapers.ledger import COLUMNS, FINE_US, WINDOW_NS, Lateness
from testbed.units import ms_from_s, s_from_ns

US = 1e-6


def report(trial_id: str, stopped: messages.Stopped, rows: "array[float]", interface_drops: int, problems: list[str]) -> LinkReport:
    """The relay's counters as a report."""
    down, up = Histogram.of(stopped.down), Histogram.of(stopped.up)
    both = down + up
    halves = (stopped.down, stopped.up)
    missing = sum(half.packets_in - half.packets_out - half.inside - sum(half.drops.values()) for half in halves)
    refused = sum(half.drops["transmit"] for half in halves)  # which the interface counts too
    notes = [*problems]
    if stopped.windows_lost:
        notes.append(f"the last {stopped.windows_lost} windows of 100 ms were not recorded")
    return LinkReport(
        trial_id=trial_id,
        started_at=None if stopped.started_ns is None else s_from_ns(stopped.started_ns),
        windows=link_rows(trial_id, rows),
        lateness=(down.row(trial_id, "down"), up.row(trial_id, "up")),
        lateness_p50_s=both.quantile_s(0.5),
        lateness_p99_s=both.quantile_s(0.99),
        lateness_max_s=both.max_s,
        late_packets=both.late_packets,
        packets_in=sum(half.packets_in for half in halves),
        packets_out=sum(half.packets_out for half in halves),
        packets_inside=sum(half.inside for half in halves),
        drops={cause: stopped.down.drops[cause] + stopped.up.drops[cause] for cause in stopped.down.drops},
        uncounted_losses=abs(missing) + max(interface_drops - refused, 0),
        rate_error_pct_100ms=rate_error_pct(rows),
        trace_wraps=stopped.wraps,
        realtime=not problems,
        notes=tuple(notes),
    )


def link_rows(trial_id: str, rows: "array[float]") -> tuple[LinkRow, ...]:
    """Windows as records."""
    return tuple(
        LinkRow(
            trial_id=trial_id,
            direction="down",
            start_s=s_from_ns(i // COLUMNS * WINDOW_NS),
            allowed_bytes=rows[i],
            delivered_bytes=rows[i] - rows[i + 1],
            wasted_bytes=rows[i + 1],
            dropped_bytes=rows[i + 2],
            queue_bytes=rows[i + 3],
        )
        for i in range(0, len(rows), COLUMNS)
    )


def rate_error_pct(rows: "array[float]") -> float:
    """See `LinkReport`; 0 when the link was never backlogged through a whole window."""
    error_bytes, due_bytes, behind_before = 0.0, 0.0, 0.0
    for i in range(0, len(rows), COLUMNS):
        allowed, wasted, _, _, behind = rows[i : i + COLUMNS]
        if wasted == 0 and allowed > 0:
            error_bytes += abs(behind - behind_before)
            due_bytes += allowed
        behind_before = behind
    return 100 * error_bytes / due_bytes if due_bytes else 0.0


class Histogram:
    """Lateness: `counts[i]` packets were late by at most `upper_s[i]`, and more than the bin before."""

    def __init__(self, upper_s: list[float], counts: list[int], max_s: float) -> None:
        self.upper_s, self.counts, self.max_s = upper_s, counts, max_s

    @classmethod
    def of(cls, direction: messages.Direction) -> "Histogram":
        """As the relay counted it."""
        return cls._of(array("I", direction.fine_us), array("I", direction.coarse_us), direction.max_ns)

    @classmethod
    def of_counts(cls, lateness: Lateness) -> "Histogram":
        """As counted here."""
        return cls._of(lateness.fine, lateness.coarse, lateness.max_ns)

    @classmethod
    def _of(cls, fine: "array[int]", coarse: "array[int]", max_ns: int) -> "Histogram":
        upper_s = [(i + 1) * US for i in range(FINE_US)] + [2**i * US for i in range(FINE_US.bit_length(), len(coarse))]
        return cls(upper_s, [*fine, *coarse[FINE_US.bit_length() :]], s_from_ns(max_ns))

    def __add__(self, other: "Histogram") -> "Histogram":
        """Both together."""
        counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        return Histogram(self.upper_s, counts, max(self.max_s, other.max_s))

    @property
    def late_packets(self) -> int:
        """Packets later than `LATE_S`."""
        return sum(count for upper_s, count in zip(self.upper_s, self.counts, strict=True) if upper_s > LATE_S * (1 + 1e-9))

    def quantile_s(self, q: float) -> float:
        """Upper edge of the bin that holds quantile `q`, at most the maximum; 0 without packets."""
        total = sum(self.counts)
        for upper_s, below in zip(self.upper_s, accumulate(self.counts), strict=True):
            if total and below >= q * total:
                return min(upper_s, self.max_s)
        return 0.0

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
