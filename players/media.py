"""Videos: the manifest is the only truth of chunk sizes; origin, players, simulator and policies all read it from here.

Catalogued videos come through the store. `synthetic` is our own, made by arithmetic on the spot, for machines that can't have them.
A user's video is a JSON file as SABRE describes movies (Spiteri et al., MMSys 2018):

| key | meaning |
| --- | --- |
| `segment_duration_ms` | media in a chunk, ms |
| `bitrates_kbps` | the ladder, from low to high, kbit/s |
| `segment_sizes_bits` | for each chunk a list with the size at each level, bits |
"""

import random
import re
from functools import cache
from math import ceil, fsum
from pathlib import Path
from typing import Annotated

import msgspec

from controllers.api import Manifest
from testbed.errors import UserError, suggestion
from testbed.units import bps_from_kbps, bytes_from_bits, bytes_per_s_from_bps, s_from_ms
from testbed.user import expanded
from traces.catalog import load_catalog
from traces.store import obtain

CHUNK_S = 4.0
CHUNKS = 49
"""Chunks in a video; sessions play 48, and MPC may look at the size of one more (Pensieve, `fixed_env.py`)."""
BITRATES_BPS = tuple(int(bps_from_kbps(kbps)) for kbps in (300, 750, 1200, 1850, 2850, 4300))
"""The ladder of Pensieve (SIGCOMM 2017, section 5.1)."""
VIDEO_NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
"""It stands in a path of the origin's."""
DEFAULT_VIDEO = "video1"
SYNTHETIC_VIDEO = "synthetic"

_VBR_CV = 0.08
"""Coefficient of variation of chunk sizes in the synthetic video."""
_SHARED = 0.8
"""Share of that variance which all levels of a chunk have in common: a busy scene is large at every bitrate."""


def video_names() -> tuple[str, ...]:
    """Every name that `load_manifest` takes, besides files."""
    return (*(entry.name for entry in load_catalog().values() if entry.kind == "video"), SYNTHETIC_VIDEO)


class _Movie(msgspec.Struct):
    segment_duration_ms: Annotated[float, msgspec.Meta(ge=100, le=30_000)]
    bitrates_kbps: Annotated[tuple[Annotated[float, msgspec.Meta(gt=0, le=1e6)], ...], msgspec.Meta(min_length=1, max_length=50)]
    segment_sizes_bits: Annotated[tuple[tuple[Annotated[float, msgspec.Meta(gt=0, le=1e11)], ...], ...], msgspec.Meta(min_length=3)]


def is_video_file(name: str) -> bool:
    """Whether `name` is the path of a video rather than the name of one."""
    return name.endswith(".json")


def read_manifest(path: str | Path) -> Manifest:
    """The video that a file describes, named like it. Raises `UserError` with what in it can't be used."""
    path = expanded(path)
    try:
        movie = msgspec.json.decode(path.read_bytes(), type=_Movie)
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror}), wanted a video in SABRE's format") from error
    except msgspec.DecodeError as error:
        raise UserError(f"{path}: {error}, wanted a video in SABRE's format (players/media.py)") from error
    if not VIDEO_NAME.fullmatch(path.stem):
        raise UserError(f"{path}: names the video {path.stem!r}, wanted letters, digits, '.', '_' and '-' only")
    ladder_bps = tuple(round(bps_from_kbps(kbps)) for kbps in movie.bitrates_kbps)
    if list(ladder_bps) != sorted(set(ladder_bps)):
        raise UserError(f"{path}: bitrates_kbps are {', '.join(f'{each:g}' for each in movie.bitrates_kbps)}, wanted them from low to high")
    for chunk, sizes in enumerate(movie.segment_sizes_bits):
        if len(sizes) != len(ladder_bps):
            raise UserError(f"{path}: segment_sizes_bits[{chunk}] has {len(sizes)} sizes, wanted {len(ladder_bps)}, one a bitrate")
    sizes_bytes = tuple(tuple(ceil(bytes_from_bits(bits)) for bits in sizes) for sizes in movie.segment_sizes_bits)
    return Manifest(path.stem, s_from_ms(movie.segment_duration_ms), ladder_bps, sizes_bytes)


def load_manifest(name: str, root: str | Path | None = None, fetch: bool = True) -> Manifest:
    """The manifest of the video `name`, fetched if need be, or of a user's file.

    Raises `UserError` for an unknown name, for a video that can't be had, and for what is wrong with a file.
    """
    if is_video_file(name):
        return read_manifest(name)
    if name == SYNTHETIC_VIDEO:
        return synthetic_manifest()
    if name not in video_names():
        raise UserError(f"video {name!r} is unknown: {suggestion(name, video_names())}, or a file (mine.json)")
    folder, lack = obtain(name, root, fetch)
    if folder is None:
        raise UserError(f"video {name} is not on this machine ({lack}): run scripts/fetch_data {name}, or use {SYNTHETIC_VIDEO}")
    return _read_manifest(name, folder)


def check_length(video: Manifest, chunks: int) -> None:
    """Raise `UserError` unless sessions of so many chunks can be played: policies may look at the size of one more."""
    if chunks >= len(video.sizes_bytes):
        raise UserError(
            f"a session has {chunks} chunks, video {video.name} {len(video.sizes_bytes)}, wanted at least one more than a session"
        )


def default_manifest(root: str | Path | None = None) -> tuple[Manifest, str]:
    """`video1`, fetched if need be; or the synthetic video and a sentence that says so (empty for `video1`)."""
    folder, lack = obtain(DEFAULT_VIDEO, root)
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
