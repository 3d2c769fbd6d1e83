"""Window attention and the Swin blocks built on it.

"Swin Transformer" (Liu et al., ICCV 2021, arXiv:2103.14030). Tokens are (B, H, W, C) with H and W multiples of the
window; maps are (B, C, H, W). A contiguous token tensor seen through `to_map` is a channels-last map, so that going
back and forth copies nothing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models.layers.convolution import conv


def to_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H, W, C)."""
    return rearrange(x, "b c h w -> b h w c")


def to_map(x: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, C, H, W)."""
    return rearrange(x, "b h w c -> b c h w")


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
        height, width = x.shape[1:3]
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
        q, k, v = rearrange(
            self.embedding_layer(x),
            "b (i r) (j s) (three h d) -> three b i j h (r s) d",
            three=3, h=self.heads, r=self.window, s=self.window,
        )  # (B, rows of windows, columns of windows, heads, w * w, head_dim) each  # fmt: skip
        out = self.attend_shifted(q, k, v) if self.shift else self.attend(q, k, v, self.bias(q.dtype))
        out = rearrange(out, "b i j h (r s) d -> b (i r) (j s) (h d)", r=self.window)
        out = self.linear(out)
        assert out.shape[1:3] == (height, width)
        return out.roll((self.shift, self.shift), (1, 2)) if self.shift else out

    def bias(self, dtype: torch.dtype) -> Tensor:
        """(heads, w * w, w * w): what each query p adds to its logit with each key q."""
        return self.relative_position_params.to(dtype).flatten(1)[:, self.bias_index]

    @staticmethod
    def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        """Attention of windows (B, i, j, heads, tokens, d) under one (heads, tokens, tokens) bias."""
        out = F.scaled_dot_product_attention(
            q.flatten(0, 2), k.flatten(0, 2), v.flatten(0, 2), attn_mask=bias.unsqueeze(0)
        )
        return out.unflatten(0, q.shape[:3])

    def attend_shifted(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The same, with the masks of the last row, the last column and the corner where they belong."""
        bias = self.bias(q.dtype)
        rows = []
        for i, row_mask in ((slice(None, -1), False), (slice(-1, None), True)):
            if row_mask or q.shape[1] > 1:
                rows.append(self.attend_row(q[:, i], k[:, i], v[:, i], bias, row_mask))
        return torch.cat(rows, 1)

    def attend_row(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, row_mask: bool) -> Tensor:
        """Rows of windows that share a row mask; their last column gets the column mask as well."""
        inner = bias + self.masks[0].to(bias) if row_mask else bias
        last = self.attend(q[:, :, -1:], k[:, :, -1:], v[:, :, -1:], inner + self.masks[1].to(bias))
        if q.shape[2] == 1:
            return last
        return torch.cat([self.attend(q[:, :, :-1], k[:, :, :-1], v[:, :, :-1], inner), last], 2)


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

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (..., C) -> (..., C)."""
        return x * self.scale


class DepthwiseConvolution(nn.Module):
    """3x3 depthwise convolution of tokens (the published keys hold it one level down)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        return to_tokens(self.dwconv(to_map(x)))


class ConvolutionalGLU(nn.Module):
    """Gated feed-forward network: GELU(depthwise(a)) * v with (a, v) = fc1(x) (Shi, "TransNeXt", CVPR 2024)."""

    def __init__(self, channels: int, expansion: int = 4) -> None:
        super().__init__()
        inner = channels * expansion // 2
        self.fc1 = nn.Linear(channels, 2 * inner)
        self.dwconv = DepthwiseConvolution(inner)
        self.fc2 = nn.Linear(inner, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        gate, value = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(F.gelu(self.dwconv(gate)) * value)


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

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        x = self.res_scale_1(x) + self.msa(self.ln1(x))
        return self.res_scale_2(x) + self.mlp(self.ln2(x))


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
        tokens = to_tokens(x).contiguous()
        for layer in self.layers:
            tokens = layer(tokens)
        return x + self.conv(to_map(tokens))


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
        x = x + self.msa(self.ln1(x))
        return x + self.mlp(self.ln2(x))
