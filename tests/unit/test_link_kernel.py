"""Back end `kernel` without a kernel: when rates change, and what is made of HTB's counters."""

from itertools import islice

import pytest

from testbed.shapers.kernel import FLOOR_BPS, Replay, judge, report
from testbed.units import ns_from_s
from traces.trace import OpportunityTrace, RateTrace

START_NS = ns_from_s(100)
WINDOW_NS = ns_from_s(0.1)


def replay(trace=None, offset_s=0.0, sent=(), backlog=3000, drops=0):
    """A replay whose samples, one every 100 ms, have `sent` bytes each."""
    one = Replay("t", trace or RateTrace("t", (0, 10), (1.2e6,)), offset_s)  # 15000 bytes a window
    one.started_ns = START_NS
    total = 0
    for i, size in enumerate((0, *sent)):
        total += size
        counters = {"bytes": total, "packets": total // 1500, "drops": drops * i, "backlog": backlog, "qlen": backlog // 1500}
        one.samples.append((START_NS + i * WINDOW_NS, counters))
    one.first, one.last = one.samples[0][1], one.samples[-1][1]
    return one


def test_changes_come_at_the_edges_from_the_offset_on_and_wrap():
    trace = RateTrace("t", (0, 1, 3), (1e6, 2e6))
    got = [((when - START_NS) / 1e9, rate) for when, rate in islice(Replay("t", trace, 1.5).changes(START_NS), 4)]
    assert got == [(0, 2e6), (1.5, 1e6), (2.5, 2e6), (4.5, 1e6)]
    got = [((when - START_NS) / 1e9, rate) for when, rate in islice(Replay("t", trace, 7.0).changes(START_NS), 2)]
    assert got == [(0, 2e6), (2, 1e6)]


def test_opportunities_become_rates_of_100_ms():
    rates = Replay("t", OpportunityTrace("t", (0.05, 0.1, 0.15, 0.3)), 0).rates
    assert rates.edges_s == pytest.approx((0, 0.1, 0.2, 0.3))
    assert rates.rates_bps == pytest.approx((240_000, 120_000, 120_000))


def test_whole_packets_are_no_error():
    """10 packets a window, now and then 9 and then 11."""
    assert judge(replay(sent=[15000, 13500, 16500, 15000, 13500, 15000, 16500]))[1] == 0


def test_a_rate_that_is_off_is_an_error_though_no_window_is_off_by_a_packet():
    assert judge(replay(sent=[14500] * 100))[1] == pytest.approx(100 * 500 / 15000, rel=0.05)
    assert judge(replay(sent=[15500] * 100))[1] == pytest.approx(100 * 500 / 15000, rel=0.05)


def test_a_late_step_is_an_error():
    assert judge(replay(sent=[15000] * 5 + [0, 0, 0] + [15000] * 5))[1] > 20


def test_an_idle_link_is_not_judged_and_its_capacity_is_wasted():
    rows, error_pct = judge(replay(sent=[3000] * 5, backlog=0))
    assert error_pct == 0
    assert [(row.allowed_bytes, row.delivered_bytes, row.wasted_bytes) for row in rows] == [pytest.approx((15000, 3000, 12000))] * 5


def test_a_report_adds_up():
    made = report(replay(sent=[15000] * 20, drops=1), START_NS + 20 * WINDOW_NS, interface_drops=0)
    assert made.packets_in == made.packets_out + made.packets_inside + sum(made.drops.values()) - 2  # two waited before
    assert (made.packets_out, made.drops["queue"], made.verdict, made.trace_wraps) == (200, 20, "pass", 0)


def test_a_report_tells_of_rates_below_the_floor_and_of_wraps():
    trace = RateTrace("t", (0, 0.5, 1), (1.2e6, FLOOR_BPS / 2))
    made = report(replay(trace, sent=[0] * 3), START_NS + 25 * WINDOW_NS, interface_drops=2)
    assert any("below" in note for note in made.notes)
    assert (made.trace_wraps, made.uncounted_losses, made.verdict) == (2, 2, "fail")


def test_a_replay_that_never_started_has_no_windows():
    one = replay()
    one.started_ns, one.samples = None, []
    made = report(one, START_NS, interface_drops=0)
    assert made.windows == () and made.started_at is None and made.trace_wraps == 0 and made.verdict == "fail"
