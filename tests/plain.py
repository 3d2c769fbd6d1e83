"""The models as their papers write them down: whole maps, explicit softmax, no fused or shared work.

    plain(model)        # a copy that computes the same with the formulas below

What the fast layers in models/layers/ must equal, and what scripts/benchmark.py compares them with.
"""

from __future__ import annotations

import copy
import types

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models.base import EntropyParameters, SliceCompressionModel
from models.layers import attention, convolution, dictionary


def plain(model: SliceCompressionModel) -> SliceCompressionModel:
    """A copy of the model in eval mode whose layers compute as written here."""
    new = copy.deepcopy(model).eval()
    for module in new.modules():
        if type(module) in FORWARD:
            module.forward = types.MethodType(FORWARD[type(module)], module)
        if isinstance(module, dictionary.DictionaryCrossAttention):
            module.entries = lambda entries: entries  # its formula starts from the dictionary itself
    new.first_layers = lambda *_: [None] * 3  # nothing is shared
    return new


def as_tokens(x: Tensor) -> Tensor:
    return rearrange(x, "b c h w -> b h w c")


def as_map(x: Tensor) -> Tensor:
    return rearrange(x, "b h w c -> b c h w")


def window_attention(self, x: Tensor) -> Tensor:
    """Attention inside windows with a mask for every window of a shifted layer; tokens (B, H, W, C)."""
    window, shift = self.window, self.shift
    rows, columns = x.shape[1] // window, x.shape[2] // window
    x = x.roll((-shift, -shift), (1, 2))
    q, k, v = rearrange(
        self.embedding_layer(x), "b (i r) (j s) (three h d) -> three b i j h (r s) d",
        three=3, h=self.heads, r=window, s=window,
    )  # fmt: skip
    bias = self.relative_position_params.flatten(1)[:, self.bias_index]
    logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + bias
    if shift:
        masks = torch.zeros(rows, columns, 1, window**2, window**2)
        masks[-1] += self.masks[0]
        masks[:, -1] += self.masks[1]
        logits = logits + masks
    out = rearrange(logits.softmax(-1) @ v, "b i j h (r s) d -> b (i r) (j s) (h d)", r=window)
    return self.linear(out).roll((shift, shift), (1, 2))


def gated_unit(self, x: Tensor) -> Tensor:
    """fc2(GELU(depthwise(a)) * v), (a, v) = fc1(x)."""
    gate, value = self.fc1(x).chunk(2, -1)
    return self.fc2(F.gelu(as_tokens(self.dwconv.dwconv(as_map(gate)))) * value)


def swin_layer(self, x: Tensor) -> Tensor:
    x = self.res_scale_1.scale * x + self.msa(self.ln1(x))
    return self.res_scale_2.scale * x + self.mlp(self.ln2(x))


def swin_stage(self, x: Tensor) -> Tensor:
    tokens = as_tokens(x)
    for layer in self.layers:
        tokens = layer(tokens)
    return x + self.conv(as_map(tokens))


def plain_swin_block(self, x: Tensor) -> Tensor:
    x = x + self.msa(self.ln1(x))
    return x + self.mlp(self.ln2(x))


def sequential(self, x: Tensor, known: None = None) -> Tensor:
    for layer in self:
        x = layer(x)
    return x


def residual_bottleneck(self, x: Tensor) -> Tensor:
    inner = self.conv3(F.relu(self.conv2(F.relu(self.conv1(x)))))
    return inner + (x if self.skip is None else self.skip(x))


def down(self, x: Tensor) -> Tensor:
    return self.res3(self.res2(self.res1(self.conv(x))))


def up(self, x: Tensor) -> Tensor:
    return self.conv(self.res3(self.res2(self.res1(x))))


def efficient_convolution(self, x: Tensor) -> Tensor:
    return self.out_trans(F.gelu(self.dw_conv(F.gelu(self.in_trans(x)))))


def aggregation(self, x: Tensor) -> Tensor:
    """Equations 5 and 6 for a map (B, C, H, W)."""
    features = [self.s(x)]
    for gelu, layer in self.dense.conv_layers:
        features.append(layer(gelu(features[-1])))
    merged = self.dense.proj(torch.cat(features, 1))
    summary = torch.cat([merged.mean(1, keepdim=True), merged.amax(1, keepdim=True)], 1)
    return merged * torch.sigmoid(self.spatial_atte.conv1(summary))


def dictionary_attention(self, x: Tensor, entries: Tensor) -> Tensor:
    """Equations 3 to 8 for a map (B, C, H, W)."""
    t = self.x_trans(as_tokens(x))
    if self.msa is not None:
        t = as_tokens(self.msa(as_map(self.ln_scale(t)))) + self.res_scale_1.scale * t
    values = self.dict_ln(entries)
    q = rearrange(self.q_trans(self.lnx(t)), "b y x (h d) -> b h (y x) d", h=self.heads)
    k, v = (rearrange(e, "n (h d) -> h n d", h=self.heads) for e in (self.k(values), values))
    found = torch.softmax(q @ k.transpose(-1, -2) * self.scale, -1) @ v
    t = self.linear(rearrange(found, "b h (y x) d -> b y x (h d)", y=t.shape[1])) + self.res_scale_2.scale * t
    t = self.mlp(self.ln_mlp(t)) + self.res_scale_3.scale * t
    return as_map(self.output_trans(t))


FORWARD: dict[type[nn.Module], types.FunctionType] = {
    attention.WindowAttention: window_attention,
    attention.ConvolutionalGLU: gated_unit,
    attention.ScaledSwinLayer: swin_layer,
    attention.SwinStage: swin_stage,
    attention.PlainSwinBlock: plain_swin_block,
    convolution.SliceTransform: sequential,
    convolution.ResidualBottleneck: residual_bottleneck,
    convolution.Down: down,
    convolution.Up: up,
    dictionary.EfficientConvolution: efficient_convolution,
    dictionary.MultiScaleAggregation: aggregation,
    dictionary.DictionaryCrossAttention: dictionary_attention,
    EntropyParameters: sequential,
}
