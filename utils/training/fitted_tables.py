"""Entropy tables fitted to what a trained model's symbols really are.

A model codes each symbol under the Gaussian of its scale. Real symbols have longer tails, and their neighbours say how
far off a scale is (utils/entropy_coding/context.py). Here symbols of photographs are counted, by level and context;
then in turn, until little changes, each level and context gets the row that codes it in the fewest bits, and each row
becomes the distribution of what it codes: a mixture of the model's Gaussians, by expectation maximisation, which is
smooth where counts are few. Weights and decoded images do not change.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.base import SliceCompressionModel
from models.coders import EncodingCoder
from utils.data.padding import pad_centred
from utils.entropy_coding.context import CONTEXTS, ContextTables
from utils.entropy_coding.frequencies import gaussian_pmf
from utils.entropy_coding.rans import Encoder, Shape, Tables

WIDEST = 255  # symbols are counted up to this size; beyond it rows stay Gaussian
OWN = 200.0  # counts that a row's own Gaussian stands for
ROUNDS, STEPS = 4, 60  # of counting with new tables, and of expectation maximisation
RARE = 2.0**-18  # what a row leaves to its escapes on either side, at most: less than a count of its table


@dataclass(frozen=True)
class Coded:
    """A slice of an image as it is coded: symbols and levels, both (n,), of a map of `shape` (C, H, W)."""

    symbols: np.ndarray
    levels: np.ndarray
    shape: tuple[int, int, int]


@torch.no_grad()
def coded_slices(
    model: SliceCompressionModel, images: Iterable[Tensor], qualities: Sequence[float | None]
) -> list[Coded]:
    """All slices of images (1, 3, H, W), each image coded at two of the qualities, other ones from image to image."""
    recorder = Recorder()
    coder = EncodingCoder(model.gaussian_conditional, [recorder])
    for number, image in enumerate(images):
        for quality in {qualities[(2 * number + k) % len(qualities)] for k in range(2)}:
            y = model.to_latent(pad_centred(image, model.size_multiple), quality)
            model.code_slices(model.estimate_hyper(y)[0], y, coder)
    return recorder.found


class Recorder(Encoder):
    """In an encoder's place: keeps what it is to code, call by call, and codes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Coded] = []

    def put(self, symbols: np.ndarray, indexes: np.ndarray, tables: Tables, shape: Shape | None = None) -> None:
        """Symbols (n,) int32, their levels (n,) uint8 and the shape (C, H, W) of their map."""
        self.found.append(Coded(symbols, indexes, shape))


def fit_tables(model: SliceCompressionModel, slices: Sequence[Coded]) -> None:
    """Give the model's Gaussian conditional the tables that code these slices best. The model must be updated."""
    gaussian = model.gaussian_conditional
    scales = gaussian.scale_table.cpu().float().numpy()
    gaussians = [gaussian_pmf(scale) for scale in scales]
    own = np.stack([spread(pmf) for pmf in gaussians])
    wide = np.array([len(pmf) // 2 - 1 > WIDEST for pmf in gaussians])
    rows, corrected = own, np.repeat(np.arange(len(own))[:, None], CONTEXTS, 1)
    for _ in range(ROUNDS):
        gaussian.set_rows(tables_of(rows, wide, gaussians), corrected.astype(np.uint8))
        counts = counted(slices, gaussian.tables())
        corrected = cheapest(counts, rows, corrected, wide)
        rows = mixtures(own, gathered(counts, corrected))
        corrected = cheapest(counts, rows, corrected, wide)
    gaussian.set_rows(tables_of(rows, wide, gaussians), corrected.astype(np.uint8))


def spread(pmf: np.ndarray) -> np.ndarray:
    """The Gaussian of a table (2 n + 2,), as (WIDEST + 1,): of the sizes 0 to WIDEST, none of them impossible."""
    half = len(pmf) // 2 - 1
    sizes = np.full(WIDEST + 1, 1e-30)
    sizes[: half + 1] = pmf[half : 2 * half + 1][: WIDEST + 1]
    sizes[1:] *= 2
    return sizes / sizes.sum()


def counted(slices: Sequence[Coded], tables: ContextTables) -> np.ndarray:
    """(levels, contexts, WIDEST + 1): how often symbols of each size came in each level and context."""
    levels = len(tables.lengths)
    counts = np.zeros(levels * CONTEXTS * (WIDEST + 1), np.int64)
    for part in slices:
        contexts = tables.contexts(part.symbols, part.levels, part.shape)
        sizes = np.minimum(np.abs(part.symbols.astype(np.int64)), WIDEST)
        places = (part.levels.astype(np.int64) * CONTEXTS + contexts) * (WIDEST + 1) + sizes
        counts += np.bincount(places, minlength=len(counts))
    return counts.reshape(levels, CONTEXTS, WIDEST + 1)


def cheapest(counts: np.ndarray, rows: np.ndarray, corrected: np.ndarray, wide: np.ndarray) -> np.ndarray:
    """(levels, contexts): the row that codes each in the fewest bits, the one before where nothing was counted.

    Rows that are too wide to be counted stay what they are, and no other level takes them.
    """
    bits = counts @ -np.log2(rows).T
    bits[..., wide] = np.inf
    best = np.where(counts.sum(-1) > 0, bits.argmin(-1), corrected)
    best[wide] = np.flatnonzero(wide)[:, None]
    return best


def gathered(counts: np.ndarray, corrected: np.ndarray) -> np.ndarray:
    """(levels, WIDEST + 1): all that is coded under each row."""
    sums = np.zeros((len(counts), counts.shape[-1]))
    np.add.at(sums, corrected, counts)
    return sums


def mixtures(own: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(levels, WIDEST + 1): mixtures of the Gaussians `own` that make `counts`, of the same shape, most likely."""
    counts = counts + OWN * own
    shares = np.full((len(own), len(own)), 0.5 / len(own)) + 0.5 * np.eye(len(own))
    for _ in range(STEPS):
        shares *= (counts / (shares @ own)) @ own.T
        shares /= shares.sum(1, keepdims=True)
    return shares @ own


def tables_of(rows: np.ndarray, wide: np.ndarray, gaussians: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Rows of sizes as symmetric probabilities and the mass of all larger symbols; the Gaussian's own where `wide`."""
    tables = []
    for row, is_wide, gaussian in zip(rows, wide, gaussians):
        beyond = 1 - np.cumsum(row)
        half = max(1, int(np.argmax(beyond < RARE)))
        sides = row[1 : half + 1] / 2
        table = np.concatenate([sides[::-1], row[:1], sides, [max(beyond[half], 0.0)]]).astype(np.float32)
        tables.append(gaussian if is_wide else table)
    return tables
