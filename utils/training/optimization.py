"""What moves the weights: two optimizers, the learning rate over time, the moving average."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from utils.training.soap import Soap

if TYPE_CHECKING:
    from models.base import SliceCompressionModel

COSINE_END = 0.01  # of the learning rate
TRANSFORM_RATE = 0.25  # of SOAP's learning rate, for analysis and synthesis: at the whole rate they diverge
DECODER = ("g_s.", "bypass_s.", "lrp_transforms.", "gain.log_inverse_gain")
SCHEDULES = ("step", "cosine", "constant", "linear")


def is_auxiliary(name: str) -> bool:
    """Whether a parameter belongs to the second optimizer: the quantiles of the factorized prior."""
    return name.endswith(".quantiles")


def weights_of(model: nn.Module) -> list[nn.Parameter]:
    """All parameters that are trained, but the quantiles."""
    return [p for n, p in model.named_parameters() if p.requires_grad and not is_auxiliary(n)]


def quantiles_of(model: nn.Module) -> list[nn.Parameter]:
    """The quantiles, which have a loss of their own."""
    return [p for n, p in model.named_parameters() if is_auxiliary(n)]


def make_optimizers(
    model: nn.Module, rate: float, aux_rate: float, name: str = "adam"
) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """The optimizer of that name (of OPTIMIZERS) on all weights but the quantiles, and Adam on the quantiles."""
    return OPTIMIZERS[name](model, rate), torch.optim.Adam(quantiles_of(model), aux_rate)


def make_adam(model: nn.Module, rate: float) -> torch.optim.Optimizer:
    """Adam, as the papers use it."""
    return torch.optim.Adam(weights_of(model), rate, fused=True)


def make_soap(model: SliceCompressionModel, rate: float) -> Soap:
    """SOAP on the matrices of linear layers and convolutions, Adam on all else; transforms at TRANSFORM_RATE."""
    names = {name for name, module in model.named_modules() if is_matrix_layer(module)}
    transforms = tuple(f"{name}." for name in model.transform_names)
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not is_auxiliary(name):
            key = name.startswith(transforms), name.removesuffix(".weight") in names
            groups.setdefault(key, []).append(parameter)
    return Soap(
        (
            {"params": parameters, "rotated": rotated, "share": TRANSFORM_RATE if transform else 1.0}
            for (transform, rotated), parameters in groups.items()
        ),
        rate,
    )


def is_matrix_layer(module: nn.Module) -> bool:
    """Whether a layer's weight mixes channels: not that of a depthwise convolution."""
    whole = isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) and module.groups == 1
    return whole or isinstance(module, nn.Linear)


OPTIMIZERS = {"adam": make_adam, "soap": make_soap}


def freeze_all_but_decoder(model: nn.Module) -> None:
    """Leave synthesis, latent residual prediction and inverse gains to be trained, and what is coded as it is.

    A last phase ("hard-rounded latents", arXiv:2506.08662): with the latents given, the decoder can adapt to them as
    they are, rounded. The quantiles keep their gradient, for their own optimizer; its rate is to be 0.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_auxiliary(name) or name.startswith(DECODER))


@dataclass(frozen=True)
class Schedule:
    """The learning rate as a function of the step alone, so that resuming needs nothing else.

    Where a run has changed its batch size, steps are counted as if all had had the present one.
    """

    kind: str  # constant, step (a tenth from each milestone on), cosine (to a hundredth), linear (to 0 at the end)
    rate: float
    warmup: int
    total: float
    milestones: tuple[int, ...]
    cooldown: float = 0.4  # share of all steps in which a linear schedule falls; before them it is constant

    def __call__(self, step: float) -> float:
        """The rate of a step, counted from 0."""
        rate = self.rate * min(1.0, (step + 1) / self.warmup) if self.warmup else self.rate
        if self.kind == "step":
            return rate * 0.1 ** sum(step >= milestone for milestone in self.milestones)
        if self.kind == "cosine":
            progress = min(1.0, step / self.total)
            return rate * (COSINE_END + (1 - COSINE_END) * 0.5 * (1 + math.cos(math.pi * progress)))
        if self.kind == "linear" and self.cooldown:
            return rate * min(1.0, (self.total - step) / (self.cooldown * self.total))
        return rate


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give all parameters of the optimizer this learning rate, or their group's share of it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("share", 1.0)


def clip_gradient(parameters: list[nn.Parameter], most: float) -> Tensor:
    """The norm of all gradients together, a scalar; they are scaled down to `most` if that is positive and exceeded."""
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if most > 0:
        nn.utils.clip_grads_with_norm_(parameters, most, norm)
    return norm


class Average:
    """The exponential moving average of a model's weights; it follows closely at first, while they change fast."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def follow(self, model: nn.Module, step: int) -> None:
        """Take in the weights after `step` steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - decay)
        self.model.eval()  # and it forgets what it derived from the weights before
