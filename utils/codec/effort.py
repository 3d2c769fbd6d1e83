"""A file by an encoder that searches (utils/codec/search.py): never one that costs more than without a search."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.layers.gain import QUALITY_MAX, qualities
from utils.codec.search import Problem, slope
from utils.codec.trade_off import EFFORTS, STEPS, TradeOff, coarser, of_quality, steps_coarser
from utils.codec.windows import middle, refine_image, window_side
from utils.data.padding import padding_of
from utils.inference.memory import give_back_memory
from utils.metrics import MS_SSIM_SMALLEST, distortion_of, quantise_8_bit

if TYPE_CHECKING:
    from utils.codec.codec import Codec

Progress = Callable[[int, int], None]  # steps done, and of how many


@dataclass(frozen=True)
class Coded:
    """A file, its quality, the distortion of its 8-bit image, and its cost: lambda * distortion * pixels + bits."""

    data: bytes
    quality: float | None
    distortion: float
    cost: float


@dataclass(frozen=True)
class Searched:
    """What a search came to: the file kept, the encoder's own, and lambda."""

    best: Coded
    plain: Coded
    trade_off: TradeOff

    @property
    def data(self) -> bytes:
        return self.best.data

    @property
    def quality(self) -> float | None:
        """That of the file kept, which a search makes lower than the one asked for."""
        return self.best.quality

    @property
    def won_percent(self) -> float:
        """By how much the cost fell."""
        return 100 * (1 - self.best.cost / self.plain.cost)


class Search:
    """What is searched for one image x (1, 3, H, W) in [0, 1]; its analysis runs once, whatever is tried.

    Raises ValueError for an effort outside 0..9.
    """

    def __init__(
        self, codec: Codec, x: Tensor, effort: int, progress: Progress | None = None, analysed: Tensor | None = None
    ) -> None:
        """analysed: what the analysis transform makes of the padded image, (1, M, h, w), where that is known."""
        if effort not in EFFORTS:
            raise ValueError(f"effort {effort} is outside 0..{EFFORTS[-1]}")
        self.codec, self.x, self.size, self.steps, self.progress = codec, x, x.shape[-2:], STEPS[effort], progress
        self.padded = codec.padded(x)
        befores = (padding_of(side, codec.model.size_multiple)[0] for side in self.size)
        self.inside = tuple(slice(before, before + side) for before, side in zip(befores, self.size))
        if analysed is None:
            with self.bounded():
                analysed = codec.quick.analysis(self.padded)
        self.analysed, self._side = analysed, None

    def bounded(self) -> AbstractContextManager:
        """For what works with the codec's quick copies."""
        return self.codec.bounded(*self.size, self.codec.arithmetic)

    def latent(self, quality: float | None, analysed: Tensor | None = None) -> Tensor:
        """y (1, M, h, w) after any gain: the encoder's own or, of the same shape, `analysed`."""
        y = self.analysed if analysed is None else analysed
        return y if quality is None else y * self.gains(quality)

    def gains(self, quality: float) -> Tensor:
        """What multiplies each channel of a variable-rate model's latent: (1, M, 1, 1)."""
        return self.codec.quick.gain(torch.ones_like(self.analysed[..., :1, :1]), torch.tensor([quality]))

    def code(self, y: Tensor, quality: float | None, trade_off: TradeOff) -> Coded:
        """The file of a latent y (1, M, h, w), with z made of the encoder's own latent."""
        with self.bounded():
            coded = self.codec.code(y, self.latent(quality))
            shown = quantise_8_bit(self.codec.image(coded["y_hat"], self.size, quality))
        data = self.codec.pack(coded, self.x, quality)
        distortion = float(distortion_of(shown.double(), self.x.double(), trade_off.metric)[0])
        cost = trade_off.cost(distortion, self.size[0] * self.size[1]) + 8 * len(data)
        return Coded(data, quality, distortion, cost)

    def refined(self, y: Tensor, quality: float | None, trade_off: TradeOff, steps: int | None = None) -> Tensor:
        """A latent that by the search's estimate costs less than y at this trade-off; both (1, M, h, w)."""
        problem, steps = self.problem(quality, trade_off), self.steps if steps is None else steps
        if self.codec.max_memory is not None:
            give_back_memory()  # what coding kept is the search's now
        with torch.inference_mode(False), torch.no_grad():
            y = y.clone()
            return refine_image(problem, y, steps, self.side(problem, y), self.progress).y

    def side(self, problem: Problem, y: Tensor) -> int:
        """That of the largest window, in pixels; asked once, as every problem and latent of the image need as much."""
        if self._side is None:
            self._side = window_side(problem, y, self.codec.max_memory)
        return self._side

    def problem(self, quality: float | None, trade_off: TradeOff) -> Problem:
        """What the search minimises, with z made of the encoder's own latent."""
        model = self.codec.searchable
        with torch.inference_mode(False), torch.no_grad():  # gradients cannot be had of tensors made in that mode
            z_hat = model.estimate_hyper(self.latent(quality).clone())[0]
            return Problem(model, z_hat, self.padded.clone(), self.inside, quality, trade_off)

    def trade_off(self, quality: float | None) -> TradeOff:
        """The codec's, that of the quality, or what the image, or the middle of a large one, says."""
        if self.codec.trade_off is not None:
            return self.codec.trade_off
        if quality is not None:
            return of_quality(quality, self.codec.model.lambda_range)
        problem = self.problem(quality, TradeOff(1.0))
        with torch.inference_mode(False), torch.no_grad():
            y = self.latent(quality).clone()
            return slope(*middle(problem, y, self.side(problem, y)))

    @property
    def highest(self) -> float:
        """The highest quality that can be searched for: its search has the gains of the model's highest."""
        return QUALITY_MAX + steps_coarser(self.codec.model.lambda_range)

    def gains_for(self, quality: float | None) -> float | None:
        """The quality whose gains a search for the trade-off of `quality` works with: a coarser one."""
        return None if quality is None else coarser(quality, self.codec.model.lambda_range)


@torch.no_grad()
def compress_with_effort(
    codec: Codec, x: Tensor, quality: float | None, effort: int, progress: Progress | None = None
) -> Searched:
    """The cheaper of two files of image x (1, 3, H, W) in [0, 1]: of the latent found, and of the encoder's own.

    Both are judged by the trade-off of `quality`; the latent found has the gains of a somewhat lower one. The same
    input gives the same bytes. An image too small for MS-SSIM is coded without a search by models of that.
    """
    qualities(quality, x, codec.model.variable_rate)  # refuses what the model does not have
    search = Search(codec, x, effort, progress)
    y, trade_off = search.latent(quality), search.trade_off(quality)
    if trade_off.metric == "ms-ssim" and min(x.shape[-2:]) < MS_SSIM_SMALLEST:
        with search.bounded():
            coded = Coded(codec.pack(codec.code(y), x, quality), quality, 0.0, 1.0)
        return Searched(coded, coded, trade_off)
    plain = search.code(y, quality, trade_off)
    if not search.steps:
        return Searched(plain, plain, trade_off)
    coarse = search.gains_for(quality)
    found = search.code(search.refined(search.latent(coarse), coarse, trade_off), coarse, trade_off)
    return Searched(min(plain, found, key=lambda coded: coded.cost), plain, trade_off)
