"""The entropy path in float64, for files that decode on any machine.

Decoding works only if the decoder finds the same scale level for every symbol as the encoder did. Sums in float32
differ between processors, thread counts and libraries by more than a level's edge can bear in the long run; in
float64 they differ a billion times less. See docs/bitstream.md for the argument in numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import product
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor, nn

if TYPE_CHECKING:
    from models.base import SliceCompressionModel


def portable_copy(model: SliceCompressionModel) -> SliceCompressionModel:
    """A float64 copy of what lies between z_hat and the scales; the transforms are left out."""
    left_out = {id(getattr(model, name)): nn.Identity() for name in model.transform_names}
    path = copy.deepcopy(model, left_out).double().eval().requires_grad_(False)
    for module in list(path.modules()):
        for name, child in module.named_children():
            if MatrixConvolution.can_replace(child):
                setattr(module, name, MatrixConvolution.of(child))
    return path


class MatrixConvolution(nn.Conv2d):
    """A convolution as matrix products and shifted sums: CPU libraries have no fast float64 convolution.

    Every tap of the kernel is a 1x1 convolution of the whole map, all of them in one matrix product; their results are
    added where the tap points. That moves a fraction of the memory that gathering patches does. For odd kernels, stride
    1 and zero padding that keeps the size, dense or depthwise.
    """

    @classmethod
    def of(cls, layer: nn.Conv2d) -> MatrixConvolution:
        """The same layer, sharing weights."""
        new = copy.copy(layer)
        new.__class__ = cls
        new.taps = rearrange(layer.weight, "o i r s -> (r s) o i").contiguous()
        return new

    @staticmethod
    def can_replace(layer: nn.Module) -> bool:
        """Whether `layer` is a convolution of the kind that this class computes."""
        if type(layer) is not nn.Conv2d or layer.stride != (1, 1) or layer.weight.device.type != "cpu":
            return False
        same_size = layer.padding == tuple(k // 2 for k in layer.kernel_size)
        return same_size and (layer.groups == 1 or layer.groups == layer.in_channels == layer.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W)."""
        out = x.new_zeros(len(x), self.out_channels, *x.shape[-2:])
        if self.bias is not None:
            out += self.bias[:, None, None]
        return self._add_depthwise(out, x) if self.groups > 1 else self._add_dense(out, x)

    def _add_dense(self, out: Tensor, x: Tensor) -> Tensor:
        products = torch.matmul(self.taps.flatten(0, 1), x.flatten(2))  # (B, taps * out_channels, H * W)
        products = products.unflatten(2, x.shape[-2:]).unflatten(1, (len(self.taps), self.out_channels))
        for tap, (target, source) in enumerate(self._shifts(x)):
            out[target] += products[:, tap][source]
        return out

    def _add_depthwise(self, out: Tensor, x: Tensor) -> Tensor:
        for tap, (target, source) in enumerate(self._shifts(x)):
            out[target].addcmul_(x[source], self.taps[tap, :, :, None])
        return out

    def _shifts(self, x: Tensor) -> Iterator[tuple[tuple, tuple]]:
        """For each tap, row by row, which part of the output it adds to and which part of the input it reads."""
        rows, columns = (
            [_overlap(tap - kernel // 2, side) for tap in range(kernel)]
            for kernel, side in zip(self.kernel_size, x.shape[-2:])
        )
        for (to_row, from_row), (to_column, from_column) in product(rows, columns):
            yield (..., to_row, to_column), (..., from_row, from_column)


def _overlap(shift: int, side: int) -> tuple[slice, slice]:
    """Positions p of 0..side for which p + shift is one too, and those p + shift."""
    first, last = min(max(0, -shift), side), max(0, min(side, side - shift))
    last = max(first, last)
    return slice(first, last), slice(first + shift, last + shift)
