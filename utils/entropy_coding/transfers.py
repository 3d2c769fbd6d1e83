"""Between a GPU and the processor: one transfer for each call of a coder, through memory that is not paged."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def to_host(*tensors: Tensor) -> list[np.ndarray]:
    """Tensors of any shape as arrays; those on a GPU are copied as one row of bytes: give the widest types first."""
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
    """Whether a tensor of any shape lies where the processor cannot read it."""
    return tensor.device.type != "cpu"


def to_device(symbols: np.ndarray, device: torch.device) -> Tensor:
    """The symbols, of any shape, on `device`; a GPU need not have finished copying them."""
    tensor = torch.from_numpy(symbols)
    if device.type == "cpu":
        return tensor
    host = pinned(tensor)
    host.copy_(tensor)
    return host.to(device, non_blocking=True)


def pinned(like: Tensor) -> Tensor:
    """Pinned memory for a tensor of the same type and any shape, which a GPU reads and writes by itself."""
    return torch.empty(like.shape, dtype=like.dtype, pin_memory=True)


def array_of(tensor: Tensor) -> np.ndarray:
    """A tensor of any shape as an array that shares its memory."""
    return tensor.numpy()
