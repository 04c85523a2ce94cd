"""Videos: the manifest is the only truth of chunk sizes; origin, players, simulator and policies all read it from here.

Catalogued videos come through the store. `synthetic` is our own, made by arithmetic on the spot, for machines that can't have them.
"""

import random
import re
from functools import cache
from math import fsum
from pathlib import Path

from controllers.api import Manifest
from testbed.errors import UserError, suggestion
from testbed.units import bps_from_kbps, bytes_per_s_from_bps
from traces.catalog import load_catalog
from traces.store import obtain

CHUNK_S = 4.0
CHUNKS = 49
"""Chunks in a video; sessions play 48, and MPC may look at the size of one more (Pensieve, `fixed_env.py`)."""
BITRATES_BPS = tuple(int(bps_from_kbps(kbps)) for kbps in (300, 750, 1200, 1850, 2850, 4300))
"""The ladder of Pensieve (SIGCOMM 2017, section 5.1)."""
DEFAULT_VIDEO = "video1"
SYNTHETIC_VIDEO = "synthetic"

_VBR_CV = 0.08
"""Coefficient of variation of chunk sizes in the synthetic video."""
_SHARED = 0.8
"""Share of that variance which all levels of a chunk have in common: a busy scene is large at every bitrate."""


def video_names() -> tuple[str, ...]:
    """Every name that `load_manifest` takes."""
    return (*(entry.name for entry in load_catalog().values() if entry.kind == "video"), SYNTHETIC_VIDEO)


def load_manifest(name: str, root: str | Path | None = None, fetch: bool = True) -> Manifest:
    """The manifest of the video `name`, fetched if need be. Raises `UserError` for an unknown name and for a video that can't be had."""
    if name == SYNTHETIC_VIDEO:
        return synthetic_manifest()
    if name not in video_names():
        raise UserError(f"video {name!r} is unknown: {suggestion(name, video_names())}")
    folder, lack = obtain(name, root, fetch)
    if folder is None:
        raise UserError(f"video {name} is not on this machine ({lack}): run scripts/fetch_data {name}, or use {SYNTHETIC_VIDEO}")
    return _read_manifest(name, folder)


def default_manifest(root: str | Path | None = None, fetch: bool = True) -> tuple[Manifest, str]:
    """`video1`, fetched if need be; or the synthetic video and a sentence that says so (empty for `video1`)."""
    folder, lack = obtain(DEFAULT_VIDEO, root, fetch)
    if folder is not None:
        return _read_manifest(DEFAULT_VIDEO, folder), ""
    return synthetic_manifest(), f"chunk sizes are those of our synthetic video: {DEFAULT_VIDEO} is not on this machine ({lack})"


def _read_manifest(name: str, folder: Path) -> Manifest:
    by_level = [_read_sizes(folder / f"video_size_{level}") for level in range(len(BITRATES_BPS))]
    return Manifest(name, CHUNK_S, BITRATES_BPS, tuple(zip(*by_level, strict=True)))


def _read_sizes(path: Path) -> tuple[int, ...]:
    lines = path.read_text(encoding="ascii").split()
    for number, line in enumerate(lines, 1):
        if not re.fullmatch(r"[1-9]\d{0,11}", line):
            raise UserError(f"{path}:{number}: size is {line[:40]!r}, wanted a whole number of bytes above 0")
    if len(lines) != CHUNKS:
        raise UserError(f"{path}: holds {len(lines)} sizes, wanted {CHUNKS}")
    return tuple(int(line) for line in lines)


@cache
def synthetic_manifest() -> Manifest:
    """Our own video: the same ladder and chunks, sizes that vary by about 8 % around the nominal bitrate, equal on every machine.

    `random.Random.random` is the one generator whose stream is promised never to change.
    """
    rng = random.Random(20240804)
    scene = [_normal(rng) for _ in range(CHUNKS)]
    by_level = [_level_sizes(bitrate_bps, scene, rng) for bitrate_bps in BITRATES_BPS]
    return Manifest(SYNTHETIC_VIDEO, CHUNK_S, BITRATES_BPS, tuple(zip(*by_level, strict=True)))


def _level_sizes(bitrate_bps: int, scene: list[float], rng: random.Random) -> list[int]:
    """Sizes whose mean is the nominal one (to a byte) and whose coefficient of variation is `_VBR_CV`."""
    drawn = [_SHARED**0.5 * shared + (1 - _SHARED) ** 0.5 * _normal(rng) for shared in scene]
    mean = fsum(drawn) / CHUNKS
    deviation = (fsum((z - mean) ** 2 for z in drawn) / CHUNKS) ** 0.5
    nominal_bytes = bytes_per_s_from_bps(bitrate_bps) * CHUNK_S
    return [round(nominal_bytes * (1 + _VBR_CV * (z - mean) / deviation)) for z in drawn]


def _normal(rng: random.Random) -> float:
    """About a standard normal draw, at most 6: the sum of twelve uniform ones less 6."""
    return fsum(rng.random() for _ in range(12)) - 6
