"""The two probability models: a factorized prior for z and a conditional Gaussian for y.

"Variational Image Compression with a Scale Hyperprior" (Ballé et al., ICLR 2018, arXiv:1802.01436). Names, values and
entropy tables equal CompressAI's modules of the same names; they are written here so that a decoder needs no more
than torch, that every step works in float32 and in float64, and that the tables come out the same on every machine.

`update()` turns probabilities into tables of integer frequencies for the entropy coder. Where a checkpoint brings
tables, those are kept: they are what its files were written with.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.entropy_coding.frequencies import quantize_pmfs, unpack_rows

if TYPE_CHECKING:
    from utils.entropy_coding.rans import Tables

TAIL_MASS = 1e-9  # probability left to the escape code
LIKELIHOOD_BOUND = 1e-9  # keeps -log2 and its gradient finite
SCALE_MIN, SCALE_MAX, SCALE_LEVELS = 0.11, 256.0, 64
_BUFFERS = ("_offset", "_quantized_cdf", "_cdf_length", "scale_table")


class _BoundedBelow(torch.autograd.Function):
    """max(x, bound), whose gradient still lets x grow where it is below the bound."""

    @staticmethod
    def forward(ctx, x: Tensor, bound: Tensor) -> Tensor:
        ctx.save_for_backward(x, bound)
        return torch.max(x, bound)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        x, bound = ctx.saved_tensors
        return gradient * ((x >= bound) | (gradient < 0)), None


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient


def round_straight_through(x: Tensor) -> Tensor:
    """round(x), exactly, with the gradient of x."""
    return _Round.apply(x)


class LowerBound(nn.Module):
    """x -> max(x, bound) with a straight-through gradient towards the bound."""

    def __init__(self, bound: float) -> None:
        super().__init__()
        self.register_buffer("bound", torch.tensor([float(bound)], dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, same shape."""
        return _BoundedBelow.apply(x, self.bound.to(x.dtype))


class EntropyModel(nn.Module):
    """What both models share: the integer tables and their loading. Tables are empty until `update()`."""

    def __init__(self) -> None:
        super().__init__()
        for name in _BUFFERS[:3]:
            self.register_buffer(name, torch.empty(0, dtype=torch.int32))
        self._tables: Tables | None = None
        self.tables_are_given = False  # by a checkpoint, which then decides
        self.noise_share = (0, 1)  # while training: which of how many processes has this part of a batch

    def tables(self) -> Tables:
        """The entropy coder's tables, converted once. Raises ValueError before `update()`."""
        if self._tables is None:
            from utils.entropy_coding.rans import Tables  # Numba, which training seldom needs

            if not self._offset.numel():
                raise ValueError("the entropy tables are empty: call update() first")
            arrays = (self._quantized_cdf, self._cdf_length, self._offset)
            self._tables = Tables(*(array.cpu().numpy() for array in arrays))
        return self._tables

    def _set_tables(self, pmfs: list[np.ndarray], offsets: np.ndarray) -> None:
        cdf, lengths = quantize_pmfs(pmfs)
        for name, array in zip(_BUFFERS, (offsets, cdf, lengths)):
            setattr(self, name, torch.from_numpy(np.ascontiguousarray(array, np.int32)).to(self._offset.device))
        self._tables, self.tables_are_given = None, False

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        """Take tables of any size: a checkpoint may hold them empty, filled, or filled without padding."""
        cdf, lengths = (state_dict.get(prefix + name) for name in _BUFFERS[1:3])
        if cdf is not None and lengths is not None and cdf.dim() == 1 and cdf.numel():
            state_dict[prefix + _BUFFERS[1]] = torch.from_numpy(unpack_rows(cdf.numpy(), lengths.numpy()))
        for name in _BUFFERS:
            value, own = state_dict.get(prefix + name), getattr(self, name, None)
            if value is not None and own is not None and value.shape != own.shape:
                setattr(self, name, torch.empty(value.shape, dtype=own.dtype, device=own.device))
        self._tables, self.tables_are_given = None, bool(self._offset.numel())
        super()._load_from_state_dict(state_dict, prefix, *args)


