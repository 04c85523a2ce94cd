"""Back end `kernel` without a kernel: which commands are due when, and what is made of the counters of HTB and netem."""

from itertools import islice

import pytest

from testbed.link import PathSpec
from testbed.shapers.kernel_replay import Course, Replay, judge, notes, report
from testbed.shapers.kernel_tc import DIRECTIONS, FLOOR_BPS, Counters, Losses, counters_of, held_limit, packet_limit
from testbed.units import ns_from_s, s_from_ns
from traces.trace import Conditions, OpportunityTrace, RateTrace

START_NS = ns_from_s(100)
WINDOW_NS = ns_from_s(0.1)
NOTHING = Counters(0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
STEPS = RateTrace("t", (0, 1, 3), (1e6, 2e6))


def counters(served=0, queue=0, queue_drops=0, codel_drops=0, losses=0, flying=0, missing=0) -> Counters:
    """In full packets."""
    delivered = served - losses - flying - missing
    return Counters(served, served * 1500, queue, queue * 1500, queue_drops, codel_drops, delivered, losses, losses * 1500, flying)


def replay(trace=None, offset_s=0.0, sent=(), backlog=15000, drops=0, uplink=None, path=None):
    """A replay whose samples, one every 100 ms, have `sent` bytes each."""
    courses = [Course("down", trace or RateTrace("t", (0, 10), (1.2e6,)))]  # 15000 bytes a window
    one = Replay("t", path or PathSpec(), [*courses, *([Course("up", uplink)] if uplink else [])], offset_s)
    one.started_ns = START_NS
    total = 0
    for i, size in enumerate((0, *sent)):
        total += size
        down = Counters(total // 1500, total, backlog // 1500, backlog, drops * i, 0, total // 1500, 0, 0, 0)
        one.look(START_NS + i * WINDOW_NS, {"down": down, "up": NOTHING}, ends=True)
    one.last = one.samples[-1].counters
    return one


def commands(one: Replay, count: int) -> list[tuple[float, str]]:
    return [(s_from_ns(change.due_ns - START_NS), change.command) for change in islice(one.changes(START_NS), count)]


def rates(one: Replay, count: int) -> list[tuple[float, int]]:
    return [(when, int(command.split("rate ")[1].split("bit")[0])) for when, command in commands(one, count)]


def test_rates_change_at_the_edges_and_wrap():
    assert rates(replay(STEPS), 4) == [(0, 1_000_000), (1, 2_000_000), (3, 1_000_000), (4, 2_000_000)]


def test_an_offset_begins_in_the_midst_and_wraps_too():
    assert rates(replay(STEPS, 1.5), 4) == [(0, 2_000_000), (1.5, 1_000_000), (2.5, 2_000_000), (4.5, 1_000_000)]
    assert rates(replay(STEPS, 7.0), 2) == [(0, 2_000_000), (2, 1_000_000)]


def test_what_would_change_nothing_is_left_out():
    assert len(commands(replay(), 5)) == 1
    assert rates(replay(RateTrace("t", (0, 1, 2, 4), (1e6, 1e6, 2e6))), 4) == [(0, 10**6), (2, 2 * 10**6), (4, 10**6), (6, 2 * 10**6)]


def test_both_directions_come_in_order():
    both = replay(STEPS, uplink=RateTrace("u", (0, 0.5, 2), (3e6, 4e6)))
    made = [(when, "pace-down" in command) for when, command in commands(both, 7)]
    assert [when for when, _ in made] == sorted(when for when, _ in made)
    assert [when for when, down in made if not down] == [0, 0.5, 2, 2.5]


def test_rates_are_held_at_the_floor():
    assert rates(replay(RateTrace("t", (0, 1, 2), (1e6, 0))), 2)[1] == (1, FLOOR_BPS)


def test_conditions_become_delays_and_losses_of_netem():
    conditions = Conditions((0, 1, 3), delay_s=(0.01, 0.2), loss=(0, 0.1), burst_packets=(1, 5))
    one = replay(RateTrace("t", (0, 3), (1e6,), conditions=conditions), 0.5)
    netem = [(when, command) for when, command in commands(one, 4) if "netem" in command]
    assert [when for when, _ in netem] == [0, 0.5, 2.5]
    assert "delay 0.010000000s loss random 0.0000000%" in netem[0][1] and "dev to-client" in netem[0][1]
    assert "delay 0.200000000s loss gemodel 2.2222222% 20.0000000% 100% 0%" in netem[1][1]


def test_without_a_delay_of_its_own_a_trace_keeps_the_paths():
    conditions = Conditions((0, 3), loss=(0.01,))
    (_, command), *_ = [one for one in commands(replay(RateTrace("t", (0, 3), (1e6,), conditions=conditions)), 2) if "netem" in one[1]]
    assert "delay 0.040000000s loss random 1.0000000%" in command


@pytest.mark.parametrize(("loss", "burst"), [(0.01, 3.0), (0.3, 10.0), (0.5, 1.0)])
def test_the_chain_of_losses_has_the_share_and_the_bursts_asked_for(loss, burst):
    """Stationary share of the bad state, and the mean time in it, of netem's two probabilities."""
    enter, leave = (float(word.rstrip("%")) / 100 for word in str(Losses(loss, burst)).split()[2:4])
    assert enter / (enter + leave) == pytest.approx(loss, rel=1e-5)
    assert 1 / leave == pytest.approx(burst)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_none_and_all_are_lost_without_a_chain(share):
    assert str(Losses(share, 4.0)).startswith("loss random")


def test_opportunities_become_rates_of_100_ms():
    course = Course("down", OpportunityTrace("t", (0.05, 0.1, 0.15, 0.3)))
    assert course.rates.edges_s == pytest.approx((0, 0.1, 0.2, 0.3))
    assert course.rates.rates_bps == pytest.approx((240_000, 120_000, 120_000))


def test_the_queue_has_the_bound_that_full_packets_meet_first():
    assert held_limit(PathSpec(queue_bytes=60_000)) == "bfifo limit 60000"
    assert held_limit(PathSpec(queue_bytes=60_000, queue_packets=20)) == "pfifo limit 20"
    assert held_limit(PathSpec(queue_bytes=60_000, queue_packets=100)) == "bfifo limit 60000"
    assert held_limit(PathSpec(queue_bytes=60_000, discipline="codel")).startswith("codel limit 40 target 5ms interval 100ms")
    assert packet_limit(PathSpec(queue_bytes=60_000, queue_packets=20, discipline="codel")) == 20


def test_counters_are_told_apart_by_cause():
    queue = {"kind": "codel", "packets": 100, "bytes": 150_000, "qlen": 2, "backlog": 3000, "drops": 9, "drop_overlimit": 4}
    netem = {"kind": "netem", "packets": 90, "bytes": 90 * 1514, "qlen": 3, "backlog": 3 * 1514, "drops": 7}
    made = counters_of(queue, netem)
    assert (made.queue_drops, made.codel_drops, made.losses, made.missing_packets) == (4, 5, 7, 0)
    assert made.lost_bytes == 7 * 1500 and made.flying_packets == 3
    assert counters_of({**queue, "kind": "bfifo"}, None) == Counters(100, 150_000, 2, 3000, 9, 0, 100, 0, 0, 0)


def test_whole_packets_are_no_error():
    """10 packets a window, now and then 9 and then 11."""
    one = replay(sent=[15000, 13500, 16500, 15000, 13500, 15000, 16500])
    assert judge(one, one.courses[0])[1].pct == 0


@pytest.mark.parametrize("sent", [14500, 15500])
def test_a_rate_that_is_off_is_an_error_though_no_window_is_off_by_a_packet(sent):
    one = replay(sent=[sent] * 100)
    assert judge(one, one.courses[0])[1].pct == pytest.approx(100 * 500 / 15000, rel=0.05)


def test_a_late_step_is_an_error():
    one = replay(sent=[15000] * 5 + [0, 0, 0] + [15000] * 5)
    assert judge(one, one.courses[0])[1].pct > 20


def test_an_idle_link_is_not_judged_and_its_capacity_is_wasted():
    one = replay(sent=[3000] * 5, backlog=0)
    rows, error = judge(one, one.courses[0])
    assert error.pct == 0
    assert [(row.allowed_bytes, row.delivered_bytes, row.wasted_bytes) for row in rows] == [pytest.approx((15000, 3000, 12000))] * 5


def test_a_queue_that_ran_dry_for_a_moment_is_no_backlog():
    one = replay()
    for look, queue in enumerate((10, 10, 1, 10, 10, 10, 10, 10, 10, 10)):
        one.look(START_NS + (look + 1) * WINDOW_NS // 5, {"down": counters(look, queue), "up": NOTHING}, ends=look % 5 == 4)
    assert [sample.shortest_bytes["down"] for sample in one.samples] == [15000, 1500, 15000]
    assert [row.wasted_bytes > 0 for row in judge(one, one.courses[0])[0]] == [True, False]


def test_a_report_adds_up():
    one = replay(sent=[15000] * 20, uplink=STEPS)
    one.last = {"down": counters(200, 2, queue_drops=20, codel_drops=3, losses=5, flying=7), "up": counters(50, flying=1)}
    made = report(one, START_NS + 20 * WINDOW_NS, interface_drops=0)
    assert made.packets_in == made.packets_out + made.packets_inside + sum(made.drops.values()) == 275
    assert dict(made.drops) == {"queue": 20, "codel": 3, "loss": 5, "malformed": 0, "transmit": 0}
    assert (made.uncounted_losses, made.verdict, made.trace_wraps) == (0, "pass", 0)
    assert {row.direction for row in made.windows} == set(DIRECTIONS)


@pytest.mark.parametrize(("missing", "dropped"), [(3, 0), (0, 3), (3, 3)])
def test_what_got_lost_between_the_queues_is_uncounted(missing, dropped):
    one = replay(sent=[15000])
    one.last = {"down": counters(10, missing=missing), "up": NOTHING}
    made = report(one, START_NS + WINDOW_NS, interface_drops=dropped)
    assert made.uncounted_losses == 3 and made.verdict == "fail"


def test_a_report_tells_of_rates_below_the_floor_and_of_wraps():
    trace = RateTrace("t", (0, 0.5, 1), (1.2e6, FLOOR_BPS / 2))
    made = report(replay(trace, sent=[0] * 3), START_NS + 25 * WINDOW_NS, interface_drops=0)
    assert any("below" in note for note in made.notes)
    assert made.trace_wraps == 2


def test_a_report_tells_what_is_held_otherwise():
    lossy = RateTrace("t", (0, 1), (1e6,), conditions=Conditions((0, 1), loss=(0.1,)))
    assert any("seed" in note for note in notes(replay(lossy)))
    assert any("CoDel" in note and "40" in note for note in notes(replay(path=PathSpec(queue_bytes=60_000, discipline="codel"))))
    assert any("pfifo limit 5" in note for note in notes(replay(path=PathSpec(queue_packets=5))))
    assert any("averaged" in note for note in notes(replay(OpportunityTrace("t", (0.05, 0.1)))))
    assert len(notes(replay())) == 1


def test_a_replay_that_never_started_has_no_windows():
    one = replay()
    one.started_ns, one.samples = None, []
    made = report(one, START_NS, interface_drops=0)
    assert made.windows == () and made.started_at is None and made.trace_wraps == 0 and made.verdict == "fail"
