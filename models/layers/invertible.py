"""An invertible network on the image, with a pair of enhancement networks around it.

"Enhanced Invertible Encoding for Learned Image Compression" (Xie et al., ACM MM 2021, arXiv:2108.03690), as ICWEM uses
it: x -> forw_enh -> invertible network -> g_a, and g_s -> inverse -> back_enh -> x_hat.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.convolution import conv

SLOPE = 0.2  # of every LeakyReLU here


def _scaled_xavier(layer: nn.Conv2d, factor: float) -> None:
    """Xavier-normal weights times `factor`, zero biases."""
    nn.init.xavier_normal_(layer.weight)
    layer.weight.data.mul_(factor)
    nn.init.zeros_(layer.bias)


class DenseBlock(nn.Module):
    """Five 3x3 convolutions, each on the block's input and all outputs before it."""

    def __init__(self, in_channels: int, out_channels: int, growth: int) -> None:
        super().__init__()
        for j in range(1, 6):
            layer = conv(in_channels + (j - 1) * growth, growth if j < 5 else out_channels)
            _scaled_xavier(layer, 0.1 if j < 5 else 0.0)
            setattr(self, f"conv{j}", layer)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W)."""
        features = [x]
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            features.append(F.leaky_relu(layer(torch.cat(features, 1)), SLOPE))
        return self.conv5(torch.cat(features, 1))


class Enhancement(nn.Module):
    """x + 0.2 * layers(x)."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            DenseBlock(3, width, growth),
            conv(width, width, 1),
            conv(width, width, 3),
            conv(width, width, 1),
            DenseBlock(width, 3, growth),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 3, H, W)."""
        return x + 0.2 * self.layers(x)


class InvertibleConvolution(nn.Module):
    """1x1 convolution with a square matrix W, initially a random rotation ("Glow", Kingma and Dhariwal, 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linalg.qr(torch.randn(channels, channels))[0])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return F.conv2d(x, self.weight[:, :, None, None])

    def inverse(self, y: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W); the inverse matrix is computed in float64."""
        weight = torch.linalg.inv(self.weight.double()).to(self.weight.dtype)
        return F.conv2d(y, weight[:, :, None, None])


class CouplingNetwork(nn.Module):
    """kernel x kernel, 1x1, kernel x kernel, with LeakyReLU between; starts at zero."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, out_channels, kernel)
        self.conv2 = conv(out_channels, out_channels, 1)
        self.conv3 = conv(out_channels, out_channels, kernel)
        for layer, factor in ((self.conv1, 0.1), (self.conv2, 0.1), (self.conv3, 0.0)):
            _scaled_xavier(layer, factor)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W)."""
        x = F.leaky_relu(self.conv1(x), SLOPE)
        return self.conv3(F.leaky_relu(self.conv2(x), SLOPE))


class CouplingLayer(nn.Module):
    """Affine coupling of the first channel and the other two; each changes under the other's control."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.G1 = CouplingNetwork(1, 2, kernel)
        self.G2 = CouplingNetwork(2, 1, kernel)
        self.H1 = CouplingNetwork(1, 2, kernel)
        self.H2 = CouplingNetwork(2, 1, kernel)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 3, H, W)."""
        x1, x2 = x.split([1, 2], 1)
        y1 = x1 * _bounded_exp(self.G2(x2)) + self.H2(x2)
        y2 = x2 * _bounded_exp(self.G1(y1)) + self.H1(y1)
        return torch.cat([y1, y2], 1)

    def inverse(self, y: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 3, H, W), the input for which `forward` gives y."""
        y1, y2 = y.split([1, 2], 1)
        x2 = (y2 - self.H1(y1)) / _bounded_exp(self.G1(y1))
        x1 = (y1 - self.H2(x2)) / _bounded_exp(self.G2(x2))
        return torch.cat([x1, x2], 1)


def _bounded_exp(x: Tensor) -> Tensor:
    """A factor between 1/e and e."""
    return torch.exp(2 * torch.sigmoid(x) - 1)


class InvertibleNetwork(nn.Module):
    """Four groups of a 1x1 convolution and three coupling layers, kernel 5 in the first two groups, 3 in the others."""

    def __init__(self) -> None:
        super().__init__()
        groups = ([InvertibleConvolution(3), *(CouplingLayer(kernel) for _ in range(3))] for kernel in (5, 5, 3, 3))
        self.operations = nn.ModuleList(layer for group in groups for layer in group)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 3, H, W)."""
        for operation in self.operations:
            x = operation(x)
        return x

    def inverse(self, y: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 3, H, W)."""
        for operation in reversed(self.operations):
            y = operation.inverse(y)
        return y
