"""DCAE: "Learned Image Compression with Dictionary-based Entropy Model" (Lu et al., CVPR 2025, arXiv:2504.00496).

    x -> g_a -> y -> the dictionary entropy model (models/dictionary.py) -> y_hat -> g_s -> x_hat

Frozen names: `.msa` is window self-attention in a Swin layer and multi-scale aggregation in the dictionary attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from compressai.registry import register_model

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
        M, (C1, C2, C3) = self.M, channels
        stages = zip(channels, head_dims, depths, strict=True)
        swin1, swin2, swin3 = (partial(SwinStage, c, head_dim, window, T, drop_path) for c, head_dim, T in stages)
        self.build_queries()
        self.g_a = SliceTransform(  # (B, 3, H, W) -> (B, M, H/16, W/16)
            Down(3, C1), swin1(), Down(C1, C2), swin2(), Down(C2, C3), swin3(), conv(C3, M, 5, 2, exact=True)
        )
        self.g_s = SliceTransform(  # (B, M, h, w) -> (B, 3, 16h, 16w)
            deconv(M, C3), swin3(), Up(C3, C2), swin2(), Up(C2, C1), swin1(), Up(C1, 3)
        )
        self.build_entropy_model()
