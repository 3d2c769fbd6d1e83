"""TCM: "Learned Image Compression with Mixed Transformer-CNN Architectures" (Liu et al., CVPR 2023, arXiv:2303.14978).

    x -> g_a -> y -> h_a -> z -> h_scale_s, h_mean_s -> latent scales, latent means
    slice i:  mean support  = atten_mean[i](latent means, y_hat_<i)
              scale support = atten_scale[i](latent scales, y_hat_<i)
    y_hat -> g_s -> x_hat

| frozen name | what it is |
|---|---|
| `h_mean_s`, `h_scale_s` | hyper-synthesis of the means, of the scales |
| `atten_mean.i.0`, `atten_scale.i.0` | SWAtten in front of the networks of slice i |
| `conv1_1`, `conv1_2` | the 1x1 convolutions before and after the two branches of a TCM block |
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from compressai.layers import (
    AttentionBlock,
    ResidualBlock,
    ResidualBlockUpsample,
    ResidualBlockWithStride,
    subpel_conv3x3,
)
from compressai.registry import register_model
from torch import Tensor, nn

from models.base import SliceCompressionModel
from models.layers.attention import WindowAttention, to_map, to_tokens
from models.layers.convolution import SliceTransform, conv
from models.layers.entropy_models import EntropyBottleneck, GaussianConditional


class StridedPoints(nn.Conv2d):
    """A 1x1 convolution of every `stride`-th position.

    The same as torch's strided one, for which oneDNN 3.13 writes past the end of the weight's gradient where fewer than
    16 channels, those of an image for example, lie side by side in memory.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__(in_channels, out_channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H / stride, W / stride)."""
        rows, columns = self.stride
        return F.conv2d(x[..., ::rows, ::columns], self.weight, self.bias)


class StridedBlock(ResidualBlockWithStride):
    """CompressAI's block to half the resolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 2)
        self.skip = StridedPoints(in_channels, out_channels, 2)


class PlainSwinBlock(nn.Module):
    """TCM's Transformer block: x + attention(LN x), then x + MLP(LN x), with a GELU MLP of four times the width."""

    def __init__(self, channels: int, head_dim: int, window: int, shifted: bool) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(channels)
        self.msa = WindowAttention(channels, head_dim, window, shifted)
        self.ln2 = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        x = to_tokens(x)
        x = x + self.msa(self.ln1(x))
        return to_map(x + self.mlp(self.ln2(x)))


class MixtureBlock(nn.Module):
    """Parallel Transformer-CNN mixture (Section 3.2): half of the channels through each, then both together."""

    def __init__(self, branch_channels: int, head_dim: int, window: int, shifted: bool) -> None:
        super().__init__()
        channels = 2 * branch_channels
        self.trans_block = PlainSwinBlock(branch_channels, head_dim, window, shifted)
        self.conv1_1 = conv(channels, channels, 1)
        self.conv1_2 = conv(channels, channels, 1)
        self.conv_block = ResidualBlock(branch_channels, branch_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 2N, H, W) -> (B, 2N, H, W)."""
        local, distant = self.conv1_1(x).chunk(2, 1)
        local = self.conv_block(local) + local  # a second skip, beside the block's own
        return x + self.conv1_2(torch.cat([local, self.trans_block(distant)], 1))


class SWAtten(AttentionBlock):
    """Swin-Transformer-based attention with channel squeezing (Section 3.3, Figure 5)."""

    def __init__(self, channels: int, inner: int, head_dim: int, window: int) -> None:
        super().__init__(inner)
        self.non_local_block = nn.Sequential(OrderedDict(
            block_1=PlainSwinBlock(inner, head_dim, window, shifted=False),
            block_2=PlainSwinBlock(inner, head_dim, window, shifted=True),
        ))  # fmt: skip
        self.in_conv = conv(channels, inner, 1)
        self.out_conv = conv(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, channels, H, W)."""
        u = self.in_conv(x)
        gate = torch.sigmoid(self.conv_b(self.non_local_block(u)))
        return self.out_conv(self.conv_a(u) * gate + u)


