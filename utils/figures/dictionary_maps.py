"""Which entries of the dictionary each place of an image attends to.

Maps are (heads, h, w, entries), one for each slice; over the entries they add up to 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from utils.data.padding import DEFAULT_PADDING, pad_centred
from utils.evaluation.attention import watching

if TYPE_CHECKING:
    from models.base import SliceCompressionModel


def attention_maps(
    model: SliceCompressionModel, x: Tensor, quality: float | None = None, scales: int | None = None
) -> list[Tensor]:
    """Attention of every slice for one image (1, 3, H, W), padded as files are: (heads, h, w, entries) each.

    `scales`: how many scales of the multi-scale aggregation are left in, 1..m + 1; the outputs of the other
    convolutions are set to zero, from the last one on (Appendix C of the paper of models/dcae.py). Default: all.
    """
    maps: list[Tensor] = []
    padded = pad_centred(x, model.size_multiple, DEFAULT_PADDING)
    with torch.inference_mode(), ExitStack() as stack:
        for layer in model.dt_cross_attention:
            stack.enter_context(watching(layer, lambda weights: maps.append(weights[0].cpu())))
        if scales is not None:
            stack.enter_context(with_scales(model, scales))
        model(padded, quality)
    return maps


@contextmanager
def with_scales(model: SliceCompressionModel, scales: int) -> Iterator[None]:
    """The aggregation's convolutions from number `scales` on give zeros."""
    with ExitStack() as stack:
        for layer in model.dt_cross_attention:
            for _, convolution in list(layer.msa.dense.conv_layers)[scales - 1 :]:
                handle = convolution.register_forward_hook(lambda module, inputs, out: torch.zeros_like(out))
                stack.callback(handle.remove)
        yield


def usage(maps: Sequence[Tensor]) -> Tensor:
    """Share of the attention that each entry gets (entries,), over the maps of several images and all heads."""
    total = sum(m.double().sum((0, 1, 2)) for m in maps)
    return total / total.sum()


def effective_number(shares: Tensor) -> Tensor:
    """exp of the entropy of shares (..., entries): how many entries used alike would be as varied."""
    return torch.special.entr(shares.double()).sum(-1).exp()


@dataclass(frozen=True)
class Use:
    """Of the dictionary by a slice of one image.

    looks: places times heads that look at it; shares: of each entry (entries,); effective: number of entries that one
    look takes in, on average.
    """

    looks: int
    shares: Tensor
    effective: float

    @classmethod
    def of(cls, maps: Tensor) -> Use:
        """From attention (heads, h, w, entries)."""
        return cls(maps[..., 0].numel(), usage([maps]), effective_number(maps).mean().item())


def most_telling(maps: Sequence[Tensor], head: int | None, count: int) -> list[int]:
    """The entries whose attention differs most from place to place in some maps (heads, h, w, entries)."""
    places = torch.cat([of_head(m, head).flatten(0, 1) for m in maps])  # (places, entries)
    return places.std(0).topk(min(count, places.shape[-1])).indices.tolist()


def of_head(maps: Tensor, head: int | None) -> Tensor:
    """(h, w, entries) of one head, or the mean of all."""
    return maps.mean(0) if head is None else maps[head]
