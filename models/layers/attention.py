"""Window attention and the Swin blocks built on it.

"Swin Transformer" (Liu et al., ICCV 2021, arXiv:2103.14030). Blocks and stages take and return maps (B, C, H, W) with H
and W multiples of the window; inside a block tokens are (B, H, W, C).
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
        """Tokens (B, H, W, C) -> (B, H, W, C)."""
        x = x.roll((-self.shift, -self.shift), (1, 2))
        windows = rearrange(x, "b (i r) (j s) c -> b i j (r s) c", r=self.window, s=self.window)
        q, k, v = rearrange(
            self.embedding_layer(windows), "b i j p (three h d) -> three b i j h p d", three=3, h=self.heads
        )
        out = rearrange(self.attend(q, k, v), "b i j h p d -> b i j p (h d)")
        out = rearrange(self.linear(out), "b i j (r s) c -> b (i r) (j s) c", r=self.window)
        return out.roll((self.shift, self.shift), (1, 2))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention in each window, (B, rows, columns, heads, w * w, head_dim) -> the same."""
        bias = self.bias()
        if not self.shift:
            return attention(q, k, v, bias)
        below, right = self.masks  # of the last row and the last column of windows
        rows = [
            torch.cat([attention(q[:, i, :-1], k[:, i, :-1], v[:, i, :-1], mask),
                       attention(q[:, i, -1:], k[:, i, -1:], v[:, i, -1:], mask + right)], 2)
            for i, mask in ((slice(0, -1), bias), (slice(-1, None), bias + below))
        ]  # fmt: skip
        return torch.cat(rows, 1)

    def bias(self) -> Tensor:
        """(heads, w * w, w * w): what each query p adds to its logit with each key q."""
        return self.relative_position_params.flatten(1)[:, self.bias_index]


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v of windows (..., heads, tokens, d) under one (heads, tokens, tokens) bias."""
    windows = q.shape[:-3]
    q, k, v = (part.flatten(0, -4) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype)[None]).unflatten(0, windows)


def relative_position_index(window: int) -> Tensor:
    """(w * w, w * w) positions in a flattened (2w-1, 2w-1) table: row and column of p minus those of q, plus w-1."""
    place = torch.cartesian_prod(torch.arange(window), torch.arange(window))  # (w * w, 2): row and column
    rows, columns = (place[:, None] - place[None, :] + window - 1).unbind(-1)
    return rows * (2 * window - 1) + columns


def shifted_window_masks(window: int) -> Tensor:
    """(2, w * w, w * w) additive masks of the last row and the last column of shifted windows: 0 or -inf."""
    place = torch.cartesian_prod(torch.arange(window), torch.arange(window)).T  # (2, w * w): row and column
    sides = place < window - window // 2
    apart = sides[:, :, None] != sides[:, None, :]
    return torch.zeros(apart.shape).masked_fill(apart, -torch.inf)


class ResidualScale(nn.Module):
    """A learned factor for each channel of the residual path, initially 1 ("ResScale", Yu et al., TPAMI 2024)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        """scale * x + branch for tokens (..., C)."""
        return self.scale * x + branch


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
        gate, value = self.fc1(x).chunk(2, -1)
        return self.fc2(F.gelu(self.dwconv(gate)) * value)


class ScaledSwinLayer(nn.Module):
    """DCAE's Transformer layer: x = s1 * x + attention(LN x), then x = s2 * x + gated unit(LN x).

    drop_path: the share of images, in [0, 1), for which training skips a branch (Huang et al., ECCV 2016).
    """

    def __init__(self, channels: int, head_dim: int, window: int, shifted: bool, drop_path: float = 0.0) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(channels)
        self.msa = WindowAttention(channels, head_dim, window, shifted)
        self.ln2 = nn.LayerNorm(channels)
        self.mlp = ConvolutionalGLU(channels)
        self.res_scale_1 = ResidualScale(channels)
        self.res_scale_2 = ResidualScale(channels)
        self.drop_path = nn.Identity()
        if drop_path:
            from timm.layers import DropPath  # here, as importing timm takes as long as torch

            self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        x = to_tokens(x)
        x = self.res_scale_1(x, self.drop_path(self.msa(self.ln1(x))))
        x = self.res_scale_2(x, self.drop_path(self.mlp(self.ln2(x))))
        return to_map(x)


class SwinStage(nn.Module):
    """x + conv(layers(x)), every second layer with shifted windows."""

    def __init__(self, channels: int, head_dim: int, window: int, depth: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(ScaledSwinLayer(channels, head_dim, window, bool(j % 2), drop_path) for j in range(depth))
        )
        self.conv = conv(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return x + self.conv(self.layers(x))
