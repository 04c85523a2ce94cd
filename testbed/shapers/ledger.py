"""What a link counts while it runs: lateness, and 100-ms windows of a trace-driven direction. Takes `now_ns`, reads no clock."""

from array import array

from testbed.shapers.bottleneck import Bottleneck, Entry
from testbed.units import ns_from_s

NS_PER_US = ns_from_s(1e-6)
FINE_US = 5000
"""Lateness below this is counted in bins of 1 us, above it in powers of two."""
COARSE = 64
WINDOW_NS = ns_from_s(0.1)
COLUMNS = 6
"""Of a window: bytes allowed, wasted, dropped and lost in it; bytes queued and bytes due but not served at its end."""
BEAT_NS = ns_from_s(0.01)
"""A relay looks around at least this often while a trace runs."""
STALL_NS = ns_from_s(0.001)
"""What is shorter is no stall: the lateness of packets tells of it."""
MAX_WINDOWS = 72_000
"""Two hours; later windows are not recorded."""


class Lateness:
    """Histogram of (actual - due)."""

    def __init__(self) -> None:
        self.fine = array("I", bytes(4 * FINE_US))
        """`fine[i]`: packets late by i to i+1 us."""
        self.coarse = array("I", bytes(4 * COARSE))
        """`coarse[i]`: packets late by at least FINE_US and by 2^(i-1) to 2^i us."""
        self.max_ns = 0

    def add(self, late_ns: int) -> None:
        """Count one packet."""
        late_us = late_ns // NS_PER_US
        if late_us < FINE_US:
            self.fine[late_us] += 1
        else:
            self.coarse[min(late_us.bit_length(), COARSE - 1)] += 1
        if late_ns > self.max_ns:
            self.max_ns = late_ns


class Stalls:
    """How long the relay stood still: between two turns of its loop it never wants to sleep longer than BEAT_NS, so what passes beyond the
    time it wanted is time in which packets lay unseen in a device, and came too late without anybody's knowing by how much."""

    def __init__(self) -> None:
        self.total_ns = self.max_ns = 0

    def add(self, late_ns: int) -> None:
        """A turn began `late_ns` later than wanted."""
        if late_ns > STALL_NS:
            self.total_ns += late_ns
            self.max_ns = max(self.max_ns, late_ns)


class Windows:
    """Rows of COLUMNS numbers, one for every WINDOW_NS since `start_ns`."""

    def __init__(self, bottleneck: Bottleneck, start_ns: int) -> None:
        self.start_ns = start_ns
        self.rows = array("d")
        self._bottleneck = bottleneck
        self._next_ns = start_ns + WINDOW_NS
        self._seen = (0.0, 0.0, bottleneck.dropped_bytes, bottleneck.lost_bytes)
        self._behind_bytes: dict[int, float] = {}  # window -> bytes due but not served at its end

    def advance(self, now_ns: int) -> None:
        """Close the windows that end by `now_ns`. To be called before anything happens at `now_ns`."""
        while now_ns >= self._next_ns:
            if len(self.rows) < MAX_WINDOWS * COLUMNS:
                self._close()
            self._next_ns += WINDOW_NS

    def lost_at(self, now_ns: int) -> int:
        """Windows that ended by `now_ns` and were not recorded."""
        return max((now_ns - self.start_ns) // WINDOW_NS - MAX_WINDOWS, 0)

    def _close(self) -> None:
        bottleneck = self._bottleneck
        seen = (*bottleneck.spent_at(self._next_ns), bottleneck.dropped_bytes, bottleneck.lost_bytes)
        behind = self._behind_bytes.pop(len(self.rows) // COLUMNS, 0.0)
        self.rows.extend((*(now - before for now, before in zip(seen, self._seen, strict=True)), bottleneck.queue_bytes, behind))
        self._seen = seen

    def served(self, entry: Entry, late_ns: int) -> None:
        """A packet was delivered `late_ns` after it was due: at each window's end in between, part of it was due but not served."""
        window = max(entry.begin_ns - self.start_ns, 0) // WINDOW_NS
        end_ns = self.start_ns + (window + 1) * WINDOW_NS
        while end_ns < entry.departure_ns + late_ns:
            due = _share(end_ns, entry.begin_ns, entry.departure_ns)
            served = _share(end_ns - late_ns, entry.begin_ns, entry.departure_ns)
            self._add_behind(window, (due - served) * entry.size_bytes)
            window += 1
            end_ns += WINDOW_NS

    def _add_behind(self, window: int, size_bytes: float) -> None:
        """A window may be closed already when its late packet is delivered."""
        if window * COLUMNS < len(self.rows):
            self.rows[window * COLUMNS + COLUMNS - 1] += size_bytes
        elif window < MAX_WINDOWS:
            self._behind_bytes[window] = self._behind_bytes.get(window, 0.0) + size_bytes


def _share(now_ns: int, begin_ns: int, end_ns: int) -> float:
    """Share of a packet's service from `begin_ns` to `end_ns` that is over at `now_ns`."""
    if now_ns >= end_ns:
        return 1.0
    return (now_ns - begin_ns) / (end_ns - begin_ns) if now_ns > begin_ns else 0.0
