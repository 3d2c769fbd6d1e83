"""A file of a wanted size, rate or PSNR from a variable-rate model: a search over its quality.

The analysis transform runs once; every trial applies other gains to the same latent. Size, rate and PSNR grow with
quality, nearly exponentially the first two, so that a few secant steps inside a bracket are enough. With effort,
quality and latent are searched together: from the quality found, each trial goes on with the last one's latent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.layers.gain import QUALITY_MAX, QUALITY_MIN
from utils.cli import UserError
from utils.codec.bitstream import quality_steps
from utils.codec.trade_off import TradeOff
from utils.metrics import psnr, psnr_of_mse, quantise_8_bit

if TYPE_CHECKING:
    from utils.codec.codec import Codec
    from utils.codec.effort import Progress, Search

KINDS = ("bpp", "size", "psnr")
TOLERANCE = {"bpp": 0.005, "size": 0.01, "psnr": 0.0005}  # relative; a size is approached from below only
MOST_TRIALS = 16
FINEST = 0.01  # quality is stored in hundredths
MOST_SEARCHES, MOST_SCALED = 4, 4  # trials with effort, and after them of the last latent with other gains
PSNR_MAX = 100.0  # dB: that of an image without an error is infinite
GROWTH = {"bpp": 0.017, "size": 0.017, "psnr": 0.002}  # of the logarithm, a step of quality: a first guess


@dataclass(frozen=True)
class Target:
    """What is asked for: "bpp" of the whole file, "size" in bytes, never to be exceeded, or "psnr" in dB."""

    kind: str
    value: float

    def accepts(self, reached: float) -> bool:
        """Whether a result is close enough to stop searching."""
        allowed = TOLERANCE[self.kind] * self.value
        return self.value - allowed <= reached <= self.value + (0 if self.kind == "size" else allowed)

    def harmless(self, reached: float) -> bool:
        """Whether a result that is off the target is better than asked for: smaller, or of a higher PSNR."""
        return reached >= self.value if self.kind == "psnr" else reached <= self.value

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
    distortion: float = math.inf  # MSE, where there is effort
    cost: float = math.inf  # of it and of the bits, where there is effort
    won_percent: float | None = None  # in cost, against the file without
    trade_off: TradeOff | None = None


@torch.no_grad()
def compress_to_target(
    codec: Codec, x: Tensor, target: Target, effort: int = 0, progress: Progress | None = None
) -> Trial:
    """The file of image x (1, 3, H, W) in [0, 1] by a variable-rate model that comes closest to the target.

    With `effort` 1..9 it is the one of those close enough that costs least or, within a size, has the least distortion;
    `progress` is told of its steps. A size or rate above that of the highest quality, or a PSNR below that of the
    lowest, gives that quality. Raises UserError, saying what could be had, where the model cannot go as small, or as
    good, as is asked.
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

        plain = search(attempt, target)
    if not effort:
        return plain
    from utils.codec.effort import Search  # here, as CompressAI takes seconds to load

    return search_latents(Search(codec, x, effort, progress, latent), target, plain.quality)


def search_latents(work: Search, target: Target, quality: float) -> Trial:
    """The best file of an image with effort, starting from the `quality` that meets the target without."""
    trade_off, pixels = work.trade_off(quality), work.size[0] * work.size[1]

    def trial(y: Tensor, quality: float) -> Trial:
        coded = work.code(y, quality, trade_off)
        size = {"size": len(coded.data), "bpp": 8 * len(coded.data) / pixels}
        reached = psnr_of_mse(coded.distortion) if target.kind == "psnr" else size[target.kind]
        return Trial(quality, coded.data, reached, distortion=coded.distortion, cost=coded.cost)

    plain, wanted, latent = trial(work.latent(quality), quality), quality, None
    tried: list[tuple[float, Trial]] = []
    for number in range(MOST_SEARCHES + MOST_SCALED):
        gains, searching = work.gains_for(wanted), number < MOST_SEARCHES
        if not searching and gains == tried[-1][1].quality:
            break
        y = work.latent(gains, latent)
        if searching:  # the latent of another quality is nearly this one's, so that fewer steps follow the first ones
            y = work.refined(y, gains, work.trade_off(wanted), -(-work.steps // (3 if number else 1)))
        tried.append((wanted, trial(y, gains)))
        latent, following = y / work.gains(gains), next_quality(tried, target, work.highest)
        if abs(following - wanted) < FINEST or (number and meets(tried[-1][1], target)):
            break
        wanted = following
    best = best_of([plain, *(found for _, found in tried)], target)
    won = 100 * (1 - best.cost / plain.cost)
    return replace(best, trials=len(tried) + 1, won_percent=won, trade_off=trade_off)


def next_quality(tried: Sequence[tuple[float, Trial]], target: Target, highest: float) -> float:
    """Where a line through the last two logarithms of what was reached, or through the last one, meets the target.

    tried: qualities that were searched for, and what came of them; highest: the most that can be searched for.
    """
    aim = target.value * (1 - TOLERANCE["size"] / 3) if target.kind == "size" else target.value
    most = PSNR_MAX if target.kind == "psnr" else math.inf
    points = [(wanted, min(trial.reached, most)) for wanted, trial in tried]
    (wanted, reached), growth = points[-1], GROWTH[target.kind]
    if len(points) > 1 and abs(wanted - points[-2][0]) >= FINEST:
        measured = math.log(reached / points[-2][1]) / (wanted - points[-2][0])
        growth = min(max(measured, growth / 3), 3 * growth)
    return round(min(max(wanted + math.log(aim / reached) / growth, QUALITY_MIN), highest), 2)


def meets(trial: Trial, target: Target) -> bool:
    """Whether a trial is close enough, or on the harmless side and no gains are left that would bring it closer."""
    last = QUALITY_MIN if target.kind == "psnr" else QUALITY_MAX
    return target.accepts(trial.reached) or (trial.quality == last and target.harmless(trial.reached))


def best_of(trials: Sequence[Trial], target: Target) -> Trial:
    """Of the files close enough the cheapest, or else the closest; of those within a size the one of least distortion.

    Where the first one, made without a search, is the end of what the model can, on the harmless side of the target, so
    may the others lie there.
    """
    if target.kind == "size":
        fitting = [trial for trial in trials if trial.reached <= target.value]
        if fitting:
            return min(fitting, key=lambda trial: trial.distortion)
    close = [trial for trial in trials if meets(trial, target)]
    if trials[0].quality in (QUALITY_MIN, QUALITY_MAX) and target.harmless(trials[0].reached):
        close += [trial for trial in trials if target.harmless(trial.reached)]
    if not close:
        return min(trials, key=lambda trial: target.distance(trial.reached))
    return min(close, key=lambda trial: trial.cost)


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
    if target.harmless(trial.reached) or target.accepts(trial.reached):
        return trial
    unit = {"bpp": "bpp", "size": "bytes", "psnr": "dB"}[target.kind]
    raise UserError(
        f"--target-{target.kind} {target.value:g}: out of reach; quality {trial.quality:g} gives"
        f" {trial.reached:.6g} {unit}, ask for that or {'less' if target.kind == 'psnr' else 'more'}"
    )
