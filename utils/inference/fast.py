"""The engine: a model in, a quick copy of it out.

    quick = fast(model)                # shares all tensors; modules whose class is in the table got the faster class
    path = portable(model)             # what the entropy coder depends on, in float64 (utils/inference/float64.py)

A module is replaced only where its class is exactly one of the table's plain ones, as it was when the faster one was
written (written.py), and where the parts that the faster class computes by itself are of the kinds that it knows.
Whatever else a model is made of, a subclass, an edited class or a block of somebody's own, computes as it is written. A
copy is of the weights as they are now: after training, make a new one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from torch import nn

from models.base import SliceCompressionModel
from utils.inference.blocks import FastBottleneck, FastDown, FastUp
from utils.inference.dictionary import FastAggregation, FastCrossAttention, FastDenseScales, FastEfficientConvolution
from utils.inference.rows import (
    ProductLinear,
    Striped,
    StripedConvolution,
    StripedDeconvolution,
    StripedExactConvolution,
)
from utils.inference.slices import share_first_layers
from utils.inference.swin import FastGatedUnit, FastPlainSwinBlock, FastSwinLayer, FastSwinStage, FastWindowAttention

BLOCKS: tuple[type[Striped], ...] = (
    ProductLinear, FastBottleneck, FastDown, FastUp, FastWindowAttention, FastGatedUnit, FastSwinLayer, FastSwinStage,
    FastPlainSwinBlock, FastEfficientConvolution, FastDenseScales, FastAggregation, FastCrossAttention,
)  # fmt: skip
CONVOLUTIONS: tuple[type[Striped], ...] = (StripedConvolution, StripedExactConvolution, StripedDeconvolution)
TRANSPARENT = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.Identity, nn.GELU, nn.ReLU)  # no maps of their own


def fast(model: SliceCompressionModel) -> SliceCompressionModel:
    """A copy in eval mode that computes the same faster, but for the order of sums; for inference alone."""
    quick = shared_copy(model).eval()
    quicken(quick, CONVOLUTIONS)
    share_first_layers(quick)
    return quick


def quicken(module: nn.Module, convolutions: Sequence[type[Striped]]) -> None:
    """Give a module and all below it the faster classes, from the inside out; of several the first that fits."""
    for child in module.children():
        quicken(child, convolutions)
    for kind in (*BLOCKS, *convolutions):
        if type(module) is kind.plain and kind.fits(module):
            module.__class__ = kind
            module.prepare()
            return


def shared_copy(model: nn.Module, instead: dict[int, Any] | None = None) -> nn.Module:
    """A copy of the modules, whose tensors are the model's own; `instead`: what takes the place of objects, by id."""
    tensors = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    return copy.deepcopy(model, tensors | (instead or {}))


def uncut(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The layers of a quick copy that work on whole maps, with their names."""
    if isinstance(module, Striped):
        for part in module.others:
            yield from uncut(getattr(module, part), f"{name}.{part}")
    elif any(isinstance(module, kind) and type(module).forward is kind.forward for kind in TRANSPARENT):
        for key, child in module.named_children():
            yield from uncut(child, f"{name}.{key}")
    else:
        yield name, module
