"""Compiled functions, kept on disk where that can be: a user may own neither this checkout nor a home."""

from collections.abc import Callable
from typing import Any

from numba import njit


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`numba.njit`; without any folder to write to, each process compiles anew."""
    try:
        return njit(cache=True)(function)
    except RuntimeError:  # no locator available
        return njit(function)
