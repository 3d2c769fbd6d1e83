"""DCAE: "Learned Image Compression with Dictionary-based Entropy Model" (Lu et al., CVPR 2025, arXiv:2504.00496).

    x -> g_a -> y -> the dictionary entropy model (models/dictionary.py) -> y_hat -> g_s -> x_hat

Frozen names: `.msa` is window self-attention in a Swin layer and multi-scale aggregation in the dictionary attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from compressai.registry import register_model
from torch import Tensor

from models import STRIDE_Y
from models.dictionary import DictionaryModel
from models.layers.attention import SwinStage
from models.layers.convolution import Down, SliceTransform, Up, conv, deconv


@register_model("dcae")
class DCAE(DictionaryModel):
    """Defaults are the paper's model (Section 4.1).

    channels, depths: width and Transformer layers of the three stages (C1..C3, T1..T3); head_dims: widths of the heads
    in g_a (mirrored in g_s); window: side of their windows; N: channels of z; drop_path: see ScaledSwinLayer; the
    others as in DictionaryModel.

    bypass: how many latents, the last ones, have a linear way beside g_a and g_s, from blocks of 16x16 pixels and back
    to them. 0 is the paper's; small transforms need it at high rates, as what they do not model they lose at any rate.
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
        bypass: int = 0,
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
        self.bypass, block = bypass, 3 * STRIDE_Y**2
        if bypass:
            self.bypass_a, self.bypass_s = conv(block, bypass, 1, exact=True), conv(bypass, block, 1)
            self.transform_names += ("bypass_a", "bypass_s")
        self.build_entropy_model()

    def analysis(self, x: Tensor) -> Tensor:
        """Image (B, 3, H, W) in [0, 1] -> y (B, M, H/16, W/16)."""
        y = self.g_a(x)
        if not self.bypass:
            return y
        linear = self.bypass_a(F.pixel_unshuffle(x, STRIDE_Y))
        return torch.cat((y[:, : -self.bypass], y[:, -self.bypass :] + linear), 1)

    def synthesis(self, y_hat: Tensor) -> Tensor:
        """y_hat (B, M, h, w) -> image (B, 3, 16h, 16w), not clamped."""
        x_hat = self.g_s(y_hat)
        if not self.bypass:
            return x_hat
        return x_hat + F.pixel_shuffle(self.bypass_s(y_hat[:, -self.bypass :]), STRIDE_Y)
