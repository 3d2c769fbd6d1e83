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

from typing import Any

import torch
import torch.nn.functional as F
from compressai.registry import register_model
from einops import rearrange
from torch import Tensor, nn

from models.coders import decode_under, encode_under
from models.dcae import DCAE
from models.dictionary import cross_attentions
from models.layers.attention import to_tokens
from models.layers.entropy_models import EntropyBottleneck
from utils.entropy_coding.rans import Decoder, Encoder


class TokenEncoder(nn.Module):
    """Learned queries attend to all of y: multi-head cross-attention, then a linear layer."""

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
    """The prior of the tokens, and the layer that turns them into a dictionary."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.entropy_bottleneck = EntropyBottleneck(in_channels)
        self.linear = nn.Linear(in_channels, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, in_channels, tokens, 1) -> (B, tokens, width)."""
        return self.linear(rearrange(tokens, "b c n 1 -> b n c").contiguous())  # one order of summation


@register_model("dcae-global-tokens")
class GlobalTokenModel(DCAE):
    """tokens: their number, of N channels each; the other arguments as in DCAE."""

    model_name = "dcae-global-tokens"
    hyper_names = ("h_a", "token_encoder")
    fixed = ("dictionary_entries", "msfa")

    def __init__(self, tokens: int = 8, **dcae: Any) -> None:
        super().__init__(dictionary_entries=tokens, msfa=0, **dcae)

    def build_queries(self) -> None:
        """The networks from y to tokens, from these to a dictionary, and the cross-attentions that look it up."""
        answers, self.tokens, heads, head_dim, msfa = self.of_dictionary
        self.token_encoder = TokenEncoder(self.M, self.hyper_channels, heads * head_dim, heads, self.tokens)
        self.token_decoder = TokenDecoder(self.hyper_channels, heads * head_dim)
        self.dt_cross_attention = cross_attentions(self.query_channels, answers, heads, head_dim, msfa)

    def hyper_synthesis(self, z_hat: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        """z_hat, tokens_hat -> latent scales, latent means (B, M, h, w), the image's dictionary (B, tokens, width)."""
        return *super().hyper_synthesis(z_hat[0]), self.token_decoder(z_hat[1])

    def slice_support(
        self, i: int, scales: Tensor, means: Tensor, dictionary: Tensor, decoded: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """As in DCAE, with the dictionary (B, tokens, width) of the image."""
        query = torch.cat([scales, means, *decoded], 1)
        support = torch.cat([query, self.dt_cross_attention[i](query, dictionary)], 1)
        return support, support

    # ---- the tokens beside z ---------------------------------------------------------------------------------------

    def estimate_hyper(self, y: Tensor) -> tuple[Any, Tensor]:
        """(z_hat, tokens_hat), and the likelihoods (B, n) of the symbols of both."""
        z_hat, of_z = super().estimate_hyper(y)
        tokens, of_tokens = self.token_decoder.entropy_bottleneck.estimate(self.token_encoder(y))
        return (z_hat, tokens), torch.cat([of_z.flatten(1), of_tokens.flatten(1)], 1)

    def encode_hyper(self, y: Tensor, encoders: list[Encoder], path: GlobalTokenModel) -> tuple[Tensor, Tensor]:
        """z_hat (B, N, h/4, w/4) and tokens_hat (B, N, tokens, 1), as files hold them."""
        z_hat, prior = super().encode_hyper(y, encoders, path), path.token_decoder.entropy_bottleneck
        return z_hat, encode_under(prior, self.token_encoder(y), encoders)

    def decode_hyper(self, shape: tuple[int, int], decoders: list[Decoder]) -> tuple[Tensor, Tensor]:
        """The inverse: z_hat (B, N, *shape) and tokens_hat (B, N, tokens, 1)."""
        z_hat, prior = super().decode_hyper(shape, decoders), self.token_decoder.entropy_bottleneck
        return z_hat, decode_under(prior, (self.tokens, 1), decoders)
