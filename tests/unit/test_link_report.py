"""Windows, lateness, rate error and verdict, from counters that are made up."""

import itertools
from array import array
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.errors import UserError
from testbed.link import PathSpec, Punctuality
from testbed.shapers.accounts import Histogram, link_rows, rate_error, report
from testbed.shapers.bottleneck import Bottleneck, Entry
from testbed.shapers.capacity import RateCapacity, constant
from testbed.shapers.conditions import Conditions as PathConditions
from testbed.shapers.conditions import SplitMix64
from testbed.shapers.encoding import chain, encode
from testbed.shapers.ledger import COLUMNS, FINE_US, WINDOW_NS, Lateness, Stalls, Windows
from testbed.shapers.messages import CAUSES, Attach, Counters, Course, Load, Result
from testbed.units import ns_from_s
from traces.trace import MAX_DURATION_S, MAX_RATE_BPS, MIN_DURATION_S, MIN_MEAN_RATE_BPS, Conditions, OpportunityTrace, RateTrace

MS = ns_from_s(1e-3)
PACKETS_PER_WINDOW = 11


def backlogged(lateness_ns, windows=20, rate_bps=PACKETS_PER_WINDOW * 1500 * 8 / 0.1 * 0.97):
    """Windows of a link that is always backlogged, whose packet i is late by lateness_ns(i)."""

    def fresh():
        model = Bottleneck(constant(rate_bps, 0), 0, 10**9, max_inside_bytes=10**9)
        for _ in range(windows * PACKETS_PER_WINDOW):
            model.offer(0, 1500, ())
        return model

    emptied, book = fresh(), Windows(fresh(), 0)
    pending = []
    while emptied.due_ns is not None:
        late_ns = lateness_ns(len(pending))
        entry = emptied.take(emptied.due_ns)
        pending.append((entry.departure_ns + late_ns, len(pending), entry, late_ns))
    for now_ns, _, entry, late_ns in sorted(pending):
        book.advance(now_ns)
        book.served(entry, late_ns)
    return book.rows


def test_packets_that_straddle_windows_are_no_error():
    rows = backlogged(lambda i: 0)
    assert rate_error(rows).pct == 0
    per_window = [rows[i] for i in range(0, len(rows), COLUMNS)]
    assert all(value == pytest.approx(PACKETS_PER_WINDOW * 1500 * 0.97, abs=0.01) for value in per_window)


