"""What happens to a slice once its distribution is known: all in which training, encoding and decoding differ.

A coder is called once a slice, in order, with y_i (None when decoding), mu_i and sigma_i, all (B, C, h, w), and returns
the quantised slice y_hat_i = round(y_i - mu_i) + mu_i. sigma_i is the raw network output; the lower bound of the
scales is applied inside the Gaussian model.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from compressai.ops import quantize_ste
from torch import Tensor

from models.layers.entropy_models import EntropyBottleneck, GaussianConditional
from models.transfers import to_device, to_host

if TYPE_CHECKING:
    from utils.entropy_coding.rans import Decoder, Encoder, Tables

BOUND = 2**30  # symbols are smaller: they fit 31 bits


class EstimatingCoder:
    """Keeps what training and rate estimation need: likelihoods, means and scales of every slice."""

    def __init__(self, gaussian: GaussianConditional) -> None:
        self.gaussian = gaussian
        self.likelihoods: list[Tensor] = []
        self.means: list[Tensor] = []
        self.scales: list[Tensor] = []

    def __call__(self, y: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        self.likelihoods.append(self.gaussian(y, scale, mean)[1])
        self.means.append(mean)
        self.scales.append(scale)
        return quantize_ste(y - mean) + mean


class SymbolCheck:
    """16 bits over all symbols of one image, z first, then the slices in order: the low half of their CRC-32."""

    def __init__(self) -> None:
        self.crc = 0

    def add(self, symbols: np.ndarray) -> None:
        self.crc = zlib.crc32(np.ascontiguousarray(symbols, "<i4").view(np.uint8), self.crc)

    @property
    def value(self) -> int:
        return self.crc & 0xFFFF


class EncodingCoder:
    """Gives the symbols of each image in the batch to that image's entropy encoder."""

    def __init__(self, gaussian: GaussianConditional, encoders: list[Encoder], checks: list[SymbolCheck]) -> None:
        self.gaussian, self.encoders, self.checks = gaussian, encoders, checks

    def __call__(self, y: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        rounded = torch.round(y - mean)
        put_symbols(self.encoders, self.checks, rounded, self.gaussian.build_indexes(scale), self.gaussian.tables())
        return mean + rounded  # in this order, a sum has the layout of the mean, as the decoder's has


class DecodingCoder:
    """Asks each image's entropy decoder for the symbols."""

    def __init__(self, gaussian: GaussianConditional, decoders: list[Decoder], checks: list[SymbolCheck]) -> None:
        self.gaussian, self.decoders, self.checks = gaussian, decoders, checks

    def __call__(self, y: None, mean: Tensor, scale: Tensor) -> Tensor:
        indexes = self.gaussian.build_indexes(scale)
        symbols = get_symbols(self.decoders, self.checks, indexes, self.gaussian.tables())
        return mean + symbols.to(mean.dtype)


def put_symbols(
    encoders: list[Encoder], checks: list[SymbolCheck], values: Tensor, indexes: Tensor, tables: Tables
) -> None:
    """Append integer-valued `values` (B, C, h, w) to one encoder an image, row-major (C, h, w), under `indexes`.

    Raises ValueError where a value is no number or does not fit 31 bits, which only broken weights produce.
    """
    symbols = values.nan_to_num(nan=BOUND).clamp_(-BOUND, BOUND).to(torch.int32)
    symbols, rows = to_host(symbols, indexes)
    if np.abs(symbols).max(initial=0) == BOUND:  # found here, as a GPU would have to be waited for once more
        raise ValueError("the latent is not finite or too large to code: are these the right weights?")
    for encoder, check, image, row in zip(encoders, checks, symbols, rows):
        encoder.put(image.ravel(), row.ravel(), tables)
        check.add(image)


def get_symbols(
    decoders: list[Decoder],
    checks: list[SymbolCheck],
    indexes: Tensor,
    tables: Tables,
    device: torch.device | None = None,
) -> Tensor:
    """Symbols like `indexes` (B, C, h, w), int32 on their device or on `device`, from one decoder an image."""
    (rows,) = to_host(indexes)
    symbols = np.stack([decoder.get(row.ravel(), tables).reshape(row.shape) for decoder, row in zip(decoders, rows)])
    for check, image in zip(checks, symbols):
        check.add(image)
    return to_device(symbols, device or indexes.device)


def encode_under(prior: EntropyBottleneck, z: Tensor, encoders: list[Encoder], checks: list[SymbolCheck]) -> Tensor:
    """Give z (B, C, h, w), rounded, to one encoder an image; return z_hat as the decoder will have it."""
    medians = prior.medians()
    symbols = torch.round(z - medians.to(z))
    put_symbols(encoders, checks, symbols, channels_of(symbols.shape), prior.tables())
    return symbols.to(medians) + medians


def decode_under(
    prior: EntropyBottleneck, shape: Sequence[int], decoders: list[Decoder], checks: list[SymbolCheck]
) -> Tensor:
    """The inverse, for maps of `shape` (h, w): z_hat (B, C, h, w)."""
    medians = prior.medians()
    indexes = channels_of((len(decoders), prior.channels, *shape))
    return get_symbols(decoders, checks, indexes, prior.tables(), medians.device).to(medians) + medians


def channels_of(shape: Sequence[int]) -> Tensor:
    """The table of each symbol of z is its channel: (B, C, h, w)."""
    return torch.arange(shape[1], dtype=torch.int32)[None, :, None, None].expand(*shape)
