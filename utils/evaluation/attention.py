"""What a model looks up in its dictionary, seen while it computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from einops import rearrange
from torch import Tensor

from models.layers.dictionary import DictionaryCrossAttention


def attention_weights(layer: DictionaryCrossAttention, q: Tensor, keys: Tensor) -> Tensor:
    """The attention that `layer.look_up` pays each entry: softmax(scale * Q K^T), Equation 8 of the paper.

    Queries (B, H, W, width) and keys (1 or B, heads, n, head_dim) -> (B, heads, H, W, n), which sum to 1 over n.
    """
    heads = rearrange(q.float(), "b y x (h d) -> b h (y x) d", h=layer.heads) * layer.scale.float()
    return torch.softmax(heads @ keys.float().mT, -1).unflatten(2, q.shape[1:3])


@contextmanager
def watching(layer: DictionaryCrossAttention, seen: Callable[[Tensor], None]) -> Iterator[None]:
    """Within the block `seen` gets the layer's attention weights, (B, heads, H, W, n), whenever it is asked.

    A quick copy asks once for each stripe of rows.
    """
    original = layer.look_up

    def look_up(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        seen(attention_weights(layer, q, keys))
        return original(q, keys, values)

    layer.look_up = look_up
    try:
        yield
    finally:
        del layer.look_up
