"""What a link did to each packet, from sightings at its two ends, and what the reference model would have done. Pure.

Packets are matched by the first bytes of their frames, which links don't change and which hold what tells packets apart. The model then
gets the captured arrivals and says when each packet is due. It is asked twice:

- *as it went*: only with the packets that the link served, so that every time that it names is that of a packet that has one;
- *alone*: with all packets and the queue's bounds, to see whether it would have dropped the same. Captured arrivals differ from those
  that the link read by some microseconds, which can turn the fate of a packet at a full queue, and under CoDel that of its successors.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from testbed.fidelity.evidence import Sighting
from testbed.shapers.bottleneck import Bottleneck
from testbed.shapers.capacity import RATE_SCALE, Capacity, OpportunityCapacity, RateCapacity
from testbed.shapers.codel import CoDel
from testbed.shapers.conditions import Conditions
from testbed.units import ns_from_s, s_from_ns
from traces.trace import Conditions as TraceConditions
from traces.trace import RateTrace, Trace

UNBOUNDED = 2**62
TIE_NS = ns_from_s(1e-3)


class Passage(NamedTuple):
    """A packet's way through a link; `out_ns` is None when it never came out."""

    in_ns: int
    out_ns: int | None
    size_bytes: int
    sure: bool = True
    """False: it looks like another one that never came out, so either may be the one that did."""


@dataclass(frozen=True)
class Matching:
    """Both ends put together, in order of entry."""

    passages: tuple[Passage, ...]
    strays: int
    """Packets that came out and never went in."""
    swapped: int
    """Packets that another one overtook which went in more than `TIE_NS` after them."""


def match(entered: Sequence[Sighting], left: Sequence[Sighting]) -> Matching:
    """Alike ones are taken to come out in the order in which they went in.

    Two cores may hand packets over at once, and stamp them in one order while the interface takes them in the other. Packets that came out
    in another order than stamped, and went in within `TIE_NS`, are therefore put in order as they came out.
    """
    alike: dict[bytes, deque[int]] = defaultdict(deque)
    for index, sighting in enumerate(entered):
        alike[sighting.mark].append(index)
    often = {mark for mark, found in alike.items() if len(found) > 1}
    outs: list[int | None] = [None] * len(entered)
    went_ns = [sighting.at_ns for sighting in entered]
    strays, swapped, latest_ns = 0, 0, 0
    for sighting in left:
        waiting = alike.get(sighting.mark)
        if not waiting:
            strays += 1
            continue
        index = waiting.popleft()
        outs[index] = sighting.at_ns
        swapped += went_ns[index] < latest_ns - TIE_NS
        went_ns[index] = latest_ns = max(latest_ns, went_ns[index])
    unsure = {mark for mark in often if alike[mark]}
    passages = [
        Passage(at_ns, out_ns, one.size_bytes, one.mark not in unsure) for one, at_ns, out_ns in zip(entered, went_ns, outs, strict=True)
    ]
    order = {one.at_ns: rank for rank, one in enumerate(left)}
    passages.sort(key=lambda one: (one.in_ns, -1 if one.out_ns is None else order[one.out_ns]))
    return Matching(tuple(passages), strays, swapped)


@dataclass(frozen=True)
class Model:
    """One direction of a link as it was asked for."""

    trace: Trace | None
    """None: delay alone."""
    offset_ns: int
    delay_ns: int
    queue_bytes: int
    queue_packets: int = 0
    codel: bool = False

    @property
    def lossy(self) -> bool:
        """Whether packets may be lost after the bottleneck."""
        conditions = self.trace.conditions if self.trace else None
        return bool(conditions and conditions.loss and any(conditions.loss))

    def capacity(self, start_ns: int) -> Capacity | None:
        """The trace as the model takes it, in whole ns and 1e-3 bit/s."""
        if self.trace is None:
            return None
        if isinstance(self.trace, RateTrace):
            rates = [round(rate * RATE_SCALE) for rate in self.trace.rates_bps]
            return RateCapacity([ns_from_s(edge) for edge in self.trace.edges_s], rates, start_ns, self.offset_ns)
        return OpportunityCapacity([ns_from_s(at) for at in self.trace.times_s], start_ns, self.offset_ns)

    def delays(self, start_ns: int) -> Conditions | None:
        """The trace's delays without its losses: those are taken as they were."""
        conditions: TraceConditions | None = self.trace.conditions if self.trace else None
        if conditions is None or conditions.delay_s is None:
            return None
        none = [0] * len(conditions.delay_s)
        edges_ns = [ns_from_s(edge) for edge in conditions.edges_s]
        return Conditions(edges_ns, [ns_from_s(delay) for delay in conditions.delay_s], none, none, 0, start_ns, self.offset_ns)

    def as_it_went(self, start_ns: int) -> Bottleneck:
        """Without bounds."""
        return self._started(Bottleneck(None, self.delay_ns, UNBOUNDED, max_inside_bytes=UNBOUNDED), start_ns)

    def alone(self, start_ns: int) -> Bottleneck:
        """With all bounds."""
        codel = CoDel() if self.codel else None
        return self._started(Bottleneck(None, self.delay_ns, self.queue_bytes, self.queue_packets, codel), start_ns)

    def _started(self, bottleneck: Bottleneck, start_ns: int) -> Bottleneck:
        bottleneck.switch(start_ns, self.capacity(start_ns), self.delays(start_ns))
        return bottleneck


@dataclass(frozen=True)
class Alone:
    """What the model does without being told."""

    drops: dict[str, int]
    kept: np.ndarray
    """(passages,) whether it serves each."""


