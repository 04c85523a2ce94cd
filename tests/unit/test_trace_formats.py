"""Trace files: what is written reads back the same, kinds convert without losing bytes, and errors name file and line."""

import bz2
import dataclasses
import gzip
import lzma
import math
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import assume, example, given

from testbed.errors import UserError
from traces.formats import MOST_BYTES, detect, format_trace, parse_trace, read_trace, to_opportunities, to_rates, write_trace
from traces.text import decode
from traces.trace import MIN_MEAN_RATE_BPS, Conditions, OpportunityTrace, RateTrace

rates = st.one_of(st.just(0.0), st.floats(1e-3, 1e11))
times, no_latency = st.floats(1e-6, 4e5), st.none()
LATE = Conditions((0.0, 1.0), delay_s=(0.1,))
sane_rates = st.one_of(st.just(0.0), st.floats(1e3, 1e6))


@st.composite
def rate_traces(draw, rate=rates, time=times, latency=no_latency):
    edges = sorted(draw(st.sets(time, min_size=1, max_size=20)))
    values = draw(st.lists(rate, min_size=len(edges), max_size=len(edges)))
    half_s, fair_bps = max(edges[-1], 1e-3), draw(st.floats(2.1e3, 1e6))  # a segment that lifts duration and mean above their bounds
    if draw(st.booleans()):
        return RateTrace("t", (0.0, *edges, edges[-1] + half_s), (*values, fair_bps), latency_s=draw(latency))
    shifted = sorted({half_s + edge for edge in edges})
    return RateTrace("t", (0.0, half_s, *shifted), (fair_bps, *values[: len(shifted)]), latency_s=draw(latency))


@st.composite
def opportunity_traces(draw):
    times_ms = sorted(draw(st.lists(st.integers(0, 10**4), min_size=1, max_size=50)))
    return OpportunityTrace("t", tuple(t / 1e3 for t in [*times_ms, times_ms[-1] + draw(st.integers(1, 1000))]))


@given(rate_traces())
@example(RateTrace("t", (0.0, 0.1, 0.30000000000000004), (2130394.44995, 1e-300)))
def test_pensieve_round_trip(trace):
    assert parse_trace(format_trace(trace, "pensieve"), "t", "t") == trace


@given(rate_traces(latency=st.one_of(st.none(), st.floats(0, 10).map(lambda s: round(s, 6)))))
def test_sabre_round_trip(trace):
    assert parse_trace(format_trace(trace, "sabre"), "t", "t") == trace


@given(opportunity_traces())
def test_mahimahi_round_trip(trace):
    assert parse_trace(format_trace(trace, "mahimahi"), "t", "t") == trace


@st.composite
def conditions(draw, edges_s):
    def column(values):
        return tuple(draw(st.lists(values, min_size=len(edges_s) - 1, max_size=len(edges_s) - 1)))

    delay_s, loss = draw(st.sampled_from([(True, False), (False, True), (True, True)]))
    return Conditions(
        edges_s,
        column(st.floats(0, 10)) if delay_s else None,
        column(st.floats(0, 0.5)) if loss else None,
        column(st.floats(1, 1e9)) if loss and draw(st.booleans()) else None,
    )


@st.composite
def conditioned(draw, same_edges):
    """Rate traces with conditions whose edges are those of the rates, or their own."""
    trace = draw(rate_traces(rate=st.one_of(st.just(0.0), st.floats(1e4, 1e11))))
    assume(trace.mean_rate_bps > 2 * MIN_MEAN_RATE_BPS)  # else losing half of it takes it below the bound
    inner = trace.edges_s[1:-1] if same_edges else sorted(edge for edge in draw(st.sets(times, max_size=5)) if edge < trace.duration_s)
    return dataclasses.replace(trace, conditions=draw(conditions((0.0, *inner, trace.duration_s))))


def at(conditions, time_s):
    """Delay, loss and burst that hold at `time_s`."""
    i = next(i for i, end_s in enumerate(conditions.edges_s[1:]) if time_s <= end_s)
    return [column and column[i] for column in (conditions.delay_s, conditions.loss, conditions.burst_packets)]


