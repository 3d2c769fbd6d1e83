"""Gain units: one model for every rate.

"Asymmetric Gained Deep Image Compression with Continuous Rate Adaptation" (Cui et al., CVPR 2021, arXiv:2003.02100).
Each channel of the latent is multiplied by a gain before quantisation and by an inverse gain after. A pair of vectors
is learned for each of a few levels; between levels both are interpolated exponentially (Equation 7), so that every rate
between the trained ones is available.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

LAMBDA_RANGE = (0.0018, 0.05)  # the paper's for MSE: the trade-offs of quality 1 and quality 100
QUALITY_MIN, QUALITY_MAX, DEFAULT_QUALITY = 1.0, 100.0, 50.0


def is_quality(value: float) -> bool:
    """Whether `value` lies in the range of qualities, 1..100."""
    return QUALITY_MIN <= value <= QUALITY_MAX


def qualities(quality: Tensor | float | None, like: Tensor, variable_rate: bool) -> Tensor | None:
    """`quality` as (B,) for maps `like` (B, ...), a number on their device; None for models of one rate.

    Raises ValueError where it is missing, not wanted or outside 1..100. Values on a GPU are not checked, as reading
    them would mean waiting for it.
    """
    if not variable_rate:
        if quality is not None:
            raise ValueError("this model has one quality; a quality can be chosen with variable-rate models only")
        return None
    if quality is None:
        raise ValueError("a variable-rate model needs a quality from 1 to 100")
    on_host = not isinstance(quality, Tensor) or quality.device.type == "cpu"
    known = torch.as_tensor(quality).reshape(-1).tolist() if on_host else []
    if not all(map(is_quality, known)):
        raise ValueError(f"quality {quality} is outside 1..100")
    if not isinstance(quality, Tensor):
        quality = like.new_full((1,), quality, dtype=torch.float32)  # a GPU makes it by itself: nothing is transferred
    return quality.to(torch.float32).expand(len(like))


def lambda_of_quality(quality: Tensor | float, lambda_range: Sequence[float] = LAMBDA_RANGE) -> Tensor:
    """The trade-off lambda that `quality`, a number or (B,) in 1..100, stands for: log-linear over the range."""
    low, high = lambda_range
    position = (torch.as_tensor(quality) - QUALITY_MIN) / (QUALITY_MAX - QUALITY_MIN)
    return low * (high / low) ** position


def between_levels(logs: Tensor, position: Tensor) -> Tensor:
    """(levels, C) at positions (B,) from 0 to levels - 1 -> (B, C): linear in between, and on beyond the last."""
    level = position.floor().clamp(0, len(logs) - 2).long()
    fraction = (position - level)[:, None]
    return logs[level] * (1 - fraction) + logs[level + 1] * fraction


class GainUnit(nn.Module):
    """Gains and inverse gains (levels, channels) as logarithms, so that they stay positive.

    They start as the step size that high-rate theory gives: proportional to the square root of lambda.
    """

    def __init__(self, channels: int, lambda_range: Sequence[float] = LAMBDA_RANGE, levels: int = 6) -> None:
        super().__init__()
        top = 0.5 * math.log(lambda_range[1] / lambda_range[0])
        start = (torch.linspace(0, top, levels) - top / 2)[:, None].repeat(1, channels)
        self.log_gain = nn.Parameter(start)
        self.log_inverse_gain = nn.Parameter(-start)

    def forward(self, y: Tensor, quality: Tensor) -> Tensor:
        """y (B, C, h, w) and quality (B,) in 1..100 -> y (B, C, h, w), scaled for quantisation."""
        return y * self._interpolate(self.log_gain, quality, y)

    def inverse(self, y_hat: Tensor, quality: Tensor) -> Tensor:
        """y_hat (B, C, h, w) and quality (B,) -> y_hat (B, C, h, w), on the scale of the synthesis transform."""
        return y_hat * self._interpolate(self.log_inverse_gain, quality, y_hat)

    @staticmethod
    def _interpolate(logs: Tensor, quality: Tensor, like: Tensor) -> Tensor:
        """(B, C, 1, 1): exp of the logarithms linearly interpolated between levels."""
        position = (quality.to(logs.device, torch.float32) - QUALITY_MIN) / (QUALITY_MAX - QUALITY_MIN)
        return torch.exp(between_levels(logs, position * (len(logs) - 1)))[:, :, None, None].to(like.dtype)
