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

from models.base import SliceCompressionModel
from models.layers.attention import SwinStage
from models.layers.convolution import Down, SliceTransform, Up, conv, deconv
from models.layers.dictionary import DictionaryCrossAttention


class DictionaryModel(SliceCompressionModel):
    """A subclass builds `g_a` and `g_s`, and everything else with the methods below, in the order of its tensors."""

    has_dictionary = True  # False in a model built without entries
    feature_channels: int | None = None  # of latent scales and of latent means; None for M
    answer_channels: int | None = None  # of what the dictionary answers; None for M

    def build_dictionary(self, query_channels: Sequence[int], entries: int, heads: int, head_dim: int, msfa: int):
        """The dictionary and what asks it; `query_channels[i]` is the width of the query of slice i.

        entries: 0 leaves out the dictionary (the paper's baseline); msfa: stacked convolutions m of the multi-scale
        aggregation, 0 to leave it out.
        """
        self.has_dictionary = entries > 0
        if self.has_dictionary:
            self.dt = nn.Parameter(torch.randn(entries, heads * head_dim))
            self.build_cross_attention(query_channels, heads, head_dim, msfa)

    def build_cross_attention(self, query_channels: Sequence[int], heads: int, head_dim: int, msfa: int) -> None:
        """What each slice asks a dictionary of width heads * head_dim with; the answers have `answer_channels`."""
        answer = self.answer_channels or self.M
        self.dt_cross_attention = nn.ModuleList(
            DictionaryCrossAttention(c, answer, heads * head_dim, heads, msfa) for c in query_channels
        )

    def build_hyper_prior(self, head_dim: int, window: int) -> None:
        """h_a and the two hyper-synthesis transforms."""
        N, M = self.hyper_channels, self.M
        self.h_a = SliceTransform(Down(M, N), SwinStage(N, head_dim, window, 1), conv(N, N, 3, 2))
        self.h_z_s1 = hyper_synthesis_transform(N, self.feature_channels or M, head_dim, window)
        self.h_z_s2 = hyper_synthesis_transform(N, self.feature_channels or M, head_dim, window)

    def build_entropy_model(self, hyper_head_dim: int, hyper_window: int, hidden: Sequence[int]) -> None:
        """After what asks the dictionary: h_a, the hyper-synthesis, networks of the slices, priors."""
        self.build_hyper_prior(hyper_head_dim, hyper_window)
        answer = (self.answer_channels or self.M) * self.has_dictionary
        self.build_slice_networks([c + answer for c in self.query_channels], hidden)
        self.build_prior()
        self.build_conditional()

    @property
    def query_channels(self) -> list[int]:
        """Channels of the query of each slice: latent scales, latent means, earlier slices."""
        return [2 * (self.feature_channels or self.M) + before for before in self.channels_before]

    def hyper_synthesis(self, z_hat: Tensor) -> tuple[Tensor, ...]:
        """z_hat (B, N, h/4, w/4) -> latent scales, latent means (B, feature_channels, h, w)."""
        return self.h_z_s1(z_hat), self.h_z_s2(z_hat)

    def slice_support(self, i: int, scales: Tensor, means: Tensor, decoded: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Hyper features, earlier slices and what the dictionary makes of them (Equation 4)."""
        query = torch.cat([scales, means, *decoded], 1)
        support = torch.cat([query, self.ask_dictionary(i, query)], 1) if self.has_dictionary else query
        return support, support


def hyper_synthesis_transform(N: int, out_channels: int, head_dim: int, window: int) -> SliceTransform:
    """z_hat (B, N, h/4, w/4) -> (B, out_channels, h, w)."""
    return SliceTransform(deconv(N, N, 3), SwinStage(N, head_dim, window, 1), Up(N, out_channels))
