"""A file of a wanted size, rate or PSNR from a variable-rate model: a search over its quality.

The analysis transform runs once; every trial applies other gains to the same latent. Size, rate and PSNR grow with
quality, nearly exponentially the first two, so that a few secant steps inside a bracket are enough.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.layers.gain import QUALITY_MAX, QUALITY_MIN
from utils.cli import UserError
from utils.codec.bitstream import quality_steps
from utils.metrics import psnr, quantise_8_bit

if TYPE_CHECKING:
    from utils.codec.codec import Codec

KINDS = ("bpp", "size", "psnr")
TOLERANCE = {"bpp": 0.005, "size": 0.01, "psnr": 0.0005}  # relative; a size is approached from below only
MOST_TRIALS = 16
FINEST = 0.01  # quality is stored in hundredths


@dataclass(frozen=True)
class Target:
    """What is asked for: "bpp" of the whole file, "size" in bytes, never to be exceeded, or "psnr" in dB."""

    kind: str
    value: float

    def accepts(self, reached: float) -> bool:
        """Whether a result is close enough to stop searching."""
        allowed = TOLERANCE[self.kind] * self.value
        return self.value - allowed <= reached <= self.value + (0 if self.kind == "size" else allowed)

    def distance(self, reached: float) -> float:
        """How far off a result is; infinite for a size that is exceeded."""
        return math.inf if self.kind == "size" and reached > self.value else abs(reached - self.value)


@dataclass(frozen=True)
class Trial:
    """A quality and what it came to: the file, and the value of the target's kind; the best of so many trials."""

    quality: float
    data: bytes
    reached: float
    trials: int = 1


@torch.no_grad()
def compress_to_target(codec: Codec, x: Tensor, target: Target) -> Trial:
    """The file of image x (1, 3, H, W) in [0, 1] by a variable-rate model that comes closest to the target.

    A size or rate above that of the highest quality, or a PSNR below that of the lowest, gives that quality. Raises
    UserError, saying what could be had, where the model cannot go as small, or as good, as is asked.
    """
    size = x.shape[-2:]
    with codec.bounded(*size, codec.arithmetic):
        latent = codec.quick.analysis(codec.padded(x))

        def attempt(quality: float) -> Trial:
            quality = quality_steps(quality) / 100
            coded = codec.code(codec.quick.gain(latent, torch.tensor([quality])))
            data = codec.pack(coded, x, quality)
            if target.kind == "size":
                return Trial(quality, data, len(data))
            if target.kind == "bpp":
                return Trial(quality, data, 8 * len(data) / (size[0] * size[1]))
            decoded = codec.image(coded["y_hat"], size, quality)
            return Trial(quality, data, psnr(quantise_8_bit(decoded), quantise_8_bit(x)))

        return search(attempt, target)


def search(attempt: Callable[[float], Trial], target: Target) -> Trial:
    """The best trial. Raises UserError for what lies out of reach."""
    trials = [attempt((QUALITY_MIN + QUALITY_MAX) / 2)]
    if target.accepts(trials[0].reached):
        return trials[0]
    rising = trials[0].reached < target.value
    trials.append(attempt(QUALITY_MAX if rising else QUALITY_MIN))
    if (trials[1].reached < target.value) == rising:
        return at_the_end(replace(trials[1], trials=2), target)
    low, high = sorted(trials, key=lambda trial: trial.quality)
    while not target.accepts(trials[-1].reached) and high.quality - low.quality > FINEST and len(trials) < MOST_TRIALS:
        trials.append(attempt(between(low, high, target, halve=len(trials) % 3 == 1)))
        if trials[-1].reached <= target.value:
            low = trials[-1]
        else:
            high = trials[-1]
    best = min(trials, key=lambda trial: target.distance(trial.reached))
    return replace(best, trials=len(trials))


def between(low: Trial, high: Trial, target: Target, halve: bool) -> float:
    """A quality strictly between two trials: by the secant of log(reached), or in the middle now and then."""
    aim = target.value * (1 - TOLERANCE["size"] / 2) if target.kind == "size" else target.value  # a size from below
    ends = low.quality + FINEST, high.quality - FINEST
    if halve or high.reached <= low.reached:
        return sum(ends) / 2
    share = math.log(max(aim / low.reached, 1.0)) / math.log(high.reached / low.reached)
    return min(max(low.quality + share * (high.quality - low.quality), ends[0]), ends[1])


def at_the_end(trial: Trial, target: Target) -> Trial:
    """A target beyond the range of qualities: fine on the harmless side, a UserError on the other."""
    harmless = trial.reached >= target.value if target.kind == "psnr" else trial.reached <= target.value
    if harmless or target.accepts(trial.reached):
        return trial
    unit = {"bpp": "bpp", "size": "bytes", "psnr": "dB"}[target.kind]
    raise UserError(
        f"--target-{target.kind} {target.value:g}: out of reach; quality {trial.quality:g} gives"
        f" {trial.reached:.6g} {unit}, ask for that or {'less' if target.kind == 'psnr' else 'more'}"
    )
