"""The three networks of a slice read one support: it is cut into tiles once for all of their first layers.

That is a twentieth of the time of portable files. The residual network reads the support and the slice; what its first
layer makes of both is the sum of what it makes of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from models.base import SliceCompressionModel
from models.layers.convolution import EntropyParameters
from utils.inference import winograd
from utils.inference.rows import STRIPES_OF_TILES, StripedConvolution, cut, has_hooks, put, to_map, tokens_of
from utils.inference.written import is_as_written

WRITTEN = "fbabae47"  # digest of the two methods of the base class that are computed here


def share_first_layers(quick: SliceCompressionModel) -> None:
    """Let a quick copy share, where its way of coding a slice and the networks for that are those of the base class."""
    methods = SliceCompressionModel.code_slice, SliceCompressionModel.latent_residual
    usual = (type(quick).code_slice, type(quick).latent_residual) == methods
    if usual and is_as_written(WRITTEN, *methods):
        groups = quick.cc_mean_transforms, quick.cc_scale_transforms, quick.lrp_transforms
        if all(is_usual(network) for group in groups for network in group):
            quick.code_slice = partial(code_slice, quick)


def is_usual(network: nn.Module) -> bool:
    """Whether a network is the usual one and has no hooks, so that its first layer need not be called as such."""
    usual = type(network) is EntropyParameters and isinstance(network[0], StripedConvolution)
    return usual and not has_hooks(network) and not has_hooks(network[0])


def code_slice(
    quick: SliceCompressionModel, i: int, y_i: Tensor | None, mean_support: Tensor, scale_support: Tensor, coder
) -> Tensor:
    """Slice i of y_hat (B, slice_sizes[i], h, w), as by the method of the base class."""
    mean, scale, residual = (
        group[i] for group in (quick.cc_mean_transforms, quick.cc_scale_transforms, quick.lrp_transforms)
    )
    layers = mean[0], scale[0], residual[0]
    if mean_support is not scale_support or not winograd.pays(mean_support, *layers):
        return type(quick).code_slice(quick, i, y_i, mean_support, scale_support, coder)
    of_mean, of_scale, of_support = convolutions(layers, mean_support)
    y_hat_i = coder(y_i, after_first(mean, of_mean), after_first(scale, of_scale))
    hidden = of_support + of_last_channels(residual[0], y_hat_i)
    return y_hat_i + 0.5 * torch.tanh(after_first(residual, hidden))


def after_first(network: EntropyParameters, hidden: Tensor) -> Tensor:
    """(B, widths[0], h, w), its first layer's output -> a network's output (B, out_channels, h, w)."""
    for layer in list(network)[1:]:
        hidden = layer(hidden)
    return hidden


def convolutions(layers: Sequence[StripedConvolution], x: Tensor) -> list[Tensor]:
    """What 3x3 convolutions make of one map (B, C, H, W), which is transformed once for all of them.

    A layer may read more channels than these, its first ones: `of_last_channels` gives what has to be added.
    """
    tokens, height, channels = tokens_of(x), x.shape[2], x.shape[1]
    outs: list[Tensor | None] = [None] * len(layers)
    kernels = [winograd.transform_kernels(layer.weight[:, :channels]) for layer in layers]
    for top, bottom in cut(tokens, height, winograd.RESULT, STRIPES_OF_TILES):
        first, last = max(0, top - 1), min(height, bottom + 1)
        tiles = winograd.Tiles(tokens[:, first:last], (1 - (top - first), 1 - (last - bottom)))
        for j, layer in enumerate(layers):
            outs[j] = put(outs[j], tiles.convolve(kernels[j], layer.bias), height, top, bottom)
    return [to_map(out) for out in outs]


def of_last_channels(layer: StripedConvolution, x: Tensor) -> Tensor:
    """What a 3x3 convolution, without its bias, makes of the last channels of its input, which are x (B, C, H, W)."""
    kernels = winograd.transform_kernels(layer.weight[:, -x.shape[1] :])
    return to_map(winograd.Tiles(tokens_of(x), (1, 1)).convolve(kernels))
