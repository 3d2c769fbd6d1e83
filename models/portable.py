"""The entropy path in float64, for files that decode on any machine.

Decoding works only if the decoder finds the same scale level for every symbol as the encoder did. Sums in float32
differ between processors, thread counts and libraries by more than a level's edge can bear in the long run; in
float64 they differ a billion times less. See docs/bitstream.md for the argument in numbers.
"""

from __future__ import annotations

import copy
from itertools import product
from typing import TYPE_CHECKING

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models.layers import winograd
from models.stripes import Border, to_map, to_tokens
from utils.inference.threads import flat, in_threads

if TYPE_CHECKING:
    from models.base import SliceCompressionModel

KEPT_KERNELS = 256 << 20  # bytes; the shipped model's take 119 MiB and are computed once, DCAE's 1.2 GiB each time


def portable_copy(model: SliceCompressionModel) -> SliceCompressionModel:
    """A float64 copy of what lies between z_hat and the scales; the transforms are left out."""
    left_out = {id(getattr(model, name)): nn.Identity() for name in model.transform_names}
    path = model.copied(left_out).double().eval().requires_grad_(False)
    for module in list(path.modules()):
        for name, child in module.named_children():
            for kind in (MatrixConvolution, MatrixDeconvolution):
                if kind.can_replace(child):
                    setattr(module, name, kind.of(child))
    tiled = [layer for layer in path.modules() if getattr(layer, "tiled", False)]
    if sum(winograd.size_of_kernels(layer.weight) for layer in tiled) <= KEPT_KERNELS:
        for layer in tiled:
            layer.weight = nn.Parameter(winograd.transform_kernels(layer.weight), requires_grad=False)
    return path