@given(st.one_of(rate_traces(), conditioned(same_edges=True)))
@example(RateTrace("t", (0.0, 0.1 + 0.2), (2130394.44995,), conditions=Conditions((0.0, 0.1 + 0.2), (1e-300,), (0.07,))))
def test_csv_round_trip(trace):
    assert parse_trace(format_trace(trace, "csv"), "t", "t") == trace


@given(conditioned(same_edges=False))
def test_csv_keeps_conditions_that_change_within_a_rate(trace):
    back = parse_trace(format_trace(trace, "csv"), "t", "t")
    assert set(back.edges_s) == {*trace.edges_s, *trace.conditions.edges_s}
    for time_s in back.edges_s[1:]:
        assert at(back.conditions, time_s) == at(trace.conditions, time_s)
        rates = [each.rates_bps[next(i for i, end_s in enumerate(each.edges_s[1:]) if time_s <= end_s)] for each in (trace, back)]
        assert rates[0] == rates[1]
    assert format_trace(back, "csv") == format_trace(trace, "csv")


def test_a_row_of_a_csv_holds_until_its_time():
    trace = parse_trace("time_s,rate_mbps,delay_ms,loss_pct,burst_packets\n0.5,12,20,0,1\n2,3.5,45,2.5,4\n", "t", "t")
    lossy = Conditions((0.0, 0.5, 2.0), delay_s=(0.02, 0.045), loss=(0.0, 0.025), burst_packets=(1.0, 4.0))
    assert trace == RateTrace("t", (0.0, 0.5, 2.0), (12e6, 3.5e6), conditions=lossy)


def test_all_may_be_lost_for_a_while_whatever_the_bursts():
    trace = parse_trace("time_s,rate_mbps,loss_pct,burst_packets\n1,12,0,1\n2,12,100,3\n", "t", "t")
    assert trace.conditions == Conditions((0.0, 1.0, 2.0), loss=(0.0, 1.0), burst_packets=(1.0, 3.0))


@pytest.mark.parametrize(
    ("text", "conditions"),
    [
        ("time_s,rate_mbps\n1,2\n", None),
        ("rate_mbps , time_s\r\n2, 1\r\n\r\n", None),
        ("loss_pct,rate_mbps,time_s\n50,2,1", Conditions((0.0, 1.0), loss=(0.5,))),
        ("\ufeffburst_packets,time_s,loss_pct,rate_mbps\n1,1,5e1,2.0", Conditions((0.0, 1.0), loss=(0.5,), burst_packets=(1.0,))),
        ("\n time_s,delay_ms,rate_mbps\n+1,.0,2", Conditions((0.0, 1.0), delay_s=(0.0,))),
    ],
)
def test_columns_are_optional_and_in_any_order(text, conditions):
    assert parse_trace(decode(text.encode(), "t"), "t", "t") == RateTrace("t", (0.0, 1.0), (2e6,), conditions=conditions)


