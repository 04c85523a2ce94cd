"""Videos to train on beside the catalogued ones: with some of the levels, or at other bitrates. The name says how to make each again.

| name | video |
| --- | --- |
| `video1` | as catalogued |
| `video1@0,2,5` | only those levels |
| `video1*0.82*1.07` | bitrates times 0.82, sizes times 0.82 x 1.07 |
| `video1*0.8,0.7,1,1,1.2,1.1*1.07` | a factor for each bitrate, its sizes times that and 1.07 |
| `video1*0.82*1.07@0,2,5` | both |
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np

from controllers.api import Manifest
from players.media import load_manifest
from testbed.errors import UserError

BITRATE_FACTORS = (0.7, 1.4)
LEVEL_FACTORS = (0.75, 1.3)
"""How far each level may be from its place in the ladder."""
MOST_OF_NEXT = 0.9
"""A level's bitrate is at most this share of the next one's."""
SIZE_FACTORS = (0.8, 1.2)
"""How much larger than their bitrates say chunks are, as encoders differ."""
LEAST_LEVELS = 3
VALIDATION_VIDEOS = ("video1", "synthetic", "video1*0.8,0.7,0.8,0.95,1.05,0.95*1.1@0,1,3,4,5")
"""What models are chosen on: the ladder of training, and one of its own."""


@lru_cache(maxsize=1024)
def find_video(name: str) -> Manifest:
    """The manifest behind a name of the table above."""
    scaled, _, levels = name.partition("@")
    base, *factors = scaled.split("*")
    video = load_manifest(base)
    try:
        if factors:
            bitrates, size = factors
            video = at_other_bitrates(video, [float(each) for each in bitrates.split(",")], float(size))
        return with_levels(video, [int(level) for level in levels.split(",")]) if levels else video
    except (ValueError, IndexError) as error:
        raise UserError(f"video {name!r}: can't be made ({error}), wanted VIDEO*BITRATES*SIZES@LEVEL,LEVEL,...") from error


def draw_video(rng: np.random.Generator, names: Sequence[str], scaled: float, sub_ladders: float) -> Manifest:
    """One of the videos, a share of them at other bitrates and a share with only some of the levels."""
    video = find_video(names[int(rng.integers(len(names)))])
    if rng.random() < scaled:
        video = at_other_bitrates(video, _draw_factors(rng, video), round(float(rng.uniform(*SIZE_FACTORS)), 3))
    if rng.random() < sub_ladders:
        count = int(rng.integers(LEAST_LEVELS, video.levels))
        video = with_levels(video, sorted(rng.choice(video.levels, count, replace=False).tolist()))
    return video


def with_levels(video: Manifest, levels: Sequence[int]) -> Manifest:
    """The video with only `levels`."""
    sizes = tuple(tuple(row[level] for level in levels) for row in video.sizes_bytes)
    name = f"{video.name}@{','.join(map(str, levels))}"
    return Manifest(name, video.chunk_s, tuple(video.bitrates_bps[level] for level in levels), sizes)


def at_other_bitrates(video: Manifest, factors: Sequence[float], size: float) -> Manifest:
    """The video with its bitrates times `factors` (one for all, or one each) and its sizes times these and `size`.

    Raises `ValueError` for another number of factors, and where bitrates would not rise from level to level.
    """
    each = list(factors) * video.levels if len(factors) == 1 else list(factors)
    bitrates_bps = tuple(round(bps * factor) for bps, factor in zip(video.bitrates_bps, each, strict=True))
    if any(low >= high for low, high in pairwise(bitrates_bps)):
        raise ValueError("bitrates don't rise")
    sizes = tuple(tuple(round(bytes_ * factor * size) for bytes_, factor in zip(row, each, strict=True)) for row in video.sizes_bytes)
    return Manifest(f"{video.name}*{','.join(f'{factor:g}' for factor in factors)}*{size:g}", video.chunk_s, bitrates_bps, sizes)


def _draw_factors(rng: np.random.Generator, video: Manifest) -> list[float]:
    """The whole ladder moves, and half of the time each level by itself, too."""
    whole = float(rng.uniform(*BITRATE_FACTORS))
    if rng.random() < 0.5:
        return [round(whole, 3)]
    factors = whole * rng.uniform(*LEVEL_FACTORS, size=video.levels)
    bitrates_bps = np.array(video.bitrates_bps) * factors
    for level in range(video.levels - 2, -1, -1):
        bitrates_bps[level] = min(bitrates_bps[level], MOST_OF_NEXT * bitrates_bps[level + 1])
    return [round(float(factor), 3) for factor in bitrates_bps / np.array(video.bitrates_bps)]
