"""The loops of `utils/entropy_coding/rans.py`, compiled by Numba. They release the interpreter lock and trust their
arguments.

`steps` (n, L) uint32 holds start and frequency minus one of each interval, `position` (2,) uint64 the coder's state and
place in `words`, updated in place. Each state waits for the one before, whereas all that depends on symbols alone is
done ahead: what lies between two states decides the speed.

A symbol outside its table is escaped: the table's last interval, then how many
groups of 4 bits follow, then the groups of the zigzag-mapped distance, low group first, each put without a model. Where
the count is 15 more would follow; no distance of 32 bits needs more than 8, so that never happens in a valid string.

Contexts (utils/entropy_coding/context.py): `memory` (H + 2, W + 3, 4) int32, zero before the first symbol, holds for
each place, two rows and columns in: size of its symbol and size that was expected, both of the newest channel, and the
same of all channels, older ones less. All is integer arithmetic, so that every machine finds the same contexts. These
loops stand here, too, because what Numba keeps on disk follows changes of a loop's own file alone.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from utils.entropy_coding.rans import LOWER_BOUND, PRECISION
from utils.jit import compiled

BYPASS_BITS, BYPASS_MASK, MAX_GROUPS = 4, 15, 8
OK, TOO_SHORT, BAD_ESCAPE = 0, 1, 2
INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1
ONE, HALF, LOW_HALF = np.uint64(1), np.uint64(16), np.uint64(0xFFFF)  # mixed with plain integers, uint64 becomes float


FIRST = 2  # row and column of `memory`
UNIT = 256  # of a symbol's size
LARGEST = 8 * UNIT
FORGET = 4  # bits: the share of the older channels that each new one pushes out is 1/16
# Ends of the contexts: of what was found over what was expected, in 256ths.
EDGES = np.array([110, 140, 165, 190, 212, 232, 248, 264, 285, 320, 380, 480, 640, 900, 1400])
DOUBT = 1024  # is added to both: few small symbols say little


@compiled
def _make_room(state, at, words, frequency):
    """Move the low word out where the state would outgrow 63 bits: (state, place of the first word).

    Returning early makes it a predicted branch; as an assignment it becomes a conditional move, at several times the
    time. So does `_refill`.
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


@intrinsic
def _high_half(context, a, b):
    """The high 64 bits of the 128 of a product: one instruction, which neither Python nor NumPy has a name for."""

    def build(_, builder, signature, arguments):
        wide = ir.IntType(128)
        product = builder.mul(*(builder.zext(argument, wide) for argument in arguments))
        return builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), ir.IntType(64))

    return types.uint64(types.uint64, types.uint64), build


@compiled
def divide(state, at, factors, shifts):
    """state // (at + 1) for a state below 2^63, by `rans.reciprocals`: in half the time of the processor's division."""
    return _high_half(state << ONE, factors[at]) >> np.uint64(shifts[at])


@compiled
def encode(symbols, rows, steps, lengths, offsets, factors, shifts, words, position):
    """Code symbols from the last to the first, filling `words` from the end."""
    state, at = position[0], np.int64(position[1])
    for i in range(len(symbols) - 1, -1, -1):
        row = rows[i]
        value, last = np.int64(symbols[i]) - offsets[row], np.int64(lengths[row]) - 2
        if value < 0 or value >= last:
            distance = 2 * (value - last) if value >= 0 else -2 * value - 1
            state, at = _put_distance(state, at, words, distance)
            value = last
        step = np.uint64(steps[row, np.uint64(value)])
        frequency = (step & LOW_HALF) + ONE
        state, at = _make_room(state, at, words, frequency)
        quotient = divide(state, step & LOW_HALF, factors, shifts)
        state += quotient * (np.uint64(1 << PRECISION) - frequency) + (step >> HALF)
    position[0], position[1] = state, np.uint64(at)


