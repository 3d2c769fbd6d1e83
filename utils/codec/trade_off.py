"""What a search works for, lambda * distortion + rate, and how long: plain values, which programs' flags need."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from models.layers.gain import LAMBDA_RANGE, QUALITY_MAX, QUALITY_MIN, lambda_of_quality
from utils.metrics import WEIGHT_OF_METRIC

STEPS = (0, 1, 2, 3, 5, 8, 12, 15, 19, 24)  # of effort 0, 1, ... 9
EFFORTS = range(len(STEPS))
COARSER = 0.8  # a search for lambda does best with the gains of this times lambda (docs/effort.md)


@dataclass(frozen=True)
class TradeOff:
    """lambda, the metric of the distortion ("mse", of 8-bit values, or "ms-ssim"), and where lambda is from."""

    weight: float
    metric: str = "mse"
    source: str = ""

    def described(self) -> dict[str, Any]:
        """For JSON: {"lambda", "metric", "source"}."""
        return {"lambda": self.weight, "metric": self.metric, "source": self.source}

    def cost(self, distortion: Any, pixels: int) -> Any:
        """lambda * D of an image, in bits."""
        return self.weight * WEIGHT_OF_METRIC[self.metric] * distortion * pixels


def of_quality(quality: float, lambda_range: Sequence[float] = LAMBDA_RANGE) -> TradeOff:
    """That of a variable-rate model at a quality, 1..100."""
    return TradeOff(float(lambda_of_quality(quality, lambda_range)), "mse", "quality")


def coarser(quality: float, lambda_range: Sequence[float] = LAMBDA_RANGE) -> float:
    """The quality, 1..100 in hundredths, whose gains a search for the lambda of `quality` works with.

    A search alone spends what it wins mostly on less distortion; with coarser steps it comes back to about the
    distortion of `quality` without a search, and saves bits.
    """
    return min(max(round(quality - steps_coarser(lambda_range), 2), QUALITY_MIN), QUALITY_MAX)


def steps_coarser(lambda_range: Sequence[float] = LAMBDA_RANGE) -> float:
    """By how much a quality falls when its lambda becomes COARSER times as large."""
    low, high = lambda_range
    return -(QUALITY_MAX - QUALITY_MIN) * math.log(COARSER) / math.log(high / low)
