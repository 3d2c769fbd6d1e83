"""Probabilities to the integer frequencies that the entropy coder works with."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

PRECISION = 16  # frequencies of a table add up to 2^16
TAIL_MASS = 1e-9  # probability left to the escape code
SCALE_MIN, SCALE_MAX, SCALE_LEVELS = 0.11, 256.0, 64


def quantize_pmf(pmf: np.ndarray) -> np.ndarray:
    """Cumulative frequencies (n + 1,) int64 from 0 to 2^16 of probabilities (n,) float32, each at least 1 apart.

    CompressAI's rule, so that tables agree: round each probability, rescale to the total, then let each symbol
    without a count take one from the rarest symbol that has more than one.
    """
    counts = np.floor(pmf.astype(np.float32).astype(np.float64) * (1 << PRECISION) + 0.5).astype(np.int64)
    counts = (counts << PRECISION) // counts.sum()
    counts[-1] += (1 << PRECISION) - counts.sum()
    donors = np.where(counts > 1, counts, 2 << PRECISION)
    for i in np.flatnonzero(counts == 0):
        donor = donors.argmin()
        counts[[i, donor]] += 1, -1
        donors[donor] = counts[donor] if counts[donor] > 1 else 2 << PRECISION
    return np.concatenate([[0], np.cumsum(counts)])


def quantize_pmfs(pmfs: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Tables (rows, longest) int32, padded with zeros, and the length of each row."""
    rows = [quantize_pmf(pmf) for pmf in pmfs]
    lengths = np.array([len(row) for row in rows], np.int32)
    cdf = np.zeros((len(rows), lengths.max()), np.int32)
    for target, row in zip(cdf, rows):
        target[: len(row)] = row
    return cdf, lengths


def pack_rows(cdf: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Tables (rows, longest) as they are written to a small checkpoint: (sum of lengths,), rows without padding."""
    return np.concatenate([row[:length] for row, length in zip(cdf, lengths)])


def unpack_rows(packed: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """What `pack_rows` took, (rows, longest). Raises ValueError where the lengths do not fit."""
    if lengths.sum() != packed.size:
        raise ValueError(f"entropy tables of {packed.size} entries where {lengths.sum()} are due")
    cdf = np.zeros((len(lengths), lengths.max()), packed.dtype)
    cdf[np.arange(lengths.max()) < lengths[:, None]] = packed
    return cdf


def published_scale_table() -> np.ndarray:
    """(64,) float32: exp of 64 equally spaced values from log 0.11 to log 256, rounded as torch rounds them."""
    low, high = np.float32(math.log(SCALE_MIN)), np.float32(math.log(SCALE_MAX))
    step = float((high - low) / np.float32(SCALE_LEVELS - 1))
    i = np.arange(SCALE_LEVELS)
    logs = np.where(i < SCALE_LEVELS // 2, float(low) + step * i, float(high) - step * (SCALE_LEVELS - 1 - i))
    return np.exp(logs.astype(np.float32).astype(np.float64)).astype(np.float32)


def gaussian_pmf(scale: np.float32) -> np.ndarray:
    """float32 probabilities of -n..n under N(0, scale), then the mass of both tails.

    n leaves 1e-9 to the tails. Every step is rounded to float32 after an exact or float64 operation: that gives the
    published tables, bit for bit, whatever vector unit computes them.
    """
    half, reach = np.float32(0.5), np.float32(-NormalDist().inv_cdf(TAIL_MASS / 2))
    n = math.ceil(scale * reach)
    distance = np.abs(np.arange(-n, n + 1)).astype(np.float32)
    upper, lower = (_normal_cdf_float32((side - distance) / scale) for side in (half, -half))
    return np.append(upper - lower, 2 * lower[0]).astype(np.float32)


def _normal_cdf_float32(x: np.ndarray) -> np.ndarray:
    scaled = np.float32(-(2**-0.5)) * x
    return np.float32(0.5) * np.array([math.erfc(v) for v in scaled.tolist()]).astype(np.float32)
