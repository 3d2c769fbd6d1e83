"""ELIC: "Efficient Learned Image Compression with Unevenly Grouped Space-Channel Contextual Adaptive Coding"
(He et al., CVPR 2022, arXiv:2203.10886), as CompressAI builds it, and with the dictionary added ("ELIC+ours", Table 6
of the paper of models/dcae.py).

    x -> g_a -> y -> h_a -> z -> h_s -> hyper features
    slice i:  support = (channel context(y_hat_<i), hyper features, dictionary's answer to (hyper features, y_hat_<i))
              anchors: sigma, mu = param_aggregation[i](zeros, support)
              others:  sigma, mu = param_aggregation[i](spatial context(anchors), support)
    y_hat -> g_s -> x_hat

The slices are of different widths, narrow ones first. With the dictionary comes latent residual prediction, the other
part of the paper's entropy model (Equation 4); ELIC alone has none.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from compressai.layers import AttentionBlock
from compressai.registry import register_model
from torch import Tensor, nn

from models.base import SliceCompressionModel
from models.dictionary import Dictionary
from models.layers.checkerboard import ANCHORS, OTHERS, CheckerboardConvolution, half, join_halves
from models.layers.convolution import EntropyParameters, ResidualBottleneck, SliceTransform, conv, deconv
from models.layers.entropy_models import EntropyBottleneck, GaussianConditional


@register_model("elic")
class ELIC(Dictionary, SliceCompressionModel):
    """Defaults are ELIC's own model, without the dictionary.

    N: width of the transforms and channels of z; M: channels of y; groups: how y is cut; hidden: widths inside the
    networks of the slices; dictionary_* and msfa: as in Dictionary; variable_rate: adds gain units.
    """

    model_name = "elic"

    def __init__(
        self,
        N: int = 192,
        M: int = 320,
        groups: Sequence[int] = (16, 16, 32, 64, 192),
        hidden: Sequence[int] = (224, 128),
        dictionary_entries: int = 0,
        dictionary_heads: int = 20,
        dictionary_head_dim: int = 32,
        msfa: int = 3,
        variable_rate: bool = False,
    ) -> None:
        super().__init__(M, N, groups, (1, 1), variable_rate)
        self.g_a, self.g_s = analysis_transform(N, M), synthesis_transform(N, M)
        self.h_a, self.h_s = hyper_analysis_transform(N, M), hyper_synthesis_transform(N)
        self.build_dictionary(self.query_channels, M, dictionary_entries, dictionary_heads, dictionary_head_dim, msfa)
        support_channels = [2 * N + (2 * c if i else 0) + M * self.has_dictionary for i, c in enumerate(groups)]
        self.build_contexts(support_channels, hidden, 2 * N)
        self.entropy_bottleneck, self.gaussian_conditional = EntropyBottleneck(N), GaussianConditional(None)

    @property
    def query_channels(self) -> list[int]:
        """Channels of the query of each slice: hyper features, earlier slices."""
        return [2 * self.hyper_channels + c for c in self.channels_before]

    def build_contexts(self, support_channels: Sequence[int], hidden: Sequence[int], least: int) -> None:
        """Channel contexts of all slices but the first, spatial contexts, and the networks that join them."""
        sizes = list(zip(self.slice_sizes, self.channels_before, support_channels))
        self.channel_context = nn.ModuleList(channel_context(b, hidden, 2 * c) for c, b, _ in sizes[1:])
        self.spatial_context = nn.ModuleList(CheckerboardConvolution(c, 2 * c, 5) for c, _, _ in sizes)
        self.param_aggregation = nn.ModuleList(aggregation(2 * c + s, 2 * c, least) for c, _, s in sizes)
        if self.has_dictionary:
            self.lrp_transforms = nn.ModuleList(EntropyParameters(s + c, hidden, c) for c, _, s in sizes)

    def hyper_synthesis(self, z_hat: Tensor) -> tuple[Tensor]:
        """z_hat (B, N, h/4, w/4) -> hyper features (B, 2N, h, w)."""
        return (self.h_s(z_hat),)

    def slice_support(self, i: int, hyper: Tensor, decoded: list[Tensor]) -> tuple[Tensor, Tensor]:
        """What both passes over slice i know, (B, support_channels[i], h, w), for means and scales alike."""
        parts = [self.channel_context[i - 1](torch.cat(decoded, 1)), hyper] if i else [hyper]
        if self.has_dictionary:
            parts.append(self.ask_dictionary(i, torch.cat([hyper, *decoded], 1)))
        support = torch.cat(parts, 1)
        return support, support

    def code_slice(self, i: int, y_i: Tensor | None, support: Tensor, scale_support: Tensor, coder) -> Tensor:
        """Slice i of y_hat (B, groups[i], h, w): the anchors, then the others."""
        nothing = support.new_zeros(len(support), 2 * self.slice_sizes[i], *support.shape[-2:])
        anchors = self.code_half(i, ANCHORS, y_i, nothing, support, coder)
        context = self.spatial_context[i](join_halves(anchors, torch.zeros_like(anchors)))
        y_hat_i = join_halves(anchors, self.code_half(i, OTHERS, y_i, context, support, coder))
        return y_hat_i + self.latent_residual(i, support, y_hat_i) if self.has_dictionary else y_hat_i

    def code_half(self, i: int, parity: int, y_i: Tensor | None, context: Tensor, support: Tensor, coder) -> Tensor:
        """y_hat at the positions of one colour, (B, groups[i], h, w / 2); never under autocast."""
        known = half(torch.cat([context, support], 1), parity)
        with torch.autocast(known.device.type, enabled=False):
            sigma, mu = self.param_aggregation[i](known.to(self.dtype)).chunk(2, 1)
            return coder(None if y_i is None else half(y_i, parity), mu, sigma)

    def join(self, parts: list[Tensor]) -> Tensor:
        """Both passes of all slices as one map (B, M, h, w)."""
        return torch.cat([join_halves(*pair) for pair in zip(parts[::2], parts[1::2])], 1)


def relu_between(first: nn.Module, *others: nn.Module) -> SliceTransform:
    """The layers in a row, ReLU between them."""
    return SliceTransform(first, *(layer for other in others for layer in (nn.ReLU(), other)))


def bottlenecks(N: int) -> list[ResidualBottleneck]:
    """Three in a row."""
    return [ResidualBottleneck(N, N) for _ in range(3)]


def analysis_transform(N: int, M: int) -> SliceTransform:
    """g_a: (B, 3, H, W) -> (B, M, H/16, W/16)."""
    fine = [conv(3, N, 5, 2), *bottlenecks(N), conv(N, N, 5, 2), *bottlenecks(N), AttentionBlock(N)]
    return SliceTransform(*fine, conv(N, N, 5, 2), *bottlenecks(N), conv(N, M, 5, 2), AttentionBlock(M))


def synthesis_transform(N: int, M: int) -> SliceTransform:
    """g_s: (B, M, h, w) -> (B, 3, 16h, 16w)."""
    coarse = [AttentionBlock(M), deconv(M, N), *bottlenecks(N), deconv(N, N), AttentionBlock(N), *bottlenecks(N)]
    return SliceTransform(*coarse, deconv(N, N), *bottlenecks(N), deconv(N, 3))


def hyper_analysis_transform(N: int, M: int) -> SliceTransform:
    """h_a: (B, M, h, w) -> (B, N, h/4, w/4)."""
    return relu_between(conv(M, N), conv(N, N, 5, 2), conv(N, N, 5, 2))


def hyper_synthesis_transform(N: int) -> SliceTransform:
    """h_s: (B, N, h/4, w/4) -> (B, 2N, h, w)."""
    return relu_between(deconv(N, N), deconv(N, N * 3 // 2), deconv(N * 3 // 2, 2 * N, 3, 1))


def channel_context(in_channels: int, hidden: Sequence[int], out_channels: int) -> SliceTransform:
    """Earlier slices (B, in_channels, h, w) -> (B, out_channels, h, w)."""
    first, second = hidden
    return relu_between(conv(in_channels, first, 5), conv(first, second, 5), conv(second, out_channels, 5))


def aggregation(in_channels: int, out_channels: int, least: int) -> SliceTransform:
    """Three 1x1 convolutions whose widths fall evenly from in_channels to out_channels, but not below `least`."""
    inner = [max(least, in_channels + (out_channels - in_channels) * step // 3) for step in (1, 2)]
    return relu_between(*(conv(a, b, 1) for a, b in zip([in_channels, *inner], [*inner, out_channels])))
