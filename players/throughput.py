"""The player's own view of the network: dash.js 5's throughput estimate, and the local rule that decides when the controller can't."""

import math

from controllers.api import Manifest
from testbed.units import bits_from_bytes, bps_from_kbps, ms_from_s

FAST_HALF_LIFE, SLOW_HALF_LIFE = 3.0, 8.0
"""dash.js 5 `abr.throughput.ewma.throughput{Fast,Slow}HalfLifeSeconds`."""
WEIGHT_PER_MS = 0.0015
"""dash.js 5 `abr.throughput.ewma.weightDownloadTimeMultiplicationFactor`: a download of one second weighs 1.5 `seconds`."""
HEADER_BYTES = 300
"""What Resource Timing adds to the body for the header (`transferSize`, W3C Resource Timing 4.5)."""
SAFETY = 0.9
"""dash.js 5 `abr.throughput.bandwidthSafetyFactor`, used by its ThroughputRule."""
CLOCK_STEP_S = 1e-9
BUFFER_SAFETY = 0.7
"""dash.js 5 `InsufficientBufferRule`: the next chunk must fit into the buffer at this share of the estimate."""


class ThroughputEstimate:
    """dash.js 5 `ThroughputModel` in mode EWMA: the smaller of a fast and a slow average, each corrected for its start at 0.

    A sample is `transferSize / (responseEnd - responseStart)`: header added, time to first byte left out, in whole kbit/s.
    """

    def __init__(self) -> None:
        self._fast_kbps = 0.0
        self._slow_kbps = 0.0
        self._weight = 0.0

    def add(self, size_bytes: int, transfer_s: float) -> None:
        """`size_bytes` took `transfer_s` from the first byte to the last. Under a nanosecond is no sample: the clock did not move."""
        if transfer_s < CLOCK_STEP_S:
            return
        transfer_ms = ms_from_s(transfer_s)
        sample_kbps = _js_round(bits_from_bytes(size_bytes + HEADER_BYTES) / transfer_ms)  # bit/ms = kbit/s
        weight = WEIGHT_PER_MS * transfer_ms
        self._fast_kbps = _mix(self._fast_kbps, sample_kbps, 0.5 ** (weight / FAST_HALF_LIFE))
        self._slow_kbps = _mix(self._slow_kbps, sample_kbps, 0.5 ** (weight / SLOW_HALF_LIFE))
        self._weight += weight

    @property
    def average_bps(self) -> float | None:
        """`getAverageThroughput`, in whole kbit/s; None before the first sample."""
        if self._weight <= 0:
            return None
        fast_kbps = self._fast_kbps / (1 - 0.5 ** (self._weight / FAST_HALF_LIFE))
        slow_kbps = self._slow_kbps / (1 - 0.5 ** (self._weight / SLOW_HALF_LIFE))
        return bps_from_kbps(_js_round(min(fast_kbps, slow_kbps)))


def local_level(video: Manifest, average_bps: float | None, buffer_s: float) -> int:
    """The local rule: the lower of dash.js 5's ThroughputRule and InsufficientBufferRule; level 0 without an estimate."""
    if average_bps is None:
        return 0
    return video.highest_level_below(average_bps * min(SAFETY, BUFFER_SAFETY * buffer_s / video.chunk_s))


def _mix(old: float, new: float, keep: float) -> float:
    return (1 - keep) * new + keep * old


def _js_round(value: float) -> int:
    """JavaScript's `Math.round`: halves go up."""
    return math.floor(value + 0.5)
