"""How the decision service is doing: per policy, whether it is loaded, what it decided and how long that took."""

import math
from bisect import bisect_left
from collections import deque

import msgspec

from testbed.units import ms_from_s

HISTOGRAM_MS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0)
"""Upper edges of the bins; one more bin holds what took longer."""
RECENT = 4096
"""Quantiles are over this many decisions."""


class PolicyHealth(msgspec.Struct, frozen=True, kw_only=True):
    """One policy. Latency is what the policy computed, queueing left out."""

    load_s: float
    decisions: int
    errors: int
    """It raised."""
    invalid: int
    """It answered what is no level."""
    late: int
    """Not begun, because the deadline had passed."""
    p50_ms: float | None
    p99_ms: float | None
    max_ms: float | None
    histogram: dict[str, int]
    """Upper edge in ms (`inf` for the last) to number of decisions."""


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to `GET /health`; the service listens only when every policy is loaded."""

    version: int
    pid: int
    sessions: int
    policies: dict[str, PolicyHealth]


class PolicyCounters:
    """Counts one policy's decisions."""

    def __init__(self, load_s: float) -> None:
        self.load_s = load_s
        self.decisions = self.errors = self.invalid = self.late = 0
        self._max_ms: float | None = None
        self._recent_ms: deque[float] = deque(maxlen=RECENT)
        self._bins = [0] * (len(HISTOGRAM_MS) + 1)

    def took(self, seconds: float) -> None:
        """A decision was computed in `seconds`."""
        latency_ms = ms_from_s(seconds)
        self.decisions += 1
        self._recent_ms.append(latency_ms)
        self._max_ms = max(latency_ms, self._max_ms or 0.0)
        self._bins[bisect_left(HISTOGRAM_MS, latency_ms)] += 1

    def health(self) -> PolicyHealth:
        """The counts so far."""
        ordered_ms = sorted(self._recent_ms)
        return PolicyHealth(
            load_s=self.load_s,
            decisions=self.decisions,
            errors=self.errors,
            invalid=self.invalid,
            late=self.late,
            p50_ms=_quantile(ordered_ms, 0.5),
            p99_ms=_quantile(ordered_ms, 0.99),
            max_ms=self._max_ms,
            histogram={f"{edge:g}": count for edge, count in zip((*HISTOGRAM_MS, float("inf")), self._bins, strict=True)},
        )


def _quantile(ordered: list[float], share: float) -> float | None:
    """The smallest value that at least `share` of the values do not exceed."""
    return ordered[math.ceil(share * len(ordered)) - 1] if ordered else None
