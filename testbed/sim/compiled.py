"""Compiled functions, kept on disk where that can be: a user may own neither this checkout nor a home."""

from collections.abc import Callable
from typing import Any

from numba import njit


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`numba.njit`; without any folder to write to, each process compiles anew."""
    return _compiled(function)


def compiled_in_place(function: Callable[..., Any]) -> Callable[..., Any]:
    """As `compiled`, for functions that make no array and return none: without counting references, which numba does for every array of
    every call. In the scheduling simulator, whose functions hand a tuple of arrays on, that took five sixths of the time."""
    return _compiled(function, _nrt=False)


def _compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # no locator available
        return njit(**options)(function)
