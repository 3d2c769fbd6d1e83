"""Convolutional blocks of the transforms.

`conv(k, s)` and `deconv(k, s)` change the resolution by exactly s; residual bottlenecks keep it. All maps are
(B, C, H, W). Section 3.3 and Figure 9 of "Learned Image Compression with Dictionary-based Entropy Model"
(Lu et al., CVPR 2025, arXiv:2504.00496).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.stripes import (
    Border,
    by_rows,
    channels_last,
    convolution,
    convolve,
    deconvolution,
    own,
    pointwise,
    to_map,
    to_tokens,
)


def conv(in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    """Convolution to (B, out_channels, H / stride, W / stride)."""
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2)


def deconv(in_channels: int, out_channels: int, kernel: int = 5, stride: int = 2) -> nn.ConvTranspose2d:
    """Transposed convolution to (B, out_channels, H * stride, W * stride)."""
    return nn.ConvTranspose2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, output_padding=stride - 1)


class SliceTransform(nn.Sequential):
    """A stack of layers with a name of its own, which adds no level to the state dict's keys."""

    @property
    def last_convolution(self) -> nn.Conv2d | None:
        """The last layer, if it is a convolution. It leaves autocast: what analysis returns is quantised next."""
        return self[-1] if isinstance(self[-1], nn.Conv2d) else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> what the layers make of it; bare convolutions work in stripes of rows, as the blocks do."""
        # oneDNN crashes on the gradient of TCM's first layer, a 1x1 convolution of stride 2 of a channels-last image.
        x = x.contiguous() if torch.is_grad_enabled() else channels_last(x)
        for layer in self:
            if isinstance(layer, nn.ConvTranspose2d):
                x = deconvolution(layer, x)
            elif layer is self.last_convolution:
                with torch.autocast(x.device.type, enabled=False):
                    x = convolution(layer, x.to(layer.weight.dtype))
            else:
                x = convolution(layer, x) if isinstance(layer, nn.Conv2d) else layer(x)
        return x


class ResidualBottleneck(nn.Module):
    """1x1 to half the channels, 3x3, 1x1 back, with ReLU between, plus the input (He et al., CVPR 2016)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        inner = min(in_channels, out_channels) // 2
        self.conv1 = conv(in_channels, inner, 1)
        self.conv2 = conv(inner, inner, 3)
        self.conv3 = conv(inner, out_channels, 1)
        self.skip = conv(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor, overwrite: bool = False) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W), in the memory of x where nobody else needs that."""
        tokens = to_tokens(x)
        base = tokens if self.skip is None else by_rows(lambda rows, _: pointwise(self.skip, rows), tokens)
        out = own(tokens) if overwrite and self.skip is None else None
        return to_map(by_rows(self.branch, tokens, halo=1, out=out, onto=(torch.add, base)))

    def branch(self, x: Tensor, border: Border) -> Tensor:
        """A stripe of tokens with a row more above and below -> what is added to the stripe."""
        inner = F.relu_(pointwise(self.conv1, x))
        return pointwise(self.conv3, F.relu_(convolve(self.conv2, inner, border)))


class Down(nn.Module):
    """Strided convolution to half the resolution, then three residual bottlenecks."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = conv(in_channels, out_channels, 5, 2)
        self.res1 = ResidualBottleneck(out_channels, out_channels)
        self.res2 = ResidualBottleneck(out_channels, out_channels)
        self.res3 = ResidualBottleneck(out_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H/2, W/2)."""
        x = self.res1(convolution(self.conv, x), overwrite=True)
        return self.res3(self.res2(x, overwrite=True), overwrite=True)


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
        x = self.res2(self.res1(x), overwrite=True)
        return deconvolution(self.conv, self.res3(x, overwrite=True))
