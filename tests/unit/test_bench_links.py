"""The benchmark's arithmetic: rate error against cases by hand, what counts as backlogged, captures, delays, plan and page."""

import itertools
import struct

import numpy as np
import pytest

from testbed.bench import capture, command, judge, links, page, phases
from testbed.bench.contenders import CONTENDERS
from testbed.bench.judge import Arrivals
from testbed.bench.mahimahi import Mahimahi
from testbed.bench.mininet_lanes import held_rates
from testbed.errors import UserError
from testbed.units import MTU_BYTES
from traces.trace import OpportunityTrace, RateTrace

TENTHS = OpportunityTrace("tenths", tuple(round(0.01 * i + 0.005, 3) for i in range(300)))
"""Ten opportunities in each 100 ms for 3 s, none on the edge of a window."""
STEPS = RateTrace("steps", (0, 0.7, 1.9, 3.1, 6), (3e6, 12e6, 0.6e6, 5e6))
OUTAGE = RateTrace("outage", (0, 1, 1.5, 4), (6e6, 0, 6e6))
JUDGED = (-0.5, 0.1)


def ideal_arrivals(trace, seconds: float, size_bytes: int = MTU_BYTES) -> np.ndarray:
    """When packets of a size leave an ideal link whose queue never empties, from its trace's beginning on."""
    count = int(float(trace.bytes_by(seconds)) // size_bytes)
    done = size_bytes * np.arange(1, count + 1)
    if isinstance(trace, OpportunityTrace):
        laps, index = np.divmod((done + MTU_BYTES - 1) // MTU_BYTES - 1, len(trace.times_s))
        return np.asarray(laps * trace.duration_s + np.asarray(trace.times_s)[index.astype(int)])
    ticks_s = np.linspace(0.0, seconds, round(seconds / 1e-4) + 1)
    edges_s = np.unique(np.concatenate([ticks_s, [e for e in trace.edges_s if e < seconds]]))
    carried = judge.allowed_by(trace, edges_s)
    keep = np.concatenate([[True], np.diff(carried) > 0])  # flat in an outage: a packet leaves at the end of service before it
    return np.asarray(np.interp(done, carried[keep], edges_s[keep]))


def backlogged(times_s: np.ndarray, late_s: float = 0.0) -> Arrivals:
    """Full packets that had all been sent long before."""
    sent_s = np.concatenate([[times_s[0]], np.full(len(times_s) - 1, times_s[0] - 100.0)])
    return Arrivals(times_s + late_s, np.full(len(times_s), 1500.0), sent_s - 1000.0)


def error_of(arrivals: Arrivals, trace, **how) -> judge.RateError:
    found = judge.rate_error(arrivals, trace, JUDGED, **how)
    assert found is not None
    return found


@pytest.mark.parametrize("trace", [TENTHS, STEPS, OUTAGE], ids=lambda trace: trace.name)
@pytest.mark.parametrize("late_s", [0.0, 0.0123])
def test_an_ideal_link_has_no_error_however_late_it_is(trace, late_s):
    arrivals = backlogged(ideal_arrivals(trace, trace.duration_s), late_s)
    found = error_of(arrivals, trace)
    assert found.short_pct == pytest.approx(0, abs=0.25)
    assert found.long_pct == pytest.approx(0, abs=0.2)  # a packet that is under way in an outage counts evenly over it
    assert found.windows >= 15
    if trace is not TENTHS:  # a constant trace looks the same wherever it begins
        assert found.begin_s == pytest.approx(late_s, abs=0.02)


def test_ten_packets_in_the_wrong_window_of_twenty():
    """Windows 5 and 6 of 20 are off by ten packets each, when the trace's beginning is known."""
    times_s = np.asarray(TENTHS.times_s)
    times_s = np.where((times_s > 0.5) & (times_s < 0.6), 0.6501, times_s)
    found = judge.rate_error(backlogged(np.sort(times_s)), TENTHS, (-0.006, -0.004))
    assert found is not None and found.windows >= 18
    assert found.short_pct == pytest.approx(100 * 20 / (10 * found.windows))
    assert found.long_pct == pytest.approx(0)


def test_half_the_rate_is_half_off():
    times_s = ideal_arrivals(RateTrace("half", (0, 10), (3e6,)), 10)
    found = error_of(backlogged(times_s), RateTrace("whole", (0, 10), (6e6,)), skip_s=2)
    assert (found.short_pct, found.long_pct) == (pytest.approx(50, abs=0.1), pytest.approx(50, abs=0.1))


def test_windows_without_a_backlog_do_not_count():
    """For half a second packets come at half the rate because no more were sent: each had just left when it arrived."""
    times_s = np.concatenate([np.arange(0.005, 1, 0.01), np.arange(1.005, 1.5, 0.02), np.arange(1.505, 2.995, 0.01)])
    sent_s = np.where((times_s > 1) & (times_s < 1.5), times_s, -5.0)
    found = error_of(Arrivals(times_s, np.full(len(times_s), 1500.0), sent_s), TENTHS)
    assert found.short_pct == pytest.approx(0)
    assert 5 <= found.windows_left_out <= 7


def test_the_trace_may_begin_seconds_before_the_traffic():
    times_s = ideal_arrivals(STEPS, 6)
    late = backlogged(times_s[times_s > 1.5])
    found = judge.rate_error(late, STEPS, (-3.0, 0.1))
    assert found is not None and found.short_pct == pytest.approx(0, abs=0.3) and found.begin_s == pytest.approx(0, abs=0.02)


def test_nothing_to_judge():
    assert judge.rate_error(backlogged(np.array([1.0])), STEPS, JUDGED) is None
    arrivals = Arrivals(np.arange(0, 3, 0.5), np.full(6, 1500.0), np.arange(0, 3, 0.5))
    assert judge.rate_error(arrivals, STEPS, JUDGED) is None


def test_a_part_of_a_trace():
    assert judge.cut(STEPS, 0.5, 2) == RateTrace("steps", (0, 0.2, 1.4, 2), (3e6, 12e6, 0.6e6))
    assert judge.cut(TENTHS, 1, 0.02).times_s == (0.005, 0.015)


def test_delay_errors_count_early_and_late_alike():
    found = judge.delay_error(np.array([-2e-3, *[1e-4] * 99]), lost=3)
    assert found is not None and (found.p50_s, found.max_s, found.probes, found.lost) == (1e-4, 2e-3, 100, 3)
    assert judge.delay_error(np.array([]), 5) is None


def test_the_offer_keeps_the_queue_filled():
    counts = np.array(phases.offered_counts(STEPS, 5.0, 300))
    carried = judge.allowed_by(STEPS, np.arange(500) * 0.01 + 0.01) / 1500
    assert (np.diff(counts) >= 0).all() and (counts - carried >= 150).all()


def test_what_a_link_that_is_changed_each_second_can_follow():
    assert held_rates(STEPS, 1.0, 4.0) == pytest.approx([5.7e6, 10.86e6, 0.6e6, 4.56e6])


def head(protocol: int, transport: bytes) -> bytes:
    return (bytes([0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol]) + bytes(10) + transport).ljust(48, b"\0")[:48]


def datagram(number: int, sent_ns: int) -> bytes:
    return head(17, bytes(8) + struct.pack("<QQ", number, sent_ns))


def segment(ticks: int) -> bytes:
    return head(6, bytes(12) + bytes([8 << 4]) + bytes(7) + bytes([1, 1, 8, 10]) + struct.pack(">I", ticks))


def packets(*rows: tuple[float, int, bool, bytes]) -> capture.Packets:
    times_s, sizes, outgoing, heads = zip(*rows, strict=True)
    raw = np.array([list(one) for one in heads], dtype=np.uint8)
    return capture.Packets(np.array(times_s), np.array(sizes, dtype=float), np.array(outgoing), raw)


def test_probes_are_matched_by_their_numbers():
    sent = packets(*((0.1 * n, 100, True, datagram(n, 0)) for n in range(4)), (0.05, 100, False, datagram(7, 0)))
    came = packets(*((0.1 * n + 0.02, 100, False, datagram(n, 0)) for n in (0, 1, 3)), (0.4, 100, True, datagram(2, 0)))
    delays_s, lost = capture.probe_delays(sent, came)
    assert delays_s == pytest.approx({0: 0.02, 1: 0.02, 3: 0.02}) and lost == 1


def test_send_times_come_from_datagrams():
    found = packets((5.0, 1500, False, datagram(1, 3_000_000_000)), (6.0, 60, False, segment(9))).udp_arrivals()
    assert (found.times_s.tolist(), found.sizes_bytes.tolist(), found.sent_s.tolist()) == ([5.0], [1500.0], [3.0])


def test_send_times_come_from_tcp_timestamps_even_when_they_wrap():
    rows = ((1.0, 1500, False, segment(2**32 - 2)), (1.1, 52, False, segment(2**32 - 1)), (1.2, 1500, False, segment(98)))
    found = packets(*rows, (1.3, 1500, False, datagram(1, 1))).tcp_arrivals()
    assert found.times_s.tolist() == [1.0, 1.2]  # the second carries no data
    assert found.sent_s.tolist() == pytest.approx([0, 0.1])


def test_a_piece_that_the_kernel_did_not_segment_counts_as_its_packets():
    sizes = capture.on_the_wire(np.array([1500.0, 52.0 + 10 * 1448, 53.0]), np.array([52, 52, 52]))
    assert sizes.tolist() == [1500.0, 15_000.0, 53.0]


def test_mahimahi_is_given_whole_milliseconds():
    given = Mahimahi("m", "m").given(RateTrace("r", (0, 10), (12e6,)))
    assert isinstance(given, OpportunityTrace) and len(given.times_s) == 10_000
    assert all(round(at_s * 1e3, 6) == round(at_s * 1e3) for at_s in given.times_s)


def test_every_contender_has_its_turn_in_every_repetition():
    settings = links.LinksSettings(repetitions=2, conditions=("idle", "busy"), traces=("constant",))
    steps = list(links.plan(settings, CONTENDERS, {"constant": STEPS}))
    order = [(step.labels["repetition"], step.labels["condition"]) for step in steps]
    assert order == sorted(order, key=lambda where: (where[0], where[1] == "busy"))
    per_round = len(steps) // 4
    titles = [[step.title.partition(" (")[0] for step in steps[i * per_round : (i + 1) * per_round]] for i in range(4)]
    assert all(one == titles[0] for one in titles)
    assert {step.busy for step in steps if step.labels["condition"] == "busy"} == {2}


@pytest.mark.parametrize("wrong", [{"contenders": ("relai",)}, {"repetitions": 0}, {"seconds": 1.0}])
def test_what_makes_no_sense_is_refused(wrong):
    with pytest.raises(UserError):
        links.LinksSettings(**wrong)


def test_a_mistake_on_the_command_line_ends_with_code_2(capsys):
    assert command.command(["lynx"]) == 2
    assert command.command(["links", "--contenders", "relai"]) == 2
    said = capsys.readouterr().err
    assert "lynx" in said and "relai" in said and "Traceback" not in said


def rows() -> list[page.Row]:
    """Two repetitions with both cores busy, between which the host became twice as fast."""
    found = []
    for repetition, speed in itertools.product((0, 1), (1.0,)):
        speed *= repetition + 1
        where = {"condition": "busy", "repetition": repetition, "stolen_share": 0.01}
        for key, bps, cpu_s in (("relay", 3e9, 1.0), ("mahimahi", 0.75e9, 2.0)):
            found.append({"phase": "tcp", "contender": key, "tcp_bps": bps * speed, "cpu_s_per_gb": cpu_s / speed, **where})
        error = {"rate_error_100ms_pct": 0.0004 + 0.5 * repetition, "rate_error_1s_pct": 0.0}
        found.append({"phase": "rate", "trace": "lte", "traffic": "udp", "contender": "relay", **error, **where})
        late = {f"delay_error_{way}{q}_s": 0.5e-3 for way in ("", "both_ways_") for q in ("p50", "p99", "max")}
        quantiles = np.linspace(0, 1e-3, 201).tolist()
        found.append({"phase": "delay", "contender": "relay", "late_quantiles_s": quantiles, "probes_lost": 0, **late, **where})
    return found


def document() -> page.Row:
    host = {"os": "an OS", "kernel": "6", "cores": 2, "cpu_model": "a CPU", "virtual_machine": True, "load_1min": 0.5}
    about = {
        "command": "scripts/bench links",
        "utc": "2026-01-02T03:04:05+00:00",
        "took_s": 61.0,
        "capture_cost_s": 2e-7,
        "commit": "abc",
        "host": host,
    }
    return {**about, "rows": rows(), "absent": {"mahimahi_fifo": "not installed"}, "failed": []}


def test_ratios_are_taken_within_a_repetition():
    tcp = page.Rows(rows()).where(phase="tcp")
    assert tcp.ratios("tcp_bps", "relay", "mahimahi") == judge.Spread(4.0, 4.0, 4.0, 2)
    assert tcp.ratios("tcp_bps", "relay", "python") is None


def test_goals_are_judged_by_the_median():
    lines = page.goals_table(page.Rows(rows())).splitlines()
    verdicts = {line.split(" | ")[0].strip("| "): line.split(" | ")[3] for line in lines[2:]}
    assert verdicts["TCP throughput, packets of 1500 bytes, over Mahimahi's"] == "met"
    assert verdicts["delay error p99"] == "**missed**"  # 0.5 ms, at most 0.4
    assert verdicts["rate error per 100 ms, UDP, LTE"] == "met"  # 0.25 %, at most 0.3
    assert "TCP throughput, GSO, over Mahimahi's" not in verdicts


def test_the_page_says_where_when_and_how():
    text = page.markdown(document(), "links.svg")
    for wanted in ("scripts/bench links", "2026-01-02", "abc", "2 cores of a CPU, a virtual machine", "not installed", "(links.svg)"):
        assert wanted in text
    assert "| this testbed, relay in C | 0.25 (< 0.01 to 0.50) |" in text


def test_what_is_too_small_to_show_is_not_shown_as_nothing():
    assert page.shown(judge.Spread(0.0, 0.0, 0.0, 1)) == "0.00"
    assert page.shown(judge.Spread(0.001, 0.0, 7.0, 3)) == "< 0.01 (0.00 to 7.00)"
    assert page.shown(None) == "-"


def test_the_figure_is_xml_and_names_who_was_measured():
    import xml.etree.ElementTree as Xml

    found = Xml.fromstring(page.figure_of(rows()))
    assert "this testbed, relay in C" in "".join(found.itertext())
