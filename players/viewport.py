"""What of a tiled picture is in view, and which tiles to fetch at which level: pure arithmetic, no time and no network.

The head's attitude is that of `traces/viewports.py`: Rz(roll) Rx(pitch) Ry(yaw), y upwards, looking along z (if it was -z, every picture
would be turned and mirrored alike, with equal shares).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from players.tiles import TiledVideo
from traces.viewports import Floats, attitude

FIELD_DEG = 100.0, 85.0
"""Width and height of what a headset shows (HTC Vive, as in Corbillon et al., MMSys 2017: about 100 degrees)."""
RAYS = 20, 18
"""Lines of sight over the field, columns and rows: one every five degrees."""
SAFETY = 0.9
"""Share of the estimated throughput that a segment may use (dash.js 5's `bandwidthSafetyFactor`)."""


@cache
def _rays() -> Floats:
    """Lines of sight in the head's frame, unit vectors (rays, 3), evenly over a flat screen."""
    half = [np.tan(np.radians(angle_deg / 2)) for angle_deg in FIELD_DEG]
    x, y = (edge * (2 * (np.arange(count) + 0.5) / count - 1) for edge, count in zip(half, RAYS, strict=True))
    grid = np.stack(np.broadcast_arrays(x[:, None], y[None, :], 1.0), axis=-1).reshape(-1, 3)
    return np.asarray(grid / np.linalg.norm(grid, axis=1, keepdims=True))


def shares_in_view(angles_deg: np.ndarray, rows: int, columns: int) -> Floats:
    """The share of the viewport that each tile fills, (N, rows x columns), of (N, 3) roll, pitch, yaw; each row sums to 1."""
    seen = np.einsum("nij,rj->nri", attitude(angles_deg), _rays())  # (N, rays, 3)
    latitude, longitude = sphere(seen)
    row = np.clip(((0.5 - latitude / np.pi) * rows).astype(int), 0, rows - 1)
    column = ((longitude / (2 * np.pi) + 0.5) * columns).astype(int) % columns
    tile = row * columns + column  # (N, rays)
    counts = np.stack([np.bincount(each, minlength=rows * columns) for each in tile])
    return np.asarray(counts / tile.shape[1])


def sphere(directions: np.ndarray) -> tuple[Floats, Floats]:
    """Latitude (up is positive) and longitude (0 is the front of Jin2022), radians, of unit vectors (..., 3)."""
    return np.arcsin(np.clip(directions[..., 1], -1, 1)), np.arctan2(directions[..., 2], directions[..., 0])


@dataclass(frozen=True)
class Plan:
    """What to fetch of a segment: tiles in the order of sending, and the level of each tile by number."""

    order: tuple[int, ...]
    levels: tuple[int, ...]


def plan(video: TiledVideo, segment: int, expected: Sequence[float] | np.ndarray, budget_bytes: float) -> Plan:
    """All tiles at the lowest level, then those expected in view raised level by level, the most seen ones first, within the budget.

    `expected` are the shares of the viewport that tiles will fill, (tiles,). Tiles expected in view are sent first.
    """
    sizes, shares = video.sizes_bytes[segment], np.asarray(expected)
    order = np.lexsort((np.arange(video.tiles), -shares)).tolist()
    levels = [0] * video.tiles
    left_bytes = budget_bytes - sum(each[0] for each in sizes)
    for level in range(1, video.levels):
        for tile in order:
            more_bytes = sizes[tile][level] - sizes[tile][level - 1]
            if shares[tile] <= 0 or levels[tile] < level - 1 or more_bytes > left_bytes:
                break
            levels[tile], left_bytes = level, left_bytes - more_bytes
    return Plan(tuple(order), tuple(levels))
