"""The dictionary entropy model, to be put under any autoencoder (Section 3.2 of the paper of models/dcae.py).

    y -> h_a -> z -> h_z_s1, h_z_s2 -> latent scales, latent means
    slice i:  query = (latent scales, latent means, y_hat_<i)
              support = (query, dictionary cross-attention(query))     for means, scales and residuals alike

| frozen name | what it is |
|---|---|
| `dt` | the dictionary (entries, width) |
| `dt_cross_attention.i` | dictionary cross-attention of slice i |
| `h_z_s1`, `h_z_s2` | hyper-synthesis of the scales, of the means |
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.base import LAMBDA_RANGE, SliceCompressionModel
from models.layers.attention import SwinStage
from models.layers.convolution import Down, SliceTransform, Up, conv, deconv
from models.layers.dictionary import DictionaryCrossAttention
from models.layers.entropy_models import EntropyBottleneck, GaussianConditional


class Dictionary(nn.Module):
    """Gives a slice model the dictionary and the cross-attentions that look it up."""

    has_dictionary = False

    def build_dictionary(
        self, query_channels: Sequence[int], answer_channels: int, entries: int, heads: int, head_dim: int, msfa: int
    ) -> None:
        """Make `dt` and `dt_cross_attention`; `query_channels[i]` is the width of the query of slice i.

        entries: 0 leaves out the dictionary (the paper's baseline); heads, head_dim: of the cross-attention, heads *
        head_dim is the dictionary's width; msfa: stacked convolutions m of the multi-scale aggregation, 0 for none.
        """
        self.has_dictionary = entries > 0
        if self.has_dictionary:
            self.dt = nn.Parameter(torch.randn(entries, heads * head_dim))
            self.dt_cross_attention = cross_attentions(query_channels, answer_channels, heads, head_dim, msfa)

    def ask_dictionary(self, i: int, query: Tensor) -> Tensor:
        """(B, query_channels[i], h, w) -> slice i's answer (B, answer_channels, h, w) (Equation 4)."""
        return self.dt_cross_attention[i](query, self.dt)


class DictionaryModel(Dictionary, SliceCompressionModel):
    """The paper's entropy model. A subclass builds `g_a` and `g_s`, and everything else with the `build_*` methods.

    N, M: channels of z and y; slices: into how many y is cut, or the channels of each; window, hyper_window: sides of
    the attention windows in the transforms and in the hyper-prior; hidden: widths inside the networks of the slices;
    dictionary_*, msfa: see `Dictionary`; feature_channels, answer_channels: of the latent scales and means each, and of
    the dictionary's answers (None: M); variable_rate: adds gain units; lambda_range: trade-offs at quality 1 and 100.
    Subclasses pass on the arguments behind the asterisk.
    """

    def __init__(
        self,
        N: int,
        window: int,
        *,
        M: int = 320,
        slices: int | Sequence[int] = 5,
        hyper_head_dim: int = 32,
        hyper_window: int = 4,
        hidden: Sequence[int] = (224, 128),
        dictionary_entries: int = 128,
        dictionary_heads: int = 20,
        dictionary_head_dim: int = 32,
        msfa: int = 3,
        feature_channels: int | None = None,
        answer_channels: int | None = None,
        variable_rate: bool = False,
        lambda_range: Sequence[float] = LAMBDA_RANGE,
    ) -> None:
        super().__init__(M, N, slices, (window, hyper_window), variable_rate, lambda_range)
        self.features = feature_channels or M
        self.answers = (answer_channels or M) if dictionary_entries else 0
        self.of_dictionary = (self.answers, dictionary_entries, dictionary_heads, dictionary_head_dim, msfa)
        self.of_hyper_prior, self.hidden = (hyper_head_dim, hyper_window), hidden

    def build_queries(self) -> None:
        """The dictionary, or whatever else the slices attend to."""
        self.build_dictionary(self.query_channels, *self.of_dictionary)

    def build_entropy_model(self) -> None:
        """Everything after y except the dictionary: h_a, the hyper-synthesis, the slices' networks, the priors."""
        N, M, (head_dim, window) = self.hyper_channels, self.M, self.of_hyper_prior
        self.h_a = SliceTransform(Down(M, N), SwinStage(N, head_dim, window, 1), conv(N, N, 3, 2, exact=True))
        self.h_z_s1, self.h_z_s2 = (  # z_hat (B, N, h/4, w/4) -> (B, feature_channels, h, w)
            SliceTransform(deconv(N, N, 3), SwinStage(N, head_dim, window, 1), Up(N, self.features)) for _ in range(2)
        )
        self.build_slice_networks([c + self.answers for c in self.query_channels], self.hidden)
        self.entropy_bottleneck, self.gaussian_conditional = EntropyBottleneck(N), GaussianConditional(None)

    @property
    def query_channels(self) -> list[int]:
        """Channels of the query of each slice: latent scales, latent means, earlier slices."""
        return [2 * self.features + before for before in self.channels_before]

    def hyper_synthesis(self, z_hat: Tensor) -> tuple[Tensor, ...]:
        """z_hat (B, N, h/4, w/4) -> latent scales, latent means (B, feature_channels, h, w)."""
        return self.h_z_s1(z_hat), self.h_z_s2(z_hat)

    def slice_support(self, i: int, scales: Tensor, means: Tensor, decoded: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Query and the dictionary's answer to it: (B, query_channels[i] + answers, h, w) (Equation 4)."""
        query = torch.cat([scales, means, *decoded], 1)
        support = torch.cat([query, self.ask_dictionary(i, query)], 1) if self.has_dictionary else query
        return support, support


def cross_attentions(
    query_channels: Sequence[int], answer_channels: int, heads: int, head_dim: int, msfa: int
) -> nn.ModuleList:
    """One for each slice, over a dictionary of width heads * head_dim."""
    width = heads * head_dim
    return nn.ModuleList(DictionaryCrossAttention(c, answer_channels, width, heads, msfa) for c in query_channels)
