"""What moves the weights: two optimizers, the learning rate over time, the moving average."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

COSINE_END = 0.01  # of the learning rate


def is_auxiliary(name: str) -> bool:
    """Whether a parameter belongs to the second optimizer: the quantiles of the factorized prior."""
    return name.endswith(".quantiles")


def weights_of(model: nn.Module) -> list[nn.Parameter]:
    """All parameters but the quantiles."""
    return [p for n, p in model.named_parameters() if not is_auxiliary(n)]


def quantiles_of(model: nn.Module) -> list[nn.Parameter]:
    """The quantiles, which have a loss of their own."""
    return [p for n, p in model.named_parameters() if is_auxiliary(n)]


def make_optimizers(
    model: nn.Module, rate: float, aux_rate: float
) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """Adam on all weights but the quantiles, and Adam on the quantiles."""
    return torch.optim.Adam(weights_of(model), rate, fused=True), torch.optim.Adam(quantiles_of(model), aux_rate)


@dataclass(frozen=True)
class Schedule:
    """The learning rate as a function of the step alone, so that resuming needs nothing else."""

    kind: str  # constant, step (a tenth from each milestone on) or cosine (down to a hundredth)
    rate: float
    warmup: int
    total: int
    milestones: tuple[int, ...]

    def __call__(self, step: int) -> float:
        """The rate of a step, counted from 0."""
        rate = self.rate * min(1.0, (step + 1) / self.warmup) if self.warmup else self.rate
        if self.kind == "step":
            return rate * 0.1 ** sum(step >= milestone for milestone in self.milestones)
        if self.kind == "cosine":
            progress = min(1.0, step / self.total)
            return rate * (COSINE_END + (1 - COSINE_END) * 0.5 * (1 + math.cos(math.pi * progress)))
        return rate


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give all parameters of the optimizer this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def clip_gradient(parameters: list[nn.Parameter], most: float) -> Tensor:
    """The norm of all gradients together; they are scaled down to `most` if that is above 0 and they are larger."""
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
