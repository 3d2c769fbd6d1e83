"""Window attention and the Swin blocks built on it.

"Swin Transformer" (Liu et al., ICCV 2021, arXiv:2103.14030). Tokens are (B, H, W, C) with H and W multiples of the
window; maps are (B, C, H, W). A contiguous token tensor seen through `to_map` is a channels-last map, so that going
back and forth copies nothing. Everything is computed in stripes of rows (models/stripes.py).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models.layers.convolution import conv
from models.stripes import Border, by_rows, convolve, inside, own, to_map, to_tokens

Biases = tuple[Tensor, Tensor]  # what is added to the logits of a row's windows, and to those of its last window


class WindowAttention(nn.Module):
    """Multi-head self-attention inside w x w windows, with a learned bias for each relative position.

    logits = q k^T / sqrt(head_dim) + bias. With `shifted` the windows are displaced by w // 2 in both directions, by
    rolling the tokens; in the last row and the last column of windows, tokens from opposite ends of the image then
    share a window and must not see each other. Only those windows get a mask: one for every window would take
    hundreds of megabytes on a 768x512 image.
    """

    def __init__(self, channels: int, head_dim: int, window: int, shifted: bool) -> None:
        super().__init__()
        if channels % head_dim:
            raise ValueError(f"{channels} channels do not divide into heads of {head_dim}")
        self.heads, self.window, self.shift = channels // head_dim, window, window // 2 if shifted else 0
        span = 2 * window - 1
        self.relative_position_params = nn.Parameter(torch.empty(self.heads, span, span))
        nn.init.trunc_normal_(self.relative_position_params, std=0.02)
        self.embedding_layer = nn.Linear(channels, 3 * channels)  # queries, keys, values
        self.linear = nn.Linear(channels, channels)
        self.register_buffer("bias_index", relative_position_index(window), persistent=False)
        if shifted:
            self.register_buffer("masks", shifted_window_masks(window), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        return self.in_windows(self.attend, x)

    def in_windows(
        self, function: Callable[[Tensor, Biases], Tensor], x: Tensor,
        join: Callable[..., Tensor] | None = None, out: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """`function`(rows of windows, biases) over tokens x (B, H, W, C), in stripes; returns (B, H, W, C).

        join(x, function's result) is the result where it is given; `out`, which may be x, takes it. Shifted windows
        start `shift` rows further down; the last ones hold the rows left over at both ends.
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

    def attend(self, x: Tensor, biases: Biases) -> Tensor:
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

    def bias(self) -> Tensor:
        """(heads, w * w, w * w): what each query p adds to its logit with each key q."""
        return self.relative_position_params.flatten(1)[:, self.bias_index]


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v of windows (n, heads, tokens, d) under one (heads, tokens, tokens) bias."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype).unsqueeze(0))


def relative_position_index(window: int) -> Tensor:
    """(w * w, w * w) positions in a flattened (2w-1, 2w-1) table: row and column of p minus those of q, plus w-1."""
    row, column = (t.flatten() for t in torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij"))
    rows = row[:, None] - row[None, :] + window - 1
    columns = column[:, None] - column[None, :] + window - 1
    return rows * (2 * window - 1) + columns


def shifted_window_masks(window: int) -> Tensor:
    """(2, w * w, w * w) additive masks of the last row and the last column of shifted windows: 0 or -inf."""
    row, column = (t.flatten() for t in torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij"))
    sides = torch.stack([row, column]) < window - window // 2
    apart = sides[:, :, None] != sides[:, None, :]
    return torch.zeros(apart.shape).masked_fill(apart, -torch.inf)


class ResidualScale(nn.Module):
    """A learned factor for each channel of the residual path, initially 1 ("ResScale", Yu et al., TPAMI 2024)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor, branch: Tensor, out: Tensor | None = None) -> Tensor:
        """scale * x + branch for tokens (..., C)."""
        return torch.addcmul(branch.to(x.dtype), x, self.scale.to(x.dtype), out=out)


class DepthwiseConvolution(nn.Module):
    """3x3 depthwise convolution of tokens (the published keys hold it one level down)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x: Tensor, border: Border) -> Tensor:
        """A stripe (B, r, W, C) with a row more above and below -> the stripe."""
        return convolve(self.dwconv, x, border)


class ConvolutionalGLU(nn.Module):
    """Gated feed-forward network: GELU(depthwise(a)) * v with (a, v) = fc1(x) (Shi, "TransNeXt", CVPR 2024)."""

    def __init__(self, channels: int, expansion: int = 4) -> None:
        super().__init__()
        inner = channels * expansion // 2
        self.fc1 = nn.Linear(channels, 2 * inner)
        self.dwconv = DepthwiseConvolution(inner)
        self.fc2 = nn.Linear(inner, channels)

    def forward(self, x: Tensor, border: Border = (1, 1)) -> Tensor:
        """A stripe (B, r, W, C) with a row more above and below, where the map has them -> the stripe."""
        (gate, value), (gate_bias, value_bias) = self.fc1.weight.chunk(2), self.fc1.bias.chunk(2)
        gates = F.gelu(self.dwconv(F.linear(x, gate, gate_bias), border))
        return self.fc2(gates * F.linear(inside(x, 1, border), value, value_bias))


class ScaledSwinLayer(nn.Module):
    """DCAE's Transformer layer: x = s1 * x + attention(LN x), then x = s2 * x + gated unit(LN x)."""

    def __init__(self, channels: int, head_dim: int, window: int, shifted: bool) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(channels)
        self.msa = WindowAttention(channels, head_dim, window, shifted)
        self.ln2 = nn.LayerNorm(channels)
        self.mlp = ConvolutionalGLU(channels)
        self.res_scale_1 = ResidualScale(channels)
        self.res_scale_2 = ResidualScale(channels)

    def forward(self, x: Tensor, overwrite: bool = False) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C), in the memory of x where nobody else needs that."""
        x = self.msa.in_windows(self.attend, x, self.res_scale_1, own(x) if overwrite else None)
        return by_rows(self.feed, x, halo=1, out=own(x), onto=(self.res_scale_2, x))

    def attend(self, x: Tensor, biases: Biases) -> Tensor:
        """Rows of windows -> the branch of the first sum."""
        return self.msa.attend(self.ln1(x), biases)

    def feed(self, x: Tensor, border: Border) -> Tensor:
        """A stripe with a row more above and below -> the branch of the second sum."""
        return self.mlp(self.ln2(x), border)


class SwinStage(nn.Module):
    """x + conv(layers(x)), every second layer with shifted windows."""

    def __init__(self, channels: int, head_dim: int, window: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            ScaledSwinLayer(channels, head_dim, window, shifted=bool(j % 2)) for j in range(depth)
        )
        self.conv = conv(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        x = tokens = to_tokens(x).contiguous()
        for layer in self.layers:
            tokens = layer(tokens, overwrite=tokens is not x)
        out = own(tokens) if tokens is not x else None
        return to_map(by_rows(partial(convolve, self.conv), tokens, halo=1, out=out, onto=(torch.add, x)))


class PlainSwinBlock(nn.Module):
    """TCM's Transformer block: x + attention(LN x), then x + MLP(LN x), with a GELU MLP of four times the width."""

    def __init__(self, channels: int, head_dim: int, window: int, shifted: bool) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(channels)
        self.msa = WindowAttention(channels, head_dim, window, shifted)
        self.ln2 = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        return self.msa.in_windows(self.rows, x)

    def rows(self, x: Tensor, biases: Biases) -> Tensor:
        """Rows of windows -> the same."""
        x = x + self.msa.attend(self.ln1(x), biases)
        return x + self.mlp(self.ln2(x))
