"""`Trace`: what both kinds carry, that the hash is the content's, and that no impossible trace can be made."""

import math

import pytest

from testbed.errors import UserError
from traces.trace import OpportunityTrace, RateTrace


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
    assert OpportunityTrace("a", (1.0,)).sha256 != RateTrace("a", (0.0, 1.0), (1.0,)).sha256


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
    ],
)
def test_an_impossible_opportunity_trace_is_refused(times_s, said):
    with pytest.raises(UserError, match=said):
        OpportunityTrace("t", times_s)
