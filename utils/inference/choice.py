"""Which of several ways to compute the same is the fastest on this machine: measured once, kept on disk, or fixed.

Kept by processor, versions of the libraries and number of threads, a file each in the user's cache folder. Where that
cannot be read or written, each process measures for itself.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import RLock

import numpy as np
import torch

from utils.cli import UserError
from utils.devices import processor
from utils.files import atomic_write, cache_folder

AUTO, VARIABLE = "auto", "DCAE_PRODUCTS"
GAIN = 1.05  # another way must be that much faster than the first, or noise would decide


class Choice:
    """The way to go for a kind of work and a type of numbers, as a string.

    ways: the names of all there are. available(kind, dtype): those that this machine has, the plain one first.
    measure(kind, dtype, names): seconds of each.
    """

    def __init__(
        self,
        ways: tuple[str, ...],
        available: Callable[[str, torch.dtype], list[str]],
        measure: Callable[[str, torch.dtype, list[str]], dict[str, float]],
    ) -> None:
        self.ways, self.available, self.measure = ways, available, measure
        self.made: dict[tuple[str, torch.dtype, int], str] = {}  # kind, type, threads
        self._fixed: str | None = None
        self._lock = RLock()  # of threads that work side by side, one measures and the others wait

    def __call__(self, kind: str, dtype: torch.dtype) -> str:
        """The way for this many threads, chosen now if it has not been."""
        key = kind, dtype, torch.get_num_threads()
        return self.made.get(key) or self._make(key)

    def fix(self, way: str | None) -> None:
        """Go one way wherever it can be gone; "auto": the fastest; None: as DCAE_PRODUCTS says, else the fastest.

        Raises UserError, naming flag or variable, where there is no such way.
        """
        what = f"--products {way}" if way else f"{VARIABLE}={os.environ.get(VARIABLE)}"
        way = way or os.environ.get(VARIABLE) or AUTO
        if way not in (AUTO, *self.ways):
            raise UserError(f"{what}: no such way to multiply; choose {', '.join((AUTO, *self.ways))}")
        if way != AUTO and way not in self.available("linear", torch.float32):
            raise UserError(f"{what}: the libraries here cannot do that; choose {AUTO}")
        with self._lock:
            self._fixed = way
            self.made = {}

    @contextmanager
    def fixed(self, way: str) -> Iterator[None]:
        """Inside the block `fix(way)` holds, for all threads."""
        before = self._fixed, self.made
        self.fix(way)
        try:
            yield
        finally:
            self._fixed, self.made = before

    def _make(self, key: tuple[str, torch.dtype, int]) -> str:
        with self._lock:
            if self._fixed is None:
                self.fix(None)
            if key not in self.made:
                kind, dtype, _ = key
                ways = self.available(kind, dtype)
                if self._fixed == AUTO:
                    self.made[key] = self._kept_or_measured(kind, dtype, ways)
                else:
                    self.made[key] = self._fixed if self._fixed in ways else ways[0]
            return self.made[key]

    def _kept_or_measured(self, kind: str, dtype: torch.dtype, ways: list[str]) -> str:
        path, name = file_of_choices(), f"{kind} {dtype}"
        kept = _read(path)
        if kept.get(name) not in ways:
            seconds = self.measure(kind, dtype, ways)
            best = min(seconds, key=seconds.get)
            kept[name] = best if seconds[ways[0]] > GAIN * seconds[best] else ways[0]
            with suppress(OSError), atomic_write(path) as file:
                file.write(json.dumps(kept, indent=1).encode())
        return kept[name]


def file_of_choices() -> Path:
    """Where the choices for this processor, these versions and torch's number of threads are kept."""
    machine = (processor(), torch.backends.cpu.get_cpu_capability(), torch.__version__, np.__version__)
    key = hashlib.sha256(repr((*machine, torch.get_num_threads())).encode()).hexdigest()
    return cache_folder() / f"products-{key[:16]}.json"


def _read(path: Path) -> dict[str, str]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
