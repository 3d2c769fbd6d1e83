"""DCAE: "Learned Image Compression with Dictionary-based Entropy Model" (Lu et al., CVPR 2025, arXiv:2504.00496).

    x -> g_a -> y -> the dictionary entropy model (models/dictionary.py) -> y_hat -> g_s -> x_hat

Frozen names: `.msa` is window self-attention in a Swin layer and multi-scale aggregation in the dictionary attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from compressai.registry import register_model
from torch import nn

from models.configuration import record
from models.dictionary import DictionaryModel
from models.layers.attention import SwinStage
from models.layers.convolution import Down, SliceTransform, Up, conv, deconv


@register_model("dcae")
class DCAE(DictionaryModel):
    """Defaults are the paper's model (Section 4.1).

    channels, depths: width and Transformer layers of the three stages (C1..C3, T1..T3); head_dims: widths of the heads
    in g_a (mirrored in g_s); window: side of their windows; N: channels of z; drop_path: see ScaledSwinLayer; the
    others as in DictionaryModel.
    """

    model_name = "dcae"

    @record
    def __init__(
        self,
        channels: Sequence[int] = (96, 144, 256),
        depths: Sequence[int] = (1, 2, 12),
        head_dims: Sequence[int] = (8, 16, 32),
        window: int = 8,
        N: int = 192,
        drop_path: float = 0.0,
        **entropy_model: Any,
    ) -> None:
        super().__init__(N, window, **entropy_model)
        self.build_queries()
        self.g_a = analysis_transform(channels, depths, head_dims, window, self.M, drop_path)
        self.g_s = synthesis_transform(channels, depths, head_dims, window, self.M, drop_path)
        self.build_entropy_model()


def analysis_transform(
    channels: Sequence[int],
    depths: Sequence[int],
    head_dims: Sequence[int],
    window: int,
    M: int,
    drop_path: float = 0.0,
) -> SliceTransform:
    """g_a: (B, 3, H, W) -> (B, M, H/16, W/16)."""
    layers, before = [], 3
    for width, depth, head_dim in zip(channels, depths, head_dims):
        layers += [Down(before, width), SwinStage(width, head_dim, window, depth, drop_path)]
        before = width
    return SliceTransform(*layers, conv(before, M, 5, 2, exact=True))


def synthesis_transform(
    channels: Sequence[int],
    depths: Sequence[int],
    head_dims: Sequence[int],
    window: int,
    M: int,
    drop_path: float = 0.0,
) -> SliceTransform:
    """g_s: (B, M, h, w) -> (B, 3, 16h, 16w)."""
    layers: list[nn.Module] = [deconv(M, channels[-1])]
    after = [*reversed(channels[:-1]), 3]
    for width, depth, head_dim, out in zip(reversed(channels), reversed(depths), reversed(head_dims), after):
        layers += [SwinStage(width, head_dim, window, depth, drop_path), Up(width, out)]
    return SliceTransform(*layers)
