"""Global tokens instead of a dictionary: what the paper of models/dcae.py compares with (Section 4.2, Table 5).

"Joint Global and Local Hierarchical Priors for Learned Image Compression" (Kim et al., CVPR 2022, arXiv:2112.04487):
a few tokens summarise the image. Learned queries attend to all of y; what they find is rounded, coded under a
factorized prior of its own and transmitted, behind z in the same string. The slices then ask these tokens as DCAE's
slices ask the dictionary, so that the two differ in nothing else:

    y -> token_encoder -> tokens (B, N, 8, 1) ->[factorized prior]-> token_decoder -> dictionary of the image
    slice i:  query = (latent scales, latent means, y_hat_<i),  support = (query, cross-attention(query, dictionary))

Autoencoder and hyper-prior are DCAE's. The rate of the tokens is counted with that of z.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models import dcae
from models.base import recorded
from models.coders import get_symbols, put_symbols
from models.dictionary import DictionaryModel
from models.layers.attention import to_tokens
from models.layers.entropy_models import EntropyBottleneck


class TokenEncoder(nn.Module):
    """Learned queries look over the whole of y: cross-attention with several heads, then a linear layer."""

    def __init__(self, in_channels: int, out_channels: int, width: int, heads: int, tokens: int) -> None:
        super().__init__()
        self.heads = heads
        self.queries = nn.Parameter(torch.randn(tokens, width))
        self.norm = nn.LayerNorm(in_channels)
        self.key_value = nn.Linear(in_channels, 2 * width)
        self.linear = nn.Linear(width, out_channels)

    def forward(self, y: Tensor) -> Tensor:
        """(B, in_channels, h, w) -> (B, out_channels, tokens, 1)."""
        places = self.key_value(self.norm(to_tokens(y).flatten(1, 2)))  # (B, h * w, 2 * width)
        k, v = rearrange(places, "b p (two h d) -> two b h p d", two=2, h=self.heads)
        q = rearrange(self.queries, "n (h d) -> h n d", h=self.heads).to(k.dtype).expand(len(y), -1, -1, -1)
        found = rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)")
        return rearrange(self.linear(found), "b n c -> b c n 1")


class TokenDecoder(nn.Module):
    """The prior of the tokens, and what makes a dictionary of them."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.entropy_bottleneck = EntropyBottleneck(in_channels)
        self.linear = nn.Linear(in_channels, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, in_channels, tokens, 1) -> (B, tokens, width)."""
        return self.linear(rearrange(tokens, "b c n 1 -> b n c").contiguous())  # one order of summation


class GlobalTokenModel(DictionaryModel):
    """Defaults: DCAE's sizes and 8 tokens of N channels. Arguments as in DCAE, with `tokens` for the entries."""

    model_name = "dcae-global-tokens"
    transform_names = (*DictionaryModel.transform_names, "token_encoder")

    def __init__(
        self,
        channels: Sequence[int] = (96, 144, 256),
        depths: Sequence[int] = (1, 2, 12),
        head_dims: Sequence[int] = (8, 16, 32),
        window: int = 8,
        N: int = 192,
        M: int = 320,
        hyper_head_dim: int = 32,
        hyper_window: int = 4,
        slices: int = 5,
        hidden: Sequence[int] = (224, 128),
        tokens: int = 8,
        dictionary_heads: int = 20,
        dictionary_head_dim: int = 32,
        variable_rate: bool = False,
    ) -> None:
        super().__init__(recorded(locals()), M, N, slices, (window, hyper_window), variable_rate)
        width, self.tokens = dictionary_heads * dictionary_head_dim, tokens
        self.token_encoder = TokenEncoder(M, N, width, dictionary_heads, tokens)
        self.token_decoder = TokenDecoder(N, width)
        self.g_a = dcae.analysis_transform(channels, depths, head_dims, window, M)
        self.g_s = dcae.synthesis_transform(channels, depths, head_dims, window, M)
        self.build_cross_attention(self.query_channels, dictionary_heads, dictionary_head_dim, 0)
        self.build_entropy_model(hyper_head_dim, hyper_window, hidden)

    def hyper_synthesis(self, z_hat: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        """z_hat, tokens_hat -> latent scales, latent means (B, M, h, w), the image's dictionary (B, tokens, width)."""
        return *super().hyper_synthesis(z_hat[0]), self.token_decoder(z_hat[1])

    def slice_support(
        self, i: int, scales: Tensor, means: Tensor, dictionary: Tensor, decoded: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """As in DCAE, with the dictionary of the image."""
        query = torch.cat([scales, means, *decoded], 1)
        layer = self.dt_cross_attention[i]
        support = torch.cat([query, layer(query, layer.entries(dictionary))], 1)
        return support, support

    # ---- the tokens beside z ---------------------------------------------------------------------------------------

    def estimate_hyper(self, y: Tensor) -> tuple[Any, Tensor]:
        """(z_hat, tokens_hat), and the likelihoods (B, n) of the symbols of both."""
        z_hat, of_z = super().estimate_hyper(y)
        tokens, of_tokens = self.token_decoder.entropy_bottleneck.estimate(self.token_encoder(y))
        return (z_hat, tokens), torch.cat([of_z.flatten(1), of_tokens.flatten(1)], 1)

    def encode_hyper(self, y: Tensor, encoders, checks, arithmetic: str) -> tuple[Tensor, Tensor]:
        """(z_hat, tokens_hat) as files hold them."""
        z_hat, prior = super().encode_hyper(y, encoders, checks, arithmetic), self.token_decoder.entropy_bottleneck
        symbols = torch.round(self.token_encoder(y) - prior.medians())
        put_symbols(encoders, checks, symbols, self.z_indexes(symbols.shape), prior.tables())
        return z_hat, symbols.to(z_hat) + prior.medians().to(z_hat)

    def decode_hyper(self, shape: tuple[int, int], decoders, checks, arithmetic: str) -> tuple[Tensor, Tensor]:
        """The inverse."""
        z_hat, prior = super().decode_hyper(shape, decoders, checks, arithmetic), self.token_decoder.entropy_bottleneck
        indexes = self.z_indexes((len(decoders), self.hyper_channels, self.tokens, 1))
        return z_hat, get_symbols(decoders, checks, indexes, prior.tables()).to(z_hat) + prior.medians().to(z_hat)
