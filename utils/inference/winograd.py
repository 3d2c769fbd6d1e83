"""Winograd's 3x3 convolutions: a quarter of the multiplications.

"Fast Algorithms for Convolutional Neural Networks" (Lavin and Gray, CVPR 2016, arXiv:1509.09308), F(4x4, 3x3): tiles of
6x6 positions and the 3x3 kernels are transformed, multiplied position by position, and what comes out is transformed
to 4x4 results. The products are matrix products, which every library computes at full speed in float32 and in float64;
the transforms are loops of `utils/inference/loops.py`.

The points 0, 2/3, -2/3, 3/2, -3/2 and infinity were searched for: in float32 rounding errors are those of a library's
direct convolution, with the usual 0, 1, -1, 2, -2 they would be three times as large.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from utils.inference import products
from utils.inference.threads import flat, in_threads

KERNEL, RESULT = 3, 4  # sides of kernel and result
TILE = RESULT + KERNEL - 1
A, B = 2 / 3, 3 / 2
POINTS = (0, A, -A, B, -B)  # and infinity
COMBINATIONS = (A, B, A**2, B**2, A**2 + B**2, A**3, B**3)  # that the transforms of tiles need
LEAST_CHANNELS = 128 * 128  # in times out, from which on float32 is faster than the library's


class Tiles:
    """Tokens (B, r, W, C) cut into transformed tiles, ready for any number of convolutions.

    Zeros are put around: `border` rows above and below, a column each side.
    """

    def __init__(self, x: Tensor, border: tuple[int, int]) -> None:
        from utils.inference.loops import cut_tiles  # here, as Numba is slow to import

        self.batch, height, self.width, channels = x.shape
        self.rows = height + sum(border) - KERNEL + 1
        self.down, across = -(-self.rows // RESULT), -(-self.width // RESULT)
        self.values = x.new_empty(TILE**2, self.batch * self.down * across, channels)
        size = self.down, height, self.width, channels
        arrays = flat(x), *size, border[0], CONSTANTS[x.dtype], flat(self.values)
        in_threads(cut_tiles, self.batch * self.down, self.values.numel(), *arrays)

    def convolve(self, kernels: Tensor, bias: Tensor | None = None, constant: bool = False) -> Tensor:
        """(36, C, out) as `transform_kernels` gives them, bias (out,) -> (B, r + border - 2, W, out).

        constant: whether the tensor `kernels` is kept, so that packing it pays.
        """
        from utils.inference.loops import join_tiles

        results, channels = products.batched(self.values, kernels, constant), kernels.shape[-1]
        bias = results.new_zeros(channels) if bias is None else bias
        out = results.new_empty(self.batch, self.rows, self.width, channels)
        size = self.down, self.rows, self.width, channels
        arrays = flat(results), flat(bias), *size, CONSTANTS[out.dtype], flat(out)
        in_threads(join_tiles, self.batch * self.down, results.numel(), *arrays)
        return out


def warm_up() -> None:
    """Load the loops, so that what they take is held from now on."""
    for dtype in CONSTANTS:
        Tiles(torch.zeros(1, 1, 1, 1, dtype=dtype), (1, 1)).convolve(torch.zeros(TILE**2, 1, 1, dtype=dtype))


def transform_kernels(weight: Tensor) -> Tensor:
    """A convolution's weight (out, in, 3, 3), or its taps (9, in, out), -> (36, in, out), if it is not that already."""
    if transformed(weight):
        return weight
    of_kernel = KERNEL_TRANSFORM[weight.dtype]
    if weight.dim() == 3:
        return torch.mm(of_kernel, weight.flatten(1)).unflatten(1, weight.shape[1:])
    taps = weight.flatten(2).flatten(0, 1).T.contiguous()  # seen through strides, it would take several times as long
    return torch.mm(of_kernel, taps).unflatten(1, weight.shape[:2]).transpose(1, 2)


def transformed(weight: Tensor) -> bool:
    """Whether a layer's weight consists of transformed kernels (36, in, out)."""
    return weight.dim() == 3 and len(weight) == TILE**2


def size_of_kernels(weight: Tensor) -> int:
    """Bytes that the transformed kernels of a weight (out, in, 3, 3) take beside it; 0 where they are the weight."""
    return 0 if transformed(weight) else TILE**2 * weight.nbytes // KERNEL**2


def workspace(model: nn.Module) -> int:
    """Bytes for transformed kernels that are not kept: of the widest layer, and what they come from."""
    return max(
        (4 * size_of_kernels(layer.weight) for layer in model.modules() if getattr(layer, "tiled", False)), default=0
    )


def pays(x: Tensor, *layers: nn.Module) -> bool:
    """Whether convolutions of x, a map (B, C, H, W) or its tokens (B, H, W, C), are faster this way.

    They are on CPUs, without gradients, in float64 and, from some width on, in float32.
    """
    if not all(layer.tiled for layer in layers) or x.device.type != "cpu" or x.dtype not in CONSTANTS:
        return False
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return False  # compilers and exporters cannot look into the loops, which have no gradients
    channels = layers[0].in_channels * sum(layer.out_channels for layer in layers)
    return x.dtype == torch.float64 or channels >= LEAST_CHANNELS


def kernel_transform() -> np.ndarray:
    """(36, 9), for row and column at once: twice the kernel's polynomial at the points p over prod_j (p_i - p_j).

    Infinity takes the highest coefficient. Twice, and tiles half, makes both about equally large.
    """
    points, kernel = np.array(POINTS), np.zeros((TILE, KERNEL))
    for i, point in enumerate(points):
        kernel[i] = point ** np.arange(KERNEL) / np.prod(point - np.delete(points, i))
    kernel[-1, -1] = 1
    return np.kron(2 * kernel, 2 * kernel)


KERNEL_TRANSFORM = {dtype: torch.from_numpy(kernel_transform()).to(dtype) for dtype in (torch.float32, torch.float64)}
CONSTANTS = {dtype: np.array(COMBINATIONS, str(dtype)[6:]) for dtype in KERNEL_TRANSFORM}
