"""Window attention and Swin blocks in stripes of rows, written over their input where nothing else needs that."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models.layers.attention import (
    ConvolutionalGLU,
    DepthwiseConvolution,
    ResidualScale,
    ScaledSwinLayer,
    SwinStage,
    WindowAttention,
    attention,
)
from models.tcm import PlainSwinBlock
from utils.inference import products
from utils.inference.rows import (
    Border,
    ProductLinear,
    Striped,
    StripedLayer,
    by_rows,
    has_hooks,
    inside,
    keeps_size,
    own,
    to_map,
    tokens_of,
)

Biases = tuple[Tensor, Tensor]  # what is added to the logits of a row's windows, and to those of its last window


class FastWindowAttention(Striped, WindowAttention):
    """Rows of windows are a stripe; shifted ones start `shift` rows further down, so that nothing is rolled there."""

    plain = WindowAttention
    written = "6cb59a2e"
    parts = {"embedding_layer": ProductLinear, "linear": ProductLinear}

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, H, W, C) -> (B, H, W, C)."""
        return self.in_windows(self.attend_rows, x)

    def in_windows(
        self, function: Callable[[Tensor, Biases], Tensor], x: Tensor,
        join: Callable[..., Tensor] | None = None, out: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """`function`(rows of windows, biases) over tokens x (B, H, W, C), in stripes; returns (B, H, W, C).

        join(x, function's result) is the result where it is given; `out`, which may be x, takes it. The last of the
        shifted windows hold the rows left over at both ends.
        """
        window, shift = self.window, self.shift
        bias, row_mask = self.bias(), self.masks[0] if shift else 0
        inner, last = ((b, b + self.masks[1] if shift else b) for b in (bias, bias + row_mask))

        def whole_windows(x: Tensor, out: Tensor | None) -> Tensor:
            onto = (join, x) if join else None
            return by_rows(lambda rows, _: function(rows, inner), x, unit=window, out=out, onto=onto)

        if not shift:
            return whole_windows(x, out)
        end = x.shape[1] - window + shift
        ends = torch.cat([x[:, end:], x[:, :shift]], 1)
        border = function(ends, last)
        border = join(ends, border) if join else border
        parts = [border[:, window - shift :], border[:, : window - shift]]
        if end > shift:
            parts.insert(1, whole_windows(x[:, shift:end], None if out is None else out[:, shift:end]))
        if out is None:
            return torch.cat(parts, 1)
        out[:, :shift], out[:, end:] = parts[0], parts[-1]
        return out

    def attend_rows(self, x: Tensor, biases: Biases) -> Tensor:
        """Rows of windows (B, r, W, C) -> the same; shifted ones wrap around at the end of a row."""
        batch, height, width, channels = x.shape
        if self.shift:
            x = x.roll(-self.shift, 2)
        columns, tokens = width // self.window, self.window**2
        x = rearrange(x, "b (i r) (j s) c -> (j b i) (r s) c", r=self.window, s=self.window)
        qkv = self.embedding_layer(x)
        q, k, v = rearrange(qkv, "n p (three h d) -> three n h p d", three=3, h=self.heads)  # views
        last = len(x) // columns if self.shift else 0  # windows of the last column
        parts = [slice(0, len(x) - last), slice(len(x) - last, len(x))]
        out = [attention(q[p], k[p], v[p], bias) for p, bias in zip(parts, biases) if p.start < p.stop]
        out = (torch.cat(out) if len(out) > 1 else out[0]).transpose(1, 2).reshape(len(x), tokens, channels)
        out = rearrange(
            self.linear(out), "(j b i) (r s) c -> b (i r) (j s) c", b=batch, j=columns, r=self.window, s=self.window
        )
        return out.roll(self.shift, 2) if self.shift else out


def add_scaled(scale: Tensor, x: Tensor, branch: Tensor, out: Tensor | None = None) -> Tensor:
    """scale * x + branch for tokens (..., C), in the type of x."""
    return torch.addcmul(branch.to(x.dtype), x, scale.to(x.dtype), out=out)


class FastGatedUnit(Striped, ConvolutionalGLU):
    """The hidden widths exist for one stripe only; gates and values are two products, as only gates need a border."""

    plain = ConvolutionalGLU
    written = "05f08992"
    parts = {"fc1": ProductLinear, "dwconv": DepthwiseConvolution, "dwconv.dwconv": StripedLayer, "fc2": ProductLinear}

    @classmethod
    def fits(cls, module: ConvolutionalGLU) -> bool:
        """Where the kernel is the paper's."""
        return super().fits(module) and keeps_size(module.dwconv.dwconv, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, H, W, C) -> (B, H, W, C)."""
        return by_rows(self.feed, x, halo=1)

    def prepare(self) -> None:
        """The halves of fc1, as views of its tensors."""
        self.halves = list(zip(self.fc1.weight.detach().chunk(2), self.fc1.bias.detach().chunk(2)))

    def feed(self, x: Tensor, border: Border) -> Tensor:
        """A stripe (B, r, W, C) with a row more above and below, where the map has them -> the stripe."""
        gate, value = self.halves
        gates = F.gelu(self.dwconv.dwconv.convolve(products.linear(x, *gate), border))
        return self.fc2(gates * products.linear(inside(x, 1, border), *value))


class FastSwinLayer(Striped, ScaledSwinLayer):
    """Both sums in stripes."""

    plain = ScaledSwinLayer
    written = "870ec28e"
    parts = {
        "ln1": nn.LayerNorm, "msa": FastWindowAttention, "ln2": nn.LayerNorm, "mlp": FastGatedUnit,
        "res_scale_1": ResidualScale, "res_scale_2": ResidualScale,
    }  # fmt: skip

    @classmethod
    def fits(cls, module: ScaledSwinLayer) -> bool:
        """Where nothing is done to the branches in eval mode, as by DropPath."""
        kind = type(module.drop_path)
        nothing = kind is nn.Identity or (kind.__module__.startswith("timm.") and kind.__name__ == "DropPath")
        return super().fits(module) and nothing and not has_hooks(module.drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        tokens = tokens_of(x)
        return to_map(self.feed(self.msa.in_windows(self.attend, tokens, partial(add_scaled, self.res_scale_1.scale))))

    def overwrite(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W), in the memory of x."""
        tokens = tokens_of(x)
        sum_up = partial(add_scaled, self.res_scale_1.scale)
        return to_map(self.feed(self.msa.in_windows(self.attend, tokens, sum_up, own(tokens))))

    def feed(self, x: Tensor) -> Tensor:
        """The second sum of tokens x (B, H, W, C), in their memory."""
        onto = (partial(add_scaled, self.res_scale_2.scale), x)
        return by_rows(lambda rows, border: self.mlp.feed(self.ln2(rows), border), x, halo=1, out=own(x), onto=onto)

    def attend(self, x: Tensor, biases: Biases) -> Tensor:
        """Rows of windows (B, r, W, C) -> the branch of the first sum, of the same shape."""
        return self.msa.attend_rows(self.ln1(x), biases)


class FastSwinStage(Striped, SwinStage):
    """Layers overwrite what known layers before them made."""

    plain = SwinStage
    written = "4fee33c1"
    parts = {"conv": StripedLayer, "layers": nn.Sequential}
    others = ("layers",)

    @classmethod
    def fits(cls, module: SwinStage) -> bool:
        """Where the convolution is the paper's."""
        return super().fits(module) and keeps_size(module.conv, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        base, out, owned = tokens_of(x), x, False
        for layer in self.layers:
            known = isinstance(layer, FastSwinLayer)
            out, owned = layer.overwrite(out) if owned and known else layer(out), known
        tokens = tokens_of(out)
        place = own(tokens) if owned else None
        return to_map(by_rows(self.conv.convolve, tokens, halo=1, out=place, onto=(torch.add, base)))


class FastPlainSwinBlock(Striped, PlainSwinBlock):
    """Both sums of a row of windows at once, as nothing reaches beyond it."""

    plain = PlainSwinBlock
    written = "1c1bf609"
    parts = {"ln1": nn.LayerNorm, "msa": FastWindowAttention, "ln2": nn.LayerNorm}
    others = ("mlp",)

    @classmethod
    def fits(cls, module: PlainSwinBlock) -> bool:
        """Where the MLP is one of single tokens."""
        kinds = [type(layer) for layer in module.mlp] if type(module.mlp) is nn.Sequential else []
        return kinds == [ProductLinear, nn.GELU, ProductLinear] and super().fits(module)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return to_map(self.msa.in_windows(self.rows, tokens_of(x)))

    def rows(self, x: Tensor, biases: Biases) -> Tensor:
        """Rows of windows (B, r, W, C) -> (B, r, W, C)."""
        x = x + self.msa.attend_rows(self.ln1(x), biases)
        return x + self.mlp(self.ln2(x))
