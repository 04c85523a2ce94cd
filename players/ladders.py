"""Videos to train on beside the catalogued ones: with some of the levels, or at other bitrates. The name says how to make each again.

| name | video |
| --- | --- |
| `video1` | as catalogued |
| `video1@0,2,5` | only those levels |
| `video1*0.82*1.07` | bitrates times 0.82, sizes times 0.82 x 1.07 |
| `video1*0.82*1.07@0,2,5` | both |
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from controllers.api import Manifest
from players.media import load_manifest
from testbed.errors import UserError

BITRATE_FACTORS = (0.7, 1.4)
SIZE_FACTORS = (0.8, 1.2)
"""How much larger than their bitrates say chunks are, as encoders differ."""
LEAST_LEVELS = 3
VALIDATION_VIDEOS = ("video1", "synthetic", "video1*0.85*1.1@0,1,3,4,5")
"""What models are chosen on: the ladder of training, and one of its own."""


@lru_cache(maxsize=1024)
def find_video(name: str) -> Manifest:
    """The manifest behind a name of the table above."""
    scaled, _, levels = name.partition("@")
    base, *factors = scaled.split("*")
    video = load_manifest(base)
    try:
        if factors:
            bitrate, size = map(float, factors)
            video = at_other_bitrates(video, bitrate, size)
        return with_levels(video, [int(level) for level in levels.split(",")]) if levels else video
    except (ValueError, IndexError) as error:
        raise UserError(f"video {name!r}: can't be made ({error}), wanted VIDEO*BITRATES*SIZES@LEVEL,LEVEL,...") from error


def draw_video(rng: np.random.Generator, names: Sequence[str], scaled: float, sub_ladders: float) -> Manifest:
    """One of the videos, a share of them at other bitrates and a share with only some of the levels."""
    video = find_video(names[rng.integers(len(names))])
    if rng.random() < scaled:
        video = at_other_bitrates(video, round(float(rng.uniform(*BITRATE_FACTORS)), 3), round(float(rng.uniform(*SIZE_FACTORS)), 3))
    if rng.random() < sub_ladders:
        count = int(rng.integers(LEAST_LEVELS, video.levels))
        video = with_levels(video, sorted(rng.choice(video.levels, count, replace=False).tolist()))
    return video


def with_levels(video: Manifest, levels: Sequence[int]) -> Manifest:
    """The video with only `levels`."""
    sizes = tuple(tuple(row[level] for level in levels) for row in video.sizes_bytes)
    name = f"{video.name}@{','.join(map(str, levels))}"
    return Manifest(name, video.chunk_s, tuple(video.bitrates_bps[level] for level in levels), sizes)


def at_other_bitrates(video: Manifest, bitrate: float, size: float) -> Manifest:
    """The video with its bitrates times `bitrate` and its sizes times `bitrate` x `size`."""
    sizes = tuple(tuple(round(each * bitrate * size) for each in row) for row in video.sizes_bytes)
    return Manifest(f"{video.name}*{bitrate:g}*{size:g}", video.chunk_s, tuple(round(bps * bitrate) for bps in video.bitrates_bps), sizes)