@compiled
def context(memory, y, x):
    """0 to 15: how large the symbols about (y, x) were, beside what was expected of them; 7 is as expected."""
    found, expected = np.int64(DOUBT), np.int64(DOUBT)
    found += 8 * (np.int64(memory[y, x - 1, 0]) + memory[y - 1, x, 0])
    expected += 8 * (np.int64(memory[y, x - 1, 1]) + memory[y - 1, x, 1])
    found += 4 * (np.int64(memory[y - 1, x - 1, 0]) + memory[y - 1, x + 1, 0])
    expected += 4 * (np.int64(memory[y - 1, x - 1, 1]) + memory[y - 1, x + 1, 1])
    found += 3 * (np.int64(memory[y, x - 2, 0]) + memory[y - 2, x, 0]) + 5 * np.int64(memory[y, x, 2])
    expected += 3 * (np.int64(memory[y, x - 2, 1]) + memory[y - 2, x, 1]) + 5 * np.int64(memory[y, x, 3])
    found *= 256
    number = 0
    for edge in EDGES:
        number += found >= expected * edge
    return number


@compiled
def remember(memory, y, x, symbol, expected):
    """Note a symbol at (y, x), and the size that its level let expect."""
    size = np.int32(min(abs(np.int64(symbol)) * UNIT, LARGEST))
    memory[y, x, 0], memory[y, x, 1] = size, expected
    memory[y, x, 2] += size - (memory[y, x, 2] >> FORGET)
    memory[y, x, 3] += expected - (memory[y, x, 3] >> FORGET)


@compiled
def next_place(memory, y, x):
    """Row and column of the symbol after that at (y, x), in the next channel after the last."""
    if x + 2 < memory.shape[1]:
        return y, x + 1
    return y + 1 if y + 1 < memory.shape[0] else FIRST, FIRST


@compiled
def correct(symbols, levels, corrected, expected, memory, rows):
    """Fill `rows` (n,) with `corrected[level, context]` of all symbols (n,), those of a map in row-major order."""
    y, x = FIRST, FIRST
    for i in range(len(rows)):
        rows[i] = corrected[levels[i], context(memory, y, x)]
        remember(memory, y, x, symbols[i], expected[levels[i]])
        y, x = next_place(memory, y, x)


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
def decode(
    words, position, rows, steps, lengths, offsets, entries, first, shifts, corrected, expected, memory, symbols
):
    """Fill `symbols`; say OK, TOO_SHORT or BAD_ESCAPE. Work is bounded for each symbol, whatever the words are.

    Where there is `memory`, `rows` are levels, and a symbol's row is `corrected[level, context]`.
    `entries`, `first` and `shifts` are `rans.Tables.lookup`. An entry ends with a step, so that where the search ends
    with the interval it begins with, as mostly, the next state waits for a single load.
    """
    state, at = position[0], np.int64(position[1])
    in_context = memory.size > 0
    y, x = FIRST, FIRST
    for i in range(len(rows)):
        row = rows[i]
        if in_context:
            row = corrected[row, context(memory, y, x)]
        cumulative = state & LOW_HALF
        entry = entries[first[row] + (cumulative >> np.uint64(shifts[row]))]
        interval, start, rest = entry >> np.uint64(32), entry >> HALF & LOW_HALF, entry & LOW_HALF
        while cumulative - start > rest:
            interval += ONE
            step = np.uint64(steps[row, interval])
            start, rest = step >> HALF, step & LOW_HALF
        state = (rest + ONE) * (state >> HALF) + (cumulative - start)
        state, at = _refill(state, at, words)
        value, last = np.int64(interval), np.int64(lengths[row]) - 2
        if value == last:
            distance, state, at = _get_distance(state, at, words)
            value = -(distance >> 1) - 1 if distance & 1 else (distance >> 1) + last
            if distance < 0 or not INT32_MIN <= value + offsets[row] <= INT32_MAX:
                return BAD_ESCAPE
        if state == np.uint64(0):
            return TOO_SHORT
        symbols[i] = value + offsets[row]
        if in_context:
            remember(memory, y, x, symbols[i], expected[rows[i]])
            y, x = next_place(memory, y, x)
    position[0], position[1] = state, np.uint64(at)
    return OK
