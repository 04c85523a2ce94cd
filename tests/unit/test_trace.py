"""`Trace`: what both kinds carry, that the hash is the content's, and that no impossible trace can be made."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from testbed.errors import UserError
from traces.catalog import load_catalog
from traces.store import find_split, resolve
from traces.trace import (
    MAX_DELAY_S,
    MAX_DURATION_S,
    MAX_RATE_BPS,
    MIN_DURATION_S,
    MIN_MEAN_RATE_BPS,
    Conditions,
    OpportunityTrace,
    RateTrace,
)

TRACES = (RateTrace("r", (0.0, 1.0, 4.0), (8e6, 0.8e6)), OpportunityTrace("o", (0.0, 0.5, 0.5, 2.0)))


def test_a_rate_trace_carries_its_rates_over_their_widths():
    trace = RateTrace("t", (0.0, 1.0, 4.0), (8e6, 0.8e6))
    assert trace.capacity_bytes == pytest.approx(1e6 + 3e5)
    assert trace.duration_s == 4 and trace.mean_rate_bps == pytest.approx(2.6e6)


def test_an_opportunity_carries_1500_bytes():
    trace = OpportunityTrace("t", (0.0, 0.5, 0.5, 2.0))
    assert (trace.capacity_bytes, trace.duration_s, trace.mean_rate_bps) == (6000, 2.0, 24000.0)


def test_name_and_source_are_not_the_content():
    one, other = RateTrace("a", (0.0, 1.0), (1e6,), "here"), RateTrace("b", (0.0, 1.0), (1e6,), "there")
    assert one.sha256 == other.sha256 and one != other
    assert one == RateTrace("a", (0.0, 1.0), (1e6,), "elsewhere")
    assert one.sha256 != RateTrace("a", (0.0, 1.0), (1e6 + 1e-9,)).sha256
    assert OpportunityTrace("a", (1.0,)).sha256 != RateTrace("a", (0.0, 1.0), (12e3,)).sha256


def test_a_trace_without_conditions_has_the_hash_it_always_had():
    """The hashes of the splits are made of these, and so are those in results."""
    assert RateTrace("t", (0.0, 1.0, 4.0), (8e6, 0.8e6)).sha256.startswith("4f21fc792072accb")
    assert OpportunityTrace("t", (0.0, 0.5, 0.5, 2.0)).sha256.startswith("5a182820661be043")


@pytest.mark.parametrize(
    "make", [lambda c: RateTrace("r", (0.0, 2.0), (8e6,), conditions=c), lambda c: OpportunityTrace("o", (2.0,), "", c)]
)
def test_conditions_are_content(make):
    different = [
        None,
        Conditions((0.0, 2.0), delay_s=(0.1,)),
        Conditions((0.0, 2.0), loss=(0.1,)),
        Conditions((0.0, 1.0, 2.0), loss=(0.1, 0.1)),
        Conditions((0.0, 2.0), loss=(0.1,), burst_packets=(1.5,)),
        Conditions((0.0, 2.0), delay_s=(0.1,), loss=(0.1,)),
    ]
    assert len({make(conditions).sha256 for conditions in different}) == len(set(map(make, different))) == len(different)
    assert make(different[1]).sha256 == make(Conditions((0.0, 2.0), (0.1,))).sha256


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "neither a delay nor a loss"),
        ({"edges_s": (0.0,), "loss": ()}, "has 1 edges, wanted at least 2"),
        ({"edges_s": (1.0, 2.0), "loss": (0.1,)}, "starts at 1.0 s, wanted 0 s"),
        ({"edges_s": (0.0, 2.0, 2.0), "loss": (0.1, 0.1)}, "sample 2 is at 2.0 s"),
        ({"edges_s": (0.0, math.inf), "loss": (0.1,)}, "sample 1 is at inf s"),
        ({"delay_s": (0.1,)}, "1 values of delay, wanted 2"),
        ({"delay_s": (0.1, -0.1)}, "sample 2 has a delay of -0.1, wanted 0 to 10 s"),
        ({"delay_s": (math.nan, 0.1)}, "sample 1 has a delay of nan"),
        ({"delay_s": (0.1, MAX_DELAY_S + 0.1)}, "sample 2 has a delay of 10.1"),
        ({"loss": (0.1, 0.1, 0.1)}, "3 values of loss, wanted 2"),
        ({"loss": (-0.1, 0.0)}, "sample 1 has a loss of -0.1, wanted a probability, 0 to 1"),
        ({"loss": (0.0, 1.1)}, "sample 2 has a loss of 1.1"),
        ({"loss": (0.0, math.nan)}, "sample 2 has a loss of nan"),
        ({"loss": (0.1, 0.1), "burst_packets": (2.0,)}, "1 values of burst, wanted 2"),
        ({"loss": (0.1, 0.1), "burst_packets": (2.0, 0.9)}, "sample 2 has a burst of 0.9, wanted a finite number of at least 1"),
        ({"loss": (0.1, 0.1), "burst_packets": (math.inf, 1.0)}, "sample 1 has a burst of inf"),
        ({"loss": (0.5, 0.51), "burst_packets": (1.0, 1.0)}, "sample 2 has a loss of 0.51 in bursts of 1.0 packets, wanted at most 0.5,"),
        ({"delay_s": (0.1, 0.1), "burst_packets": (2.0, 2.0)}, "bursts without a loss"),
    ],
)
def test_impossible_conditions_are_refused(fields, said):
    with pytest.raises(UserError, match=f"^conditions: .*{said}"):
        Conditions(**{"edges_s": (0.0, 1.0, 2.0), **fields})


@given(st.floats(0, 1), st.floats(1, 1e6))
@example(1.0, 1.0)
def test_bursts_are_refused_when_no_chain_makes_them(loss, packets):
    """A Gilbert chain has runs of `packets` and a share of `loss` when it turns bad with probability loss / (packets (1 - loss))."""
    turns_bad = loss / (packets * (1 - loss)) if loss < 1 else 0.0
    if turns_bad > 1 + 1e-9:
        with pytest.raises(UserError, match="between two runs"):
            Conditions((0.0, 1.0), loss=(loss,), burst_packets=(packets,))
    elif turns_bad < 1 - 1e-9:
        assert Conditions((0.0, 1.0), loss=(loss,), burst_packets=(packets,))


@pytest.mark.parametrize("trace", TRACES)
def test_conditions_last_as_long_as_their_trace(trace):
    period_s = trace.duration_s
    assert dataclasses.replace(trace, conditions=Conditions((0.0, period_s), (0.1,))).mean_rate_bps == trace.mean_rate_bps
    with pytest.raises(UserError, match=f"its conditions last 1.0 s, wanted the {period_s} s of the trace"):
        dataclasses.replace(trace, conditions=Conditions((0.0, 1.0), (0.1,)))


def test_a_trace_of_which_too_little_arrives_is_refused():
    halves = (0.0, 1.0, 2.0)
    half_lost, rest_lost = Conditions(halves, loss=(1.0, 0.0)), Conditions(halves, loss=(0.0, 1.0))
    for trace in (RateTrace("t", halves, (0.0, 1e6)), OpportunityTrace("t", (1.5, 2.0))):
        assert dataclasses.replace(trace, conditions=half_lost)
        for conditions in (rest_lost, Conditions((0.0, 2.0), loss=(1.0,)), Conditions((0.0, 2.0), loss=(0.99999,))):
            with pytest.raises(UserError, match=r"loses all but .* of them, wanted at least 1000 delivered"):
                dataclasses.replace(trace, conditions=conditions)


@pytest.mark.parametrize(
    ("edges_s", "rates_bps", "said"),
    [
        ((0.0,), (), "at least one rate"),
        ((0.0, 1.0), (1.0, 2.0), "2 rates and 2 edges"),
        ((1.0, 2.0), (1.0,), "wanted 0 s"),
        ((0.0, 1.0, 1.0), (1.0, 2.0), "sample 2 is at 1.0 s"),
        ((0.0, math.nan), (1.0,), "sample 1 is at nan s"),
        ((0.0, math.inf), (1.0,), "sample 1 is at inf s"),
        ((0.0, 1.0), (-1.0,), "rate of -1.0"),
        ((0.0, 1.0), (math.nan,), "rate of nan"),
        ((0.0, 1.0), (math.inf,), "rate of inf"),
        ((0.0, 1.0, 2.0), (0.0, 0.0), "every rate is 0"),
        ((0.0, 1.0), (1e36,), r"sample 1 has a rate of 1e\+36 bit/s, wanted at most 1e\+12"),
        ((0.0, 1e-9), (1e6,), "lasts 1e-09 s, wanted 0.001 to 1,000,000 s"),
        ((0.0, 1e300), (1e6,), r"lasts 1e\+300 s, wanted 0.001 to 1,000,000 s"),
        ((0.0, 1.0), (100.0,), r"carries 100 bit/s on average, wanted at least 1000"),
        ((0.0, 1.0, 1e5), (1e6, 5e-324), r"carries 10 bit/s on average"),
    ],
)
def test_an_impossible_rate_trace_is_refused(edges_s, rates_bps, said):
    with pytest.raises(UserError, match=said):
        RateTrace("t", edges_s, rates_bps)


@pytest.mark.parametrize(
    ("times_s", "said"),
    [
        ((), "no delivery opportunity"),
        ((0.0, 0.0), "ends at 0.0 s"),
        ((-1.0, 2.0), "is at -1.0 s"),
        ((2.0, 1.0), "opportunity 2 is at 1.0 s"),
        ((1.0, math.nan), "is at nan s"),
        ((1.0, math.inf), "ends at inf s"),
        ((1e-9,), "lasts 1e-09 s, wanted 0.001 to 1,000,000 s"),
        ((60.0,), "carries 200 bit/s on average, wanted at least 1000"),
    ],
)
def test_an_impossible_opportunity_trace_is_refused(times_s, said):
    with pytest.raises(UserError, match=said):
        OpportunityTrace("t", times_s)


def test_a_bound_itself_is_not_refused():
    for trace in (OpportunityTrace("t", (MIN_DURATION_S,)), RateTrace("t", (0.0, MAX_DURATION_S), (MIN_MEAN_RATE_BPS,))):
        assert trace.capacity_bytes > 0
    edges_s = tuple(np.linspace(0.0, 7.7, 3001).tolist())
    assert RateTrace("t", edges_s, (MAX_RATE_BPS,) * 3000).mean_rate_bps == pytest.approx(MAX_RATE_BPS)


def test_a_refused_file_is_named_with_its_path():
    with pytest.raises(UserError, match=r"^trace slow\.txt \(mine/slow\.txt\): carries 1 bit/s"):
        RateTrace("slow.txt", (0.0, 1.0), (1.0,), "mine/slow.txt")


def test_no_measured_trace_is_refused():
    """Reading them is the test; so is that they stay a factor of ten away from every bound but Mahimahi's own."""
    traces = [trace for reference in measured_splits() for trace in resolve(reference, fetch=False).traces]
    if not traces:
        pytest.skip("no trace set is on this machine")
    assert all(10 * MIN_DURATION_S < trace.duration_s < MAX_DURATION_S / 10 for trace in traces)
    assert all(10 * MIN_MEAN_RATE_BPS < trace.mean_rate_bps < MAX_RATE_BPS / 10 for trace in traces)


def measured_splits():
    sets = [entry for entry in load_catalog().values() if entry.kind == "traces"]
    return [f"{entry.name}/{split.name}" for entry in sets for split in entry.splits if find_split(entry, split)]


@given(st.sampled_from(TRACES), st.lists(st.floats(0, 100), min_size=1, max_size=20))
def test_bytes_by_many_times_are_those_by_each(trace, times_s):
    np.testing.assert_allclose(trace.bytes_by(np.array(times_s)), [trace.bytes_by(time_s) for time_s in times_s])


@pytest.mark.parametrize("periods", [0, 1, 7])
def test_bytes_wrap_with_the_trace(periods):
    rates, opportunities = TRACES
    assert rates.bytes_by(4.0 * periods + 2.0) == pytest.approx(1.3e6 * periods + 1.1e6)
    assert opportunities.bytes_by(2.0 * periods + 0.5) == 6000 * periods + 4500
