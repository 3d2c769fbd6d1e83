"""Residual bottlenecks in stripes of rows, written over their input where nothing else needs that."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.convolution import Down, ResidualBottleneck, Up
from utils.inference.rows import Border, Striped, StripedLayer, by_rows, keeps_size, own, to_map, tokens_of


class FastBottleneck(Striped, ResidualBottleneck):
    """The hidden widths exist for one stripe only."""

    plain = ResidualBottleneck
    written = "486c8901"
    parts = {"conv1": StripedLayer, "conv2": StripedLayer, "conv3": StripedLayer, "skip": (StripedLayer, type(None))}

    @classmethod
    def fits(cls, module: ResidualBottleneck) -> bool:
        """Where the kernels are those of the paper, and keep the size."""
        layers = [layer for layer in (module.conv1, module.conv3, module.skip) if layer is not None]
        return super().fits(module) and all(keeps_size(layer, 1) for layer in layers) and keeps_size(module.conv2, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W)."""
        tokens = tokens_of(x)
        base = tokens if self.skip is None else by_rows(lambda rows, _: self.skip.convolve(rows, (0, 0)), tokens)
        return self.add(tokens, base, None)

    def overwrite(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W), in the memory of x if both are as wide."""
        tokens = tokens_of(x)
        return self(x) if self.skip is not None else self.add(tokens, tokens, own(tokens))

    def add(self, tokens: Tensor, base: Tensor, out: Tensor | None) -> Tensor:
        """base + branch(tokens), both (B, H, W, C), as a map (B, C, H, W)."""
        return to_map(by_rows(self.branch, tokens, halo=1, out=out, onto=(torch.add, base)))

    def branch(self, x: Tensor, border: Border) -> Tensor:
        """A stripe (B, r + 2, W, C), with a row more above and below -> what is added to it, (B, r, W, out)."""
        inner = F.relu_(self.conv1.convolve(x, (0, 0)))
        return self.conv3.convolve(F.relu_(self.conv2.convolve(inner, border)), (0, 0))


def in_a_row(x: Tensor, owned: bool, *blocks: nn.Module) -> Tensor:
    """Blocks one after the other; what a known layer made (`owned`: x, too) is overwritten, as nobody keeps it."""
    for block in blocks:
        known = isinstance(block, FastBottleneck)
        x = block.overwrite(x) if owned and known else block(x)
        owned = known
    return x


class FastDown(Striped, Down):
    """Blocks overwrite the map that the convolution made."""

    plain = Down
    written = "a36ccf9c"
    parts = {"conv": StripedLayer}
    others = ("res1", "res2", "res3")

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H/2, W/2)."""
        return in_a_row(self.conv(x), True, self.res1, self.res2, self.res3)


class FastUp(Striped, Up):
    """Blocks overwrite the map that the first of them made."""

    plain = Up
    written = "35ca4a62"
    others = ("res1", "res2", "res3", "conv")

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, 2H, 2W)."""
        return self.conv(in_a_row(x, False, self.res1, self.res2, self.res3))
