"""Reads the pickled objects in `.npy` files without trusting them: nothing in a file can name anything that runs.

A pickle calls what it names. The reader knows three names, those that numpy writes around an array of objects, and has one inert stand-in
for them; all else is refused. What comes out is checked to be dicts, lists and integers.
"""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from testbed.errors import UserError

LARGEST_BYTES = 4_000_000
"""The largest TPC-H profile has a tenth of that."""


class _Inert:
    """Stands in for numpy's array, its type, and the function that makes one: keeps the state that numpy would have unpacked."""

    __slots__ = ("items",)

    def __init__(self, *_: Any) -> None:
        self.items: Any = None

    def __setstate__(self, state: Any) -> None:
        self.items = state[-1]  # of an array: (version, shape, dtype, Fortran order, list of objects)


NAMES = frozenset(
    {
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),  # since numpy 2
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
    }
)


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in NAMES:
            raise pickle.UnpicklingError(f"names {module}.{name}")
        return _Inert


def read_object(path: Path) -> Any:
    """The one object of an `.npy` file of shape (): a dict, list or integer, and the same inside. Raises `UserError` for anything else."""
    try:
        return _plain(_unpickled(path))
    except (OSError, ValueError, pickle.UnpicklingError, EOFError, AttributeError, IndexError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise UserError(f"{path}: can't be read safely ({reason}), wanted an npy file with one dict of lists of integers") from error
    except (MemoryError, OverflowError, RecursionError) as error:
        raise UserError(f"{path}: can't be read safely ({type(error).__name__}), wanted an npy file with one dict of lists") from error


def _unpickled(path: Path) -> Any:
    if path.stat().st_size > LARGEST_BYTES:
        raise ValueError(f"{path.stat().st_size} bytes, wanted {LARGEST_BYTES} at most")
    file = io.BytesIO(path.read_bytes())
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"npy version {version[0]}.{version[1]}, wanted 1.0")
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    if shape != () or dtype != np.dtype(object):
        raise ValueError(f"an array of shape {shape} and type {dtype}, wanted one object")
    array = _Reader(file).load()
    if not isinstance(array, _Inert) or not isinstance(array.items, list) or len(array.items) != 1:
        raise ValueError("no single object in it")
    return array.items[0]


def _plain(value: Any, depth: int = 0) -> Any:
    """The value, if it is made of dicts with integers and strings as keys, lists and integers, at most six deep."""
    if depth > 6:
        raise ValueError("nested more than six deep")
    if type(value) is int:
        return value
    if type(value) is list:
        return [_plain(each, depth + 1) for each in value]
    if type(value) is dict and all(type(key) in (int, str) for key in value):
        return {key: _plain(each, depth + 1) for key, each in value.items()}
    raise ValueError(f"a {type(value).__name__} in it")
