"""Noise of several training processes, drawn as one process with the whole batch would draw it."""

from __future__ import annotations

from torch import Tensor

from models.base import SliceCompressionModel
from models.layers.entropy_models import EntropyBottleneck, GaussianConditional
from utils.training.distributed import Processes


class SharedNoise:
    """An entropy model whose noise is this process's share of the noise for all processes' batches.

    With generators in the same state, several processes then train as one with all of the batch would.
    """

    processes = Processes()
    batch_dim = 0  # of what `quantize` gets

    def quantize(self, inputs: Tensor, mode: str, means: Tensor | None = None) -> Tensor:
        """`inputs`, of any shape whose `batch_dim` runs over the batch, with noise, or rounded as by CompressAI."""
        if mode != "noise":
            return super().quantize(inputs, mode, means)
        shape, batch = list(inputs.shape), inputs.shape[self.batch_dim]
        shape[self.batch_dim] *= self.processes.count
        noise = inputs.new_empty(shape).uniform_(-0.5, 0.5)
        return inputs + noise.narrow(self.batch_dim, self.processes.rank * batch, batch)


class SharedBottleneck(SharedNoise, EntropyBottleneck):
    """The factorized prior, which quantises (C, 1, B * h * w)."""

    batch_dim = -1


class SharedConditional(SharedNoise, GaussianConditional):
    """The Gaussian conditional, which quantises (B, C, h, w)."""


SHARED = {EntropyBottleneck: SharedBottleneck, GaussianConditional: SharedConditional}


def share_noise(model: SliceCompressionModel, processes: Processes) -> None:
    """Let the entropy models of `model` draw their noise together with those of the other processes.

    Entropy models of other classes are left alone: each process then has noise of its own.
    """
    for prior in model.entropy_models():
        if type(prior) in SHARED:
            prior.__class__, prior.processes = SHARED[type(prior)], processes
