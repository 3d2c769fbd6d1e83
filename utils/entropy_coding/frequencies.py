"""Probabilities to the integer frequencies that the entropy coder works with."""

from __future__ import annotations

import numpy as np

PRECISION = 16  # frequencies of a table add up to 2^16


def quantize_pmf(pmf: np.ndarray) -> np.ndarray:
    """Cumulative frequencies (n + 1,) int64 from 0 to 2^16 of probabilities (n,) float32, each at least 1 apart.

    CompressAI's rule, so that tables agree: round each probability, rescale to the total, then let each symbol
    without a count take one from the rarest symbol that has more than one.
    """
    counts = np.floor(pmf.astype(np.float32).astype(np.float64) * (1 << PRECISION) + 0.5).astype(np.int64)
    counts = (counts << PRECISION) // counts.sum()
    cdf = np.concatenate([[0], np.cumsum(counts)])
    cdf[-1] = 1 << PRECISION
    for i in np.flatnonzero(np.diff(cdf) == 0):
        frequency = np.diff(cdf)
        donor = int(np.argmin(np.where(frequency > 1, frequency, 2 << PRECISION)))
        if donor < i:
            cdf[donor + 1 : i + 1] -= 1
        else:
            cdf[i + 1 : donor + 1] += 1
    return cdf


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
