"""The encoder that searches: a latent that costs less under the decoder as it is (docs/effort.md has the method).

    J(y) = lambda * D(x, x_hat(y)) * pixels + bits(y)          both with the rounding that the file will have

A step evaluates J and its gradient once, and aims each element of y at

    t = u - clip(g / h, +-0.75),   u = round(y - mu) + mu,   y <- y + b (t - y)

where g is dJ/dy with the bits' slope taken between the two integers around y - mu, and h the curvature: that of the
distortion, one number a channel, estimated once by a random probe, times a factor of the element's own, which grows
where the aim goes to and fro. The best latent that was seen is the result.

Content-adaptive encoding by gradients: Campos et al., CVPR Workshops 2019 (arXiv:1906.01223); with rounding annealed:
Yang, Bamler and Mandt, "Improving Inference for Neural Image Compression", NeurIPS 2020 (arXiv:2006.04240). Factors of
the elements as in Rprop (Riedmiller and Braun, ICNN 1993).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from models.base import SliceCompressionModel
from utils.cli import UserError
from utils.codec.rates import Bits, Costs, costs_of, gaussian_costs
from utils.codec.trade_off import TradeOff
from utils.inference.fast import shared_copy
from utils.metrics import distortion_of

FARTHEST = 0.75  # an aim more than half a step away changes the symbol; more than this overshoots
PACE = (0.3, 0.1)  # b of the first and of the last step
LESS_CURVED, MORE_CURVED, CURVATURES = 0.9, 1.5, (0.5, 8.0)  # factors of an element's curvature, and their bounds


@dataclass(frozen=True)
class Refined:
    """The latent found, with what J was for the encoder's and is for this one, in bits without those of z."""

    y: Tensor
    before: float
    after: float


