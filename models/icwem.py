"""ICWEM: "Invertible Channel-Wise Entropy Model for Image Compression" (Liao, MSc thesis, Imperial College, 2024).

    x -> enh.forw_enh -> inv -> g_a -> y ... TCM's entropy model ... y_hat -> g_s -> inv^-1 -> enh.back_enh -> x_hat

Everything but the invertible network on the image is TCM's. Frozen names: `enh` the enhancement networks, `inv` the
invertible network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from compressai.registry import register_model
from torch import Tensor, nn

from models.layers.invertible import Enhancement, InvertibleNetwork
from models.tcm import TCM


@register_model("icwem")
class ICWEM(TCM):
    """Defaults are the thesis' model. Networks on (8-bit) pixels do not run under autocast.

    enhancement_width, growth: widths of the enhancement networks and of the layers in their dense blocks; the others
    are TCM's.
    """

    model_name = "icwem"
    transform_names = ("g_a", "g_s", "enh", "inv")

    def __init__(self, enhancement_width: int = 64, growth: int = 32, **arguments: Any) -> None:
        self.enhancement_sizes = enhancement_width, growth  # first: what is called next builds the networks
        super().__init__(**arguments)

    def build_transforms(self, N: int, M: int, head_dims: Sequence[int], window: int) -> None:
        """g_a, g_s and the networks in front of g_a and behind g_s."""
        super().build_transforms(N, M, head_dims, window)
        self.enh = nn.ModuleDict({name: Enhancement(*self.enhancement_sizes) for name in ("forw_enh", "back_enh")})
        self.inv = InvertibleNetwork()

    def analysis(self, x: Tensor) -> Tensor:
        """Image (B, 3, H, W) in [0, 1] -> y (B, M, H/16, W/16)."""
        with torch.autocast(x.device.type, enabled=False):
            x = self.inv(self.enh.forw_enh(x))
        return self.g_a(x)

    def synthesis(self, y_hat: Tensor) -> Tensor:
        """y_hat (B, M, h, w) -> image (B, 3, 16h, 16w), not clamped before the inverse network either."""
        x = self.g_s(y_hat)
        with torch.autocast(x.device.type, enabled=False):
            return self.enh.back_enh(self.inv.inverse(x.to(next(self.inv.parameters()).dtype)))
