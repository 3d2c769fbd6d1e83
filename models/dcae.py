"""DCAE: "Learned Image Compression with Dictionary-based Entropy Model" (Lu et al., CVPR 2025, arXiv:2504.00496).

    x -> g_a -> y -> h_a -> z -> h_z_s1, h_z_s2 -> latent scales, latent means
    slice i:  query = (latent scales, latent means, y_hat_<i)
              support = (query, dictionary cross-attention(query))     for means, scales and residuals alike
    y_hat -> g_s -> x_hat

| frozen name | what it is |
|---|---|
| `dt` | the dictionary (entries, width) |
| `dt_cross_attention.i` | dictionary cross-attention of slice i |
| `h_z_s1`, `h_z_s2` | hyper-synthesis of the scales, of the means |
| `.msa` in a Swin layer / in the dictionary attention | window self-attention / multi-scale aggregation |
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.base import SliceCompressionModel
from models.layers.attention import SwinStage
from models.layers.convolution import Down, SliceTransform, Up, conv, deconv
from models.layers.dictionary import DictionaryCrossAttention


class DCAE(SliceCompressionModel):
    """Defaults are the paper's model (Section 4.1).

    channels, depths: width and Transformer layers of the three stages (C1..C3, T1..T3); head_dims: widths of the heads
    in g_a (mirrored in g_s); window, hyper_window: sides of the attention windows; N, M: channels of z and y; slices:
    into how many y is cut; hidden: widths inside the networks of the slices; dictionary_entries: 0 leaves out the
    dictionary (the paper's baseline); dictionary_heads, dictionary_head_dim: of the cross-attention; msfa: stacked
    convolutions m of the multi-scale aggregation, 0 to leave it out; variable_rate: adds gain units.
    """

    model_name = "dcae"

    def __init__(
        self,
        channels: Sequence[int] = (96, 144, 256),
        depths: Sequence[int] = (1, 2, 12),
        head_dims: Sequence[int] = (8, 16, 32),
        window: int = 8,
        N: int = 192,
        M: int = 320,
        hyper_head_dim: int = 32,
        hyper_window: int = 4,
        slices: int = 5,
        hidden: Sequence[int] = (224, 128),
        dictionary_entries: int = 128,
        dictionary_heads: int = 20,
        dictionary_head_dim: int = 32,
        msfa: int = 3,
        variable_rate: bool = False,
    ) -> None:
        config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        config = {k: list(v) if isinstance(v, Sequence) else v for k, v in config.items()}
        super().__init__(config, M, N, slices, (window, hyper_window), variable_rate)
        query_channels = [2 * M + sum(self.slice_sizes[:i]) for i in range(slices)]
        width = dictionary_heads * dictionary_head_dim
        if dictionary_entries:
            self.dt = nn.Parameter(torch.randn(dictionary_entries, width))
            self.dt_cross_attention = nn.ModuleList(
                DictionaryCrossAttention(c, M, width, dictionary_heads, msfa) for c in query_channels
            )
        self.has_dictionary = dictionary_entries > 0
        self.g_a = analysis_transform(channels, depths, head_dims, window, M)
        self.g_s = synthesis_transform(channels, depths, head_dims, window, M)
        self.h_a = SliceTransform(Down(M, N), SwinStage(N, hyper_head_dim, hyper_window, 1), conv(N, N, 3, 2))
        self.h_z_s1 = hyper_synthesis_transform(N, M, hyper_head_dim, hyper_window)
        self.h_z_s2 = hyper_synthesis_transform(N, M, hyper_head_dim, hyper_window)
        self.build_slice_networks([c + M * self.has_dictionary for c in query_channels], hidden)
        self.build_prior()
        self.build_conditional()

    def hyper_synthesis(self, z_hat: Tensor) -> tuple[Tensor, Tensor]:
        """z_hat (B, N, h/4, w/4) -> latent scales, latent means (B, M, h, w)."""
        return self.h_z_s1(z_hat), self.h_z_s2(z_hat)

    def slice_support(self, i: int, scales: Tensor, means: Tensor, decoded: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Hyper features, earlier slices and what the dictionary makes of them (Equation 4)."""
        query = torch.cat([scales, means, *decoded], 1)
        if not self.has_dictionary:
            return query, query
        support = torch.cat([query, self.dt_cross_attention[i](query, self.dt)], 1)
        return support, support


def analysis_transform(
    channels: Sequence[int], depths: Sequence[int], head_dims: Sequence[int], window: int, M: int
) -> SliceTransform:
    """g_a: (B, 3, H, W) -> (B, M, H/16, W/16)."""
    layers, before = [], 3
    for width, depth, head_dim in zip(channels, depths, head_dims):
        layers += [Down(before, width), SwinStage(width, head_dim, window, depth)]
        before = width
    return SliceTransform(*layers, conv(before, M, 5, 2))


def synthesis_transform(
    channels: Sequence[int], depths: Sequence[int], head_dims: Sequence[int], window: int, M: int
) -> SliceTransform:
    """g_s: (B, M, h, w) -> (B, 3, 16h, 16w)."""
    layers: list[nn.Module] = [deconv(M, channels[-1])]
    after = [*reversed(channels[:-1]), 3]
    for width, depth, head_dim, out in zip(reversed(channels), reversed(depths), reversed(head_dims), after):
        layers += [SwinStage(width, head_dim, window, depth), Up(width, out)]
    return SliceTransform(*layers)


def hyper_synthesis_transform(N: int, M: int, head_dim: int, window: int) -> SliceTransform:
    """z_hat (B, N, h/4, w/4) -> (B, M, h, w)."""
    return SliceTransform(deconv(N, N, 3), SwinStage(N, head_dim, window, 1), Up(N, M))
