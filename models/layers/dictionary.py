"""Dictionary cross-attention: partial knowledge of a place in the image asks a learned dictionary for the rest.

Section 3.2, Equations 3 to 8 and Figure 3 of "Learned Image Compression with Dictionary-based Entropy Model"
(Lu et al., CVPR 2025, arXiv:2504.00496).

    query map -> x_trans -> LN -> multi-scale aggregation -> LN -> Q --+-> softmax(scale * Q K^T) V
    dictionary (entries, width) -> LN -> K, V = LN(dictionary) --------'        -> linear -> gated unit -> out

Frozen names: `msa` is the multi-scale feature aggregation (MSFA), no self-attention; `dense` its stack of
convolutions; `scale` the factors 1 / tau of Equation 8; `lnx` and `dict_ln` the norms of query and dictionary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models.layers.attention import ConvolutionalGLU, ResidualScale
from models.layers.convolution import conv
from models.stripes import Border, by_rows, convolution, convolve, inside, own, pointwise, to_map, to_tokens

Entries = tuple[Tensor, Tensor]  # keys and values of a dictionary


class EfficientConvolution(nn.Module):
    """EConv of Equation 5: 1x1, GELU, 3x3 depthwise, GELU, 1x1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.in_trans = conv(channels, channels, 1)
        self.dw_conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.out_trans = conv(channels, channels, 1)

    def forward(self, x: Tensor, border: Border) -> Tensor:
        """A stripe of tokens with a row more above and below -> the stripe."""
        return pointwise(self.out_trans, F.gelu(convolve(self.dw_conv, F.gelu(pointwise(self.in_trans, x)), border)))


class DenseScales(nn.Module):
    """f0 = x, f_j = EConv_j(GELU(f_{j-1})); all scales together through a 1x1 convolution (Equation 5)."""

    def __init__(self, channels: int, scales: int) -> None:
        super().__init__()
        self.conv_layers = nn.ModuleList(
            nn.Sequential(nn.GELU(), EfficientConvolution(channels)) for _ in range(scales)
        )
        self.proj = conv((scales + 1) * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, H, W, C) -> (B, H, W, C)."""
        features = [x]
        for gelu, layer in self.conv_layers:
            features.append(by_rows(lambda t, border, f=layer, g=gelu: f(g(t), border), features[-1], halo=1))
        return by_rows(self.project, x, also=tuple(features[1:]))

    def project(self, x: Tensor, border: Border, *features: Tensor) -> Tensor:
        """Stripes of all scales -> one."""
        return pointwise(self.proj, torch.cat([x, *features], -1))


class SpatialAttention(nn.Module):
    """One weight a place in (0, 1), from channel mean and maximum (CBAM, Woo et al., ECCV 2018; Equation 6)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, H, W, C) -> (B, H, W, 1)."""
        summary = by_rows(lambda t, _: torch.cat([t.mean(-1, keepdim=True), t.amax(-1, keepdim=True)], -1), x)
        return torch.sigmoid(to_tokens(convolution(self.conv1, to_map(summary))))


class MultiScaleAggregation(nn.Module):
    """Multi-scale feature aggregation (MSFA) with `scales` stacked convolutions (the paper's m), Equations 5, 6."""

    def __init__(self, channels: int, scales: int) -> None:
        super().__init__()
        self.s = conv(channels, channels, 1)
        self.spatial_atte = SpatialAttention()
        self.dense = DenseScales(channels, scales)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, H, W, C) -> (B, H, W, C)."""
        merged = self.dense(by_rows(lambda t, _: pointwise(self.s, t), x))
        weights = self.spatial_atte(merged)
        return by_rows(lambda t, _, weight: t * weight, merged, also=(weights,), out=own(merged))


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

    def forward(self, x: Tensor, entries: Entries) -> Tensor:
        """(B, in_channels, H, W) and what `entries` made of the dictionary -> (B, out_channels, H, W)."""
        t = by_rows(lambda x, _: self.x_trans(x), to_tokens(x))  # (B, H, W, width)
        if self.msa is not None:
            scales = self.msa(by_rows(lambda t, _: self.ln_scale(t), t))
            t = self.res_scale_1(t, scales, out=own(t))
        q = self.q_trans(self.lnx(t))
        t = by_rows(lambda q, _: self.look_up(q, *entries), q, out=own(t), onto=(self.res_scale_2, t))
        return to_map(by_rows(self.answer, t, halo=1))

    def entries(self, dictionary: Tensor) -> Entries:
        """Keys and values, (heads, n, head_dim) each, of n entries (n, width); or all that for a batch (Equation 7)."""
        entries = self.dict_ln(dictionary)
        keys, values = (rearrange(e, "... n (h d) -> ... h n d", h=self.heads) for e in (self.k(entries), entries))
        return keys, values

    def look_up(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """softmax(scale * Q K^T) V for queries (B, H, W, width), then `linear` (Equation 8)."""
        height, heads = q.shape[1], rearrange(q, "b y x (h d) -> b h (y x) d", h=self.heads)
        k, v = (e.to(q.dtype).expand(len(q), *e.shape[-3:]) for e in (keys, values))
        out = F.scaled_dot_product_attention(heads * self.scale.to(q.dtype), k, v, scale=1.0)  # no 1 / sqrt(d) here
        return self.linear(rearrange(out, "b h (y x) d -> b y x (h d)", y=height))

    def answer(self, t: Tensor, border: Border) -> Tensor:
        """A stripe with a row more above and below -> the stripe (B, r, W, out_channels)."""
        return self.output_trans(self.res_scale_3(inside(t, 1, border), self.mlp(self.ln_mlp(t), border)))
