"""Range asymmetric numeral systems (rANS) on arrays.

"Asymmetric numeral systems" (Duda, 2013, arXiv:1311.2540), with a 64-bit state, 32-bit words and frequencies that add
up to 2^16. Bytes are equal to those of CompressAI's coder for the same symbols, indexes and tables, escapes included;
arrays instead of lists make it an order of magnitude faster. The loops are in `utils/entropy_coding/rans_loops.py`,
compiled by Numba when the first string is coded.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from utils.entropy_coding.check import SymbolCheck
from utils.entropy_coding.frequencies import PRECISION

LOWER_BOUND = 1 << 31  # the state before the first and after the last symbol
LOOKUP_BITS = 6, 10  # of a cumulative frequency, for the decoder's lookup: more would not stay in the first cache
MAX_WORDS = 2  # a symbol takes at most 16 bits, then 9 groups of 4 if escaped: at most two words leave the state
Shape = tuple[int, int, int]  # channels, height, width
REASONS = {1: "it needs more data than there is", 2: "it has an impossible escape"}  # what rans_loops.decode says


class DesynchronisedError(ValueError):
    """The string does not end as it must: it is damaged, or the decoder's tables or indexes are not the encoder's."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the entropy decoder lost its place ({reason})")


class Tables:
    """Cumulative frequencies ready for coding: checked, copied and converted once.

    cdf (n, L) int32: row i rises from 0 to 65536 over its first `lengths[i]` entries, the last interval being the
    escape; offsets (n,) int32: the symbol of each row's first interval. Raises ValueError for anything else.
    """

    def __init__(self, cdf: np.ndarray, lengths: np.ndarray, offsets: np.ndarray) -> None:
        self.cdf = _int32(cdf, "frequencies", dimensions=2)
        self.lengths, self.offsets = _int32(lengths, "lengths"), _int32(offsets, "offsets")
        self._check()
        self.steps = self._steps()
        self._lookup: tuple[np.ndarray, ...] | None = None
        self._index_type = np.min_scalar_type(len(self.lengths) - 1)  # uint8 unless there are more than 256 rows
        # No distance exceeds 32 bits where every table reaches zero from either side, as the models' all do.
        self._reach_zero = self.offsets.max() <= 0 <= (self.offsets.astype(np.int64) + self.lengths - 2).min()
        freeze(self.cdf, self.lengths, self.offsets, self.steps)  # the compiled loops rely on what was checked

    def _check(self) -> None:
        rows = len(self.lengths)
        if not (len(self.cdf) == rows == len(self.offsets)):
            raise ValueError("entropy tables: frequencies, lengths and offsets do not belong together")
        if rows == 0 or self.lengths.min() < 3 or self.lengths.max() > self.cdf.shape[1]:
            raise ValueError("entropy tables: a row's length is out of range")
        beyond = np.arange(1, self.cdf.shape[1]) >= self.lengths[:, None]
        rises = ((self.cdf[:, 1:] > self.cdf[:, :-1]) | beyond).all()
        ends = self.cdf[np.arange(rows), self.lengths - 1]
        if not (rises and (self.cdf[:, 0] == 0).all() and (ends == 1 << PRECISION).all()):
            raise ValueError("entropy tables: a row does not rise from 0 to 65536")

    def _steps(self) -> np.ndarray:
        """(n, L) uint32: of each interval, start in the high half and frequency minus one in the low half."""
        steps = np.zeros(self.cdf.shape, np.uint32)
        starts, ends = self.cdf[:, :-1].astype(np.int64), self.cdf[:, 1:].astype(np.int64)
        steps[:, :-1] = (starts << PRECISION | (ends - starts - 1) & 0xFFFF) & 0xFFFFFFFF
        return steps

    @property
    def lookup(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where the decoder's search begins: `entries` (m,) uint64, `first` (n,) uint64 and `shifts` (n,) uint8.

        Row i splits the 2^16 cumulative frequencies into at least two equal parts an interval; for each part, from
        `first[i]` on, an entry holds the interval in which it begins (high half) and that interval's step.
        """
        if self._lookup is None:
            bits = np.clip(np.ceil(np.log2(self.lengths)).astype(int) + 1, *LOOKUP_BITS)
            parts = []
            for row, n, steps, b in zip(self.cdf, self.lengths, self.steps, bits):
                intervals = np.searchsorted(row[:n], np.arange(1 << b) << (PRECISION - b), "right") - 1
                parts.append(intervals.astype(np.uint64) << np.uint64(32) | steps[intervals])
            first = np.cumsum(1 << bits) - (1 << bits)
            lookup = np.concatenate(parts), first.astype(np.uint64), (PRECISION - bits).astype(np.uint8)
            freeze(*lookup)
            self._lookup = lookup
        return self._lookup

    def __deepcopy__(self, memo: dict) -> Tables:
        return self  # nothing in it changes, and copied arrays could be written to

    def rows(self, indexes: np.ndarray) -> np.ndarray:
        """A copy of `indexes` (n,) in the smallest type for this many rows, whatever integers they are.

        Raises ValueError where one points at no row.
        """
        indexes = _integers(indexes, "indexes")
        rows = indexes.astype(self._index_type)
        changed = indexes.dtype != rows.dtype and not np.array_equal(rows, indexes)  # wrapped around
        if changed or rows.size and rows.max() >= len(self.lengths):
            raise ValueError("an index points outside the entropy tables")
        return rows

    def coded_under(self, symbols: np.ndarray, indexes: np.ndarray, shape: Shape | None) -> np.ndarray:
        """The row of each symbol (n,): that of its index. Raises what `rows` raises."""
        return self.rows(indexes)

    def context_state(self, shape: Shape | None, indexes: np.ndarray) -> tuple[np.ndarray, ...]:
        """What the decoder's loop needs to correct rows by context: nothing here, empty arrays."""
        return _NO_CONTEXT

    def check_symbols(self, symbols: np.ndarray, rows: np.ndarray) -> None:
        """Raise ValueError where the escape of a symbol (n,) would not fit 32 bits."""
        if self._reach_zero:
            return
        values = symbols.astype(np.int64) - self.offsets[rows]
        if (values < -(2**31)).any() or (values - self.lengths[rows] + 2 >= 2**31).any():
            raise ValueError("a symbol is too far outside its entropy table to be coded")


@cache
def reciprocals() -> tuple[np.ndarray, np.ndarray]:
    """Factors (65536,) uint64 and shifts (65536,) uint8: what dividing by i + 1 is replaced with, exactly.

    With 2^s the first power of two not below f, and m = 2^(63 + s) / f rounded up, which has 64 bits: m f exceeds
    2^(63 + s) by less than f, so x m / 2^(63 + s) exceeds x / f by less than 1 / f for each x < 2^63, and both have the
    same integer part. ("Division by invariant integers using multiplication", Granlund and Montgomery, PLDI 1994.)
    """
    frequencies = np.arange(1, (1 << PRECISION) + 1, dtype=np.uint64)
    shifts = np.frexp(frequencies - np.uint64(1))[1].astype(np.uint64)  # bits of f - 1
    quotients, rests = np.divmod(np.uint64(1 << 63), frequencies)
    rests = (rests << shifts) + frequencies - np.uint64(1)
    factors = (quotients << shifts) + rests // frequencies
    shifts = shifts.astype(np.uint8)
    freeze(factors, shifts)
    return factors, shifts


class Encoder:
    """Collects the symbols of one string; rANS then runs backwards over all of them. `check` sees them as they come."""

    def __init__(self, check: SymbolCheck | None = None) -> None:
        self._parts: list[tuple[np.ndarray, np.ndarray, Tables]] = []
        self._check = check or SymbolCheck()

    def put(self, symbols: np.ndarray, indexes: np.ndarray, tables: Tables, shape: Shape | None = None) -> None:
        """Append symbols (n,) int32 coded under rows `indexes` (n,) of `tables`; both are copied.

        shape: (C, H, W) of the map that they are, row-major, which tables with contexts need. Raises ValueError for an
        index outside the tables and for a symbol some 2^31 away from its table.
        """
        symbols = _int32(symbols, "symbols")
        rows = tables.coded_under(symbols, indexes, shape)
        if len(symbols) != len(rows):
            raise ValueError("there must be one index for each symbol")
        tables.check_symbols(symbols, rows)
        self._parts.append((symbols, rows, tables))
        self._check.add(symbols)

    def finish(self) -> bytes:
        """The string: little-endian 32-bit words, at least two of them."""
        from utils.entropy_coding.rans_loops import encode

        words = np.empty(MAX_WORDS * sum(len(part[0]) for part in self._parts) + 2, np.uint32)
        position = np.array([LOWER_BOUND, len(words)], np.uint64)  # state, first word written
        for symbols, rows, tables in reversed(self._parts):
            table = (tables.steps, tables.lengths, tables.offsets)
            encode(symbols, rows, *table, *reciprocals(), words, position)
        state, first = (int(value) for value in position)
        words[first - 2], words[first - 1] = state & 0xFFFFFFFF, state >> 32
        return words[first - 2 :].astype("<u4").tobytes()


class Decoder:
    """Reads the symbols of one string back, in the order in which they were put. `check` sees them as they come.

    Raises DesynchronisedError for bytes that no string begins with.
    """

    def __init__(self, data: bytes, check: SymbolCheck | None = None) -> None:
        self._check = check or SymbolCheck()
        if len(data) < 8 or len(data) % 4:
            raise DesynchronisedError(f"{len(data)} bytes are no entropy-coded string")
        self._words = np.frombuffer(data, "<u4").astype(np.uint32)
        self._position = np.array([int(self._words[0]) | int(self._words[1]) << 32, 2], np.uint64)  # state, words read
        if not LOWER_BOUND <= int(self._position[0]) < LOWER_BOUND << 32:
            raise DesynchronisedError("no string begins like this")

    def get(self, indexes: np.ndarray, tables: Tables, shape: Shape | None = None) -> np.ndarray:
        """Symbols (n,) int32 coded under rows `indexes` (n,), with `shape` as they were put.

        Raises DesynchronisedError where the string is over or an escape exceeds 32 bits, ValueError for a bad index.
        """
        from utils.entropy_coding.rans_loops import decode

        rows = tables.rows(indexes)
        symbols = np.empty(len(rows), np.int32)
        table = (tables.steps, tables.lengths, tables.offsets)
        context = tables.context_state(shape, indexes)
        status = decode(self._words, self._position, rows, *table, *tables.lookup, *context, symbols)
        if status:
            raise DesynchronisedError(REASONS[status])
        self._check.add(symbols)
        return symbols

    def check_end(self) -> None:
        """Raise DesynchronisedError unless every word is read and the state is back where encoding began."""
        left = len(self._words) - int(self._position[1])
        if left:
            raise DesynchronisedError(f"{left} words are left over")
        if int(self._position[0]) != LOWER_BOUND:
            raise DesynchronisedError("its final state is wrong")


def _integers(values: np.ndarray, what: str, dimensions: int = 1) -> np.ndarray:
    """`values` as an array. Raises ValueError where they are no integers, do not fit int32, or have another shape."""
    values = np.asarray(values)
    if values.ndim != dimensions:
        raise ValueError(f"{what}: an array of {dimensions} dimension(s) is needed, not {values.ndim}")
    if values.size and values.dtype.kind not in "iu":
        raise ValueError(f"{what}: integers are needed, not {values.dtype}")
    if not np.can_cast(values.dtype, np.int32) and not np.array_equal(values.astype(np.int32), values):
        raise ValueError(f"{what}: a value does not fit 32 bits")
    return values


def _int32(values: np.ndarray, what: str, dimensions: int = 1) -> np.ndarray:
    """A contiguous int32 copy; raises what `_integers` raises."""
    return np.array(_integers(values, what, dimensions), np.int32, order="C")


def freeze(*arrays: np.ndarray) -> None:
    """Let nobody write to them: the compiled loops rely on what was checked, and are compiled for such arrays."""
    for array in arrays:
        array.setflags(write=False)


_NO_CONTEXT = np.zeros((0, 0), np.uint8), np.zeros(0, np.int32), np.zeros((0, 0, 4), np.int32)
freeze(*_NO_CONTEXT[:2])  # as those of tables with contexts, so that the loop is compiled once for both
