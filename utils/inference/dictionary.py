"""The dictionary cross-attention in stripes of rows, with keys and values that are computed once."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.attention import ResidualScale
from models.layers.dictionary import (
    DenseScales,
    DictionaryCrossAttention,
    EfficientConvolution,
    MultiScaleAggregation,
    SpatialAttention,
)
from utils.inference.rows import (
    Border,
    ProductLinear,
    Striped,
    StripedLayer,
    by_rows,
    inside,
    keeps_size,
    own,
    to_map,
    tokens_of,
)
from utils.inference.swin import FastGatedUnit, add_scaled

NONE = type(None)


class FastEfficientConvolution(Striped, EfficientConvolution):
    """The hidden maps exist for one stripe only."""

    plain = EfficientConvolution
    written = "71806e54"
    parts = {"in_trans": StripedLayer, "dw_conv": StripedLayer, "out_trans": StripedLayer}

    @classmethod
    def fits(cls, module: EfficientConvolution) -> bool:
        """Where the kernels are those of the paper."""
        kernels = (module.in_trans, 1), (module.dw_conv, 3), (module.out_trans, 1)
        return super().fits(module) and all(keeps_size(layer, kernel) for layer, kernel in kernels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return to_map(by_rows(self.rows, tokens_of(x), halo=1))

    def rows(self, x: Tensor, border: Border) -> Tensor:
        """A stripe of tokens (B, r + 2, W, C), with a row more above and below -> (B, r, W, C)."""
        hidden = F.gelu(self.in_trans.convolve(x, (0, 0)))
        return self.out_trans.convolve(F.gelu(self.dw_conv.convolve(hidden, border)), (0, 0))


class FastDenseScales(Striped, DenseScales):
    """All scales of a stripe are joined when they are projected, and never as whole maps."""

    plain = DenseScales
    written = "31bed871"
    parts = {"proj": StripedLayer}
    others = ("conv_layers",)

    @classmethod
    def fits(cls, module: DenseScales) -> bool:
        """Where the projection looks at single places."""
        return super().fits(module) and keeps_size(module.proj, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        features = [x]
        for layer in self.conv_layers:
            features.append(layer(features[-1]))
        x, *others = map(tokens_of, features)
        return to_map(by_rows(self.project, x, also=tuple(others)))

    def project(self, x: Tensor, border: Border, *features: Tensor) -> Tensor:
        """A stripe (B, r, W, C) of each scale -> one."""
        return self.proj.convolve(torch.cat([x, *features], -1), (0, 0))


class FastAggregation(Striped, MultiScaleAggregation):
    """The attention's summary and its weights in stripes, the weighted map in the memory of the merged one."""

    plain = MultiScaleAggregation
    written = "88577e25"
    parts = {"spatial_atte": SpatialAttention, "spatial_atte.conv1": StripedLayer}
    others = ("s", "dense")

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        merged = tokens_of(self.dense(self.s(x)))
        summary = by_rows(lambda t, _: torch.cat([t.mean(-1, keepdim=True), t.amax(-1, keepdim=True)], -1), merged)
        weights = tokens_of(torch.sigmoid(self.spatial_atte.conv1(to_map(summary))))
        own_merged = own(merged) if isinstance(self.dense, FastDenseScales) else None
        return to_map(by_rows(lambda t, _, weight: t * weight, merged, also=(weights,), out=own_merged))


class FastCrossAttention(Striped, DictionaryCrossAttention):
    """In stripes; keys and values of a dictionary are kept for as long as it is the one that is asked."""

    plain = DictionaryCrossAttention
    written = "f35e3910"
    parts = {
        "x_trans": ProductLinear, "ln_scale": (nn.LayerNorm, NONE), "lnx": nn.LayerNorm, "q_trans": ProductLinear,
        "dict_ln": nn.LayerNorm, "k": ProductLinear, "linear": ProductLinear, "ln_mlp": nn.LayerNorm,
        "mlp": FastGatedUnit,
        "res_scale_1": (ResidualScale, NONE), "res_scale_2": ResidualScale, "res_scale_3": ResidualScale,
    }  # fmt: skip

    @property
    def others(self) -> tuple[str, ...]:
        """The aggregation, where there is one, may be anybody's."""
        return () if self.msa is None else ("msa",)

    def prepare(self) -> None:
        """Nothing has been asked yet."""
        self.kept: tuple[Tensor, tuple[Tensor, Tensor]] | None = None

    @classmethod
    def fits(cls, module: DictionaryCrossAttention) -> bool:
        """Where the answer is made of single tokens."""
        out = module.output_trans
        return super().fits(module) and type(out) is nn.Sequential and [type(layer) for layer in out] == [ProductLinear]

    def forward(self, x: Tensor, dictionary: Tensor) -> Tensor:
        """(B, in_channels, H, W), dictionary ((B,) n, width) -> (B, out_channels, H, W)."""
        keys, values = self.kept_entries(dictionary)
        t = by_rows(lambda x, _: self.x_trans(x), tokens_of(x))  # (B, H, W, width)
        if self.msa is not None:
            scales = tokens_of(self.msa(to_map(by_rows(lambda t, _: self.ln_scale(t), t))))
            t = add_scaled(self.res_scale_1.scale, t, scales, out=own(t))
        q = by_rows(lambda t, _: self.q_trans(self.lnx(t)), t)
        onto = (partial(add_scaled, self.res_scale_2.scale), t)
        t = by_rows(lambda q, _: self.linear(self.look_up(q, keys, values)), q, out=own(t), onto=onto)
        return to_map(by_rows(self.answer, t, halo=1))

    def kept_entries(self, dictionary: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, (1 or B, heads, n, head_dim); those of a parameter are kept, others serve only once."""
        if torch.is_grad_enabled() or torch.is_autocast_enabled(dictionary.device.type):
            return self.entries(dictionary)
        kept = self.kept
        if kept is None or kept[0] is not dictionary:
            kept = (dictionary, self.entries(dictionary))
            if isinstance(dictionary, nn.Parameter):
                self.kept = kept
        return kept[1]

    def answer(self, t: Tensor, border: Border) -> Tensor:
        """A stripe with a row more above and below -> the stripe (B, r, W, out_channels)."""
        branch = self.mlp.feed(self.ln_mlp(t), border)
        return self.output_trans(add_scaled(self.res_scale_3.scale, inside(t, 1, border), branch))
