"""Between a GPU and the processor: one transfer for each call of a coder, through memory that is not paged."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def to_host(*tensors: Tensor) -> list[np.ndarray]:
    """The tensors as arrays; what lies on a GPU comes over as one row of bytes, the widest types first."""
    away = [tensor for tensor in tensors if is_away(tensor)]
    if not away:
        return [array_of(tensor) for tensor in tensors]
    together = torch.cat([tensor.contiguous().view(-1).view(torch.uint8) for tensor in away])
    host = pinned(together)
    host.copy_(together)
    parts = iter(host.split([tensor.nbytes for tensor in away]))
    return [
        array_of(next(parts).view(tensor.dtype).view(tensor.shape) if is_away(tensor) else tensor) for tensor in tensors
    ]


def is_away(tensor: Tensor) -> bool:
    """Whether the processor cannot read it."""
    return tensor.device.type != "cpu"


def to_device(symbols: np.ndarray, device: torch.device) -> Tensor:
    """The symbols on `device`; a GPU need not have finished copying them."""
    tensor = torch.from_numpy(symbols)
    if device.type == "cpu":
        return tensor
    host = pinned(tensor)
    host.copy_(tensor)
    return host.to(device, non_blocking=True)


def pinned(like: Tensor) -> Tensor:
    """Memory of the processor, like a tensor, that a GPU reads and writes by itself."""
    return torch.empty(like.shape, dtype=like.dtype, pin_memory=True)


def array_of(tensor: Tensor) -> np.ndarray:
    """The same memory as an array."""
    return tensor.numpy()
