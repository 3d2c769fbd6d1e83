"""What symbols cost, in bits, with the slopes that the search works with.

Of the Gaussians, as training estimates them; where the entropy coder's tables were fitted, as these have them, contexts
included, which is what a file will really take.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from utils.entropy_coding.frequencies import SCALE_MIN
from utils.entropy_coding.transfers import to_device, to_host

if TYPE_CHECKING:
    from models.base import SliceCompressionModel
    from models.layers.entropy_models import GaussianConditional

LEAST_LIKELIHOOD = 1e-9  # as in training: keeps -log2 finite
# Symbols, others in their place, and sigma -> bits of the symbols, bits of the others, and the derivative of the first
# with respect to sigma; all (1, C, h, w).
Costs = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


class Bits(torch.autograd.Function):
    """Bits of round(r) at scale sigma, summed; dr: what the next integer on the other side of r costs more."""

    @staticmethod
    def forward(ctx: Any, residual: Tensor, scale: Tensor, costs: Costs) -> Tensor:
        """r = y - mu and sigma, (1, C, h, w) -> one number."""
        nearest = torch.round(residual)
        side = torch.where(residual < nearest, -1.0, 1.0).to(residual)  # where the other of the two integers is
        bits, others, slope_of_scale = costs(nearest, nearest + side, scale.clamp(min=SCALE_MIN))
        ctx.save_for_backward((others - bits) * side, slope_of_scale * ((scale >= SCALE_MIN) | (slope_of_scale < 0)))
        return bits.sum()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        """Gradients of r and sigma, (1, C, h, w)."""
        slope, slope_of_scale = ctx.saved_tensors
        return gradient * slope, gradient * slope_of_scale, None


def costs_of(gaussian: GaussianConditional) -> Costs:
    """The tables' costs where they were fitted, the Gaussians' otherwise."""
    return FittedCosts(gaussian) if gaussian.fitted else gaussian_costs


def latent_bits(model: SliceCompressionModel, out: dict[str, Any]) -> Tensor:
    """Bits of each element of y, (1, M, h, w) in float64, from what the model makes of an image, `model(x)`."""
    if not model.gaussian_conditional.fitted:
        return -torch.log2(out["likelihoods"]["y"].double())
    costs, bits = FittedCosts(model.gaussian_conditional), []
    for y, mean, scale in zip(*(out["para"][name].split(model.slice_sizes, 1) for name in ("y", "means", "scales"))):
        symbols = torch.round(y - mean)
        bits.append(costs(symbols, symbols, scale.clamp(min=SCALE_MIN))[0])
    return torch.cat(bits, 1).double()


def gaussian_costs(symbols: Tensor, others: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Under N(0, sigma), integrated over unit intervals; the slope is 0 at the bound of the likelihood."""
    low, high, mass = _interval(symbols, sigma)
    slope = (torch.exp(-high * high) * high - torch.exp(-low * low) * low) / (sigma * mass * math.sqrt(math.pi))
    bits = -torch.log2(mass), -torch.log2(_interval(others, sigma)[2])
    return *bits, slope / math.log(2) * (mass > LEAST_LIKELIHOOD)


def _interval(symbols: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Its ends in units of sqrt(2) sigma, and its probability."""
    distance, unit = symbols.abs(), math.sqrt(0.5) / sigma
    low, high = (distance - 0.5) * unit, (distance + 0.5) * unit
    return low, high, (0.5 * (torch.erfc(low) - torch.erfc(high))).clamp(min=LEAST_LIKELIHOOD)


class FittedCosts:
    """Under the row of each symbol's level and context; the slope is that between the levels on either side.

    What a symbol does to its neighbours' contexts is in no slope.
    """

    def __init__(self, gaussian: GaussianConditional) -> None:
        self.gaussian, self.tables = gaussian, gaussian.tables()
        device = gaussian.scale_table.device
        self.bits = torch.tensor(self.tables.costs, device=device)  # (rows, sizes)
        self.corrected = torch.tensor(self.tables.corrected, dtype=torch.long, device=device)  # (levels, contexts)
        self.logarithms = gaussian.scale_table.log()

    def __call__(self, symbols: Tensor, others: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        levels = self.gaussian.build_indexes(sigma)
        contexts, levels = self.contexts(symbols, levels), levels.long()
        below, above = (levels - 1).clamp(min=0), (levels + 1).clamp(max=len(self.corrected) - 1)
        bits, others = (self.under(levels, contexts, values) for values in (symbols, others))
        rise = self.under(above, contexts, symbols) - self.under(below, contexts, symbols)
        return bits, others, rise / ((self.logarithms[above] - self.logarithms[below]) * sigma)

    def contexts(self, symbols: Tensor, levels: Tensor) -> Tensor:
        """Of the symbols of one image, (1, C, h, w)."""
        values, places = (array.ravel() for array in to_host(symbols.int(), levels))
        found = self.tables.contexts(values, places, tuple(symbols.shape[1:]))
        return to_device(found, symbols.device).reshape(symbols.shape).long()

    def under(self, levels: Tensor, contexts: Tensor, symbols: Tensor) -> Tensor:
        """Bits of symbols (1, C, h, w); of those far outside the tables, as of the largest size there is."""
        sizes = symbols.abs().clamp(max=self.bits.shape[1] - 1).long()
        return self.bits[self.corrected[levels, contexts], sizes]
