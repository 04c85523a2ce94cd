"""QoE_lin against numbers worked out by hand."""

import pytest

from controllers.api import Chunk
from testbed.metrics import chunk_qoe, qoe_lin, summarise
from tests.abr_cases import video


def test_qoe_of_a_chunk() -> None:
    assert qoe_lin(1_850_000, 0.5, 750_000) == pytest.approx(1.85 - 4.3 * 0.5 - 1.1)
    assert qoe_lin(750_000, 0.0, 1_850_000) == pytest.approx(0.75 - 1.1)


def test_a_session_averages_all_but_its_first_chunk() -> None:
    toy = video(levels=2)  # 300 and 450 kbit/s
    chunks = [Chunk(0, 0, 1, 1.5, 1.5, 4.0), Chunk(1, 1, 1, 5.0, 1.0, 4.0), Chunk(2, 1, 1, 1.0, 0.0, 7.0)]
    assert chunk_qoe(chunks, toy) == pytest.approx((0.3 - 4.3 * 1.5, 0.45 - 4.3 - 0.15, 0.45))
    summary = summarise(chunks, toy)
    assert summary.qoe == pytest.approx((0.45 - 4.3 - 0.15 + 0.45) / 2)
    assert (summary.bitrate_mbps, summary.rebuffer_s, summary.switch_mbps) == pytest.approx((0.45, 0.5, 0.075))
    assert (summary.startup_s, summary.chunks) == (1.5, 2)
    assert summary.qoe == pytest.approx(summary.bitrate_mbps - 4.3 * summary.rebuffer_s - summary.switch_mbps)


def test_one_chunk_has_no_quality() -> None:
    with pytest.raises(ValueError, match="1 chunks were downloaded, wanted at least 2"):
        summarise([Chunk(0, 0, 1, 1.5, 1.5, 4.0)], video())
