"""One training step: passes forward and backward, then the optimizers, unless something is not finite."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.layers.gain import lambda_of_quality
from utils.cli import UserError
from utils.training.distributed import Processes, end_of, mean_over
from utils.training.losses import rate_distortion
from utils.training.optimization import clip_gradient, set_rate, weights_of
from utils.training.run_state import RunState

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MOST_NOT_FINITE = 20  # skipped steps in a row: one comes from an unlucky batch, so many from a run that is broken


@dataclass(frozen=True)
class Recipe:
    """What stays the same from step to step. `weight` is lambda, None where it is drawn for each image."""

    metric: str
    weight: float | None
    precision: str
    accumulate: int
    clip: float
    device: torch.device
    processes: Processes


@dataclass(frozen=True)
class StepResult:
    """Scalars and lists of scalars of a step, means over all processes; whether it was finite and the weights moved;
    seconds waited for data; undecodable images passed over; whether a process wants to stop."""

    values: dict[str, Any]
    finite: bool
    waited: float
    passed_over: int
    stop: bool


def train_step(
    state: RunState, network: nn.Module, batches: Iterator, recipe: Recipe, stop: bool = False
) -> StepResult:
    """Do one step on the next `accumulate` batches. `network` is the model as it is trained: compiled, behind DDP.

    Raises UserError where MOST_NOT_FINITE steps in a row had to be skipped.
    """
    set_rate(state.optimizer, state.schedule(state.progress))
    state.optimizer.zero_grad()
    state.aux_optimizer.zero_grad()
    passes, waited, passed_over = [], 0.0, 0.0
    for i in range(recipe.accumulate):
        begin = time.perf_counter()
        pixels, quality, passed = next(batches)
        waited, passed_over = waited + time.perf_counter() - begin, passed_over + float(passed.sum())
        with local_gradients(network, i + 1 < recipe.accumulate):
            passes.append(run_within_memory(state, network, pixels, quality, recipe))
    parts = {name: torch.stack([part[name] for part in passes]).mean(0) for name in passes[0]}
    aux = state.model.aux_loss()
    aux.backward()
    state.scaler.unscale_(state.optimizer)
    parts |= {"aux": aux.detach(), "gradient_norm": clip_gradient(weights_of(state.model), recipe.clip)}
    extra = {"waited": waited, "passed_over": passed_over, "stop": float(stop)}
    values = shared_means(parts | {name: aux.new_tensor(value) for name, value in extra.items()}, recipe.processes)
    waited, passed, stopping = (values.pop(name) for name in extra)
    finite = math.isfinite(values["loss"]) and math.isfinite(values["gradient_norm"])
    move_weights(state, finite)
    if state.not_finite["in_row"] >= MOST_NOT_FINITE:
        problem = f"loss or gradient was not finite in {MOST_NOT_FINITE} steps in a row, up to step {state.step}"
        way_out = "go on from the last checkpoint with a lower --learning-rate or --precision fp32"
        raise end_of(recipe.processes, f"{problem}; {way_out}")
    return StepResult(values, finite, waited, round(passed * recipe.processes.count), stopping > 0)


def local_gradients(network: nn.Module, wanted: bool) -> AbstractContextManager:
    """Within it, DDP adds gradients up on this process and leaves their exchange to a later pass."""
    return network.no_sync() if wanted and hasattr(network, "no_sync") else nullcontext()


def run_within_memory(
    state: RunState, network: nn.Module, pixels: Tensor, quality: Tensor, recipe: Recipe
) -> dict[str, Tensor]:
    """`run_pass` of uint8 (B, P, P, 3) and quality (B,); raises UserError where the GPU's memory does not suffice."""
    try:
        return run_pass(state, network, pixels, quality, recipe)
    except torch.OutOfMemoryError as error:
        way_out = "choose a smaller one with a larger --accumulate, or --precision bf16"
        raise UserError(f"--batch-size {len(pixels)}: needs more memory than the GPU has; {way_out}") from error


def run_pass(state: RunState, network: nn.Module, pixels: Tensor, quality: Tensor, recipe: Recipe) -> dict[str, Tensor]:
    """Forward and backward of one batch, uint8 (B, P, P, 3) and quality (B,); returns the parts of the loss."""
    x = pixels.to(recipe.device, non_blocking=True).permute(0, 3, 1, 2).to(state.model.dtype) / 255  # (B, 3, P, P)
    quality = quality.to(recipe.device, torch.float32)
    variable = recipe.weight is None
    span = state.model.lambda_range if variable else None
    lambdas = lambda_of_quality(quality, span) if variable else torch.full_like(quality, recipe.weight)
    with transforms_in(recipe.precision, recipe.device):
        out = network(x, quality if variable else None)
    parts = rate_distortion(out, x, lambdas, recipe.metric, state.model.slice_sizes, balanced=span)
    state.scaler.scale(parts["loss"] / recipe.accumulate).backward()
    return {name: part.detach() for name, part in parts.items()}


def transforms_in(precision: str, device: torch.device) -> AbstractContextManager:
    """Autocast of the forward pass; the models keep likelihoods and what they depend on last out of it."""
    return torch.autocast(device.type, PRECISIONS[precision], enabled=precision != "fp32")


def shared_means(parts: dict[str, Tensor], processes: Processes) -> dict[str, Any]:
    """Means over the processes, of scalars as floats and of (n,) as lists; the GPU has to be waited for once."""
    flat = torch.cat([part.reshape(-1).double() for part in parts.values()])
    numbers = iter(mean_over(processes, flat).tolist())
    return {
        name: [next(numbers) for _ in range(part.numel())] if part.dim() else next(numbers)
        for name, part in parts.items()
    }


def move_weights(state: RunState, finite: bool) -> None:
    """Let the optimizers do their step, or skip and count it. The loss scale falls where fp16 overflowed."""
    if finite:
        state.scaler.step(state.optimizer)
        state.aux_optimizer.step()
    state.scaler.update()
    state.step += 1
    state.seen += state.batch
    state.not_finite["in_row"] = 0 if finite else state.not_finite["in_row"] + 1
    state.not_finite["total"] += not finite
    if finite and state.average:
        state.average.follow(state.model, state.step)
