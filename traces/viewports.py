"""Head movement of viewers of 360-degree video: the reader of its files, and what the angles in them mean.

One file a viewing, one row a sample (nominally 5 a second), no heading:

| column | unit and range | holds |
| --- | --- | --- |
| 1 | seconds, at least 0, rising | time in the viewing; it need not begin at 0, and samples may be missing |
| 2 | degrees, -180 to 180 | roll |
| 3 | degrees, -90 to 90 | pitch |
| 4 | degrees, -180 to 180 | yaw |

The names are those of the data set and of all that is published on it; they are not quite a head's roll, pitch and yaw. NetLLM's
`viewport_prediction/dataset/preprocess.py` makes them of the headset's quaternion with scipy's `as_euler('ZXY')`, so that the head's
attitude is Rz(roll) Rx(pitch) Ry(yaw), y upwards: yaw turns FIRST, in the head's frame. Viewers of Jin2022 face yaw 90, and there `roll` is
how high they look and `pitch` how far they tilt their head. `gaze` and `tilt_deg` undo this. That it is so is measured
(`tests/golden/test_vp_reference.py`): gaze heights and tilts spread alike at every yaw, columns 2 and 3 do not, and only column 3 stays
within 90 degrees, as the middle angle must.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from testbed.errors import UserError
from traces.text import decode, filled_lines, is_number, shown

Floats = NDArray[np.float64]

RATE_HZ = 5
"""Nominal samples per second of Jin2022 as NetLLM publishes it."""
ANGLES = ("roll", "pitch", "yaw")
LIMITS_DEG = (180.0, 90.0, 180.0)
FRONT_DEG = 90.0
"""The yaw at which viewers of Jin2022 look ahead."""
_EXAMPLE = "0.2,4.6,9.9,153.6"


@dataclass(frozen=True, eq=False)
class HeadMovement:
    """One viewing. Arrays are read-only."""

    video: int
    user: int
    times_s: Floats
    """(samples,), rising."""
    angles_deg: Floats
    """(samples, 3): roll, pitch, yaw."""


def read_head_movement(path: Path, video: int, user: int) -> HeadMovement:
    """The viewing in a file. Raises `UserError` with file and line when it can't be used."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror}), wanted a file of head movement") from error
    table = _table(content, str(path))
    table.setflags(write=False)
    return HeadMovement(video, user, table[:, 0], table[:, 1:])


def _table(content: bytes, where: str) -> Floats:
    """(samples, 4)"""
    rows: list[tuple[float, ...]] = []
    for line, text in filled_lines(decode(content, where), where, _EXAMPLE):
        row = _row(text, f"{where}:{line}")
        if rows and not row[0] > rows[-1][0]:
            raise UserError(f"{where}:{line}: time is {row[0]:g} s, wanted more than the {rows[-1][0]:g} s of the row before")
        rows.append(row)
    if not rows:
        raise UserError(f"{where}: is empty, wanted rows of seconds, roll, pitch, yaw ({_EXAMPLE})")
    return np.array(rows, dtype=float)


def _row(text: str, at: str) -> tuple[float, ...]:
    words = [word.strip() for word in text.split(",")]
    if len(words) != 1 + len(ANGLES):
        raise UserError(f"{at}: is {shown(text)} with {len(words)} columns, wanted 4: seconds, roll, pitch, yaw ({_EXAMPLE})")
    for name, word in zip(("time", *ANGLES), words, strict=True):
        if not is_number(word):
            raise UserError(f"{at}: {name} is {shown(word)}, wanted a number ({_EXAMPLE})")
    time_s, *angles_deg = map(float, words)
    if not 0 <= time_s < float("inf"):
        raise UserError(f"{at}: time is {time_s:g} s, wanted a finite number of at least 0 s")
    for name, angle_deg, limit_deg in zip(ANGLES, angles_deg, LIMITS_DEG, strict=True):
        if not abs(angle_deg) <= limit_deg:
            raise UserError(f"{at}: {name} is {angle_deg:g} degrees, wanted -{limit_deg:g} to {limit_deg:g}")
    return (time_s, *angles_deg)


def attitude(angles_deg: NDArray[Any]) -> Floats:
    """Rotation from the head's frame (x through the ears, y up, z the line of sight) to the world's, (..., 3, 3), of (..., 3) degrees.

    Rz(roll) Rx(pitch) Ry(yaw), the world being x (the front of Jin2022), y (up), z.
    """
    roll, pitch, yaw = np.moveaxis(np.radians(np.asarray(angles_deg, dtype=float)), -1, 0)
    sr, cr, sp, cp, sy, cy = np.sin(roll), np.cos(roll), np.sin(pitch), np.cos(pitch), np.sin(yaw), np.cos(yaw)
    rows = (
        (cr * cy - sr * sp * sy, -sr * cp, cr * sy + sr * sp * cy),
        (sr * cy + cr * sp * sy, cr * cp, sr * sy - cr * sp * cy),
        (-cp * sy, sp, cp * cy),
    )
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def gaze(angles_deg: NDArray[Any]) -> Floats:
    """Where the eyes point, unit vectors (..., 3) in x (the front of Jin2022), y (up), z, of (..., 3) roll, pitch, yaw.

    Were the head's forward direction -z, all vectors were the opposite ones: angles between two of them stay the same.
    """
    return attitude(angles_deg)[..., 2]


def tilt_deg(angles_deg: NDArray[Any]) -> Floats:
    """How far the line through both ears leans from the horizon, degrees (...,), of (..., 3) roll, pitch, yaw."""
    return np.asarray(np.degrees(np.arcsin(np.clip(attitude(angles_deg)[..., 1, 0], -1.0, 1.0))))
