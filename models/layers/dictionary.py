"""Dictionary cross-attention: what is known about a place in the image queries a learned dictionary for the rest.

Section 3.2, Equations 3 to 8 and Figure 3 of "Learned Image Compression with Dictionary-based Entropy Model"
(Lu et al., CVPR 2025, arXiv:2504.00496).

    query map -> x_trans -> LN -> multi-scale aggregation -> LN -> Q --+-> softmax(scale * Q K^T) V
    dictionary (entries, width) -> LN -> K, V = LN(dictionary) --------'        -> linear -> gated unit -> out

Frozen names: `msa` is the multi-scale feature aggregation (MSFA), not self-attention; `dense` its stack of
convolutions; `scale` the factors 1 / tau of Equation 8; `lnx` and `dict_ln` the norms of query and dictionary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models.layers.attention import ConvolutionalGLU, ResidualScale, to_map, to_tokens
from models.layers.convolution import conv


class EfficientConvolution(nn.Module):
    """EConv of Equation 5: 1x1, GELU, 3x3 depthwise, GELU, 1x1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.in_trans = conv(channels, channels, 1)
        self.dw_conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.out_trans = conv(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return self.out_trans(F.gelu(self.dw_conv(F.gelu(self.in_trans(x)))))


class DenseScales(nn.Module):
    """f0 = x, f_j = EConv_j(GELU(f_{j-1})); all scales together through a 1x1 convolution (Equation 5)."""

    def __init__(self, channels: int, scales: int) -> None:
        super().__init__()
        self.conv_layers = nn.ModuleList(
            nn.Sequential(nn.GELU(), EfficientConvolution(channels)) for _ in range(scales)
        )
        self.proj = conv((scales + 1) * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        features = [x]
        for layer in self.conv_layers:
            features.append(layer(features[-1]))
        return self.proj(torch.cat(features, 1))


class SpatialAttention(nn.Module):
    """A weight in (0, 1) for each place, from channel mean and maximum (CBAM, Woo et al., ECCV 2018; Equation 6)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 1, H, W)."""
        return torch.sigmoid(self.conv1(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)))


class MultiScaleAggregation(nn.Module):
    """Multi-scale feature aggregation (MSFA) with `scales` stacked convolutions (the paper's m), Equations 5, 6."""

    def __init__(self, channels: int, scales: int) -> None:
        super().__init__()
        self.s = conv(channels, channels, 1)
        self.spatial_atte = SpatialAttention()
        self.dense = DenseScales(channels, scales)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        merged = self.dense(self.s(x))
        return merged * self.spatial_atte(merged)


class DictionaryCrossAttention(nn.Module):
    """What the dictionary knows about each place of a map (Equations 3 to 8), one for each slice.

    `scales` is the paper's m; 0 leaves out the multi-scale aggregation. `heads` attend to `width / heads` channels
    of the dictionary each. Raises ValueError where the width does not divide into heads.
    """

    def __init__(self, in_channels: int, out_channels: int, width: int, heads: int, scales: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"a dictionary of width {width} does not divide into {heads} heads")
        self.heads = heads
        self.scale = nn.Parameter(torch.ones(heads, 1, 1))
        self.x_trans = nn.Linear(in_channels, width)
        self.ln_scale = nn.LayerNorm(width) if scales else None
        self.msa = MultiScaleAggregation(width, scales) if scales else None
        self.lnx = nn.LayerNorm(width)
        self.q_trans = nn.Linear(width, width)
        self.dict_ln = nn.LayerNorm(width)
        self.k = nn.Linear(width, width)
        self.linear = nn.Linear(width, width)
        self.ln_mlp = nn.LayerNorm(width)
        self.mlp = ConvolutionalGLU(width)
        self.output_trans = nn.Sequential(nn.Linear(width, out_channels))
        self.res_scale_1 = ResidualScale(width) if scales else None
        self.res_scale_2 = ResidualScale(width)
        self.res_scale_3 = ResidualScale(width)

    def forward(self, x: Tensor, dictionary: Tensor) -> Tensor:
        """Map (B, in_channels, H, W), dictionary ((B,) n, width) -> (B, out_channels, H, W)."""
        t = self.x_trans(to_tokens(x))  # (B, H, W, width)
        if self.msa is not None:
            t = self.res_scale_1(t, to_tokens(self.msa(to_map(self.ln_scale(t)))))
        found = self.look_up(self.q_trans(self.lnx(t)), *self.entries(dictionary))
        t = self.res_scale_2(t, self.linear(found))
        t = self.res_scale_3(t, self.mlp(self.ln_mlp(t)))
        return to_map(self.output_trans(t))

    def entries(self, dictionary: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, (1 or B, heads, n, head_dim) each, of a dictionary ((B,) n, width) (Equation 7)."""
        entries = self.dict_ln(dictionary).reshape(-1, *dictionary.shape[-2:])
        keys, values = (rearrange(e, "b n (h d) -> b h n d", h=self.heads) for e in (self.k(entries), entries))
        return keys, values

    def look_up(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """softmax(scale * Q K^T) V for queries (B, H, W, width) -> (B, H, W, width) (Equation 8)."""
        heads = rearrange(q, "b y x (h d) -> b h (y x) d", h=self.heads) * self.scale.to(q.dtype)
        k, v = (e.to(q.dtype).expand(len(q), -1, -1, -1) for e in (keys, values))
        found = F.scaled_dot_product_attention(heads, k, v, scale=1.0)  # no 1 / sqrt(d) here
        return rearrange(found, "b h (y x) d -> b y x (h d)", y=q.shape[1])