def alone(model: Model, passages: Sequence[Passage], start_ns: int) -> Alone:
    """The model's own decisions on the captured arrivals."""
    bottleneck = model.alone(start_ns)
    kept = np.zeros(len(passages), dtype=bool)
    for index, passage in enumerate(passages):
        bottleneck.offer(max(passage.in_ns, start_ns), passage.size_bytes, index)
        _take(bottleneck, passage.in_ns, kept)
    _take(bottleneck, UNBOUNDED, kept)
    return Alone(dict(bottleneck.drops), kept)


def _take(bottleneck: Bottleneck, now_ns: int, kept: np.ndarray) -> None:
    while entry := bottleneck.take(now_ns):
        kept[entry.payload] = True


@dataclass(frozen=True)
class Served:
    """The packets that used the link's capacity; arrays of ns and bytes, in order."""

    begin_ns: np.ndarray
    departure_ns: np.ndarray
    due_ns: np.ndarray
    out_ns: np.ndarray
    """Where `arrived`."""
    size_bytes: np.ndarray
    arrived: np.ndarray
    """False: lost after the bottleneck."""
    sure: np.ndarray
    """See `Passage`."""
    kept: np.ndarray
    """(passages,) whether each was served at all."""
    wasted_bytes: np.ndarray
    """(windows,) capacity that passed while nothing waited."""

    @property
    def error_ns(self) -> np.ndarray:
        """Delivered - due, of those that arrived and look like no other."""
        return np.asarray((self.out_ns - self.due_ns)[self.arrived & self.sure])


def served(model: Model, passages: Sequence[Passage], start_ns: int, edges_ns: Sequence[int]) -> Served:
    """The model's times for the packets that came out, and where the trace has losses for those lost on the way behind the bottleneck.

    Of the packets that didn't come out those were lost on the way, having used the capacity, for which the queue had room.
    """
    bottleneck = model.as_it_went(start_ns)
    edges, wasted, kept = deque(edges_ns), [], np.ones(len(passages), dtype=bool)
    for index, passage in enumerate(passages):
        now_ns = max(passage.in_ns, start_ns)
        while edges and edges[0] < now_ns:
            wasted.append(bottleneck.spent_at(edges.popleft())[1])
        bottleneck.advance(now_ns)
        if passage.out_ns is None and not (model.lossy and bottleneck.queue_bytes + passage.size_bytes <= model.queue_bytes):
            kept[index] = False
            continue
        bottleneck.offer(now_ns, passage.size_bytes, passage)
    wasted += [bottleneck.spent_at(edge)[1] for edge in edges]
    entries = []
    while entry := bottleneck.take(UNBOUNDED):
        entries.append(entry)

    def column(values: Iterable[int]) -> np.ndarray:
        return np.fromiter(values, dtype=np.int64, count=len(entries))

    outs = [entry.payload.out_ns for entry in entries]
    return Served(
        begin_ns=column(entry.begin_ns for entry in entries),
        departure_ns=column(entry.departure_ns for entry in entries),
        due_ns=column(entry.due_ns for entry in entries),
        out_ns=column(-1 if out is None else out for out in outs),
        size_bytes=column(entry.size_bytes for entry in entries),
        arrived=np.array([out is not None for out in outs], dtype=bool),
        sure=np.array([entry.payload.sure for entry in entries], dtype=bool),
        kept=kept,
        wasted_bytes=np.diff(wasted),
    )


Curve = Callable[[np.ndarray], np.ndarray]
"""Bytes that a trace could have carried by times in ns; never falls."""


def curve(model: Model, start_ns: int) -> Curve:
    """Of the model's trace, which must have one. Rates as the trace itself gives them in seconds, not as the integers links count with."""
    trace = model.trace
    assert trace is not None
    if isinstance(trace, RateTrace):
        return lambda at_ns: np.asarray(trace.bytes_by(s_from_ns((at_ns - start_ns + model.offset_ns).astype(float))))
    opportunities = OpportunityCapacity([ns_from_s(at) for at in trace.times_s], start_ns, model.offset_ns)
    return lambda at_ns: np.array([opportunities.at(int(at)) for at in at_ns], dtype=float)


def by_window(packets: Served, edges_ns: np.ndarray, late_ns: np.ndarray, carried: Curve | None = None) -> np.ndarray:
    """Bytes served between `edges_ns` (edges,) if each packet's service is `late_ns` (packets,) late: (edges - 1,).

    A packet that straddles an edge is split as the trace's curve goes meanwhile. Without a curve it's split evenly, and one served in no
    time at an edge belongs to the later window: so it is in the link's rate error.
    """
    ends_ns, last = packets.departure_ns + late_ns, len(edges_ns) - 1
    first = np.searchsorted(edges_ns, packets.begin_ns + late_ns, side="right") - 1
    final = np.searchsorted(edges_ns, ends_ns, side="left") - 1
    total = np.zeros(last)
    window = final if carried else np.maximum(first, final)
    inside = (first >= final) & (window >= 0) & (window < last)
    np.add.at(total, window[inside], packets.size_bytes[inside])
    for i in np.flatnonzero(first < final):
        span = np.arange(max(first[i], 0), min(final[i], last - 1) + 1)
        at_ns = np.clip(edges_ns[[*span, span[-1] + 1]] - late_ns[i], packets.begin_ns[i], packets.departure_ns[i])
        whole = np.array([packets.begin_ns[i], packets.departure_ns[i]])
        done, (begun, ended) = (carried(at_ns), carried(whole)) if carried else (at_ns, whole)
        if ended > begun:
            total[span] += packets.size_bytes[i] * np.diff(done) / (ended - begun)
        elif final[i] < last:
            total[final[i]] += packets.size_bytes[i]
    return total
