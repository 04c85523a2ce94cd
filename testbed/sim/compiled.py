"""Compiled functions, kept on disk where that can be: a user may own neither this checkout nor a home.

A function is compiled anew when its file, any file of this folder, the metric or the units have changed. Numba itself looks only at the
file that a function stands in, and would go on with what it had compiled of the others, and with their constants.
"""

import hashlib
import inspect
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from numba import njit


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`numba.njit`; without any folder to write to, each process compiles anew."""
    return _compiled(function)


def compiled_in_place(function: Callable[..., Any]) -> Callable[..., Any]:
    """As `compiled`, for functions that make no array and return none: without counting references.

    Numba counts them for every array of every call. In the scheduling simulator, whose functions hand a tuple of arrays on, that took five
    sixths of the time.
    """
    return _compiled(function, _nrt=False)


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """As `compiled_in_place`, and copied into each function that calls it: handing twenty arrays on costs more than most functions do."""
    return _compiled(function, _nrt=False, forceinline=True)


def _compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    made: Callable[..., Any]
    try:
        made = kept = njit(cache=True, **options)(function)
    except RuntimeError:  # no locator available
        made = njit(**options)(function)
    else:
        kept._cache._cache_file._source_stamp = stamp(function)
    return made


def stamp(function: Callable[..., Any]) -> bytes:
    """A hash of all that may be compiled into it."""
    return hashlib.sha256(folder_stamp() + Path(inspect.getfile(function)).read_bytes()).digest()


@cache
def folder_stamp() -> bytes:
    """A hash of the files of this folder, of the metric and the units."""
    folder = Path(__file__).parent
    files = [*sorted(folder.glob("*.py")), *(folder.parent / f"{name}.py" for name in ("metrics", "units"))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).digest()
