"""Delay and loss of one direction as they change over time. Pure: asked for each packet in the order in which they leave the bottleneck."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

THRESHOLD_BITS = 53
"""Probabilities are whole multiples of 2^-53, as which a double tells them apart."""


class Fate(NamedTuple):
    """What the path does to a packet."""

    delay_ns: int
    """Negative: as long as the path's own."""
    lost: bool


class Conditions:
    """Segment i holds on (`edges_ns[i]`, `edges_ns[i+1]`] and wraps.

    Losses are a chain of two states (Gilbert, Bell System Technical Journal 1960): a packet is lost with probability `stay[i]` if its
    predecessor was, else `enter[i]`, both in 2^-53. Where both are 0 the chain begins anew.
    """

    def __init__(
        self,
        edges_ns: Sequence[int],
        delays_ns: Sequence[int],
        enter: Sequence[int],
        stay: Sequence[int],
        seed: int,
        start_ns: int,
        offset_ns: int = 0,
    ) -> None:
        self._edges_ns, self._delays_ns, self._enter, self._stay = edges_ns, delays_ns, enter, stay
        within_ns = offset_ns % edges_ns[-1]
        self._lap_ns = start_ns - within_ns
        self._index = bisect_right(edges_ns, within_ns) - 1
        self._random = SplitMix64(seed)
        self._lost = False

    def fate(self, departure_ns: int) -> Fate:
        """Of the packet that leaves the bottleneck at `departure_ns`, which never goes back and is later than the start."""
        while departure_ns > self._lap_ns + self._edges_ns[self._index + 1]:
            self._index += 1
            if self._index == len(self._delays_ns):
                self._index = 0
                self._lap_ns += self._edges_ns[-1]
        threshold = (self._stay if self._lost else self._enter)[self._index]
        if self._enter[self._index] or self._stay[self._index]:
            self._lost = self._random.next() >> (64 - THRESHOLD_BITS) < threshold
        else:
            self._lost = False
        return Fate(self._delays_ns[self._index], self._lost)


class SplitMix64:
    """Steele, Lea and Flood, OOPSLA 2014: a generator of 64-bit numbers that is the same in every language."""

    def __init__(self, seed: int) -> None:
        self._state = seed

    def next(self) -> int:
        """The next number."""
        self._state = (self._state + 0x9E3779B97F4A7C15) % 2**64
        mixed = self._state
        mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB % 2**64
        return mixed ^ (mixed >> 31)