ALL = "time_s,rate_mbps,delay_ms,loss_pct,burst_packets\n"
BAD_CSV = {
    "time_s\n1\n": ["t:1", "no column rate_mbps"],
    "time_s,rate_mbps\n": ["t:1", "only line", "at least one row"],
    "\ntime_s,rate_kbps\n1,2\n": ["t:2", "column 2 is 'rate_kbps'", "did you mean rate_mbps?"],
    "time_s,rate_mbps,colour\n1,2,3\n": ["t:1", "column 3 is 'colour'", "wanted one of burst_packets, delay_ms"],
    ",time_s,rate_mbps\n0,1,2\n": ["t:1", "column 1 is ''", "wanted one of"],
    "time_s;rate_mbps\n1;2\n": ["t:1", "column 1 is 'time_s;rate_mbps'", "time_s"],
    "hello, world\n": ["t:1", "column 1 is 'hello'", "wanted one of"],
    "time_s,rate_mbps,time_s\n1,2,3\n": ["t:1", "time_s stands twice", "once"],
    "time_s,delay_ms\n1,2\n": ["t:1", "no column rate_mbps", "delivery opportunities"],
    "rate_mbps,delay_ms\n1,2\n": ["t:1", "no column time_s", "end of each segment"],
    "time_s,rate_mbps,burst_packets\n1,2,3\n": ["t:1", "burst_packets without loss_pct"],
    "time_s,rate_mbps\n0,1\n2,1\n": ["t:2", "time_s is '0'", "the end of the row's segment", "above 0"],
    "time_s,rate_mbps\n1,1\n\n1,2\n": ["t:4", "time_s is 1", "above the 1 of the row before"],
    "time_s,rate_mbps\n1,1\n0.5,2\n": ["t:3", "time_s is 0.5", "above the 1 of the row before"],
    "time_s,rate_mbps\n1,-2\n": ["t:2", "rate_mbps is '-2'", "at least 0 Mbit/s"],
    "time_s,rate_mbps\n1,nan\n": ["t:2", "rate_mbps is 'nan'", "finite"],
    "time_s,rate_mbps\n1,\n": ["t:2", "rate_mbps is ''", "finite"],
    "time_s,rate_mbps\n1,1e30\n": ["t:2", "rate_mbps is '1e30'", "at most 1e+12 bit/s"],
    "time_s,rate_mbps\n1e999,1\n": ["t:2", "time_s is '1e999'", "finite"],
    "time_s,rate_mbps\n1,0\n2,0\n": ["t:", "every rate_mbps is 0"],
    "time_s,rate_mbps\n1,2,3\n": ["t:2", "'1,2,3' with 3 columns", "wanted 2 (time_s,rate_mbps)"],
    "time_s,rate_mbps\n1 2\n": ["t:2", "'1 2' with 1 columns"],
    "time_s,rate_mbps\n1," + "9" * 999: ["t:2", "1001 characters", "at most 200"],
    ALL + "1,2,-1,0,1\n": ["t:2", "delay_ms is '-1'", "0 to 10000 milliseconds"],
    ALL + "1,2,10001,0,1\n": ["t:2", "delay_ms is '10001'", "0 to 10000 milliseconds"],
    ALL + "1,2,3,4,5\n2,2,3,100.1,5\n": ["t:3", "loss_pct is '100.1'", "0 to 100 percent"],
    ALL + "1,2,3,-0.1,5\n": ["t:2", "loss_pct is '-0.1'"],
    ALL + "1,2,3,4,0.5\n": ["t:2", "burst_packets is '0.5'", "at least 1 packet"],
    ALL + "1,2,3,60,1\n": ["t:2", "loss_pct is 60 in bursts of 1 packets", "at most 50"],
    "time_s,rate_mbps,loss_pct\n1,2,100\n": ["trace t: carries 2e+06 bit/s on average but loses all but 0", "at least 1000 delivered"],
}


@pytest.mark.parametrize("format", ["pensieve", "sabre", "csv"])
@given(trace=rate_traces())
def test_what_is_written_is_detected(format, trace):
    assert detect(format_trace(trace, format)) == format


def test_files_round_trip_and_the_content_decides_not_the_name(tmp_path):
    trace = RateTrace("odd.json", (0.0, 1.0, 2.5), (1e6, 3e6))
    write_trace(trace, tmp_path / "odd.json", "pensieve")
    assert read_trace(tmp_path / "odd.json") == trace
    assert read_trace(tmp_path / "odd.json").source == str(tmp_path / "odd.json")


def test_the_rate_of_a_row_holds_before_its_time_and_the_first_is_unused():
    trace = parse_trace("0 99\n1.5 2\n4 3\n", "t", "t")
    assert trace == RateTrace("t", (0.0, 1.5, 4.0), (2e6, 3e6))


@pytest.mark.parametrize("text", ["10\t5\n11\t2\n13\t3\n", "\ufeff10 5\r\n11 2\r\n\r\n13 3", "10  5.0\n11 2e0\n+13 .3e1\n\n\n"])
def test_other_beginnings_line_ends_and_notations(text):
    assert parse_trace(decode(text.encode(), "t"), "t", "t") == RateTrace("t", (0.0, 1.0, 3.0), (2e6, 3e6))


def test_one_latency_is_kept_and_not_part_of_another_format():
    trace = parse_trace('[{"duration_ms": 500, "bandwidth_kbps": 1200.5, "latency_ms": 20}]', "t", "t")
    assert trace == RateTrace("t", (0.0, 0.5), (1200500.0,), latency_s=0.02)
    assert trace.sha256 == RateTrace("t", (0.0, 0.5), (1200500.0,)).sha256


