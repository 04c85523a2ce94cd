"""Frames of 360-degree videos, where the user has them: `FOLDER/videoN/SECONDS.png` (or .jpg, .npy), equirectangular.

No catalogued set has frames: the videos of Jin2022 belong to their makers. A frame is on screen from its time on until the next one's.
"""

import bisect
from functools import lru_cache
from pathlib import Path

import numpy as np

from testbed.errors import UserError

ENDINGS = (".png", ".jpg", ".jpeg", ".npy")
REMEMBERED = 512
"""Frames kept in memory."""


class Frames:
    """The frames below a folder; without a folder there are none."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._times: dict[int, tuple[list[float], list[Path]]] = {}
        if folder is not None and not folder.is_dir():
            raise UserError(f"frames {folder}: no such folder, wanted one with videoN/SECONDS.png")

    def at(self, video: int, time_s: float) -> np.ndarray | None:
        """The frame on screen at `time_s` of a video, (rows, columns, 3) of bytes; None before the first one, or without any."""
        if self._folder is None:
            return None
        if video not in self._times:
            self._times[video] = self._listed(self._folder / f"video{video}")
        times, paths = self._times[video]
        number = bisect.bisect_right(times, time_s)
        return read_frame(paths[number - 1]) if number else None

    def _listed(self, folder: Path) -> tuple[list[float], list[Path]]:
        found = []
        for path in folder.glob("*"):
            if path.suffix.lower() in ENDINGS:
                try:
                    found.append((float(path.stem), path))
                except ValueError:
                    raise UserError(f"frame {path}: its name is no time, wanted seconds, such as 12.5{path.suffix}") from None
        found.sort()
        return [time_s for time_s, _ in found], [path for _, path in found]


NO_FRAMES = Frames(None)


@lru_cache(maxsize=REMEMBERED)
def read_frame(path: Path) -> np.ndarray:
    """A picture as bytes, (rows, columns, 3), read-only."""
    try:
        frame = np.load(path, allow_pickle=False) if path.suffix == ".npy" else _decoded(path)
    except (OSError, ValueError) as error:
        raise UserError(f"frame {path}: can't be read ({' '.join(str(error).split())[:120]}), wanted a picture") from error
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
        raise UserError(f"frame {path}: has shape {frame.shape} and type {frame.dtype}, wanted (rows, columns, 3) bytes")
    frame.setflags(write=False)
    return frame


def _decoded(path: Path) -> np.ndarray:
    from PIL import Image  # only who has pictures pays

    with Image.open(path) as picture:
        return np.array(picture.convert("RGB"))