def test_constant_small_lateness_shifts_service_and_is_hardly_an_error():
    assert rate_error(backlogged(lambda i: MS // 5)).pct == pytest.approx(0.2 / 100 * 100 / 19, abs=0.05)  # only the first window is short


def test_a_stall_is_an_error():
    """Nothing for 20 ms once in 19 windows: 20 % are missing from one window and come in the next."""
    stalled = backlogged(lambda i: max(0, 20 * MS - (i - 52) * 9 * MS) if i >= 52 else 0)
    assert rate_error(stalled).pct > 1


def test_every_tenth_packet_late_by_its_own_service_time_is_an_error():
    assert rate_error(backlogged(lambda i: 9 * MS * (i % 10 == 0))).pct > 1


@given(st.integers(0, 30 * MS), st.integers(0, 500 * MS), st.integers(0, 30 * MS))
def test_a_late_packet_is_behind_at_each_window_end_in_between(begin_ns, service_ns, late_ns):
    book = Windows(Bottleneck(constant(1e6, 0), 0, 10**6), 0)
    entry = Entry(begin_ns, begin_ns + service_ns, begin_ns + service_ns, 1500, None)
    book.served(entry, late_ns)
    book.advance(2000 * MS)
    for i in range(0, len(book.rows), COLUMNS):
        end_ns = (i // COLUMNS + 1) * WINDOW_NS
        due = min(max((end_ns - begin_ns) / service_ns, 0), 1) if service_ns else float(end_ns >= begin_ns)
        served = min(max((end_ns - late_ns - begin_ns) / service_ns, 0), 1) if service_ns else float(end_ns - late_ns >= begin_ns)
        assert book.rows[i + COLUMNS - 1] == pytest.approx((due - served) * 1500, abs=1e-6)


def test_windows_say_what_was_allowed_wasted_dropped_and_queued():
    model = Bottleneck(constant(1.2e6, 0), 0, 4500)  # 15000 bytes a window
    book = Windows(model, 0)
    for now_ns in (50 * MS, 50 * MS, 50 * MS, 50 * MS, 195 * MS):
        book.advance(now_ns)
        model.offer(now_ns, 1500)
    book.advance(300 * MS)
    rows = link_rows("t", "up", book.rows)
    assert {row.direction for row in rows} == {"up"}
    assert [row.allowed_bytes for row in rows] == [15000] * 3
    assert [row.delivered_bytes for row in rows] == pytest.approx([4500, 750, 750])
    assert [row.dropped_bytes for row in rows] == [1500, 0, 0]
    assert [row.queue_bytes for row in rows] == [0, 1500, 0]
    assert [row.start_s for row in rows] == pytest.approx([0, 0.1, 0.2])


@given(st.lists(st.integers(0, 60 * MS), min_size=1, max_size=300))
def test_quantiles_of_lateness(late):
    counter = Lateness()
    for value in late:
        counter.add(value)
    histogram = Histogram.of(direction(counter))
    assert histogram.max_s == max(late) / 1e9
    assert histogram.later_than(5e-3) == sum(value >= 5 * MS for value in late)
    for beyond in (0, 10, len(late) // 2):
        found, exact = histogram.all_but_s(beyond), sorted(late)[-1 - min(beyond, len(late) - 1)] / 1e9
        assert exact <= found + 1e-12 or beyond >= len(late)
        assert found <= exact + 1.001e-6 if exact < FINE_US * 1e-6 else found <= 2 * exact
    row = histogram.row("t", "down")
    assert sum(row.counts) == len(late) and row.upper_ms[:2] == pytest.approx([0.001, 0.002][: len(row.upper_ms)])
    for upper_ms, below in zip(row.upper_ms, [sum(row.counts[: i + 1]) for i in range(len(row.counts))], strict=True):
        assert below == sum(value < upper_ms * MS for value in late)


def direction(counter=None, rows=(), **changes):
    """A direction's counters of 1000 packets that were never late."""
    if counter is None:
        counter = Lateness()
        for _ in range(1000):
            counter.add(90_000)
    drops = {**dict.fromkeys(CAUSES, 0), "queue": 2}
    values = {"packets_in": 1003, "packets_out": 1000, "inside": 1, "drops": drops, **changes}
    return Counters(fine_us=counter.fine, coarse_us=counter.coarse, max_late_ns=counter.max_ns, rows=array("d", rows), **values)


def test_packets_on_time_one_way_do_not_hide_late_ones_the_other_way():
    """1.4 % of the data is 2 ms late, and nearly as many acknowledgements are not."""
    late = Lateness()
    for i in range(6000):
        late.add(2 * MS if i % 70 == 0 else 50_000)
    found = made(down=direction(late, packets_in=6003, packets_out=6000))
    assert found.lateness_p99_s == pytest.approx(2e-3, rel=0.3) and found.verdict == "fail"


def made(down=None, interface_drops=0, started_ns=5, stalled_ns=0):
    """A report of a good link, changed."""
    return report(
        "t",
        Result(started_ns=started_ns, stopped_ns=5 + 100 * 10**9, down=down or direction(), up=direction(), stalled_ns=stalled_ns),
        interface_drops,
    )


def timed(**punctuality):
    """A report of a good link whose 1000 packets down were late like this."""
    found = made()
    return replace(found, punctuality={**found.punctuality, "down": replace(found.punctuality["down"], **punctuality)})


def test_a_good_link_passes():
    good = made()
    assert (good.verdict, good.reasons, good.uncounted_losses) == ("pass", (), 0)
    assert good.drops == {"queue": 4, "codel": 0, "loss": 0, "malformed": 0, "transmit": 0}
    assert good.lateness_p99_s == pytest.approx(90e-6, abs=1e-6)


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        (made(started_ns=None), "never started"),
        (made(direction(packets_out=999)), "lost uncounted"),
        (made(direction(packets_out=1001)), "lost uncounted"),
        (made(interface_drops=1), "lost uncounted"),
        (made(direction(rows=[*[1000, 0, 0, 0, 0, 11], *[1000, 0, 0, 0, 0, 0]] * 25)), "off by 1.10 %"),
        (timed(p99_s=1.01e-3), "p99 is 1.01 ms"),
        (made(stalled_ns=101 * MS), "stood still for 101 ms, 0.101% of the time"),
        (timed(packets=12_000, late=14), "0.117% of packets were later than 5 ms"),
    ],
)
def test_each_rule_fails_a_link(bad, word):
    assert bad.verdict == "fail" and len(bad.reasons) == 1 and word in bad.reasons[0]


def test_a_relay_that_stands_still_now_and_then_is_told_how_long():
    stalls = Stalls()
    for late_ns in (-5 * MS, MS, MS + 1, 30 * MS, 20 * MS):
        stalls.add(late_ns)
    assert (stalls.total_ns, stalls.max_ns) == (51 * MS + 1, 30 * MS)


def test_one_pause_does_not_fail_a_short_trial():
    assert replace(made(), duration_s=10, stalled_s=0.05).verdict == "pass"
    assert replace(made(), duration_s=10, stalled_s=0.0501).verdict == "fail"
    assert timed(late=10).verdict == "pass"
    assert timed(late=11).verdict == "fail"


@pytest.mark.parametrize(("packets", "late", "verdict"), [(60, 10, "pass"), (60, 11, "fail"), (1100, 11, "pass"), (1100, 12, "fail")])
def test_p99_of_few_packets_is_judged_by_how_many_were_late(packets, late, verdict):
    counter = Lateness()
    for i in range(packets):
        counter.add(2 * MS if i < late else 50_000)
    found = made(down=direction(counter, packets_in=packets + 3, packets_out=packets))
    assert (found.punctuality["down"].p99_s == pytest.approx(2e-3, rel=0.01)) == (verdict == "fail")
    assert found.verdict == verdict


def test_each_direction_may_be_late_by_itself_and_neither_outvotes_the_other():
    data, acknowledgements = Punctuality(packets=10_000, late=11), Punctuality(packets=10_000)
    found = replace(made(), punctuality={"down": data, "up": acknowledgements})
    assert found.verdict == "fail" and (found.late_share, found.late_packets) == (0.0011, 11)
    assert replace(made(), punctuality={"down": acknowledgements, "up": data}).verdict == "fail"
    few = Punctuality(packets=100, late=10)  # the larger share, of too few packets
    assert replace(made(), punctuality={"down": data, "up": few}).reasons[0].startswith("0.110% of packets")
    assert replace(made(), punctuality={"down": few, "up": few}).verdict == "pass"


@pytest.mark.parametrize(
    ("windows", "behind", "verdict"), [(1, 500, "pass"), (2, 251, "fail"), (10, 49, "pass"), (10, 51, "fail"), (50, 11, "fail")]
)
def test_the_rate_of_a_few_windows_may_be_off_by_a_short_pause(windows, behind, verdict):
    """1000 bytes are due in 0.1 s: 50 ms of pause are 500 bytes, wherever and however often."""
    rows = [value for i in range(windows) for value in (1000, 0, 0, 0, 0, behind * (i % 2 == 0))]
    assert made(direction(rows=rows)).verdict == verdict
    assert made(direction(rows=[*rows, *[1000, 5, 0, 0, 0, 900]])).verdict == verdict, "windows without a backlog count for nothing"


def test_only_backlogged_windows_judge_the_rate():
    assert rate_error(array("d", [1000, 1, 0, 0, 0, 500, 1000, 0, 0, 0, 0, 500])).pct == 0
    assert rate_error(array("d")).pct == 0


@pytest.mark.parametrize(
    "change",
    [{"rtt_s": -1}, {"rtt_s": float("nan")}, {"queue_bytes": 100}, {"back_end": "tc"}, {"queue_packets": 1}, {"discipline": "red"}],
)
def test_a_path_that_makes_no_sense_is_refused(change):
    with pytest.raises(UserError, match="wanted"):
        PathSpec(**change)


def test_traces_go_to_the_relay_as_whole_ns_and_thousandths_of_bits():
    request = encode(3, RateTrace("t", (0, 0.5, 1), (1e6, 0)), None, 0.25, 1)
    assert (request.lane, request.offset_ns, request.down.mean_rate) == (3, 250_000_000, 500_000_000)
    assert list(request.down.numbers) == [0, 500_000_000, 1_000_000_000, 1_000_000_000, 0]
    assert len(request.up.numbers) == 0
    request = encode(0, RateTrace("t", (0, 1), (1e6,)), OpportunityTrace("u", (0.001, 0.001, 1)), 0, 1)
    assert (list(request.up.times), list(request.up.rates)) == ([1_000_000, 1_000_000, 1_000_000_000], [])


numbers = st.integers(-(2**63), 2**63 - 1)


@given(
    st.integers(0, 63), st.integers(0, 2**40), st.integers(0, 2**64 - 1), st.lists(st.lists(numbers, max_size=5), min_size=6, max_size=6)
)
def test_what_is_sent_is_what_is_read(lane, offset_ns, seed, lists):
    times, rates, *columns = lists
    segments = min(len(column) for column in columns) - 1 if all(columns) else 0
    edges, delays, enter, stay = columns[0][: segments + 1 if segments > 0 else 0], *(column[: max(segments, 0)] for column in columns[1:])
    course = Course(times=times, rates=rates, mean_rate=7, edges=edges, delays=delays, enter=enter, stay=stay, seed=seed)
    sent = Load(lane=lane, offset_ns=offset_ns, down=course, up=Course(times=[5]))
    seen = Load.decode(sent.encode(), memoryview(array("q", memoryview(sent.numbers()).cast("q"))))
    assert (seen.lane, seen.offset_ns, seen.down.seed, seen.down.mean_rate) == (lane, offset_ns, seed, 7)
    assert seen.down.numbers == sent.down.numbers and list(seen.up.times) == [5]
    attach = Attach(
        lane=lane,
        server_pid=1,
        client_pid=2,
        delay_ns=3,
        queue_bytes=4,
        queue_packets=5,
        codel_target_ns=6,
        codel_interval_ns=7,
        offload=True,
        server_interface="server0-eth0",
        client_interface="c",
        start_path="/run/x.sock",
    )
    assert Attach.decode(attach.encode()) == attach
    result = Result(
        started_ns=None,
        stopped_ns=9,
        stalled_ns=3,
        max_stall_ns=2,
        down=direction(rows=[1, 2, 3, 4, 5, 6]),
        up=direction(wraps=2, windows_lost=3),
    )
    assert Result.decode(result.encode()) == result


@pytest.mark.parametrize(("loss", "burst"), [(0.1, None), (0.01, 1), (0.1, 5), (0.6, 3), (0.3, 50)])
def test_losses_come_in_the_share_and_the_runs_asked_for(loss, burst):
    trace = RateTrace("t", (0, 1), (1e9,), conditions=Conditions((0, 1), loss=(loss,), burst_packets=None if burst is None else (burst,)))
    wanted = encode(0, trace, None, 0, seed=7).down
    conditions = PathConditions(wanted.edges, wanted.delays, wanted.enter, wanted.stay, wanted.seed, 0)
    lost = [conditions.fate(now_ns).lost for now_ns in range(1, 200_001)]
    assert sum(lost) / len(lost) == pytest.approx(loss, abs=0.005 * (burst or 1) ** 0.5)
    runs = sum(1 for before, now in itertools.pairwise([False, *lost]) if now and not before)
    assert sum(lost) / runs == pytest.approx(burst or 1 / (1 - loss), rel=0.06)
    assert chain(1, 3) == chain(1, None) == (1, 1)


def test_the_generator_is_splitmix64():
    """The first numbers after seed 1234567, as its authors' program gives them."""
    generator = SplitMix64(1234567)
    assert [generator.next() for _ in range(3)] == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize(
    "trace",
    [
        RateTrace("longest and fastest", (0, MAX_DURATION_S), (MAX_RATE_BPS,)),
        RateTrace("shortest and slowest", (0, MIN_DURATION_S), (MIN_MEAN_RATE_BPS,)),
    ],
    ids=lambda trace: trace.name,
)
def test_what_a_trace_may_be_a_link_can_carry(trace):
    request = encode(0, trace, None, trace.duration_s / 2, 1)
    *edges_ns, rate = request.down.numbers
    packet = 1500 * RateCapacity.per_byte
    sent_s = RateCapacity(edges_ns, [rate], 0, request.offset_ns).when(packet) / 1e9
    assert sent_s == pytest.approx(1500 * 8 / trace.mean_rate_bps, abs=1e-9)


@pytest.mark.parametrize("offset_s", [-1, float("inf"), float("nan")])
def test_a_bad_offset_is_refused(offset_s):
    with pytest.raises(UserError, match="offset"):
        encode(0, RateTrace("t", (0, 1), (1e6,)), None, offset_s, 1)


@pytest.mark.parametrize(
    ("trace", "numbers"),
    [
        (OpportunityTrace("t", (*range(1_000_000), 999_999)), 1_000_001),
        (RateTrace("t", range(500_002), (1e6,) * 500_001), 1_000_003),
        (RateTrace("t", (0, 250_000), (1e6,), conditions=Conditions(range(250_001), loss=(0.0,) * 250_000)), 1_000_007),
    ],
    ids=["opportunities", "rates", "conditions"],
)
def test_a_trace_that_a_relay_would_read_for_too_long_is_refused(trace, numbers):
    with pytest.raises(UserError, match=f"has {numbers} times, rates and conditions, wanted at most 1000000 for a link: give rates"):
        encode(0, trace, None, 0, 1)


def test_a_trace_below_resolution_is_refused():
    with pytest.raises(UserError, match="carries nothing"):
        encode(0, RateTrace("t", (0, 4e-10, 0.1), (1e12, 1e-4)), None, 0, 1)
