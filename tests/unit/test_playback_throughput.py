"""dash.js 5's throughput estimate: numbers computed by hand, and its bounds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controllers.api import Manifest
from players.throughput import ThroughputEstimate, local_level

VIDEO = Manifest("v", 4.0, (300_000, 750_000, 1_200_000, 1_850_000, 2_850_000, 4_300_000), ((1, 2, 3, 4, 5, 6),))


def test_no_sample_no_estimate() -> None:
    estimate = ThroughputEstimate()
    assert estimate.average_bps is None
    estimate.add(1000, 0.0)
    assert estimate.average_bps is None


def test_one_sample_is_its_own_average() -> None:
    """(125 000 + 300) bytes in 1 s = 1002.4 kbit/s, rounded to 1002; the correction for the start cancels exactly one sample's weight."""
    estimate = ThroughputEstimate()
    estimate.add(125_000, 1.0)
    assert estimate.average_bps == 1_002_000


def test_two_samples_by_hand() -> None:
    """2 s at 1000 kbit/s, then 4 s at 4000 kbit/s: weights 3 and 6, half-lives 3 and 8.

    Fast: after the first a = 2^-1: 500. Then a = 2^-2: 0.75 x 4000 + 0.25 x 500 = 3125; W = 9: 3125 / (1 - 2^-3) = 3571.43.
    Slow: a = 2^(-3/8) = 0.771105: 228.895. Then a = 2^(-6/8) = 0.594604: 1621.586 + 136.102 = 1757.688; / 0.541498 = 3245.97.
    The smaller, rounded: 3246 kbit/s.
    """
    estimate = ThroughputEstimate()
    estimate.add(250_000 - 300, 2.0)
    estimate.add(2_000_000 - 300, 4.0)
    assert estimate.average_bps == 3_246_000


def test_a_fall_is_followed_by_the_fast_average() -> None:
    """4 s at 4000, then 2 s at 1000 kbit/s. Fast: 3000, then 0.5 x 1000 + 0.5 x 3000 = 2000; / (1 - 2^-3) = 2285.71. Slow is higher."""
    estimate = ThroughputEstimate()
    estimate.add(2_000_000 - 300, 4.0)
    estimate.add(250_000 - 300, 2.0)
    assert estimate.average_bps == 2_286_000


@given(st.lists(st.tuples(st.integers(1, 10**8), st.floats(1e-6, 1e3)), min_size=1, max_size=50))
def test_the_average_lies_between_the_samples(samples: list[tuple[int, float]]) -> None:
    estimate = ThroughputEstimate()
    for size_bytes, transfer_s in samples:
        estimate.add(size_bytes, transfer_s)
    rates_bps = [(size_bytes + 300) * 8 / transfer_s for size_bytes, transfer_s in samples]
    assert estimate.average_bps is not None
    slack_bps = 1_000 + 1e-6 * max(rates_bps)  # rounding to kbit/s, twice; and 1 - 2^-x for tiny x
    assert min(rates_bps) - slack_bps <= estimate.average_bps <= max(rates_bps) + slack_bps


@pytest.mark.parametrize(
    ("average_bps", "buffer_s", "level"),
    [
        (None, 60.0, 0),
        (4_800_000, 60.0, 5),  # 0.9 x 4.8 = 4.32 Mbit/s
        (4_700_000, 60.0, 4),  # 4.23
        (4_800_000, 4.0, 4),  # 0.7 x 4.8 = 3.36: the buffer holds one chunk
        (4_800_000, 1.0, 1),  # 0.7 x 4.8 / 4 = 0.84
        (4_800_000, 0.0, 0),
        (100_000, 60.0, 0),
    ],
)
def test_the_local_rule(average_bps: float | None, buffer_s: float, level: int) -> None:
    assert local_level(VIDEO, average_bps, buffer_s) == level
