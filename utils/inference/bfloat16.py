"""Analysis and synthesis with weights in bfloat16.

Autocast would convert every weight at each use, that is, for each stripe; here they are converted once. What autocast
leaves in float32 (norms, sums) stays in float32, and so do exact convolutions. No file depends on it: the entropy path
keeps its own arithmetic.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from models.base import SliceCompressionModel
from models.layers.convolution import ExactConvolution
from utils.inference.rows import StripedExactConvolution
from utils.inference.swin import FastGatedUnit

MATRICES = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
EXACT = (ExactConvolution, StripedExactConvolution)  # they stay in float32


def in_bfloat16(quick: SliceCompressionModel) -> None:
    """Let a quick copy compute its transforms in bfloat16; the tensors of the model that it shares stay as they are."""
    for name in ("g_a", "g_s"):
        for layer in getattr(quick, name).modules():
            if isinstance(layer, MATRICES) and not isinstance(layer, EXACT):
                for key, parameter in layer.named_parameters(recurse=False):
                    setattr(layer, key, nn.Parameter(parameter.detach().bfloat16(), requires_grad=False))
        for unit in getattr(quick, name).modules():
            if isinstance(unit, FastGatedUnit):
                unit.prepare()
    quick.analysis, quick.synthesis = (partial(in_autocast, way) for way in (quick.analysis, quick.synthesis))


def in_autocast(transform, x: Tensor) -> Tensor:
    """transform(x) of a map (B, C, H, W), with products in bfloat16; the result has the type of x."""
    with torch.autocast(x.device.type, torch.bfloat16):
        return transform(x).to(x.dtype)
