"""Winograd's 3x3 convolutions: a quarter of the multiplications.

"Fast Algorithms for Convolutional Neural Networks" (Lavin and Gray, CVPR 2016, arXiv:1509.09308), F(4x4, 3x3): tiles of
6x6 positions and the 3x3 kernels are transformed, multiplied position by position, and what comes out is transformed
to 4x4 results. All steps are matrix products, which every library computes at full speed in float32 and in float64.

The points 0, 2/3, -2/3, 3/2, -3/2 and infinity were searched for: in float32 rounding errors are those of a library's
direct convolution, with the usual 0, 1, -1, 2, -2 they would be three times as large.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

KERNEL, RESULT = 3, 4  # sides of kernel and result
TILE = RESULT + KERNEL - 1
POINTS = (0, 2 / 3, -2 / 3, 3 / 2, -3 / 2)  # and infinity
LEAST_CHANNELS = 128 * 128  # in times out, from which on float32 is faster than the library's

_direct: ContextVar[bool] = ContextVar("direct", default=False)


class Tiles:
    """Tokens (B, r, W, C) cut into transformed tiles, ready for any number of convolutions.

    Zeros are put around: `border` rows above and below, a column each side.
    """

    def __init__(self, x: Tensor, border: tuple[int, int]) -> None:
        self.batch, height, self.width, channels = x.shape
        self.rows = height + sum(border) - KERNEL + 1
        self.down, self.across = -(-self.rows // RESULT), -(-self.width // RESULT)
        right, below = RESULT * self.across - self.width + 1, RESULT * self.down + KERNEL - 1 - border[0] - height
        x = F.pad(x, (0, 0, 1, right, border[0], below))
        cut = rearrange(x.unfold(1, TILE, RESULT).unfold(2, TILE, RESULT), "b y x c i j -> (i j) (b y x c)")
        self.values = torch.mm(MATRICES[x.dtype][0], cut).unflatten(1, (-1, channels))  # (36, tiles, C)

    def convolve(self, kernels: Tensor, bias: Tensor | None = None) -> Tensor:
        """(36, C, out) as `transform_kernels` gives them, bias (out,) -> (B, r + border - 2, W, out)."""
        out = torch.mm(MATRICES[self.values.dtype][2], torch.bmm(self.values, kernels).flatten(1))
        sizes = {"i": RESULT, "b": self.batch, "y": self.down, "x": self.across}
        out = rearrange(out, "(i j) (b y x o) -> b (y i) (x j) o", **sizes)
        if bias is not None:
            out += bias
        return out[:, : self.rows, : self.width]


def transform_kernels(weight: Tensor) -> Tensor:
    """A convolution's weight (out, in, 3, 3), or its taps (9, in, out), -> (36, in, out), if it is not that already."""
    if transformed(weight):
        return weight
    of_kernel = MATRICES[weight.dtype][1]
    if weight.dim() == 3:
        return torch.mm(of_kernel, weight.flatten(1)).unflatten(1, weight.shape[1:])
    taps = weight.flatten(2).flatten(0, 1).T.contiguous()  # seen through strides, it would take several times as long
    return torch.mm(of_kernel, taps).unflatten(1, weight.shape[:2]).transpose(1, 2)


def transformed(weight: Tensor) -> bool:
    """Whether a layer's weight consists of transformed kernels."""
    return weight.dim() == 3 and len(weight) == TILE**2


def size_of_kernels(weight: Tensor) -> int:
    """Bytes that a layer's transformed kernels take beside its weight, 0 where they are its weight."""
    return 0 if transformed(weight) else TILE**2 * weight.nbytes // KERNEL**2


def workspace(model: nn.Module) -> int:
    """Bytes for transformed kernels that are not kept: three of the widest layers' at once, and what they come from."""
    return max((4 * size_of_kernels(layer.weight) for layer in model.modules() if applies(layer)), default=0)


@contextmanager
def direct() -> Iterator[None]:
    """Inside the block `pays` is never true: for counting what convolutions as they are defined take."""
    token = _direct.set(True)
    try:
        yield
    finally:
        _direct.reset(token)


def applies(layer: nn.Module) -> bool:
    """Whether it is a dense 3x3 convolution of stride 1 whose zero padding keeps the size, or consists of such."""
    if type(layer).forward is not nn.Conv2d.forward:
        return getattr(layer, "tiled", False)  # those of models.portable
    dense = (layer.stride, layer.dilation, layer.groups) == ((1, 1), (1, 1), 1)
    return dense and (layer.kernel_size, layer.padding, layer.padding_mode) == ((KERNEL, KERNEL), (1, 1), "zeros")


def pays(x: Tensor, *layers: nn.Module) -> bool:
    """Whether these convolutions of x, a map or its tokens, are faster this way.

    They are on CPUs, without gradients, in float64 and, from some width on, in float32.
    """
    if _direct.get() or x.device.type != "cpu" or x.dtype not in MATRICES:
        return False
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return False
    if not all(map(applies, layers)):
        return False
    channels = layers[0].in_channels * sum(layer.out_channels for layer in layers)
    return x.dtype == torch.float64 or channels >= LEAST_CHANNELS


def matrices(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Transforms of a tile (36, 36), of a kernel (36, 9) and to the result (16, 36), for row and column at once.

    With points p: the kernel's polynomial at p over prod_j (p_i - p_j); the tile times the coefficients of
    prod_{j != i} (x - p_j); the result from the powers of p. Infinity takes the highest coefficients. Factors of
    two between tile and kernel make both equally large.
    """
    points = np.array(POINTS)
    kernel, tile, result = np.zeros((TILE, KERNEL)), np.zeros((TILE, TILE)), np.zeros((RESULT, TILE))
    for i, point in enumerate(points):
        others = np.delete(points, i)
        kernel[i] = point ** np.arange(KERNEL) / np.prod(point - others)
        tile[i, :-1] = np.poly(others)[::-1]
        result[:, i] = point ** np.arange(RESULT)
    kernel[-1, -1], tile[-1], result[-1, -1] = 1, np.poly(points)[::-1], 1
    scale = np.exp2(np.round(np.log2(abs(kernel).max(1) / abs(tile).max(1)) / 2))[:, None]
    both = [np.kron(m, m) for m in (tile * scale, kernel / scale, result)]
    return tuple(torch.from_numpy(m).to(dtype) for m in both)


MATRICES = {dtype: matrices(dtype) for dtype in (torch.float32, torch.float64)}
