"""Analysis and synthesis with weights in half the width, for `precision` bfloat16.

Autocast would convert every weight at each use, once a stripe; here they are converted once. What autocast leaves in
float32 (norms, sums) stays so, as do the layer that reads the image and the one that makes y. No file depends on it:
the entropy path keeps its own arithmetic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from models.layers.convolution import SliceTransform
from models.stripes import reads_pixels

if TYPE_CHECKING:
    from models.base import SliceCompressionModel


def narrow_copy(model: SliceCompressionModel, dtype: torch.dtype) -> SliceCompressionModel:
    """A copy whose transforms have their matrices in `dtype`; the rest is the model's own."""
    transforms = [name for name in model.transform_names if name in model._modules]
    narrow = model.copied({id(child): child for name, child in model.named_children() if name not in transforms})
    for name in transforms:
        network = getattr(narrow, name).eval().requires_grad_(False)
        last = network.last_convolution if isinstance(network, SliceTransform) else None
        for layer in network.modules():
            leaves_autocast = layer is last or reads_pixels(layer)
            if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d) and not leaves_autocast:
                layer.to(dtype)
    return narrow
