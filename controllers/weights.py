"""Weights of small policy networks: safetensors files, read into numpy, with the story of their making in the header."""

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from testbed.errors import UserError

HEADER = "made"
SHIPPED = Path(__file__).parent / "abr" / "weights"
VP_SHIPPED = Path(__file__).parent / "vp" / "weights"
CJS_SHIPPED = Path(__file__).parent / "cjs" / "weights"
Weights = dict[str, np.ndarray]
MOST_HASHED_BYTES = 1 << 28
"""A backbone's files are not read for every run."""


def find_weights(text: str, default: str, folder: Path = SHIPPED) -> Path:
    """The file that a policy's option `weights` means: a path, the name of a shipped file (`pensieve-2`), or nothing for `default`."""
    shipped = folder / f"{text or default}.safetensors"
    return shipped if shipped.is_file() or not text else Path(text).expanduser()


def weights_sha256(path: Path) -> str:
    """By which model cards, evaluations and runs name weights: of a file, or of a folder's safetensors (an adapter's matrices, encoders and
    head), else of all that is in it.

    Larger files than `MOST_HASHED_BYTES` count by their size.
    """
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors")) or sorted(file for file in path.rglob("*") if file.is_file())
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(file.read_bytes() if size <= MOST_HASHED_BYTES else f"{size} bytes".encode())
    return digest.hexdigest()


def read_weights(path: Path) -> Weights:
    """Arrays by name, float32. Raises `UserError` for a file that is none."""
    return _read(path.resolve())[0]


def read_story(path: Path) -> dict[str, Any]:
    """How the weights were made."""
    return _read(path.resolve())[1]


@cache
def _read(path: Path) -> tuple[Weights, dict[str, Any]]:
    try:
        with safe_open(str(path), framework="numpy") as file:
            story = json.loads((file.metadata() or {}).get(HEADER, "{}"))
            return {name: np.asarray(file.get_tensor(name), dtype=np.float32) for name in file.keys()}, story  # noqa: SIM118
    except (OSError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path}: can't be read ({reason}), wanted weights made by scripts/train") from error
