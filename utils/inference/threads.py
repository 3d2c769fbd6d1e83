"""Loops that release the interpreter lock, in several threads."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

LEAST_VALUES = 1 << 17  # of a part, which should take longer than to wake a thread


def in_threads(loop: Callable[..., None], count: int, values: int, *arguments: Any) -> None:
    """loop(*arguments, first, last) over parts of range(count), in as many threads as torch would use, if that pays.

    values: how many numbers it computes in all. The next part goes to the thread that is free first: torch's own
    threads keep their cores busy for a while after each operation.
    """
    parts = max(1, min(count, values // LEAST_VALUES))
    edges = [count * i // parts for i in range(parts + 1)]
    waiting = iter(list(zip(edges, edges[1:])))

    def work() -> None:
        for part in waiting:
            loop(*arguments, *part)

    others = []
    with suppress(RuntimeError):  # at the interpreter's exit no thread starts any more
        for _ in range(min(parts, torch.get_num_threads()) - 1):
            others.append(_pool().submit(work))
    work()
    for other in others:
        if not other.cancel():  # it has begun
            other.result()


def flat(x: Tensor) -> np.ndarray:
    """All n values of x, of any shape, as (n,) for the loops; they share its memory if it is contiguous.

    Raises RuntimeError where gradients of x are recorded: the loops have none.
    """
    return x.contiguous().view(-1).numpy()


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not go with a fork
