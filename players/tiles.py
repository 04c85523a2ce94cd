"""A 360-degree video cut into tiles: its manifest, and the one that is made by arithmetic.

The picture is equirectangular, `rows` x `columns` tiles of equal angles, numbered row by row from the top; every segment of every tile
comes in every level. A level's bitrate is that of the whole picture.
"""

import math
import random
from dataclasses import dataclass
from functools import cache

from testbed.errors import UserError
from testbed.units import bytes_per_s_from_bps

ROWS, COLUMNS = 4, 8
SEGMENT_S = 1.0
"""Short, so that what is fetched was predicted not long ago (Flare, MobiCom 2018, and TRACK's authors take 1 s)."""
BITRATES_BPS = (500_000, 2_000_000, 5_000_000, 10_000_000)
"""Of the whole picture. About a quarter of it is in view, so that traces of access links (around 2 Mbit/s) can carry a good viewport."""
SEGMENTS = 60
NAME = "tiles"
_VARIATION = 0.08
"""Coefficient of variation of a segment's size."""
MAX_TILES = 400
MAX_SEGMENTS = 10_000


@dataclass(frozen=True)
class TiledVideo:
    """The manifest. `sizes_bytes[segment][tile][level]`; levels are ordered by bitrate, lowest first."""

    name: str
    segment_s: float
    rows: int
    columns: int
    bitrates_bps: tuple[int, ...]
    sizes_bytes: tuple[tuple[tuple[int, ...], ...], ...]

    @property
    def tiles(self) -> int:
        """Tiles of a segment."""
        return self.rows * self.columns

    @property
    def levels(self) -> int:
        """Levels of each tile."""
        return len(self.bitrates_bps)

    @property
    def segments(self) -> int:
        """Segments of the video."""
        return len(self.sizes_bytes)


def check_tiled(video: TiledVideo) -> None:
    """Raise `UserError` for the first field that can't be."""
    _check("rows x columns", video.tiles, 1 <= video.tiles <= MAX_TILES and video.rows >= 1, f"1 to {MAX_TILES}")
    _check("segment_s", video.segment_s, 0.1 <= video.segment_s <= 60, "0.1 to 60 s")
    rising = bool(video.bitrates_bps) and all(a < b for a, b in zip((0, *video.bitrates_bps), video.bitrates_bps, strict=False))
    _check("bitrates_bps", video.bitrates_bps, rising, "rising bitrates above 0")
    _check("segments", video.segments, 1 <= video.segments <= MAX_SEGMENTS, f"1 to {MAX_SEGMENTS}")
    for number, tiles in enumerate(video.sizes_bytes):
        whole = len(tiles) == video.tiles and all(len(sizes) == video.levels and min(sizes) >= 1 for sizes in tiles)
        _check(f"segment {number}", "broken", whole, f"{video.tiles} tiles of {video.levels} sizes of at least a byte")


def _check(field: str, seen: object, ok: bool, wanted: str) -> None:
    if not ok:
        raise UserError(f"tiled video: {field} is {seen}, wanted {wanted}")


@cache
def synthetic_tiles(segments: int = SEGMENTS) -> TiledVideo:
    """Our own video, equal on every machine: a row's tiles take bytes as they take solid angle, segments vary by about 8 %.

    `random.Random.random` is the one generator whose stream is promised never to change.
    """
    rng = random.Random(20240804)
    edges = [math.sin(math.pi * (row / ROWS - 0.5)) for row in range(ROWS + 1)]
    shares = [(edges[row + 1] - edges[row]) / 2 / COLUMNS for row in range(ROWS) for _ in range(COLUMNS)]
    sizes = []
    for _ in range(segments):
        busy = 1 + _VARIATION * 3**0.5 * (2 * rng.random() - 1)
        sizes.append(tuple(tuple(_bytes(bitrate, share * busy) for bitrate in BITRATES_BPS) for share in shares))
    return TiledVideo(NAME, SEGMENT_S, ROWS, COLUMNS, BITRATES_BPS, tuple(sizes))


def _bytes(bitrate_bps: int, share: float) -> int:
    return max(round(bytes_per_s_from_bps(bitrate_bps) * SEGMENT_S * share), 1)