BAD = {
    "": ["t: is empty"],
    " \n\n": ["t: is empty"],
    "1 2 3\n": ["t:1", "3 columns"],
    "0,1.2\n1,1.3\n": ["t:1", "'0,1.2'", "wanted the names of the columns, such as time_s,rate_mbps"],
    "0 1\n1 2\n1 3\n": ["t:3", "'1'", "later than 1 s"],
    "0 1\n1 2\n0.5 3\n": ["t:3", "'0.5'", "later than 1 s"],
    "0 1\n1 -2\n": ["t:2", "-2", "at least 0"],
    "0 -1\n1 2\n": ["t:1", "-1", "at least 0"],
    "0 1\n1 nan\n": ["t:2", "'nan'", "finite"],
    "0 1\n1 inf\n": ["t:2", "'inf'", "finite"],
    "0 1\nnan 1\n": ["t:2", "'nan'", "seconds"],
    "0 1\n1 1e999\n": ["t:2", "1e999", "finite"],
    "0 1\n1 1e30\n": ["t:2", "rate is '1e30'", "at most 1e+12 bit/s"],
    "0 1\n1e-9 1\n": ["trace t: lasts 1e-09 s", "wanted 0.001 to"],
    "0 1\n1e9 1\n": ["trace t: lasts 1000000000.0 s", "to 1,000,000 s"],
    "0 1\n1 1e-9\n": ["trace t: carries 0.001 bit/s on average", "at least 1000"],
    "60000\n": ["trace t: carries 200 bit/s on average", "at least 1000"],
    "0 1\n1 1_0\n": ["t:2", "'1_0'"],
    "0 1\n1 0\n2 0.0\n": ["t:", "every rate", "at least one above 0"],
    "0 1\n": ["t:1", "only row", "at least two"],
    "0 1\n5\n": ["t:2", "1 columns", "wanted 2"],
    "5\n0 1\n": ["t:2", "2 columns", "wanted 1"],
    "0 1\n" + "9" * 100_000 + " 1\n": ["t:2", "100002 characters", "at most 200"],
    "1\n2.5\n": ["t:2", "'2.5'", "whole milliseconds"],
    "1\n-2\n": ["t:2", "'-2'", "whole milliseconds"],
    "5\n4\n": ["t:2", "4 ms", "at least the 5 ms"],
    "0\n0\n": ["t:2", "0 ms", "above 0"],
    "{}": ["t:", "a JSON dict", "list"],
    "[]": ["t:", "empty list"],
    "[1, 2]": ["t: entry 1", "1", "duration_ms"],
    '[{"duration_ms": 1}]': ["t: entry 1", "duration_ms", "bandwidth_kbps"],
    '[{"duration_ms": 1, "bandwidth_kbps": 2, "rtt": 3}]': ["t: entry 1", "rtt"],
    '[{"duration_ms": 0, "bandwidth_kbps": 2}]': ["t: entry 1", "duration_ms is '0'", "above 0"],
    '[{"duration_ms": 1, "bandwidth_kbps": -2}]': ["t: entry 1", "bandwidth_kbps is '-2'", "at least 0"],
    '[{"duration_ms": 1, "bandwidth_kbps": NaN}]': ["t: entry 1", "bandwidth_kbps is 'NaN'", "finite"],
    '[{"duration_ms": 1, "bandwidth_kbps": 1e30}]': ["t: entry 1", "bandwidth_kbps is '1E+30'", "at most 1e+12 bit/s"],
    '[{"duration_ms": 1, "bandwidth_kbps": true}]': ["t: entry 1", "'True'", "finite"],
    '[{"duration_ms": 1, "bandwidth_kbps": 1e9999999999}]': ["t: entry 1", "bandwidth_kbps", "finite"],
    '[{"duration_ms": 1, "bandwidth_kbps": 1e99999999999999999999}]': ["t: has a number that is out of all range", "wanted SABRE's list"],
    '[{"duration_ms": 1e-9999999, "bandwidth_kbps": 1}]': ["t: entry 1", "duration_ms is 1E-9999999", "above 0"],
    '[{"duration_ms": 1, "bandwidth_kbps": 0}]': ["t:", "every bandwidth_kbps is 0"],
    '[{"duration_ms": 1, "bandwidth_kbps": 2, "latency_ms": 3}, {"duration_ms": 1, "bandwidth_kbps": 2, "latency_ms": 4}]': [
        "t: entry 2",
        "latency_ms is 4",
        "wanted 3",
        "round-trip time",
    ],
    '[\n{"duration_ms": 1,\n': ["t:", "not JSON"],
    "[" * 100_000: ["t: is JSON nested too deep"],
}


