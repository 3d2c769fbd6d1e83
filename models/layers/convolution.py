"""Convolutional blocks of the transforms.

`conv(k, s)` and `deconv(k, s)` change the resolution by exactly s; residual bottlenecks keep it. All maps are
(B, C, H, W). Section 3.3 and Figure 9 of "Learned Image Compression with Dictionary-based Entropy Model"
(Lu et al., CVPR 2025, arXiv:2504.00496).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1, exact: bool = False) -> nn.Conv2d:
    """Convolution to (B, out_channels, H / stride, W / stride); `exact`: in full precision even under autocast."""
    kind = ExactConvolution if exact else nn.Conv2d
    return kind(in_channels, out_channels, kernel, stride, padding=kernel // 2)


def deconv(in_channels: int, out_channels: int, kernel: int = 5, stride: int = 2) -> nn.ConvTranspose2d:
    """Transposed convolution to (B, out_channels, H * stride, W * stride)."""
    return nn.ConvTranspose2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, output_padding=stride - 1)


class ExactConvolution(nn.Conv2d):
    """A convolution that computes in full precision under autocast, too.

    For those that read pixels, whose 8 bits bfloat16 would round (which costs 0.2 % of the rate), and for those whose
    result is quantised next or decides how that is coded.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H / stride, W / stride) in the type of the weights."""
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.to(self.weight.dtype))


class SliceTransform(nn.Sequential):
    """A stack of layers with a name of its own, which adds no level to the state dict's keys."""


class EntropyParameters(nn.Sequential):
    """Support (B, in_channels, h, w) -> means, scales or residuals of one slice (B, out_channels, h, w)."""

    def __init__(self, in_channels: int, widths: Sequence[int], out_channels: int) -> None:
        first, second = widths
        last = conv(second, out_channels, exact=True)
        super().__init__(conv(in_channels, first), nn.GELU(), conv(first, second), nn.GELU(), last)


class ResidualBottleneck(nn.Module):
    """1x1 to half the channels, 3x3, 1x1 back, with ReLU between, plus the input (He et al., CVPR 2016)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        inner = min(in_channels, out_channels) // 2
        self.conv1 = conv(in_channels, inner, 1)
        self.conv2 = conv(inner, inner, 3)
        self.conv3 = conv(inner, out_channels, 1)
        self.skip = conv(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W)."""
        inner = F.relu(self.conv2(F.relu(self.conv1(x))))
        return self.conv3(inner) + (x if self.skip is None else self.skip(x))


class Down(nn.Module):
    """Strided convolution to half the resolution, then three residual bottlenecks."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = conv(in_channels, out_channels, 5, 2, exact=in_channels == 3)
        self.res1 = ResidualBottleneck(out_channels, out_channels)
        self.res2 = ResidualBottleneck(out_channels, out_channels)
        self.res3 = ResidualBottleneck(out_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H/2, W/2)."""
        return self.res3(self.res2(self.res1(self.conv(x))))


class Up(nn.Module):
    """Three residual bottlenecks, then a transposed convolution to twice the resolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.res1 = ResidualBottleneck(in_channels, in_channels)
        self.res2 = ResidualBottleneck(in_channels, in_channels)
        self.res3 = ResidualBottleneck(in_channels, in_channels)
        self.conv = deconv(in_channels, out_channels, 5, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, 2H, 2W)."""
        return self.conv(self.res3(self.res2(self.res1(x))))
