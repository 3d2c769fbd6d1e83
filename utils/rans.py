"""Range asymmetric numeral systems (rANS) on arrays.

"Asymmetric numeral systems" (Duda, 2013, arXiv:1311.2540), with a 64-bit state, 32-bit words and frequencies that add
up to 2^16. Bytes are equal to those of CompressAI's coder for the same symbols, indexes and tables, escapes included;
arrays instead of lists make it an order of magnitude faster. All loops release the interpreter lock.

A symbol outside its table is escaped: the table's last entry, then how many groups of 4 bits follow (15 means "go
on"), then the groups of the zigzag-mapped distance, each put without modelling.
"""

from __future__ import annotations

import numpy as np
from numba import njit

PRECISION = 16
LOWER_BOUND = 1 << 31  # the state before the first and after the last symbol
BYPASS_BITS, BYPASS_MAX = 4, 15
BYPASS = 0xFFFF  # stands where a frequency minus one would: no table has a single symbol of probability one
LOOKUP_BITS = 8  # the decoder starts its search from the top bits of the cumulative frequency
OK, TOO_SHORT, BAD_ESCAPE = 0, 1, 2


class DesynchronisedError(ValueError):
    """The string does not end as it must: it is damaged, or the decoder's tables or indexes are not the encoder's."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the entropy decoder lost its place ({reason})")


class Tables:
    """Cumulative frequencies ready for coding, converted once.

    cdf (n, L) int32: row i rises from 0 to 65536 over `lengths[i]` entries, the last interval being the escape;
    offsets (n,) int32: the symbol of each row's first interval. Raises ValueError for tables that are no such thing.
    """

    def __init__(self, cdf: np.ndarray, lengths: np.ndarray, offsets: np.ndarray) -> None:
        self.cdf = np.ascontiguousarray(cdf, np.int32)
        self.lengths = np.ascontiguousarray(lengths, np.int32).ravel()
        self.offsets = np.ascontiguousarray(offsets, np.int32).ravel()
        self._check()
        self._lookup: np.ndarray | None = None

    def _check(self) -> None:
        rows = len(self.lengths)
        if self.cdf.ndim != 2 or not (len(self.cdf) == rows == len(self.offsets)):
            raise ValueError("entropy tables: cdf, lengths and offsets do not belong together")
        if rows == 0 or self.lengths.min() < 3 or self.lengths.max() > self.cdf.shape[1]:
            raise ValueError("entropy tables: a row's length is out of range")
        inside = np.arange(self.cdf.shape[1] - 1) < self.lengths[:, None] - 1
        rising = (np.diff(self.cdf, axis=1) > 0) | ~inside
        ends = self.cdf[np.arange(rows), self.lengths - 1]
        if not (rising.all() and (self.cdf[:, 0] == 0).all() and (ends == 1 << PRECISION).all()):
            raise ValueError("entropy tables: a row does not rise from 0 to 65536")

    @property
    def lookup(self) -> np.ndarray:
        """(n, 256) uint16: the last interval that starts at or before each 256th cumulative frequency."""
        if self._lookup is None:
            starts = np.arange(1 << LOOKUP_BITS) << (PRECISION - LOOKUP_BITS)
            rows = [np.searchsorted(row[:n], starts, "right") - 1 for row, n in zip(self.cdf, self.lengths)]
            self._lookup = np.ascontiguousarray(rows, np.uint16)
        return self._lookup


class Encoder:
    """Collects the symbols of one string; rANS then runs backwards over all of them."""

    def __init__(self) -> None:
        self._steps: list[np.ndarray] = []

    def put(self, symbols: np.ndarray, indexes: np.ndarray, tables: Tables) -> None:
        """Append symbols (n,) int32 coded under rows `indexes` (n,) of `tables`. Raises ValueError for a bad index."""
        symbols, indexes = np.ascontiguousarray(symbols, np.int32), _checked(indexes, tables)
        if symbols.shape != indexes.shape:
            raise ValueError("there must be one index for each symbol")
        count = _count_steps(symbols, indexes, tables.lengths, tables.offsets)
        steps = np.empty(count, np.uint32)
        _fill_steps(symbols, indexes, tables.cdf, tables.lengths, tables.offsets, steps)
        self._steps.append(steps)

    def finish(self) -> bytes:
        """The string; little-endian 32-bit words, at least two of them."""
        steps = np.concatenate(self._steps) if self._steps else np.empty(0, np.uint32)
        words = np.empty(len(steps) + 2, np.uint32)
        first = _encode(steps, words)
        return words[first:].astype("<u4").tobytes()


class Decoder:
    """Reads the symbols of one string back, in the order in which they were put."""

    def __init__(self, data: bytes) -> None:
        if len(data) < 8 or len(data) % 4:
            raise DesynchronisedError(f"{len(data)} bytes are no entropy-coded string")
        self._words = np.frombuffer(data, "<u4").astype(np.uint32)
        self._state = np.array([int(self._words[0]) | int(self._words[1]) << 32, 2], np.uint64)  # state, words read

    def get(self, indexes: np.ndarray, tables: Tables) -> np.ndarray:
        """Symbols (n,) int32 coded under rows `indexes` (n,). Raises DesynchronisedError where the string is over."""
        indexes = _checked(indexes, tables)
        symbols = np.empty(len(indexes), np.int32)
        status = _decode(
            self._words, self._state, indexes, tables.cdf, tables.lengths, tables.offsets, tables.lookup, symbols
        )
        if status != OK:
            raise DesynchronisedError(
                "it needs more data than there is" if status == TOO_SHORT else "impossible escape"
            )
        return symbols

    def check_end(self) -> None:
        """Raise DesynchronisedError unless every word is read and the state is back where encoding began."""
        left = len(self._words) - int(self._state[1])
        if left:
            raise DesynchronisedError(f"{left} words are left over")
        if int(self._state[0]) != LOWER_BOUND:
            raise DesynchronisedError("its final state is wrong")


def _checked(indexes: np.ndarray, tables: Tables) -> np.ndarray:
    indexes = np.ascontiguousarray(indexes, np.int32)
    if len(indexes) and (indexes.min() < 0 or indexes.max() >= len(tables.lengths)):
        raise ValueError("an index points outside the entropy tables")
    return indexes


def _compiled(function):
    """Compile on first use and keep the result on disk, or in memory only where no folder can be written to."""
    try:
        return njit(cache=True, nogil=True)(function)
    except RuntimeError:
        return njit(nogil=True)(function)


@_compiled
def _escape(symbol, length, offset):
    """(interval, zigzag-mapped distance) of a symbol; the distance counts only in the last interval."""
    value, last = np.int64(symbol) - offset, np.int64(length) - 2
    if value < 0:
        return last, -2 * value - 1
    if value >= last:
        return last, 2 * (value - last)
    return value, np.int64(0)


@_compiled
def _groups(distance):
    groups = 0
    while distance >> (groups * BYPASS_BITS):
        groups += 1
    return groups


@_compiled
def _count_steps(symbols, indexes, lengths, offsets):
    count = 0
    for i in range(len(symbols)):
        row = indexes[i]
        value, distance = _escape(symbols[i], lengths[row], offsets[row])
        count += 1
        if value == lengths[row] - 2:
            groups = _groups(distance)
            count += groups // BYPASS_MAX + 1 + groups
    return count


@_compiled
def _fill_steps(symbols, indexes, cdf, lengths, offsets, steps):
    """One step a put: start in the high half, frequency minus one (or BYPASS) in the low half."""
    n = 0
    for i in range(len(symbols)):
        row = indexes[i]
        value, distance = _escape(symbols[i], lengths[row], offsets[row])
        start = cdf[row, value]
        steps[n] = np.uint32((start << 16) | (cdf[row, value + 1] - start - 1))
        n += 1
        if value == lengths[row] - 2:
            groups = _groups(distance)
            left = groups
            while left >= BYPASS_MAX:
                steps[n] = np.uint32((BYPASS_MAX << 16) | BYPASS)
                n += 1
                left -= BYPASS_MAX
            steps[n] = np.uint32((left << 16) | BYPASS)
            n += 1
            for j in range(groups):
                steps[n] = np.uint32((((distance >> (j * BYPASS_BITS)) & BYPASS_MAX) << 16) | BYPASS)
                n += 1


@_compiled
def _encode(steps, words):
    """Fill `words` from the end; return where the string begins."""
    state, at = np.uint64(LOWER_BOUND), len(words)
    for i in range(len(steps) - 1, -1, -1):
        start, frequency = np.uint64(steps[i] >> 16), np.uint64(steps[i] & 0xFFFF)
        bypass = frequency == np.uint64(BYPASS)
        frequency = np.uint64(1 << (PRECISION - BYPASS_BITS)) if bypass else frequency + np.uint64(1)
        if state >= frequency << np.uint64(47):  # ((LOWER_BOUND >> 16) << 32) * frequency
            at -= 1
            words[at] = np.uint32(state & np.uint64(0xFFFFFFFF))
            state >>= np.uint64(32)
        if bypass:
            state = (state << np.uint64(BYPASS_BITS)) | start
        else:
            state = ((state // frequency) << np.uint64(PRECISION)) + state % frequency + start
    words[at - 1] = np.uint32(state >> np.uint64(32))
    words[at - 2] = np.uint32(state & np.uint64(0xFFFFFFFF))
    return at - 2


@_compiled
def _read_bypass(words, state, at):
    """(value of 4 bits, state, words read), or a value of -1 at the end of the words."""
    value = np.int64(state & np.uint64(BYPASS_MAX))
    state >>= np.uint64(BYPASS_BITS)
    if state < np.uint64(LOWER_BOUND):
        if at >= len(words):
            return np.int64(-1), state, at
        state = (state << np.uint64(32)) | np.uint64(words[at])
        at += 1
    return value, state, at


@_compiled
def _read_distance(words, state, at):
    """(zigzag-mapped distance, state, words read), or -1 at the end, -2 where the distance exceeds 32 bits."""
    groups = np.int64(0)
    while True:
        value, state, at = _read_bypass(words, state, at)
        if value < 0:
            return value, state, at
        groups += value
        if groups > 8:
            return np.int64(-2), state, at
        if value < BYPASS_MAX:
            break
    distance = np.int64(0)
    for j in range(groups):
        value, state, at = _read_bypass(words, state, at)
        if value < 0:
            return value, state, at
        distance |= value << (j * BYPASS_BITS)
    return distance, state, at


@_compiled
def _decode(words, position, indexes, cdf, lengths, offsets, lookup, symbols):
    state, at = position[0], np.int64(position[1])
    for i in range(len(indexes)):
        row = indexes[i]
        cumulative = np.int64(state & np.uint64(0xFFFF))
        value = np.int64(lookup[row, cumulative >> (PRECISION - LOOKUP_BITS)])
        while cdf[row, value + 1] <= cumulative:
            value += 1
        start, end = np.int64(cdf[row, value]), np.int64(cdf[row, value + 1])
        state = np.uint64(end - start) * (state >> np.uint64(PRECISION)) + np.uint64(cumulative - start)
        if state < np.uint64(LOWER_BOUND):
            if at >= len(words):
                return TOO_SHORT
            state = (state << np.uint64(32)) | np.uint64(words[at])
            at += 1
        last = np.int64(lengths[row]) - 2
        if value == last:
            distance, state, at = _read_distance(words, state, at)
            if distance < 0:
                return TOO_SHORT if distance == -1 else BAD_ESCAPE
            value = -(distance >> 1) - 1 if distance & 1 else (distance >> 1) + last
        symbols[i] = np.int32(value + offsets[row])
    position[0], position[1] = state, np.uint64(at)
    return OK
