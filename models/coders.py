"""What happens to a slice once its distribution is known: the only step in which training and coding differ.

A coder is called once a slice, in order, with y_i (None when decoding), mu_i and sigma_i, all (B, C, h, w), and returns
the quantised slice y_hat_i = round(y_i - mu_i) + mu_i. sigma_i is the raw network output; the lower bound of the
scales is applied inside the Gaussian model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from compressai.ops import quantize_ste
from torch import Tensor

from models.layers.entropy_models import EntropyBottleneck, GaussianConditional
from utils.entropy_coding.rans import Decoder, Encoder, Tables
from utils.entropy_coding.transfers import to_device, to_host

BOUND = 2**30  # symbols are smaller: they fit 31 bits


class EstimatingCoder:
    """Keeps what training and rate estimation need: likelihoods, means and scales of every slice."""

    def __init__(self, gaussian: GaussianConditional) -> None:
        self.gaussian = gaussian
        self.likelihoods: list[Tensor] = []
        self.means: list[Tensor] = []
        self.scales: list[Tensor] = []

    def __call__(self, y: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        """y, mu, sigma -> y_hat, all (B, C, h, w); rounding has a gradient of 1."""
        self.likelihoods.append(self.gaussian(y, scale, mean)[1])
        self.means.append(mean)
        self.scales.append(scale)
        return quantize_ste(y - mean) + mean


class EncodingCoder:
    """Gives the symbols of each image in the batch to that image's entropy encoder."""

    def __init__(self, gaussian: GaussianConditional, encoders: list[Encoder]) -> None:
        self.gaussian, self.encoders = gaussian, encoders

    def __call__(self, y: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        """y, mu, sigma -> y_hat, all (B, C, h, w)."""
        rounded = torch.round(y - mean)
        put_symbols(self.encoders, rounded, self.gaussian.build_indexes(scale), self.gaussian.tables())
        return mean + rounded  # in this order, a sum has the layout of the mean, as the decoder's has


class DecodingCoder:
    """Asks each image's entropy decoder for the symbols."""

    def __init__(self, gaussian: GaussianConditional, decoders: list[Decoder]) -> None:
        self.gaussian, self.decoders = gaussian, decoders

    def __call__(self, y: None, mean: Tensor, scale: Tensor) -> Tensor:
        """mu, sigma -> y_hat, all (B, C, h, w)."""
        symbols = get_symbols(self.decoders, self.gaussian.build_indexes(scale), self.gaussian.tables())
        return mean + symbols.to(mean.dtype)


def put_symbols(encoders: list[Encoder], values: Tensor, indexes: Tensor, tables: Tables) -> None:
    """Append integer-valued `values` (B, C, h, w) to one encoder an image, row-major (C, h, w), under `indexes`.

    Raises ValueError where a value is not finite or does not fit 31 bits, which only broken weights produce.
    """
    symbols, rows = to_host(values.nan_to_num(nan=BOUND).clamp_(-BOUND, BOUND).to(torch.int32), indexes)
    if np.abs(symbols).max(initial=0) == BOUND:  # checked here: on a GPU it would be one more wait
        raise ValueError("the latent is not finite or too large to code: are these the right weights?")
    for encoder, image, row in zip(encoders, symbols, rows):
        encoder.put(image.ravel(), row.ravel(), tables, row.shape)


def get_symbols(decoders: list[Decoder], indexes: Tensor, tables: Tables, device: torch.device | None = None) -> Tensor:
    """Symbols like `indexes` (B, C, h, w), int32 on their device or on `device`, from one decoder an image."""
    (rows,) = to_host(indexes)
    maps = [decoder.get(row.ravel(), tables, row.shape).reshape(row.shape) for decoder, row in zip(decoders, rows)]
    symbols = np.stack(maps)
    return to_device(symbols, device or indexes.device)


def encode_under(prior: EntropyBottleneck, z: Tensor, encoders: list[Encoder]) -> Tensor:
    """Give z (B, C, h, w), rounded, to one encoder an image; return z_hat as the decoder will have it."""
    medians = prior.medians()
    symbols = torch.round(z - medians.to(z))
    put_symbols(encoders, symbols, prior._build_indexes(symbols.shape), prior.tables())
    return symbols.to(medians) + medians


def decode_under(prior: EntropyBottleneck, shape: Sequence[int], decoders: list[Decoder]) -> Tensor:
    """The inverse of `encode_under` for maps of `shape` (h, w): z_hat (B, C, h, w)."""
    medians = prior.medians()
    indexes = prior._build_indexes((len(decoders), prior.channels, *shape))  # the table of a symbol is its channel
    return get_symbols(decoders, indexes, prior.tables(), medians.device).to(medians) + medians
