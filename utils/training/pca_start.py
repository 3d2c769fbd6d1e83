"""Start the transforms as a linear transform that works, instead of from noise: `train.py --start pca`.

A fresh autoencoder spends its first thousands of steps on learning what principal component analysis gives at once:
how neighbouring pixels relate. Here each downsampling convolution starts as the principal components of the 2x2 blocks
of its input, the transposed convolution of the same level as their inverse, and everything between as the identity
(the last convolution of each residual branch is zero). The cascade is an orthonormal transform of 16x16 blocks that
keeps M coefficients, as a JPEG coder's does of 8x8 blocks; training then bends it into what it is to become. Output
channels beyond the components keep their random weights and are free to learn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.attention import SwinStage
from models.layers.convolution import Down, ResidualBottleneck, Up
from utils.cli import UserError

if TYPE_CHECKING:
    from models.base import SliceCompressionModel
    from models.dcae import DCAE

TAPS = slice(2, 4)  # of a 5x5 kernel at stride 2: the two that cover each input pixel once


@torch.no_grad()
def start_as_pca(model: SliceCompressionModel, images: Tensor, weight: float | None) -> None:
    """Set g_a and g_s of a DCAE from images (B, 3, H, W) in [0, 1], H and W multiples of 16.

    y is scaled so that rounding is the quantiser of the trade-off lambda = `weight` (the middle of the range for
    variable-rate models, None). Raises UserError for other models.
    """
    from models.dcae import DCAE  # here, as CompressAI takes seconds to load

    if not isinstance(model, DCAE):
        raise UserError(f"--start pca: {model.model_name} has other transforms; it is for dcae")
    silence_branches(model.g_a)
    silence_branches(model.g_s)
    silence_bypass(model)
    scale = 1 / latent_step(model, weight)
    mean = images.mean((0, 2, 3))
    features = images - mean[:, None, None]
    levels = list(paired_convolutions(model))
    for k, (down, up) in enumerate(levels):
        blocks = F.unfold(features, 2, stride=2)  # (B, 4 C, H/2 * W/2), the four pixels of a block within a channel
        components = principal_components(blocks, down.out_channels)
        set_level(down, up, components.unflatten(1, (-1, 2, 2)), scale if k == len(levels) - 1 else 1.0)
        if k == 0:  # the only level whose input has a mean
            down.bias[: len(components)] = -down.weight[: len(components)].sum((2, 3)) @ mean
            up.bias.copy_(mean)
        side = (features.shape[2] // 2, features.shape[3] // 2)
        features = torch.einsum("rk,bkl->brl", components, blocks).unflatten(2, side)


def latent_step(model: DCAE, weight: float | None) -> float:
    """Of an orthonormal transform, at lambda = `weight`; None: at the middle of a variable-rate model's range."""
    return step_size(math.sqrt(math.prod(model.lambda_range)) if weight is None else weight)


def step_size(weight: float) -> float:
    """The step of a uniform quantiser at which lambda * 255^2 * d(MSE) + d(rate) = 0, by high-rate theory.

    For an orthonormal transform of three colours D = step^2 / 12 a coefficient and dD/dR = -2 ln(2) D.
    """
    return math.sqrt(12 * 3 / (weight * 255**2 * 2 * math.log(2)))


def silence_branches(transform: nn.Module) -> None:
    """Make residual blocks and Transformer stages the identity: zeros in the last convolution of each branch."""
    for module in transform.modules():
        if isinstance(module, (ResidualBottleneck, SwinStage)):
            last = module.conv3 if isinstance(module, ResidualBottleneck) else module.conv
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)


def silence_bypass(model: DCAE) -> None:
    """Let the linear path beside the transforms, where there is one, neither add to latents nor to images."""
    for layer in (model.bypass_a, model.bypass_s) if model.bypass else ():
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)


def paired_convolutions(model: DCAE) -> Iterator[tuple[nn.Conv2d, nn.ConvTranspose2d]]:
    """The downsampling convolutions of g_a from the image on, each with the one of g_s that undoes it."""
    down = [layer.conv for layer in model.g_a if isinstance(layer, Down)] + [model.g_a[-1]]
    up = [model.g_s[0]] + [layer.conv for layer in model.g_s if isinstance(layer, Up)]
    return zip(down, reversed(up))


def principal_components(blocks: Tensor, most: int) -> Tensor:
    """(B, n, L) -> the orthonormal (r, n) of largest variance, r = min(n, most), in descending order."""
    values = blocks.transpose(1, 2).reshape(-1, blocks.shape[1]).double()
    vectors = torch.linalg.eigh(values.T @ values)[1]  # columns, by ascending variance
    return vectors.flip(1)[:, :most].T.to(blocks.dtype)


def set_level(down: nn.Conv2d, up: nn.ConvTranspose2d, components: Tensor, scale: float) -> None:
    """Components (r, n, 2, 2) become the first r outputs of `down`, times scale, and the way back in `up`."""
    r, n = components.shape[:2]
    down.weight[:r] = 0
    down.weight[:, n:] = 0  # channels that hold no component contribute nothing yet
    down.weight[:r, :n, TAPS, TAPS] = components * scale
    nn.init.zeros_(down.bias)
    up.weight[:, :n] = 0
    up.weight[r:] = 0
    up.weight[:r, :n, TAPS, TAPS] = components / scale
    nn.init.zeros_(up.bias)