@register_model("tcm")
class TCM(SliceCompressionModel):
    """Defaults are the paper's large model (N = 128; 96 middle, 64 small).

    N: width of each branch of a mixture block, whose maps have 2N channels; M, hyper_channels: channels of y and z;
    head_dims: widths of the heads in g_a's three stages (mirrored in g_s); window, hyper_window: sides of the windows;
    slices, hidden: as in DictionaryModel; attention_*: inner width, head width and window of SWAtten.
    """

    model_name = "tcm"

    def __init__(
        self,
        N: int = 128,
        M: int = 320,
        hyper_channels: int = 192,
        head_dims: Sequence[int] = (8, 16, 32),
        window: int = 8,
        hyper_head_dim: int = 32,
        hyper_window: int = 4,
        slices: int = 5,
        hidden: Sequence[int] = (224, 128),
        attention_channels: int = 128,
        attention_head_dim: int = 16,
        variable_rate: bool = False,
    ) -> None:
        super().__init__(M, hyper_channels, slices, (window, hyper_window), variable_rate)
        self.entropy_bottleneck = EntropyBottleneck(hyper_channels)  # first: the published order of the tensors
        self.build_transforms(N, M, head_dims, window)
        self.build_hyper_prior(N, M, hyper_channels, hyper_head_dim, hyper_window)
        support_channels = [M + c for c in self.channels_before]
        for name in ("atten_mean", "atten_scale"):
            attention = (SWAtten(c, attention_channels, attention_head_dim, window) for c in support_channels)
            setattr(self, name, nn.ModuleList(nn.Sequential(a) for a in attention))
        self.build_slice_networks(support_channels, hidden)
        self.gaussian_conditional = GaussianConditional(None)

    def build_transforms(self, N: int, M: int, head_dims: Sequence[int], window: int) -> None:
        """g_a and g_s."""
        self.g_a = analysis_transform(N, M, head_dims, window)
        self.g_s = synthesis_transform(N, M, head_dims, window)

    def build_hyper_prior(self, N: int, M: int, hyper_channels: int, head_dim: int, window: int) -> None:
        """h_a and the two hyper-synthesis transforms."""
        self.h_a = SliceTransform(
            StridedBlock(M, 2 * N),
            *mixture_pair(N, head_dim, window),
            conv(2 * N, hyper_channels, 3, 2, exact=True),
        )
        for name in ("h_mean_s", "h_scale_s"):
            up = ResidualBlockUpsample(hyper_channels, 2 * N, 2)
            pair = mixture_pair(N, head_dim, window)
            setattr(self, name, SliceTransform(up, *pair, subpel_conv3x3(2 * N, M, 2)))

    def hyper_synthesis(self, z_hat: Tensor) -> tuple[Tensor, Tensor]:
        """z_hat (B, hyper_channels, h/4, w/4) -> latent scales, latent means (B, M, h, w)."""
        return self.h_scale_s(z_hat), self.h_mean_s(z_hat)

    def slice_support(self, i: int, scales: Tensor, means: Tensor, decoded: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Hyper features and earlier slices through attention: (B, M + earlier, h, w) for means and for scales."""
        mean_support = self.atten_mean[i](torch.cat([means, *decoded], 1))
        return mean_support, self.atten_scale[i](torch.cat([scales, *decoded], 1))


def mixture_pair(N: int, head_dim: int, window: int) -> list[MixtureBlock]:
    """A regular and a shifted mixture block of 2N channels."""
    return [MixtureBlock(N, head_dim, window, shifted) for shifted in (False, True)]


def analysis_transform(N: int, M: int, head_dims: Sequence[int], window: int) -> SliceTransform:
    """g_a: (B, 3, H, W) -> (B, M, H/16, W/16)."""
    layers: list[nn.Module] = []
    for before, head_dim in zip((3, 2 * N, 2 * N), head_dims, strict=True):
        layers += [StridedBlock(before, 2 * N), *mixture_pair(N, head_dim, window)]
    return SliceTransform(*layers, conv(2 * N, M, 3, 2, exact=True))


def synthesis_transform(N: int, M: int, head_dims: Sequence[int], window: int) -> SliceTransform:
    """g_s: (B, M, h, w) -> (B, 3, 16h, 16w)."""
    layers: list[nn.Module] = []
    for before, head_dim in zip((M, 2 * N, 2 * N), reversed(head_dims), strict=True):
        layers += [ResidualBlockUpsample(before, 2 * N, 2), *mixture_pair(N, head_dim, window)]
    return SliceTransform(*layers, subpel_conv3x3(2 * N, 3, 2))
