"""Compiled functions, kept on disk where that can be: a user may own neither this checkout nor a home.

A function is compiled anew when any file of this folder has changed. Numba itself looks only at the file that a function stands in, and
would go on with what it had compiled of the others.
"""

import hashlib
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
        kept._cache._cache_file._source_stamp = folder_stamp()
    return made


@cache
def folder_stamp() -> bytes:
    """A hash of the files of this folder."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))).digest()
