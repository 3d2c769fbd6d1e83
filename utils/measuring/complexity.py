"""Multiply-accumulate operations (MACs) and parameters, exactly and as the papers count them.

    exact   what torch.utils.flop_counter counts, halved: convolutions, linear layers and the products of attention
    thop    what the library thop counts, which the papers' tables are made with (there called FLOPs). It differs:
            transposed convolutions are counted at their output's size, as if there were a product for each tap and
            output position, stride^2 times too many; layer norms are counted, with 4 operations a value; the products
            of attention (queries with keys, weights with values) are not seen at all, nor are those of generalised
            divisive normalisation (GDN), because neither is a layer that thop knows

Of the parameters, too, thop sees those of layers that it knows: no dictionary, relative positions, GDN or factorized
prior. Counted so, DCAE and TCM have the numbers of Table 1 of the paper of models/dcae.py: 252 and 305, 307 and 441
GMACs, 119.2 and 75.9 million parameters. (Its ELIC is another one.)
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import thop
import torch
from thop.vision.basic_hooks import count_convNd
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models.base import SliceCompressionModel
from models.coders import EstimatingCoder
from utils.data.padding import padded_size

LAYERS_OF_THOP = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.LayerNorm)
PARTS = ("g_a", "h_a", "entropy model", "g_s")


@dataclass(frozen=True)
class Macs:
    """The two counts."""

    exact: int = 0
    thop: int = 0

    def __add__(self, other: Macs) -> Macs:
        return Macs(self.exact + other.exact, self.thop + other.thop)

    def __sub__(self, other: Macs) -> Macs:
        return self + other * -1

    def __mul__(self, factor: int) -> Macs:
        return Macs(self.exact * factor, self.thop * factor)


class Part(nn.Module):
    """A part of a model as a module of its own, for thop."""

    def __init__(self, model: nn.Module, function: Callable[[], Any]) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self) -> Any:
        """What the function returns is kept in `result`."""
        self.result = self.function()
        return self.result


@torch.no_grad()
def count(model: nn.Module, function: Callable[[], Any]) -> tuple[Any, Macs]:
    """What `function` returns, and what its use of `model` takes to compute."""
    part, exact = Part(model, function), FlopCounterMode(display=False)
    convolutions = {type(layer): count_convNd for layer in model.modules() if isinstance(layer, nn.Conv2d)}
    with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH), exact:
        warnings.simplefilter("ignore")
        seen, _ = thop.profile(part, inputs=(), custom_ops=convolutions, verbose=False)
    return part.result, Macs(exact.get_total_flops() // 2, round(seen))


def count_parts(model: SliceCompressionModel, height: int, width: int) -> dict[str, Macs]:
    """MACs of g_a, h_a, the entropy model (hyper-synthesis and slices) and g_s for one image.

    Its sides are padded as the model pads them. Counted on the two smallest images: beside what is proportional to the
    area there is only what is done once, such as the dictionary's keys.
    """
    side = model.size_multiple
    rows, columns = padded_size(height, width, side)
    more = rows // side * (columns // side) - 1
    one, two = (count_image(model, side, count * side) for count in (1, 2))
    return {part: one[part] + (two[part] - one[part]) * more for part in PARTS}


def count_image(model: SliceCompressionModel, height: int, width: int) -> dict[str, Macs]:
    """The same for an image of this size, by computing what the model makes of it."""
    coder = EstimatingCoder(model.gaussian_conditional)
    y, of_analysis = count(model, lambda: model.analysis(torch.zeros(1, 3, height, width)))
    (z_hat, _), of_hyper = count(model, lambda: model.estimate_hyper(y))
    y_hat, of_slices = count(model, lambda: model.code_slices(z_hat, y, coder))
    of_synthesis = count(model, lambda: model.synthesis(y_hat))[1]
    return dict(zip(PARTS, (of_analysis, of_hyper, of_slices, of_synthesis)))


def encoder_and_decoder(parts: dict[str, Macs]) -> tuple[Macs, Macs]:
    """Both run the entropy model, since the encoder needs the distributions that the decoder will have."""
    return parts["g_a"] + parts["h_a"] + parts["entropy model"], parts["entropy model"] + parts["g_s"]


def parameters_of(model: nn.Module) -> int:
    """Learned values."""
    return sum(p.numel() for p in model.parameters())


def parameters_that_thop_sees(model: nn.Module) -> int:
    """Learned values of convolutions, linear layers and layer norms."""
    layers = [module for module in model.modules() if isinstance(module, LAYERS_OF_THOP)]
    return sum(p.numel() for layer in layers for p in layer.parameters(recurse=False))
