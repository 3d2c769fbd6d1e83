"""Tables whose rows depend on context: on how large the symbols nearby came out.

The entropy model tells how large a symbol is expected to be: its level, a row of the tables. Where its neighbours, in
its channel and at its place in the channels before, came out larger or smaller than their levels let expect, so will
this one. Encoder and decoder both know them, so that nothing has to be sent. What CALIC does with the energy of its
errors ("Context-based, adaptive, lossless image coding", Wu and Memon, IEEE Transactions on Communications 1997), the
ratio of what was found to what was expected does here, in steps: it exchanges the level for a better one.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from utils.entropy_coding.frequencies import PRECISION
from utils.entropy_coding.rans import Shape, Tables, freeze

CONTEXTS = 16  # one more than rans_loops.py has edges
BEYOND = 64  # sizes outside the widest table whose costs are known


class ContextTables(Tables):
    """Tables of which a symbol of level l in context c is coded under row `corrected[l, c]`, (n, CONTEXTS) integers.

    Raises ValueError for rows that there are not, and for what Tables refuses.
    """

    def __init__(self, cdf: np.ndarray, lengths: np.ndarray, offsets: np.ndarray, corrected: np.ndarray) -> None:
        super().__init__(cdf, lengths, offsets)
        corrected = np.asarray(corrected)
        if corrected.shape != (len(self.lengths), CONTEXTS):
            raise ValueError(f"entropy tables: rows by context are {corrected.shape}, not {CONTEXTS} a level")
        self.corrected = self.rows(corrected.ravel()).reshape(corrected.shape)
        self.expected = self._expected()
        freeze(self.corrected, self.expected)

    def _expected(self) -> np.ndarray:
        """(n,) int32: the mean size of a symbol under each row, in the units of the loops."""
        from utils.entropy_coding.rans_loops import LARGEST, UNIT

        values = self.offsets.astype(np.int64)[:, None] + np.arange(self.cdf.shape[1] - 1)
        sizes = np.minimum(np.abs(values) * UNIT, LARGEST)
        escapes = np.arange(self.cdf.shape[1] - 1) == self.lengths[:, None] - 2
        sizes[escapes] = LARGEST
        inside = np.arange(1, self.cdf.shape[1]) < self.lengths[:, None]
        frequencies = np.where(inside, np.diff(self.cdf.astype(np.int64), axis=1), 0)
        return ((sizes * frequencies).sum(1) >> PRECISION).astype(np.int32)

    def coded_under(self, symbols: np.ndarray, indexes: np.ndarray, shape: Shape | None) -> np.ndarray:
        """The row of each symbol (n,) of a map (C, H, W). Raises ValueError for a bad index or shape."""
        return self.by_context(symbols, super().coded_under(symbols, indexes, shape), shape, self.corrected)

    def by_context(self, symbols: np.ndarray, levels: np.ndarray, shape: Shape | None, table: np.ndarray) -> np.ndarray:
        """(n,) `table[level, context]` of symbols (n,) and their levels (n,), in the type of the table."""
        from utils.entropy_coding.rans_loops import correct

        found = np.empty(len(symbols), table.dtype)
        correct(symbols, levels, table, self.expected, memory_of(mapped(shape, symbols)), found)
        return found

    def contexts(self, symbols: np.ndarray, levels: np.ndarray, shape: Shape | None) -> np.ndarray:
        """(n,) uint8: the context of symbols (n,) with levels (n,)."""
        return self.by_context(symbols, levels, shape, self._numbers)

    @cached_property
    def _numbers(self) -> np.ndarray:
        numbers = np.tile(np.arange(CONTEXTS, dtype=np.uint8), (len(self.lengths), 1))
        freeze(numbers)
        return numbers

    @cached_property
    def costs(self) -> np.ndarray:
        """(n, sizes) float32: the bits of a symbol of size 0, 1, 2, ... under each row, the mean of both signs."""
        from utils.entropy_coding.rans_loops import BYPASS_BITS

        sizes, last = np.arange(self.cdf.shape[1] // 2 + BEYOND), self.lengths[:, None] - 2  # the escape's interval
        found = np.zeros((len(last), len(sizes)))
        for values in (sizes, -sizes):
            places = values - self.offsets[:, None].astype(np.int64)
            outside = (places < 0) | (places >= last)
            distances = np.where(places < 0, -2 * places - 1, 2 * (places - last))  # zigzag, as the coder has them
            groups = -(-np.frexp(np.where(outside, distances, 0))[1] // BYPASS_BITS)
            rows, places = np.arange(len(last))[:, None], np.where(outside, last, places)
            counts = (self.cdf[rows, places + 1] - self.cdf[rows, places]).astype(np.float64)
            found += (PRECISION - np.log2(counts) + outside * BYPASS_BITS * (1 + groups)) / 2
        found = found.astype(np.float32)
        freeze(found)
        return found

    def context_state(self, shape: Shape | None, indexes: np.ndarray) -> tuple[np.ndarray, ...]:
        """For the decoder's loop: rows by level and context, sizes expected of levels, and its memory, empty."""
        return self.corrected, self.expected, memory_of(mapped(shape, indexes))


def memory_of(shape: Shape) -> np.ndarray:
    """What the loops remember of a map (C, H, W), empty."""
    return np.zeros((shape[1] + 2, shape[2] + 3, 4), np.int32)


def mapped(shape: Shape | None, values: np.ndarray) -> Shape:
    """The shape (C, H, W) of n values. Raises ValueError where none is given or it does not fit."""
    if shape is None or len(shape) != 3 or np.prod(shape) != len(values):
        raise ValueError(f"tables with contexts need the shape (C, H, W) of {len(values)} symbols, not {shape}")
    return shape
