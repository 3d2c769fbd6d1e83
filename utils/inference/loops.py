"""Loops of convolutions on CPUs, compiled by Numba when they are first used.

`cut_tiles` and `join_tiles` are for winograd.py, `depthwise` for float64.py. As products with 36x36 matrices the
transforms of tiles would take as long as the convolution's own products. Here each is done along
columns, then along rows, with sums that points of opposite sign share, on a block of channels that stays in the first
cache. Arguments are trusted; floating-point arguments are all of one type.
"""

from __future__ import annotations

import numpy as np
from numba import uint64

from utils.jit import compiled

BLOCK = 64  # channels at a time
RESULT, TILE = 4, 6  # sides, as in winograd.py; not imported, as compiled loops on disk go by this file's date alone


@compiled
def cut_tiles(x, down, height, width, channels, above, constants, values, first, last):
    """Transform rows first..last of the tiles of tokens x (B, height, width, channels), `down` rows of them an image.

    Tiles overlap by two rows and columns. `above` rows of zeros lie above x, and zeros wherever else they reach beyond
    it. The result's values are (36, tiles, channels).
    """
    across, plane = -(-width // RESULT), len(values) // TILE**2
    tile, half_done = np.zeros(TILE * TILE * BLOCK, x.dtype), np.zeros(TILE * TILE * BLOCK, x.dtype)
    for row in range(first, last):
        image, top = row // down, row % down * RESULT
        for column in range(across):
            for channel in range(0, channels, BLOCK):
                count = min(BLOCK, channels - channel)
                for i in range(TILE):
                    y = top + i - above
                    for j in range(TILE):
                        left = RESULT * column + j - 1
                        at = (TILE * i + j) * BLOCK
                        if 0 <= y < height and 0 <= left < width:
                            _copy(tile, at, x, ((image * height + y) * width + left) * channels + channel, count)
                        else:
                            tile[at : at + BLOCK] = 0
                _transform_columns(tile, half_done, constants)
                _transform_rows(half_done, tile, constants)
                place = (row * across + column) * channels + channel
                for k in range(TILE * TILE):
                    _copy(values, k * plane + place, tile, k * BLOCK, count)


@compiled
def join_tiles(products, bias, down, height, width, channels, constants, out, first, last):
    """Results of products (36, tiles, channels) of transformed tiles and kernels: out (B, height, width, channels).

    Rows first..last of the tiles; bias (channels) is added.
    """
    across, plane = -(-width // RESULT), len(products) // TILE**2
    tile, half_done = np.zeros(TILE * TILE * BLOCK, out.dtype), np.zeros(RESULT * TILE * BLOCK, out.dtype)
    for row in range(first, last):
        image, top = row // down, row % down * RESULT
        for column in range(across):
            for channel in range(0, channels, BLOCK):
                count = min(BLOCK, channels - channel)
                place = (row * across + column) * channels + channel
                for k in range(TILE * TILE):
                    _copy(tile, k * BLOCK, products, k * plane + place, count)
                _results_of_columns(tile, half_done, constants)
                _results_of_rows(half_done, tile, constants)
                for i in range(min(RESULT, height - top)):
                    for j in range(min(RESULT, width - RESULT * column)):
                        at = ((image * height + top + i) * width + RESULT * column + j) * channels + channel
                        _add(out, at, tile, (RESULT * i + j) * BLOCK, bias, channel, count)


@compiled
def _copy(target, at, source, start, count):
    at, start = uint64(at), uint64(start)  # signed ones would be checked for being negative, at each element
    for c in range(uint64(count)):
        target[at + c] = source[start + c]


@compiled
def _add(target, at, source, start, bias, channel, count):
    at, start, channel = uint64(at), uint64(start), uint64(channel)
    for c in range(uint64(count)):
        target[at + c] = source[start + c] + bias[channel + c]


@compiled
def _transform_columns(tile, out, constants):
    for i in range(TILE):
        _transform(tile, out, i * TILE * BLOCK, BLOCK, constants)


@compiled
def _transform_rows(tile, out, constants):
    for j in range(TILE):
        _transform(tile, out, j * BLOCK, TILE * BLOCK, constants)


@compiled
def _results_of_columns(tile, out, constants):
    for j in range(TILE):
        _result(tile, out, j * BLOCK, j * BLOCK, TILE * BLOCK, constants)


@compiled
def _results_of_rows(tile, out, constants):
    for i in range(RESULT):
        _result(tile, out, i * TILE * BLOCK, i * RESULT * BLOCK, BLOCK, constants)


@compiled
def _transform(tile, out, at, step, constants):
    """Six values, `step` apart, times the coefficients of prod_{j != i} (x - p_j); halved, as kernels are doubled."""
    a, b, aa, bb, sum_of_squares = constants[0], constants[1], constants[2], constants[3], constants[4]
    half = tile.dtype.type(0.5)
    for c in range(at, at + BLOCK):
        x0, x1, x2 = tile[c], tile[c + step], tile[c + 2 * step]
        x3, x4, x5 = tile[c + 3 * step], tile[c + 4 * step], tile[c + 5 * step]
        even_a, odd_a = x4 - bb * x2, a * (x3 - bb * x1)
        even_b, odd_b = x4 - aa * x2, b * (x3 - aa * x1)
        out[c] = half * (x0 - sum_of_squares * x2 + x4)
        out[c + step] = half * (even_a + odd_a)
        out[c + 2 * step] = half * (even_a - odd_a)
        out[c + 3 * step] = half * (even_b + odd_b)
        out[c + 4 * step] = half * (even_b - odd_b)
        out[c + 5 * step] = half * (x1 - sum_of_squares * x3 + x5)


@compiled
def _result(tile, out, at, to, step, constants):
    """Six values, `step` apart, times the powers 0 to 3 of the points."""
    a, b, aa, bb, aaa, bbb = constants[0], constants[1], constants[2], constants[3], constants[5], constants[6]
    for c in range(BLOCK):
        x0, x5 = tile[at + c], tile[at + 5 * step + c]
        x1, x2, x3, x4 = tile[at + step + c], tile[at + 2 * step + c], tile[at + 3 * step + c], tile[at + 4 * step + c]
        even_a, odd_a, even_b, odd_b = x1 + x2, x1 - x2, x3 + x4, x3 - x4
        out[to + c] = x0 + even_a + even_b
        out[to + step + c] = a * odd_a + b * odd_b
        out[to + 2 * step + c] = aa * even_a + bb * even_b
        out[to + 3 * step + c] = aaa * odd_a + bbb * odd_b + x5


@compiled
def depthwise(x, down, height, width, channels, above, taps, weight, bias, out, first, last):
    """Rows first..last of a convolution of each channel of x (B, height, width, channels) by itself.

    `above` rows of zeros lie above x, and zeros wherever else it reaches beyond; weight (taps[0] * taps[1], channels)
    has odd sides. Results are out (B, down, width, channels).
    """
    total = np.zeros(BLOCK, x.dtype)
    for row in range(first, last):
        image, top = row // down, row % down - above
        for column in range(width):
            for channel in range(0, channels, BLOCK):
                count = min(BLOCK, channels - channel)
                _copy(total, 0, bias, channel, count)
                for i in range(max(0, -top), min(taps[0], height - top)):
                    for j in range(max(0, taps[1] // 2 - column), min(taps[1], width + taps[1] // 2 - column)):
                        at = ((image * height + top + i) * width + column + j - taps[1] // 2) * channels + channel
                        _add_product(total, x, at, weight, (i * taps[1] + j) * channels + channel, count)
                _copy(out, (row * width + column) * channels + channel, total, 0, count)


@compiled
def _add_product(total, x, at, weight, tap, count):
    at, tap = uint64(at), uint64(tap)
    for c in range(uint64(count)):
        total[c] += x[at + c] * weight[tap + c]
