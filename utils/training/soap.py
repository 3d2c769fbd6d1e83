"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner.

"SOAP: Improving and Stabilizing Shampoo using Adam" (Vyas et al., ICLR 2025, arXiv:2409.11321). A gradient G of a
matrix has row statistics L = average of G G^T and column statistics R = average of G^T G. With Q_L and Q_R their
eigenvectors, Adam works on Q_L^T G Q_R, and what it wants to do is rotated back. The bases follow the statistics by one
step of power iteration and a QR decomposition now and then (the paper's Algorithm 4), which is all that makes a step
dearer than Adam's. One thing is added: no step in a basis is longer than Adam's can be (`largest_step`).

Kernels of convolutions are (positions, out, in), with a basis for each of the three axes. Axes longer than `largest`
are not rotated, and groups with `rotated` False hold what is no matrix of a layer: plain Adam with the same averages.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam

LARGEST = 256  # longer axes are not rotated: their bases would cost more than the pass itself
STATISTICS_EVERY, BASIS_EVERY = 2, 10  # steps; the bases of different parameters are due at different steps


class Soap(torch.optim.Optimizer):
    """SOAP on the groups with `rotated`, Adam on the others.

    The state that it adds to Adam's: `statistics` and `bases`, a square matrix each for every axis that is rotated.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float] = (0.95, 0.95), eps: float = 1e-8,
        largest: int = LARGEST,
    ) -> None:  # fmt: skip
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "largest": largest, "rotated": True})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """Move the weights along their gradients; `closure` is there for torch's interface and not called."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            work = [self.rotated(i, p, group) for i, p in enumerate(parameters)] if group["rotated"] else []
            work = work or [(p, p.grad, self.adam_state(p, p)) for p in parameters]
            if work:
                move(work, group)
            if group["rotated"]:
                most = group["lr"] * largest_step(*group["betas"])
                for p, (change, _, state) in zip(parameters, work):
                    change.clamp_(-most, most)
                    p.add_(from_matrices(rotate(change, state["bases"], back=True), p.shape))

    def adam_state(self, p: Tensor, like: Tensor) -> dict[str, Any]:
        """Adam's state of a parameter, fresh where there is none; its averages are like `like`, of any shape."""
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(like), torch.zeros_like(like)
        return state

    def rotated(self, index: int, p: Tensor, group: dict[str, Any]) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Zeros for the change of parameter `index`, its gradient in today's basis, both (k, a, b), and its state."""
        gradient = as_matrices(p.grad)
        state = self.adam_state(p, gradient)
        step = int(state["step"])
        if step == 0:
            state["statistics"] = [outer(gradient, axis) if due else None for axis, due in axes_of(gradient, group)]
            state["bases"] = [None if s is None else eigenvectors(s) for s in state["statistics"]]
        elif (step + index) % STATISTICS_EVERY == 0:
            for axis, statistics in enumerate(state["statistics"]):
                if statistics is not None:
                    statistics.lerp_(outer(gradient, axis), 1 - group["betas"][1])
        if step and (step + index) % BASIS_EVERY == 0:
            renew_bases(state)
        gradient = rotate(gradient, state["bases"])
        return torch.zeros_like(gradient), gradient, state


def move(work: list[tuple[Tensor, Tensor, dict[str, Any]]], group: dict[str, Any]) -> None:
    """One step of Adam on (what moves, gradient, state)."""
    moved, gradients, states = zip(*work)
    averages, squares, steps = ([state[key] for state in states] for key in ("exp_avg", "exp_avg_sq", "step"))
    fused = moved[0].device.type == "cpu"  # a GPU's would want the counts of steps there, where reading them waits
    adam(
        list(moved), list(gradients), averages, squares, [], steps, fused=fused, foreach=not fused, amsgrad=False,
        beta1=group["betas"][0], beta2=group["betas"][1], lr=group["lr"], weight_decay=0.0, eps=group["eps"],
        maximize=False,
    )  # fmt: skip


def largest_step(beta1: float, beta2: float) -> float:
    """The most that Adam moves a weight, in learning rates, if its averages are of the same gradients.

    Turned bases break that: the first average is turned exactly, the second cannot be. Where it is left too small,
    steps of tens of learning rates would follow, enough to throw an entropy model off course.
    """
    rest = (1 - beta2) * (1 - beta1**2 / beta2)  # Cauchy and Schwarz; 1 for two equal betas
    return (1 - beta1) / rest**0.5 if rest > 0 else math.inf


def as_matrices(weight: Tensor) -> Tensor:
    """A linear layer's or convolution's weight (a, b, ...) as (kernel positions, a, b)."""
    return weight.flatten(2).permute(2, 0, 1).contiguous() if weight.dim() > 2 else weight.unsqueeze(0)


def from_matrices(matrices: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `as_matrices`: (kernel positions, a, b) -> a weight of `shape`."""
    return matrices.permute(1, 2, 0).reshape(shape)


def axes_of(gradient: Tensor, group: dict[str, Any]) -> list[tuple[int, bool]]:
    """The three axes of a gradient (k, a, b), each with whether it is rotated."""
    return [(axis, 1 < side <= group["largest"]) for axis, side in enumerate(gradient.shape)]


def outer(gradient: Tensor, axis: int) -> Tensor:
    """(n, n): the products of an axis of length n with itself, summed over the others."""
    if axis == 2:
        rows = gradient.flatten(0, 1)
        return rows.T @ rows
    rows = gradient.transpose(0, axis).flatten(1)
    return rows @ rows.T


def eigenvectors(statistics: Tensor) -> Tensor:
    """The columns of an orthogonal matrix, in falling order of their eigenvalues.

    In float64: in float32 LAPACK gives up on matrices whose entries go from 1e-6 down to the smallest that there are,
    as those of a layer with nearly dead channels do.
    """
    return torch.linalg.eigh(statistics.double())[1].flip(1).to(statistics.dtype)


def rotate(matrices: Tensor, bases: list[Tensor | None], back: bool = False) -> Tensor:
    """(k, a, b) in the bases, or from there back; axes without a basis stay as they are."""
    positions, rows, columns = (basis.T if basis is not None and back else basis for basis in bases)
    if columns is not None:
        matrices = (matrices.flatten(0, 1) @ columns).view(matrices.shape)
    if rows is not None:
        matrices = torch.matmul(rows.T, matrices)
    if positions is not None:
        matrices = (positions.T @ matrices.flatten(1)).view(matrices.shape)
    return matrices


def renew_bases(state: dict[str, Any]) -> None:
    """Turn the bases towards the eigenvectors of the statistics, and the averages with them."""
    turns: list[Tensor | None] = [None] * 3
    for axis, (statistics, basis) in enumerate(zip(state["statistics"], state["bases"])):
        if basis is not None:
            stretched = statistics @ basis
            order = (basis * stretched).sum(0).argsort(descending=True, stable=True)
            state["exp_avg_sq"] = state["exp_avg_sq"].index_select(axis, order)
            state["bases"][axis] = torch.linalg.qr(stretched[:, order])[0]
            turns[axis] = basis.T @ state["bases"][axis]
    state["exp_avg"] = rotate(state["exp_avg"], turns)
