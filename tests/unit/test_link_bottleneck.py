"""The bottleneck model against a literal, exact re-enactment of it, and the laws that any link obeys. No clock."""

from bisect import bisect_right
from collections import deque
from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.shapers.bottleneck import Bottleneck
from testbed.shapers.capacity import RATE_SCALE, OpportunityCapacity, RateCapacity, constant
from testbed.units import BITS_PER_BYTE, OPPORTUNITY_BYTES, ns_from_s

SECOND = ns_from_s(1)
WORK_PER_BYTE = BITS_PER_BYTE * RATE_SCALE * SECOND
START_NS = 7_000_000_123
MBPS = 10**6 * RATE_SCALE


@st.composite
def rate_traces(draw):
    """Up to six segments of 1 ns to 2 s at 0 to 50 Mbit/s, at least one above 0; (edges_ns, rates)."""
    widths = draw(st.lists(st.one_of(st.integers(1, 100), st.integers(1, 2 * SECOND)), min_size=1, max_size=6))
    rates = draw(st.lists(st.one_of(st.just(0), st.integers(10**5, 50 * MBPS)), min_size=len(widths), max_size=len(widths)))
    widest = widths.index(max(widths))
    widths[widest] = max(widths[widest], SECOND // 100)
    rates[widest] = max(rates[widest], MBPS // 10)  # else a lap could carry next to nothing
    edges = [0]
    for width in widths:
        edges.append(edges[-1] + width)
    return edges, rates


opportunity_traces = st.lists(st.integers(0, SECOND), min_size=1, max_size=20).map(sorted).filter(lambda times: times[-1] > 0)
arrivals = st.lists(st.tuples(st.one_of(st.just(0), st.integers(0, SECOND // 2)), st.integers(20, 1500)), min_size=1, max_size=40)
limits = st.integers(3000, 20_000)
offsets = st.integers(0, 5 * SECOND)


def absolute(gaps):
    """(gap, size) to (arrival, size)."""
    now_ns, out = START_NS, []
    for gap, size in gaps:
        now_ns += gap
        out.append((now_ns, size))
    return out


def play(capacity, packets, limit, delay_ns=0):
    """Departure of each packet (None: dropped), the model after the last arrival, and who was inside then."""
    model, departures = Bottleneck(capacity, delay_ns, limit), {}
    for i, (now_ns, size) in enumerate(packets):
        while entry := model.take(now_ns):
            departures[entry.payload] = entry.departure_ns
        model.offer(now_ns, size, i)
    inside_bytes, count = model.inside_bytes, len(model)
    inside = drained(model)
    departures |= {entry.payload: entry.departure_ns for entry in inside}
    assert (inside_bytes, count) == (sum(entry.size_bytes for entry in inside), len(inside))
    assert (model.inside_bytes, model.queue_bytes, len(model)) == (0, 0, 0)
    return [departures.get(i) for i in range(len(packets))]


def drained(model):
    """What still comes out."""
    entries = []
    while (due_ns := model.due_ns) is not None:
        entries += [entry] if (entry := model.take(due_ns)) else []
    return entries


def enact_rate(edges, rates, offset_ns, packets, limit):
    """Serve byte fractions, segment by segment, in exact arithmetic; departures rounded up to ns."""
    position, index = Fraction(START_NS), bisect_right(edges, offset_ns % edges[-1]) - 1
    lap = START_NS - offset_ns % edges[-1]
    queue, departures = deque(), [None] * len(packets)

    def serve(until):
        nonlocal position, index, lap
        while position < until:
            end = min(Fraction(lap + edges[index + 1]), Fraction(until))
            rate = Fraction(rates[index], WORK_PER_BYTE)  # bytes per ns
            while queue and rate and position + queue[0][1] / rate <= end:
                position += queue[0][1] / rate
                departures[queue.popleft()[0]] = -(-position.numerator // position.denominator)
            if queue:
                queue[0][1] -= rate * (end - position)
            position = end
            if position == lap + edges[index + 1]:
                index += 1
                if index == len(rates):
                    index, lap = 0, lap + edges[-1]

    for i, (now_ns, size) in enumerate(packets):
        serve(now_ns)
        # a packet counts whole until it has left at a whole nanosecond
        leaving = sum(packets[j][1] for j in range(i) if departures[j] is not None and departures[j] > now_ns)
        if leaving + sum(packets[j][1] for j, _ in queue) + size <= limit:
            queue.append([i, Fraction(size)])
    while queue:
        serve(position + SECOND)
    return departures


def enact_opportunities(times, offset_ns, packets, limit):
    """mm-link's loop: arrivals and opportunities in order of time, opportunities first when they coincide."""
    duration = times[-1]
    lap, index = START_NS - offset_ns % duration, 0
    while lap + times[index] <= START_NS:
        index += 1
        if index == len(times):
            index, lap = 0, lap + duration
    queue, departures = deque(), [None] * len(packets)

    def opportunity():
        nonlocal lap, index
        left = OPPORTUNITY_BYTES
        while queue and left:
            used = min(left, queue[0][1])
            queue[0][1] -= used
            left -= used
            if not queue[0][1]:
                departures[queue.popleft()[0]] = lap + times[index]
        index += 1
        if index == len(times):
            index, lap = 0, lap + duration

    for i, (now_ns, size) in enumerate(packets):
        while lap + times[index] <= now_ns:
            opportunity()
        if sum(packets[j][1] for j, _ in queue) + size <= limit:
            queue.append([i, size])
    while queue:
        opportunity()
    return departures


@given(rate_traces(), offsets, arrivals, limits)
def test_rates_are_served_as_enacted(trace, offset_ns, gaps, limit):
    packets = absolute(gaps)
    got = play(RateCapacity(*trace, START_NS, offset_ns), packets, limit)
    assert got == enact_rate(*trace, offset_ns, packets, limit)


@given(opportunity_traces, offsets, arrivals, limits)
def test_opportunities_are_served_as_mahimahi_does(times, offset_ns, gaps, limit):
    packets = absolute(gaps)
    got = play(OpportunityCapacity(times, START_NS, offset_ns), packets, limit)
    assert got == enact_opportunities(times, offset_ns, packets, limit)


def capacities(draw_trace, offset_ns):
    """A fresh capacity of either kind."""
    if isinstance(draw_trace, tuple):
        return RateCapacity(*draw_trace, START_NS, offset_ns)
    return OpportunityCapacity(draw_trace, START_NS, offset_ns)


@given(st.one_of(rate_traces(), opportunity_traces), offsets, arrivals, limits, st.integers(0, SECOND))
def test_laws_of_a_link(trace, offset_ns, gaps, limit, delay_ns):
    packets = absolute(gaps)
    departures = play(capacities(trace, offset_ns), packets, limit, delay_ns)  # which checks that packets and bytes are conserved
    kept = [(d, p) for d, p in zip(departures, packets, strict=True) if d is not None]
    # first in, first out
    assert [d for d, _ in kept] == sorted(d for d, _ in kept)
    # never more than the capacity: what leaves in (a, d] fits in it
    meter = capacities(trace, offset_ns)
    sent = 0
    for departure_ns, (arrival_ns, size) in kept:
        sent += size
        assert departure_ns > arrival_ns
        assert sent * meter.per_byte <= meter.at(departure_ns)
    # work conservation: a packet leaves as soon as its size fits since its arrival or its predecessor's departure
    last_ns, spare = START_NS, 0
    for departure_ns, (arrival_ns, size) in kept:
        before = capacities(trace, offset_ns)
        begin_ns = max(last_ns, arrival_ns)
        at_begin = before.at(begin_ns)
        spare = spare if last_ns > arrival_ns else 0  # of an opportunity, or of a nanosecond, the rest goes to those who waited
        assert before.at(departure_ns) - at_begin + spare >= size * before.per_byte
        spare += before.at(departure_ns) - at_begin - size * before.per_byte
        last_ns = departure_ns
        earlier = capacities(trace, offset_ns)
        if departure_ns - 1 > begin_ns:
            assert earlier.at(departure_ns - 1) < before.at(departure_ns)


@given(rate_traces(), offsets, st.lists(st.tuples(st.integers(0, 20), st.integers(-3, 3)), min_size=1, max_size=20))
def test_the_curve_of_work_is_the_integral_of_the_rates(trace, offset_ns, places):
    """Looked at within 3 ns of the trace's edges."""
    edges, rates = trace
    base_ns = START_NS - offset_ns % edges[-1]
    laps = [(edges[:-1][i % len(rates)] + i // len(rates) * edges[-1] + base_ns, rates[i % len(rates)]) for i in range(30)]
    times = sorted(max(laps[i][0] + nudge, START_NS) for i, nudge in places)
    capacity = RateCapacity(edges, rates, START_NS, offset_ns)
    for now_ns in times:
        ends = [begin for begin, _ in laps[1:]] + [laps[-1][0] + 10]
        area = sum(rate * max(min(end, now_ns) - max(begin, START_NS), 0) for (begin, rate), end in zip(laps, ends, strict=True))
        assert capacity.at(now_ns) == area


@given(st.one_of(rate_traces(), opportunity_traces), offsets, arrivals)
def test_service_begins_at_arrival_or_when_the_predecessor_has_left(trace, offset_ns, gaps):
    packets = absolute(gaps)
    model = Bottleneck(capacities(trace, offset_ns), 10 * SECOND, 10**6)
    for i, (now_ns, size) in enumerate(packets):
        model.offer(now_ns, size, i)
    last_ns = 0
    for entry in drained(model):
        assert entry.begin_ns == max(packets[entry.payload][0], last_ns) <= entry.departure_ns
        last_ns = entry.departure_ns


@given(st.one_of(rate_traces(), opportunity_traces), offsets, arrivals, limits)
def test_allowed_is_spent_or_wasted(trace, offset_ns, gaps, limit):
    packets = absolute(gaps)
    model = Bottleneck(capacities(trace, offset_ns), 0, limit)
    accepted = sum(size for now_ns, size in packets if model.offer(now_ns, size))
    end_ns = (model.due_ns or packets[-1][0]) + 100 * SECOND
    while model.due_ns:
        end_ns = model.due_ns
        model.take(end_ns)
    allowed, wasted = model.spent_at(end_ns + SECOND)
    assert allowed == pytest.approx(accepted + wasted, rel=1e-9, abs=1e-3)


@given(rate_traces(), opportunity_traces, arrivals, st.integers(0, 30 * SECOND))
def test_switching_keeps_order_and_every_byte(trace, times, gaps, after_ns):
    packets = absolute(gaps)
    model = Bottleneck(RateCapacity(*trace, START_NS), 0, 10**6)
    accepted = [i for i, (now_ns, size) in enumerate(packets) if model.offer(now_ns, size, i)]
    switch_ns = packets[-1][0] + after_ns
    allowed, wasted = model.spent_at(switch_ns)
    backlog_bytes = sum(packets[i][1] for i in accepted) - (allowed - wasted)
    model.switch(switch_ns, OpportunityCapacity(times, switch_ns))
    entries = drained(model)
    assert [entry.payload for entry in entries] == accepted
    if backlog_bytes > 1e-6:
        assert entries[-1].departure_ns == OpportunityCapacity(times, switch_ns).when(ceil(backlog_bytes - 1e-6))


def test_a_packet_in_service_goes_on_where_it_is():
    model = Bottleneck(constant(12e6, 0), 0, 10_000)  # 1500 bytes take 1 ms
    model.offer(0, 1500)
    model.offer(0, 1500)
    model.switch(SECOND // 2000, constant(6e6, SECOND // 2000))  # after half of the first
    assert [entry.departure_ns for entry in drained(model)] == [1_500_000, 3_500_000]


def test_rate_changes_inside_a_packet():
    capacity = RateCapacity([0, SECOND // 1000, 2 * SECOND // 1000, SECOND], [6 * MBPS, 0, 12 * MBPS], 0)
    model = Bottleneck(capacity, 40_000_000, 10_000)
    model.offer(0, 1500)  # half in the first ms, nothing in the second, the rest in half a ms
    assert model.due_ns == 42_500_000


def test_outage_and_wrap():
    capacity = RateCapacity([0, SECOND, 2 * SECOND], [12 * MBPS, 0], 0, offset_ns=SECOND + SECOND // 2)
    model = Bottleneck(capacity, 0, 10_000)
    model.offer(0, 1500)
    assert model.due_ns == SECOND // 2 + SECOND // 1000
    assert capacity.wraps(0) == 0 and capacity.wraps(SECOND // 2) == 1 and capacity.wraps(3 * SECOND) == 2


def test_droptail_counts_the_packet_in_service_whole():
    model = Bottleneck(constant(12e6, 0), 0, 4500)
    assert [model.offer(0, 1500) for _ in range(4)] == [True, True, True, False]
    assert not model.offer(999_999, 1500)
    assert model.offer(1_000_000, 1500)
    assert model.queue_bytes == 4500
    assert model.drops == {"queue": 2, "codel": 0, "loss": 0} and model.dropped_bytes == 3000


def test_a_bound_in_packets_counts_the_one_in_service():
    model = Bottleneck(constant(12e6, 0), 0, 10**6, queue_limit_packets=2)
    assert [model.offer(0, 100) for _ in range(3)] == [True, True, False]
    assert model.offer(SECOND, 100)


def test_without_a_capacity_there_is_delay_only_and_a_bound():
    model = Bottleneck(None, 40, 3000, max_inside_bytes=3000)
    assert [model.offer(i, 1500) for i in range(3)] == [True, True, False]
    assert model.take(39) is None
    assert (model.take(40), model.take(40)) != (None, None)
    assert model.offer(40, 1500)


def test_restart_forgets_the_queue_and_not_the_delay_line():
    model = Bottleneck(constant(12e6, 0), SECOND, 10_000)
    for _ in range(3):
        model.offer(0, 1500)
    model.restart(1_500_000, constant(12e6, 1_500_000))
    assert len(model) == 1 and model.inside_bytes == 1500 and model.queue_bytes == 0
    model.offer(1_500_000, 1500)
    assert model.take(SECOND + 1_000_000) and model.due_ns == SECOND + 2_500_000


@pytest.mark.parametrize(("edges", "rates"), [([0, 10], [0]), ([0, 0], [5]), ([0, 0, 10], [5, 0])])
def test_a_trace_that_carries_nothing_is_refused(edges, rates):
    with pytest.raises(ValueError, match="carries nothing"):
        RateCapacity(edges, rates, 0)
