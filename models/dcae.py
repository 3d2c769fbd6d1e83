"""DCAE: "Learned Image Compression with Dictionary-based Entropy Model" (Lu et al., CVPR 2025, arXiv:2504.00496).

    x -> g_a -> y -> the dictionary entropy model (models/dictionary.py) -> y_hat -> g_s -> x_hat

Frozen names: `.msa` is window self-attention in a Swin layer and multi-scale aggregation in the dictionary attention.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from models.base import recorded
from models.dictionary import DictionaryModel
from models.layers.attention import SwinStage
from models.layers.convolution import Down, SliceTransform, Up, conv, deconv
from models.layers.gain import LAMBDA_RANGE


class DCAE(DictionaryModel):
    """Defaults are the paper's model (Section 4.1).

    channels, depths: width and Transformer layers of the three stages (C1..C3, T1..T3); head_dims: widths of the heads
    in g_a (mirrored in g_s); window, hyper_window: sides of the attention windows; N, M: channels of z and y; slices:
    into how many y is cut; hidden: widths inside the networks of the slices; dictionary_entries: 0 leaves out the
    dictionary (the paper's baseline); dictionary_heads, dictionary_head_dim: of the cross-attention; msfa: stacked
    convolutions m of the multi-scale aggregation, 0 to leave it out; variable_rate: adds gain units; lambda_range: the
    trade-offs of their quality 1 and 100; feature_channels: of latent scales and of latent means, answer_channels: of
    what the dictionary answers, both M where None.
    """

    model_name = "dcae"
    bytes_a_pixel = 260  # measured at the default sizes (250): two maps of g_a's first stage, or what predicts a slice

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
        slices: int | Sequence[int] = 5,
        hidden: Sequence[int] = (224, 128),
        dictionary_entries: int = 128,
        dictionary_heads: int = 20,
        dictionary_head_dim: int = 32,
        msfa: int = 3,
        variable_rate: bool = False,
        feature_channels: int | None = None,
        answer_channels: int | None = None,
        lambda_range: Sequence[float] = LAMBDA_RANGE,
    ) -> None:
        super().__init__(recorded(locals()), M, N, slices, (window, hyper_window), variable_rate, lambda_range)
        self.feature_channels, self.answer_channels = feature_channels or M, answer_channels or M
        self.build_dictionary(self.query_channels, dictionary_entries, dictionary_heads, dictionary_head_dim, msfa)
        self.g_a = analysis_transform(channels, depths, head_dims, window, M)
        self.g_s = synthesis_transform(channels, depths, head_dims, window, M)
        self.build_entropy_model(hyper_head_dim, hyper_window, hidden)


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