@dataclass
class SearchingCoder:
    """For `code_slices`: rounds as the encoder does, straight-through, and adds up what the symbols cost."""

    costs: Costs = gaussian_costs
    bits: Tensor | float = 0.0
    quantised: list[Tensor] = field(default_factory=list)  # round(y - mu) + mu of each call

    def __call__(self, y: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        """y, mu, sigma -> y_hat, all (B, C, h, w)."""
        residual = y - mean
        self.bits = self.bits + Bits.apply(residual, scale, self.costs)
        self.quantised.append((torch.round(residual) + mean).detach())
        return y + (self.quantised[-1] - y).detach()


@dataclass(frozen=True)
class Problem:
    """What is minimised: J of a latent y (1, M, h, w) after any gain, as a function of y.

    model: a `searchable` one; z_hat: as its `code_slices` takes it; x: the padded image (1, 3, 16h, 16w); inside: the
    rows and columns of x that the decoder keeps; quality: None for a model of one rate; movable: the rows and columns
    of y that may change.
    """

    model: SliceCompressionModel
    z_hat: Any
    x: Tensor
    inside: tuple[slice, slice]
    quality: float | None
    trade_off: TradeOff
    movable: tuple[slice, slice] = (slice(None), slice(None))

    def evaluate(self, y: Tensor, with_gradient: bool = True) -> tuple[float, Tensor | None, Tensor]:
        """J in bits, dJ/dy, and the quantised latent before any latent residual, both (1, M, h, w) like y."""
        with torch.set_grad_enabled(with_gradient):
            y = y.detach().requires_grad_(with_gradient)
            distortion, coder = self.forward(y)
            cost = distortion + coder.bits
            gradient = torch.autograd.grad(cost, y)[0] if with_gradient else None
        return float(cost.detach()), gradient, self.model.join(coder.quantised)

    def forward(self, y: Tensor, costs: Costs | None = None) -> tuple[Tensor, SearchingCoder]:
        """lambda * D of y (1, M, h, w) in bits, and the coder, which has the rate, by other `costs` than the file's."""
        coder = SearchingCoder(costs or costs_of(self.model.gaussian_conditional))
        shown = self.shown(self.model.code_slices(self.z_hat, y, coder)).clamp(0, 1)
        target = self.x[(..., *self.inside)]
        distortion = distortion_of(shown, target, self.trade_off.metric)[0]
        return self.trade_off.cost(distortion, target[0, 0].numel()), coder

    def shown(self, y_hat: Tensor) -> Tensor:
        """y_hat (1, M, h, w) -> the part of the image that counts, (1, 3, *sizes of `inside`), not clamped."""
        return self.model.to_image(y_hat, self.quality)[(..., *self.inside)]

    def curvature(self, y_hat: Tensor, generator: torch.Generator) -> Tensor:
        """The Gauss-Newton diagonal of the distortion's part of J, a number a channel: (1, M, 1, 1).

        With v of random signs, the expectation of (J^T v)^2 is the diagonal of J^T J: one backward pass is enough. For
        MS-SSIM, whose curvature has no such form, the one of the MSE that has the same gradient.
        """
        with torch.enable_grad():
            y_hat = y_hat.detach().requires_grad_()
            shown = self.shown(y_hat)
            signs = torch.randint(0, 2, shown.shape, generator=generator).to(shown) * 2 - 1
            of_signs = torch.autograd.grad((shown * signs).sum(), y_hat, retain_graph=self.trade_off.metric != "mse")[0]
            weight = 2 * self.of_squares(shown, y_hat) / shown.shape[1]
        diagonal = weight * of_signs[(..., *self.movable)].square().mean((2, 3), keepdim=True)
        return diagonal.clamp(min=1e-3 * float(diagonal.mean()) + 1e-12)  # a channel that shows nothing costs bits only

    def of_squares(self, shown: Tensor, y_hat: Tensor) -> float:
        """lambda * 255^2 of the MSE that stands for the metric at the image `shown` (1, 3, H, W), made of y_hat."""
        weight = self.trade_off.cost(1.0, 1)
        if self.trade_off.metric == "mse":
            return weight
        target = self.x[(..., *self.inside)]
        count = target.numel()
        similar = torch.autograd.grad(distortion_of(shown, target, self.trade_off.metric)[0], shown)[0]
        squares = 2 * (shown.detach() - target) / count
        return weight * float(similar.norm() / squares.norm().clamp(min=1e-12))


def slope(problem: Problem, y: Tensor) -> TradeOff:
    """lambda estimated by gradients at y (1, M, h, w); for dcae-small 0.4 to 2 times the true one.

    The model was trained until scaling a channel of y did not pay: lambda dD + dR = 0 along each channel's own y. Of
    one image these sums are noisy, so that their magnitudes over all channels are compared.
    """
    with torch.enable_grad():
        y = y.detach().requires_grad_()
        distortion, coder = problem.forward(y, gaussian_costs)  # the rate that training knew
        parts = [torch.autograd.grad(part, y, retain_graph=True)[0] for part in (distortion, coder.bits)]
    of_distortion, of_rate = (float((part * y.detach()).sum((0, 2, 3)).abs().sum()) for part in parts)
    if not (of_distortion and of_rate):
        raise UserError("--effort: this model's lambda cannot be estimated from the image; say it with --lambda")
    return TradeOff(problem.trade_off.weight * of_rate / of_distortion, problem.trade_off.metric, "slope")


def searchable(model: SliceCompressionModel) -> SliceCompressionModel:
    """A copy in eval mode that shares the weights and keeps no gradients of them."""
    with torch.inference_mode(False), torch.no_grad():
        frozen = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
        return shared_copy(model, frozen).eval()


def refine(
    problem: Problem, y: Tensor, steps: int, seed: int = 0, progress: Callable[[], None] | None = None
) -> Refined:
    """Search from y (1, M, h, w) for `steps` steps; `progress` is called after each.

    The same seed gives the same latent.
    """
    generator = torch.Generator().manual_seed(seed)
    cost, gradient, quantised = problem.evaluate(y)
    before, best, found = cost, cost, y
    aim = Aim(problem.curvature(quantised, generator), problem.movable, generator)
    for step in range(steps):
        pace = PACE[0] + (PACE[1] - PACE[0]) * step / max(1, steps - 1)
        y = aim.move(y, gradient, quantised, pace)
        cost, gradient, quantised = problem.evaluate(y, with_gradient=step < steps - 1)
        aim.judge(cost < best)
        if cost < best:
            best, found = cost, y
        if progress:
            progress()
    return Refined(found.detach(), before, best)


class Aim:
    """Where each element goes next. curvature: (1, M, 1, 1), in bits for a squared step."""

    def __init__(self, curvature: Tensor, movable: tuple[slice, slice], generator: torch.Generator) -> None:
        self.curvature, self.movable, self.generator = curvature, movable, generator
        self.factor: Tensor | float = 1.0  # of an element's curvature
        self.damping, self.share, self.last = 1.0, 1.0, None

    def move(self, y: Tensor, gradient: Tensor, quantised: Tensor, pace: float) -> Tensor:
        """y (1, M, h, w), whose movable elements, or a random share of them, are moved by `pace` of the way."""
        whole, (y, gradient, quantised) = y, (t[(..., *self.movable)] for t in (y, gradient, quantised))
        way = self.way(y, gradient, quantised)
        if self.last is not None:
            turned = way * self.last < 0
            self.factor = (self.factor * torch.where(turned, MORE_CURVED, LESS_CURVED).to(y)).clamp(*CURVATURES)
            way = self.way(y, gradient, quantised)
        self.last = way
        if self.share < 1:
            way = way * (torch.rand(way.shape, generator=self.generator) < self.share).to(way)
        moved = whole.clone()
        moved[(..., *self.movable)] += pace * way
        return moved

    def way(self, y: Tensor, gradient: Tensor, quantised: Tensor) -> Tensor:
        """From y to the aim; all (1, M, h, w)."""
        step = gradient / (self.curvature * self.factor * self.damping)
        return quantised - step.clamp(-FARTHEST, FARTHEST) - y

    def judge(self, better: bool) -> None:
        """After a step that lost, take shorter ones of fewer elements; after one that won, longer ones of more."""
        self.damping = max(0.7, self.damping * 0.97) if better else self.damping * 1.3
        self.share = min(1.0, self.share * 1.2) if better else 0.5
