"""What symbols cost, in bits, with the slopes that the search works with.

Under the Gaussians, as in training; or, where the entropy coder's tables were fitted to symbols, under those tables
and their contexts, which is what a file takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from models.layers.entropy_models import FittedCosts, GaussianConditional
from utils.entropy_coding.frequencies import SCALE_MIN

LEAST_LIKELIHOOD = 1e-9  # as in training: keeps -log2 finite
# Symbols, others in their place, and sigma, as the network gave it -> bits of the symbols, bits of the others, and the
# derivative of the first with respect to sigma; all (B, C, h, w).
Costs = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


class Bits(torch.autograd.Function):
    """Bits of round(r) at scale sigma, summed; dr: what the next integer on the other side of r costs more."""

    @staticmethod
    def forward(ctx: Any, residual: Tensor, scale: Tensor, costs: Costs) -> Tensor:
        """r = y - mu and sigma, (B, C, h, w) -> one number."""
        nearest = torch.round(residual)
        side = torch.where(residual < nearest, -1.0, 1.0).to(residual)  # where the other of the two integers is
        bits, others, slope_of_scale = costs(nearest, nearest + side, scale)
        ctx.save_for_backward((others - bits) * side, slope_of_scale * ((scale >= SCALE_MIN) | (slope_of_scale < 0)))
        return bits.sum()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        """Gradients of r and sigma, (B, C, h, w)."""
        slope, slope_of_scale = ctx.saved_tensors
        return gradient * slope, gradient * slope_of_scale, None


def costs_of(gaussian: GaussianConditional) -> Costs:
    """The tables' costs where they were fitted, the Gaussians' otherwise."""
    return SearchedCosts(gaussian) if gaussian.fitted else gaussian_costs


def gaussian_costs(symbols: Tensor, others: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Under N(0, sigma), integrated over unit intervals; the slope is 0 at the bound of the likelihood."""
    sigma = scale.clamp(min=SCALE_MIN)
    low, high, mass = _interval(symbols, sigma)
    slope = (torch.exp(-high * high) * high - torch.exp(-low * low) * low) / (sigma * mass * math.sqrt(math.pi))
    bits = -torch.log2(mass), -torch.log2(_interval(others, sigma)[2])
    return *bits, slope / math.log(2) * (mass > LEAST_LIKELIHOOD)


def _interval(symbols: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Its ends in units of sqrt(2) sigma, and its probability."""
    distance, unit = symbols.abs(), math.sqrt(0.5) / sigma
    low, high = (distance - 0.5) * unit, (distance + 0.5) * unit
    return low, high, (0.5 * (torch.erfc(low) - torch.erfc(high))).clamp(min=LEAST_LIKELIHOOD)


class SearchedCosts(FittedCosts):
    """Those of the tables; the slope is that between the levels on either side, in the same context.

    What a symbol does to its neighbours' contexts is in no slope.
    """

    def __call__(self, symbols: Tensor, others: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        levels, contexts = self.places(symbols, scale)
        below, above = (levels - 1).clamp(min=0), (levels + 1).clamp(max=len(self.corrected) - 1)
        rise = self.under(above, contexts, symbols) - self.under(below, contexts, symbols)
        table = self.gaussian.scale_table
        slope = rise / ((table[above] / table[below]).log() * scale.clamp(min=SCALE_MIN))
        return self.under(levels, contexts, symbols), self.under(levels, contexts, others), slope
