"""Tables for files in the published layout, which other programs write and read."""

from __future__ import annotations

import copy

import compressai.entropy_models
import numpy as np
import torch

from models.layers.entropy_models import EntropyBottleneck, GaussianConditional
from utils.entropy_coding.frequencies import quantize_pmfs
from utils.entropy_coding.rans import Tables


@torch.no_grad()
def published_tables(prior: EntropyBottleneck) -> Tables:
    """A checkpoint's own tables, else those that CompressAI computes.

    CompressAI computes them in float32; they differ from ours by single counts in a few channels, which is enough to
    lose a file.
    """
    if not tables_are_ours(prior):
        return prior.tables()
    on_cpu = copy.deepcopy(prior).cpu()
    compressai.entropy_models.EntropyBottleneck.update(on_cpu, force=True)
    on_cpu.use(None)  # not the tables from before
    return on_cpu.tables()


def tables_are_ours(prior: EntropyBottleneck) -> bool:
    """Whether `update()` would compute the tables that are there: then they say nothing about other programs."""
    pmfs, offsets = prior.pmfs()
    own, there = (quantize_pmfs(pmfs)[0], offsets), (prior.quantized_cdf, prior.offset)
    return all(np.array_equal(a, b.cpu().numpy()) for a, b in zip(own, there))


def unfitted_tables(conditional: GaussianConditional) -> Tables:
    """A checkpoint's own tables of y, or the Gaussians themselves where these were fitted (--fit-tables)."""
    if not conditional.fitted:
        return conditional.tables()
    gaussians = copy.deepcopy(conditional)
    gaussians.update()
    return gaussians.tables()