def uniform_noise(values: Tensor, share: tuple[int, int] = (0, 1)) -> Tensor:
    """The stand-in for rounding errors while training, uniform in +-0.5 (Ballé et al., 2018, Section 2).

    Drawn for the batches of all processes at once, of which each takes its share (rank, processes): with generators
    in the same state, several processes then train as one with all of the batch would.
    """
    rank, processes = share
    batch = len(values)
    noise = values.new_empty(processes * batch, *values.shape[1:]).uniform_(-0.5, 0.5)
    return noise[rank * batch : (rank + 1) * batch]


class EntropyBottleneck(EntropyModel):
    """One learned density a channel, a monotone network of five layers (Appendix 6.1 of the paper).

    Frozen names: `matrices`, `biases`, `factors` are H, b and a of the paper; `quantiles` (C, 1, 3) lower tail, median
    and upper tail, learned by `loss()` alone.
    """

    def __init__(self, channels: int, filters: tuple[int, ...] = (3, 3, 3, 3), init_scale: float = 10.0) -> None:
        super().__init__()
        self.channels = channels
        self.likelihood_lower_bound = LowerBound(LIKELIHOOD_BOUND)
        widths = (1, *filters, 1)
        scale = init_scale ** (1 / (len(filters) + 1))
        self.matrices, self.biases, self.factors = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()
        for i, (before, after) in enumerate(zip(widths, widths[1:])):
            start = math.log(math.expm1(1 / scale / after))
            self.matrices.append(nn.Parameter(torch.full((channels, after, before), start)))
            self.biases.append(nn.Parameter(torch.empty(channels, after, 1).uniform_(-0.5, 0.5)))
            if i < len(filters):
                self.factors.append(nn.Parameter(torch.zeros(channels, after, 1)))
        tails = torch.tensor([-init_scale, 0.0, init_scale])
        self.quantiles = nn.Parameter(tails.repeat(channels, 1, 1))
        target = math.log(2 / TAIL_MASS - 1)
        self.register_buffer("target", torch.tensor([-target, 0.0, target]))

    def forward(self, z: Tensor, training: bool | None = None) -> tuple[Tensor, Tensor]:
        """z (B, C, h, w) -> (noisy or rounded z, likelihoods), both (B, C, h, w)."""
        medians = self.medians()
        training = self.training if training is None else training
        z = z + uniform_noise(z, self.noise_share) if training else torch.round(z - medians) + medians
        values = z.transpose(0, 1).flatten(1).unsqueeze(1)  # (C, 1, B * h * w)
        likelihood = self.likelihood_lower_bound(self._likelihood(values)[0])
        return z, likelihood.reshape(z.shape[1], z.shape[0], *z.shape[2:]).transpose(0, 1)

    def estimate(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z (B, C, h, w), out of autocast -> z_hat rounded straight-through, and likelihoods; both (B, C, h, w)."""
        with torch.autocast(z.device.type, enabled=False):
            z, medians = z.to(self.quantiles.dtype), self.medians()
            return round_straight_through(z - medians) + medians, self(z)[1]

    def medians(self) -> Tensor:
        """(1, C, 1, 1), without gradient: the loss on the quantiles alone moves them."""
        return self.quantiles.detach()[:, 0, 1].reshape(1, -1, 1, 1)

    def loss(self) -> Tensor:
        """The auxiliary loss: how far the quantiles are from the tail masses and the median they stand for."""
        return (self._logits(self.quantiles, detached=True) - self.target).abs().sum()

    def _logits(self, values: Tensor, detached: bool = False) -> Tensor:
        """Logits of the cumulative distribution at values (C, 1, n)."""
        matrices, biases, factors = (
            [p.detach() if detached else p for p in group] for group in (self.matrices, self.biases, self.factors)
        )
        for i, (matrix, bias) in enumerate(zip(matrices, biases)):
            values = torch.matmul(F.softplus(matrix.to(values.dtype)), values) + bias.to(values.dtype)
            if i < len(factors):
                values = values + torch.tanh(factors[i].to(values.dtype)) * torch.tanh(values)
        return values

    def _likelihood(self, values: Tensor, detached: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        lower, upper = self._logits(values - 0.5, detached), self._logits(values + 0.5, detached)
        return torch.sigmoid(upper) - torch.sigmoid(lower), lower, upper

    @torch.no_grad()
    def update(self, force: bool = False) -> bool:
        """Fill the tables from the densities, in float64 on the CPU; say whether there was anything to do."""
        if self._offset.numel() and not force:
            return False
        self._set_tables(*self._pmfs(torch.float64))
        return True

    @torch.no_grad()
    def published_tables(self) -> Tables:
        """The tables for files in the published layout: a checkpoint's own, else CompressAI's.

        CompressAI computes them in float32; they differ from ours by single counts in a few channels, which is enough
        to lose a file.
        """
        from utils.entropy_coding.rans import Tables

        if self.tables_are_given and not self._tables_are_ours():
            return self.tables()
        pmfs, offsets = self._pmfs(torch.float32)
        return Tables(*quantize_pmfs(pmfs), offsets)

    def _tables_are_ours(self) -> bool:
        """Whether `update()` would compute the tables that are there: then they say nothing about other programs."""
        pmfs, offsets = self._pmfs(torch.float64)
        own, there = (quantize_pmfs(pmfs)[0], offsets), (self._quantized_cdf, self._offset)
        return all(np.array_equal(a, b.cpu().numpy()) for a, b in zip(own, there))

    def _pmfs(self, dtype: torch.dtype) -> tuple[list[np.ndarray], np.ndarray]:
        """For each channel the probabilities of the integers between the tails, then of the tails; and the offsets."""
        on_cpu = EntropyBottleneck(self.channels, tuple(f.shape[1] for f in self.factors))
        on_cpu.load_state_dict({n: p.cpu().float() for n, p in self.named_parameters()}, strict=False)
        low, median, high = on_cpu.quantiles[:, 0].unbind(1)  # float32 differences, exact on every machine
        below = torch.ceil(median - low).int().clamp(min=0)
        above = torch.ceil(high - median).int().clamp(min=0)
        lengths = below + above + 1
        samples = torch.arange(int(lengths.max())) + (median - below)[:, None, None]  # (C, 1, n)
        pmf, lower, upper = on_cpu._likelihood(samples.to(dtype), detached=True)
        tails = torch.sigmoid(lower[:, 0, :1]) + torch.sigmoid(-upper[:, 0, -1:])
        rows = [torch.cat([p[0, :n], t]).float().numpy() for p, n, t in zip(pmf, lengths, tails)]
        return rows, -below.numpy()


class GaussianConditional(EntropyModel):
    """N(mean, scale) integrated over unit intervals (Minnen et al., NeurIPS 2018, arXiv:1809.02736, Equation 3).

    Scales are rounded up to a table of 64 levels for coding, log-spaced from 0.11 to 256.
    """

    def __init__(self) -> None:
        super().__init__()
        self.likelihood_lower_bound = LowerBound(LIKELIHOOD_BOUND)
        self.lower_bound_scale = LowerBound(SCALE_MIN)
        self.register_buffer("scale_table", torch.empty(0))
        self.register_buffer("scale_bound", torch.tensor([SCALE_MIN]))

    def likelihood(self, residual: Tensor, scales: Tensor) -> Tensor:
        """Probability of residuals y - mean under N(0, max(scale, 0.11)) within +-0.5; any shape."""
        scales = self.lower_bound_scale(scales)
        distance = residual.abs()
        upper, lower = _normal_cdf((0.5 - distance) / scales), _normal_cdf((-0.5 - distance) / scales)
        return self.likelihood_lower_bound(upper - lower)

    def forward(self, y: Tensor, scales: Tensor, means: Tensor, training: bool | None = None) -> tuple[Tensor, Tensor]:
        """(noisy or rounded y, likelihoods), all of one shape."""
        training = self.training if training is None else training
        y_hat = y + uniform_noise(y, self.noise_share) if training else torch.round(y - means) + means
        return y_hat, self.likelihood(y_hat - means, scales)

    def build_indexes(self, scales: Tensor) -> Tensor:
        """The level (uint8) whose interval holds each scale: the first level not below it, at most the last.

        Compared in the scales' own type; the table's float32 values are exact in float64.
        """
        return torch.bucketize(scales.contiguous(), self.scale_table[:-1].to(scales.dtype)).to(torch.uint8)

    @torch.no_grad()
    def update(self, force: bool = False) -> bool:
        """Fill scale table and frequency tables; they do not depend on weights, device or threads."""
        if self._offset.numel() and not force:
            return False
        table = published_scale_table()
        self.scale_table = torch.from_numpy(table).to(self.scale_table.device)
        pmfs = [gaussian_pmf(scale) for scale in table]
        self._set_tables(pmfs, np.array([-(len(pmf) // 2 - 1) for pmf in pmfs]))
        return True


def _normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * torch.erfc(-(2**-0.5) * x)


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