class MatrixConvolution(nn.Conv2d):
    """A convolution as matrix products or loops: CPU libraries have no fast one in float64. It has no gradients.

    3x3 kernels are transformed (models/layers/winograd.py). For others tokens lie row after row, with the zeros of the
    padding between them; what a tap of the kernel reads is then one block of memory, displaced by the tap. Each tap
    adds one matrix product to the result, and nothing is gathered. Depthwise ones are loops. For odd
    kernels, stride 1 and zero padding that keeps the size.
    """

    @classmethod
    def of(cls, layer: nn.Conv2d) -> MatrixConvolution:
        """The same layer; its weight is kept as taps (r * s, in, out) only."""
        new = copy.copy(layer)
        new.__class__ = cls
        taps = rearrange(layer.weight, "o i r s -> (r s) i o").contiguous()
        bias = None if layer.bias is None else nn.Parameter(layer.bias.detach(), requires_grad=False)
        new._parameters = {"weight": nn.Parameter(taps, requires_grad=False), "bias": bias}
        return new

    @staticmethod
    def can_replace(layer: nn.Module) -> bool:
        """Whether `layer` is a convolution of the kind that this class computes."""
        if type(layer) is not nn.Conv2d or layer.weight.device.type != "cpu":
            return False
        if (layer.stride, layer.dilation, layer.padding_mode) != ((1, 1), (1, 1), "zeros"):
            return False
        same_size = layer.padding == tuple(k // 2 for k in layer.kernel_size) and all(k % 2 for k in layer.kernel_size)
        return same_size and (layer.groups == 1 or layer.groups == layer.in_channels == layer.out_channels)

    @property
    def tiled(self) -> bool:
        """Whether its kernels are transformed."""
        return self.kernel_size == (3, 3) and self.groups == 1

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W)."""
        return to_map(self.convolve(to_tokens(x), (self.padding[0], self.padding[0])))

    def convolve(self, x: Tensor, border: Border, kernels: Tensor | None = None) -> Tensor:
        """Tokens (B, r, W, in_channels) with `border` rows of zeros above and below -> (B, rows, W, out_channels).

        kernels: its own, transformed, where they are already.
        """
        if self.kernel_size == (1, 1) and self.groups == 1:
            return F.linear(x, self.weight[0].T, self.bias)
        if self.tiled:
            kernels = winograd.transform_kernels(self.weight) if kernels is None else kernels
            return winograd.Tiles(x, border).convolve(kernels, self.bias)
        return self._depthwise(x, border) if self.groups > 1 else self._dense(x, border)

    def _dense(self, x: Tensor, border: Border) -> Tensor:
        side = self.padding[1]
        x = F.pad(x, (0, 0, side, side, *border))
        rows, columns = (n - k + 1 for n, k in zip(x.shape[1:3], self.kernel_size))
        width, tokens = x.shape[2], x.flatten(1, 2)
        count = (rows - 1) * width + columns  # the result has as wide rows, of which the last tokens mean nothing
        out = x.new_zeros(len(x), rows * width, self.out_channels)
        if self.bias is not None:
            out += self.bias
        positions = product(*(range(kernel) for kernel in self.kernel_size))
        for (i, j), tap in zip(positions, self.weight):
            first = i * width + j
            out[:, :count].baddbmm_(tokens[:, first : first + count], tap.expand(len(x), -1, -1))
        return out.unflatten(1, (rows, width))[:, :, :columns]

    def _depthwise(self, x: Tensor, border: Border) -> Tensor:
        from models.layers.loops import depthwise  # here, as importing Numba takes as long as much else

        batch, height, width, channels = x.shape
        rows = height + sum(border) - self.kernel_size[0] + 1
        bias = x.new_zeros(channels) if self.bias is None else self.bias
        out = x.new_empty(batch, rows, width, channels)
        size = rows, height, width, channels
        arrays = flat(x), *size, border[0], self.kernel_size, flat(self.weight), flat(bias), flat(out)
        in_threads(depthwise, batch * rows, out.numel() * len(self.weight), *arrays)
        return out


class MatrixDeconvolution(nn.ConvTranspose2d):
    """A transposed convolution as a 3x3 convolution of its input to one set of channels for each of its phases.

    With stride s and padding p, row s * m + a of the result is the sum over d of row m + d of the input times the
    kernel's row a + p - s * d: where |d| is at most 1 for all, three rows and columns are enough. For outputs s times
    as large as the input.
    """

    tiled = True  # its convolution's kernels are transformed

    @classmethod
    def of(cls, layer: nn.ConvTranspose2d) -> MatrixDeconvolution:
        """The same layer; its weight is kept as taps (9, in, s * s * out) only."""
        new = copy.copy(layer)
        new.__class__ = cls
        (stride, _), (padding, _), (kernel, _) = layer.stride, layer.padding, layer.kernel_size
        taps = layer.weight.new_zeros(3, 3, layer.in_channels, stride, stride, layer.out_channels)
        reads = [(d, a, a + padding - stride * (d - 1)) for d in range(3) for a in range(stride)]
        reads = [(d, a, k) for d, a, k in reads if 0 <= k < kernel]
        for (i, a, row), (j, b, column) in product(reads, repeat=2):
            taps[i, j, :, a, b] = layer.weight[:, :, row, column]
        bias = None if layer.bias is None else nn.Parameter(layer.bias.repeat(stride**2), requires_grad=False)
        weight = nn.Parameter(taps.reshape(9, layer.in_channels, -1), requires_grad=False)
        new._parameters = {"weight": weight, "bias": bias}
        return new

    @staticmethod
    def can_replace(layer: nn.Module) -> bool:
        """Whether `layer` is a transposed convolution of the kind that this class computes."""
        if type(layer) is not nn.ConvTranspose2d or layer.weight.device.type != "cpu":
            return False
        (stride, across), (kernel, wide) = layer.stride, layer.kernel_size
        enlarging = layer.padding == (kernel // 2,) * 2 and layer.output_padding == (stride - 1,) * 2
        reaches = kernel // 2 <= stride and kernel <= kernel // 2 + 2 * stride  # |d| <= 1
        square = (stride, kernel) == (across, wide) and kernel % 2 == 1
        return square and enlarging and reaches and (layer.groups, layer.dilation) == (1, (1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H * s, W * s)."""
        phases = winograd.Tiles(to_tokens(x), (1, 1)).convolve(winograd.transform_kernels(self.weight), self.bias)
        stride = self.stride[0]
        return to_map(rearrange(phases, "b y x (i j o) -> b (y i) (x j) o", i=stride, j=stride))