@pytest.mark.parametrize(("text", "said"), [*BAD.items(), *BAD_CSV.items()], ids=lambda value: repr(value[:60]))
def test_a_bad_trace_is_one_sentence_with_place_seen_and_wanted(text, said):
    with pytest.raises(UserError) as caught:
        parse_trace(text, "t", "t")
    message = str(caught.value)
    assert all(part in message for part in said), message
    assert "\n" not in message and len(message) < 300


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"0 1\n1 \xff\n", "t:2: byte 0xff"), (b"\x80\x04\x95" * 50, "t:1: byte 0x80"), (b"0 1\n\0 1\n", "t:2: byte 0x00")],
)
def test_bytes_that_are_no_text(content, said):
    with pytest.raises(UserError, match=said):
        decode(content, "t")


@pytest.mark.parametrize(
    ("pack", "said"), [(gzip.compress, "gzip"), (bz2.compress, "bzip2"), (lzma.compress, "xz")], ids=["gzip", "bzip2", "xz"]
)
def test_a_compressed_file_is_to_be_unpacked(tmp_path, pack, said):
    (tmp_path / "trace.packed").write_bytes(pack(b"0 1\n1 2\n"))
    with pytest.raises(UserError, match=rf"trace\.packed: is compressed \({said}\), wanted a trace in a text format: unpack it first"):
        read_trace(tmp_path / "trace.packed")


def test_a_file_that_cant_be_read(tmp_path):
    with pytest.raises(UserError, match="absent: can't be read"):
        read_trace(tmp_path / "absent")
    for endless in ("/dev/zero", tmp_path):
        with pytest.raises(UserError, match=f"{endless}: is a device, pipe or folder, wanted a trace file"):
            read_trace(endless)
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(MOST_BYTES + 1)
    with pytest.raises(UserError, match=f"sparse: has {MOST_BYTES + 1} bytes, wanted a trace file of at most {MOST_BYTES}"):
        read_trace(tmp_path / "sparse")


@given(
    st.one_of(
        st.text(),
        st.text(alphabet='0123456789.-+e \t\n[]{},:"_durationmsbwhkplcy'),
        st.text(alphabet="0123456789.-e,\n ").map(lambda rows: f"{ALL}1,2,3,4,5\n{rows}"),
        st.binary().map(lambda b: b.decode("latin-1")),
    )
)
def test_any_text_gives_a_trace_or_a_user_error(text):
    try:
        trace = parse_trace(decode(text.encode(), "t"), "t", "t")
    except UserError:
        return
    assert trace.duration_s > 0 and trace.capacity_bytes > 0


@given(opportunity_traces(), st.floats(0.01, 100))
def test_binning_opportunities_keeps_bytes_and_period(trace, bin_s):
    binned = to_rates(trace, bin_s)
    assert math.isclose(binned.capacity_bytes, trace.capacity_bytes, rel_tol=1e-9)
    assert binned.duration_s == trace.duration_s


def test_an_opportunity_on_an_edge_belongs_to_the_earlier_bin():
    trace = OpportunityTrace("t", (0.0, 1.0, 2.0, 2.5))
    assert to_rates(trace, 1.0) == RateTrace("t", (0.0, 1.0, 2.0, 2.5), (24000.0, 12000.0, 24000.0))


@given(rate_traces(rate=sane_rates, time=st.floats(0.01, 60)))
def test_spreading_opportunities_keeps_bytes_period_and_pace(trace):
    assume(trace.capacity_bytes - 750 > MIN_MEAN_RATE_BPS / 8 * (trace.duration_s + 1e-3))  # else rounding may take it below the bound
    spread = to_opportunities(trace)
    assert abs(spread.capacity_bytes - trace.capacity_bytes) <= 750
    assert trace.duration_s - 1e-6 <= spread.duration_s < trace.duration_s + 0.0011
    edges, times = np.asarray(trace.edges_s), np.asarray(spread.times_s[:-1])
    passed = np.append(0, np.cumsum(np.diff(edges) * np.asarray(trace.rates_bps) / 8))
    due = passed[-1] * np.arange(1, len(times) + 1) / len(spread.times_s)
    # Each opportunity comes within the millisecond in which its share of the capacity has passed.
    assert (np.interp(times - 0.001001, edges, passed) <= due + 0.01).all()
    assert (np.interp(times + 0.000001, edges, passed) >= due - 0.01).all()


