"""The loops of `utils/rans.py`, compiled by Numba. They release the interpreter lock and trust their arguments.

`steps` (n, L) uint32 holds start and frequency minus one of each interval, `position` (2,) uint64 the coder's state and
place in `words`, updated in place. A symbol outside its table is escaped: the table's last interval, then how many
groups of 4 bits follow, then the groups of the zigzag-mapped distance, low group first, each put without a model. Where
the count is 15 more would follow; no distance of 32 bits needs more than 8, so that never happens in a valid string.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from utils.rans import LOWER_BOUND, PRECISION

BYPASS_BITS, BYPASS_MASK, MAX_GROUPS = 4, 15, 8
OK, TOO_SHORT, BAD_ESCAPE = 0, 1, 2
INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1


def compiled(function):
    """Compile on first use and keep the result on disk, or in memory only where no folder can be written to."""
    try:
        return njit(cache=True, nogil=True)(function)
    except RuntimeError:
        return njit(nogil=True)(function)


@compiled
def _make_room(state, at, words, frequency):
    """Move the low word out where the state would outgrow 63 bits: (state, place of the first word).

    Returning early makes it a predicted branch; as an assignment it becomes a conditional move, at twice the time.
    """
    if state < frequency << np.uint64(63 - PRECISION):
        return state, at
    words[at - 1] = np.uint32(state & np.uint64(0xFFFFFFFF))
    return state >> np.uint64(32), at - 1


@compiled
def _put_group(state, at, words, group):
    state, at = _make_room(state, at, words, np.uint64(1 << (PRECISION - BYPASS_BITS)))
    return (state << np.uint64(BYPASS_BITS)) | np.uint64(group), at


@compiled
def _put_distance(state, at, words, distance):
    """Backwards, as all of encoding: groups from the high one to the low one, then their number."""
    groups = 0
    while distance >> (groups * BYPASS_BITS):
        groups += 1
    for j in range(groups - 1, -1, -1):
        state, at = _put_group(state, at, words, (distance >> (j * BYPASS_BITS)) & BYPASS_MASK)
    return _put_group(state, at, words, groups)


@compiled
def encode(symbols, rows, steps, lengths, offsets, words, position):
    """Code symbols from the last to the first, filling `words` from the end."""
    state, at = position[0], np.int64(position[1])
    for i in range(len(symbols) - 1, -1, -1):
        row = rows[i]
        value, last = np.int64(symbols[i]) - offsets[row], np.int64(lengths[row]) - 2
        if value < 0 or value >= last:
            distance = 2 * (value - last) if value >= 0 else -2 * value - 1
            state, at = _put_distance(state, at, words, distance)
            value = last
        step = steps[row, value]
        start, frequency = np.uint64(step >> PRECISION), np.uint64(step & 0xFFFF) + np.uint64(1)
        state, at = _make_room(state, at, words, frequency)
        quotient = state // frequency
        state += quotient * (np.uint64(1 << PRECISION) - frequency) + start
    position[0], position[1] = state, np.uint64(at)


@compiled
def _refill(state, at, words):
    """(state, words read), or a state of 0 at the end of the words."""
    if state >= np.uint64(LOWER_BOUND):
        return state, at
    if at >= len(words):
        return np.uint64(0), at
    return (state << np.uint64(32)) | np.uint64(words[at]), at + 1


@compiled
def _get_distance(state, at, words):
    """(zigzag-mapped distance, state, words read); state 0 at the end, distance -1 where it exceeds 32 bits."""
    groups = np.int64(state & np.uint64(BYPASS_MASK))
    state, at = _refill(state >> np.uint64(BYPASS_BITS), at, words)
    if groups > MAX_GROUPS:
        return np.int64(-1), state, at
    distance = np.int64(0)
    for j in range(groups):
        distance |= np.int64(state & np.uint64(BYPASS_MASK)) << (j * BYPASS_BITS)
        state, at = _refill(state >> np.uint64(BYPASS_BITS), at, words)
    return distance, state, at


@compiled
def decode(words, position, rows, steps, lengths, offsets, lookup, shift, symbols):
    """Fill `symbols`; say OK, TOO_SHORT or BAD_ESCAPE. Work is bounded for each symbol, whatever the words are.

    The search starts from `lookup[row, cumulative >> shift]`. The shift is an argument because Numba's cache would not
    notice that a constant of another file has changed.
    """
    state, at = position[0], np.int64(position[1])
    for i in range(len(rows)):
        row = rows[i]
        cumulative = np.uint32(state & np.uint64(0xFFFF))
        value = np.int64(lookup[row, cumulative >> shift])
        step = steps[row, value]
        while cumulative - (step >> PRECISION) > step & 0xFFFF:
            value += 1
            step = steps[row, value]
        frequency = np.uint64(step & 0xFFFF) + np.uint64(1)
        state = frequency * (state >> np.uint64(PRECISION)) + np.uint64(cumulative - (step >> PRECISION))
        state, at = _refill(state, at, words)
        last = np.int64(lengths[row]) - 2
        if value == last:
            distance, state, at = _get_distance(state, at, words)
            value = -(distance >> 1) - 1 if distance & 1 else (distance >> 1) + last
            if distance < 0 or not INT32_MIN <= value + offsets[row] <= INT32_MAX:
                return BAD_ESCAPE
        if state == np.uint64(0):
            return TOO_SHORT
        symbols[i] = value + offsets[row]
    position[0], position[1] = state, np.uint64(at)
    return OK
