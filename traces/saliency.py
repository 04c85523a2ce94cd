"""Which parts of a frame draw the eye: the spectral residual (Hou and Zhang, CVPR 2007), pooled to a coarse grid.

TRACK learns from a saliency network whose weights nobody may ship here; this is the classic that needs none.
"""

import numpy as np

GRID = 8, 16
"""Rows and columns of the map, over the equirectangular picture."""
SIZE = 64, 128
"""The picture is averaged to this before its spectrum is taken (the paper's width of 64 a direction of view)."""
SPECTRUM = 3
"""Width of the mean that is taken off the log spectrum (section 3.1)."""


def saliency(frame: np.ndarray | None) -> np.ndarray:
    """A map (rows, columns) whose mean is 1, of a frame (rows, columns, 3) of bytes; all ones where there is no frame, or nothing in it."""
    even = np.ones(GRID, dtype=np.float32)
    if frame is None or np.ptp(frame) == 0:
        return even
    spectrum = np.fft.fft2(_pooled(frame.mean(axis=2), SIZE))
    log = np.log(np.abs(spectrum) + 1e-6)
    residual = log - _smoothed(log)
    energy = np.abs(np.fft.ifft2(np.exp(residual + 1j * np.angle(spectrum)))) ** 2
    pooled = _pooled(energy, GRID)
    return np.asarray(pooled / pooled.mean(), dtype=np.float32)


def _pooled(picture: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Means over a grid of cells; a smaller picture is repeated first."""
    for axis, wanted in enumerate(shape):
        length = picture.shape[axis]
        if length < wanted:
            picture = np.take(picture, np.arange(wanted) * length // wanted, axis=axis)
        edges = np.arange(wanted) * picture.shape[axis] // wanted
        counts = np.diff([*edges, picture.shape[axis]])
        picture = np.add.reduceat(picture, edges, axis=axis) / (counts[:, None] if axis == 0 else counts)
    return picture


def _smoothed(values: np.ndarray) -> np.ndarray:
    reach = range(-(SPECTRUM // 2), SPECTRUM // 2 + 1)
    return np.asarray(np.mean([np.roll(values, (i, j), (0, 1)) for i in reach for j in reach], axis=0))