@given(opportunity_traces(), st.data(), st.floats(0.01, 100))
def test_conversions_keep_conditions(trace, data, bin_s):
    inner = data.draw(st.sets(st.floats(1e-6, trace.duration_s, exclude_max=True), max_size=5))
    both = dataclasses.replace(trace, conditions=data.draw(conditions((0.0, *sorted(inner), trace.duration_s))))
    binned = to_rates(both, bin_s)
    assert binned.conditions == both.conditions
    assert to_opportunities(binned).conditions == both.conditions


def test_conditions_end_with_the_period_that_rounding_lengthens():
    late = Conditions((0.0, 0.5, 1.0004), delay_s=(0.1, 0.2))
    spread = to_opportunities(RateTrace("t", (0.0, 1.0004), (12e6,), conditions=late))
    assert spread.conditions == Conditions((0.0, 0.5, 1.001), delay_s=(0.1, 0.2))
    barely = Conditions((0.0, 1.0, 1.0 + 1e-10), delay_s=(0.1, 0.2))
    assert to_opportunities(RateTrace("t", (0.0, 1.0 + 1e-10), (12e6,), conditions=barely)).conditions == Conditions((0.0, 1.0), (0.1,))


def test_a_rest_too_short_for_a_bin_joins_the_one_before():
    binned = to_rates(OpportunityTrace("t", (0.05, 0.1 + 1e-9)), 0.1)
    assert binned == RateTrace("t", (0.0, 0.1 + 1e-9), (24000.0 / (0.1 + 1e-9),))


def test_a_constant_rate_gives_even_opportunities_and_back():
    trace = RateTrace("t", (0.0, 1.0), (12e6,))
    spread = to_opportunities(trace)
    assert spread.times_s == tuple((i + 1) / 1000 for i in range(1000))
    assert to_rates(spread, 1.0) == trace


def test_an_outage_gets_no_opportunity_but_the_last():
    spread = to_opportunities(RateTrace("t", (0.0, 1.0, 2.0, 3.0), (1.2e6, 0.0, 0.0)))
    assert sum(t <= 1.0 for t in spread.times_s) == 99
    assert spread.times_s[-1] == 3.0


@pytest.mark.parametrize(
    ("trace", "format", "said"),
    [
        (RateTrace("r", (0.0, 1.0), (1e6,)), "mahimahi", "to_opportunities"),
        (OpportunityTrace("o", (1.0,)), "pensieve", "to_rates"),
        (OpportunityTrace("o", (0.0015,)), "mahimahi", "whole milliseconds"),
        (RateTrace("r", (0.0, 1.0), (1e6,)), "excel", "wanted one of pensieve, mahimahi, sabre, csv"),
        (OpportunityTrace("o", (1.0,)), "csv", "to_rates"),
        (RateTrace("r", (0.0, 1.0), (1e6,), conditions=LATE), "pensieve", "delay or loss over time, .* pensieve can't hold, wanted csv"),
        (RateTrace("r", (0.0, 1.0), (1e6,), conditions=LATE), "sabre", "wanted csv"),
        (OpportunityTrace("o", (1.0,), conditions=LATE), "mahimahi", "wanted csv"),
    ],
)
def test_writing_what_a_format_cant_hold_is_refused(trace, format, said):
    with pytest.raises(UserError, match=said):
        format_trace(trace, format)


@pytest.mark.parametrize("bin_s", [0.0, -1.0, math.nan, math.inf])
def test_a_bin_without_width_is_refused(bin_s):
    with pytest.raises(UserError, match="wanted a time above 0"):
        to_rates(OpportunityTrace("o", (1.0,)), bin_s)


def test_a_trace_without_half_an_opportunity_is_refused():
    with pytest.raises(UserError, match="carries 1 bytes"):
        to_opportunities(RateTrace("r", (0.0, 0.001), (8000.0,)))


def test_no_reader_is_fooled_by_a_path():
    assert isinstance(parse_trace("1\n2\n", "x.json", str(Path("x.json"))), OpportunityTrace)
