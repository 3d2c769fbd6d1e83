"""Two-pass spatial context: half of the positions, like a checkerboard's white fields, predict the other half.

"Checkerboard Context Model for Efficient Learned Image Compression" (He et al., CVPR 2021, arXiv:2103.15306).

    A o A o     anchors A, where row + column is even, are coded first;
    o A o A     the others see them through a convolution whose kernel has weights where row + column is odd
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ANCHORS, OTHERS = 0, 1


def half(x: Tensor, parity: int) -> Tensor:
    """The positions of (B, C, H, W) with (row + column) % 2 == parity, moved together: (B, C, H, W / 2). H, W even."""
    even, odd = x[..., 0::2, parity::2], x[..., 1::2, 1 - parity :: 2]
    return torch.stack([even, odd], 3).flatten(2, 3)


def join_halves(anchors: Tensor, others: Tensor) -> Tensor:
    """The inverse: two (B, C, H, W / 2) -> (B, C, H, W)."""
    even = torch.stack([anchors[..., 0::2, :], others[..., 0::2, :]], -1).flatten(-2)
    odd = torch.stack([others[..., 1::2, :], anchors[..., 1::2, :]], -1).flatten(-2)
    return torch.stack([even, odd], 3).flatten(2, 3)


class CheckerboardConvolution(nn.Conv2d):
    """A convolution that sees the positions of the other colour only."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__(in_channels, out_channels, kernel, padding=kernel // 2)
        row, column = torch.meshgrid(torch.arange(kernel), torch.arange(kernel), indexing="ij")
        self.register_buffer("mask", (row + column) % 2, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W)."""
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)
