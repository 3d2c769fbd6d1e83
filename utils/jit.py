"""Loops that Numba compiles."""

from __future__ import annotations

from collections.abc import Callable

from numba import njit


def compiled(function: Callable) -> Callable:
    """Compile on first use and keep the result on disk, or in memory only where no folder can be written to.

    The loop releases the interpreter lock.
    """
    try:
        return njit(cache=True, nogil=True)(function)
    except RuntimeError:
        return njit(nogil=True)(function)
