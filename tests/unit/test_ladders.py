"""Videos to train on: whatever is drawn can be made again from its name, and its ladder rises."""

from itertools import pairwise

import numpy as np
import pytest

from players.ladders import VALIDATION_VIDEOS, at_other_bitrates, draw_video, find_video, with_levels
from players.media import synthetic_manifest
from testbed.errors import UserError


def test_each_drawn_video_can_be_made_again_from_its_name():
    rng = np.random.default_rng(0)
    drawn = [draw_video(rng, ["synthetic"], scaled=0.7, sub_ladders=0.4) for _ in range(300)]
    assert all(find_video(video.name) == video for video in drawn)
    assert len({video.bitrates_bps for video in drawn}) > 200


def test_ladders_rise_and_sizes_follow_bitrates():
    rng = np.random.default_rng(1)
    nominal = synthetic_manifest()
    for _ in range(300):
        video = draw_video(rng, ["synthetic"], scaled=1.0, sub_ladders=0.0)
        assert all(low < high for low, high in pairwise(video.bitrates_bps))
        factors = np.array(video.bitrates_bps) / np.array(nominal.bitrates_bps)
        larger = np.array(video.sizes_bytes) / np.array(nominal.sizes_bytes) / factors
        assert np.ptp(larger) < 1e-3
        assert 0.79 < larger.mean() < 1.21


def test_a_changed_ladder_is_made_again_from_its_name():
    video = with_levels(at_other_bitrates(synthetic_manifest(), [0.812], 1.13), (0, 2, 5))
    assert video.name == "synthetic*0.812*1.13@0,2,5"
    assert find_video(video.name) == video
    plain = synthetic_manifest()
    assert video.bitrates_bps == tuple(round(0.812 * plain.bitrates_bps[level]) for level in (0, 2, 5))
    assert video.sizes_bytes[7][1] == pytest.approx(plain.sizes_bytes[7][2] * 0.812 * 1.13, abs=1)


def test_one_factor_is_that_factor_for_each_level():
    video = synthetic_manifest()
    one, each = at_other_bitrates(video, [0.8], 1.1), at_other_bitrates(video, [0.8] * 6, 1.1)
    assert one.bitrates_bps == each.bitrates_bps
    assert one.sizes_bytes == each.sizes_bytes


@pytest.mark.parametrize(
    "name", ["synthetic*1,2*1", "synthetic*3,1,1,1,1,1*1", "synthetic*0.8", "synthetic*a*b", "synthetic@9", "synthetic@x"]
)
def test_a_video_that_cannot_be_made_is_refused(name):
    with pytest.raises(UserError, match="can't be made"):
        find_video(name)


def test_the_ladder_of_validation_is_none_of_the_catalogue():
    name = next(name for name in VALIDATION_VIDEOS if "*" in name).replace("video1", "synthetic")
    assert not set(find_video(name).bitrates_bps) & set(synthetic_manifest().bitrates_bps)
