"""The entropy path in float64, for files that decode on any machine.

Decoding works only if the decoder finds the same scale level for every symbol as the encoder did. Sums in float32
differ between processors, thread counts and libraries by more than a level's edge can bear in the long run; in
float64 they differ a billion times less. See docs/bitstream.md for the argument in numbers.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from models.base import SliceCompressionModel


def portable_copy(model: SliceCompressionModel) -> SliceCompressionModel:
    """A float64 copy of what lies between z_hat and the scales; the transforms are left out."""
    left_out = {id(getattr(model, name)): nn.Identity() for name in model.transform_names}
    path = copy.deepcopy(model, left_out).double().eval().requires_grad_(False)
    for module in list(path.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Conv2d and child.weight.device.type == "cpu":
                setattr(module, name, MatrixConvolution.of(child))
    return path


class MatrixConvolution(nn.Conv2d):
    """A convolution as matrix products or shifted sums: CPU libraries have no fast float64 convolution."""

    @classmethod
    def of(cls, layer: nn.Conv2d) -> MatrixConvolution:
        """The same layer, sharing weights."""
        new = copy.copy(layer)
        new.__class__ = cls
        return new

    def forward(self, x: Tensor) -> Tensor:
        """As nn.Conv2d with zero padding and stride 1 or more."""
        if self.groups == self.in_channels == self.out_channels and self.groups > 1:
            return self._depthwise(x)
        if self.groups == 1:
            return self._dense(x)
        return super().forward(x)

    def _dense(self, x: Tensor) -> Tensor:
        """Patches times weights, one matrix product an image."""
        height, width = (
            (side + 2 * p - k) // s + 1
            for side, p, k, s in zip(x.shape[-2:], self.padding, self.kernel_size, self.stride)
        )
        if self.kernel_size == (1, 1) and self.stride == (1, 1):
            patches = x.flatten(2)
        else:
            patches = F.unfold(x, self.kernel_size, padding=self.padding, stride=self.stride)
        out = torch.matmul(self.weight.flatten(1), patches)
        if self.bias is not None:
            out += self.bias[:, None]
        return out.unflatten(2, (height, width))

    def _depthwise(self, x: Tensor) -> Tensor:
        """One multiply-add of the whole map for each tap of the kernel."""
        height, width = x.shape[-2:]
        rows, columns = self.kernel_size
        padded = F.pad(x, (self.padding[1],) * 2 + (self.padding[0],) * 2)
        out = self.bias[:, None, None].expand_as(x).clone()
        for i in range(rows):
            for j in range(columns):
                out.addcmul_(padded[..., i : i + height, j : j + width], self.weight[:, :, i, j, None])
        return out
