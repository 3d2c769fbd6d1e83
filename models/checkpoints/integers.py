"""Weights as integers with scales: a third to a half of fp16, for checkpoints that are shipped.

Each channel has a scale of its own at each position of the kernel: the centre of a kernel that began as an identity is
large, what training added around it small. Integers of 8 bits serve the entropy networks, the transforms need 10 for
their highest qualities. What `from_integers` returns is exact, and the same on every machine: at most 10 bits of an
integer times at most 8 of a bfloat16 scale fit into a float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Integers = dict[str, Tensor]  # "high": int8, of the weight's shape; "scale": bfloat16; with 10 bits also "low": uint8
LOW_BITS = 2  # of 10, kept apart, four of them in a byte
TINY = 1e-30  # a scale for channels that are all zero
ROUND_UP = 1 + 2**-8  # a scale rounded to 8 bits is not to cut off the largest weight


def to_integers(weight: Tensor, bits: int) -> Integers:
    """A weight (out, in, ...) as integers of 8 or 10 bits; scales are of the outputs or of the inputs, as fits better.

    Raises ValueError for other numbers of bits.
    """
    if bits not in (8, 8 + LOW_BITS):
        raise ValueError(f"integers of 8 or {8 + LOW_BITS} bits, not {bits}")
    most = 2 ** (bits - 1) - 1
    spans = [weight.abs().amax(axis, keepdim=True) for axis in (1, 0)]
    scales = [(ROUND_UP * span / most).clamp(min=TINY).bfloat16() for span in spans]
    rounded = [(weight / scale.float()).round().clamp(-most, most) for scale in scales]
    errors = [(weight - values * scale.float()).square().sum() for values, scale in zip(rounded, scales)]
    best = int(errors[1] < errors[0])
    values, scale = rounded[best].short(), scales[best]
    if bits == 8:
        return {"high": values.to(torch.int8), "scale": scale}
    low = F.pad((values & 3).to(torch.uint8).flatten(), (0, -values.numel() % 4)).view(-1, 4)
    packed = low[:, 0] | low[:, 1] << 2 | low[:, 2] << 4 | low[:, 3] << 6
    return {"high": (values >> LOW_BITS).to(torch.int8), "low": packed, "scale": scale}


def from_integers(integers: Integers) -> Tensor:
    """The weight (out, in, ...) in float32."""
    values = integers["high"].short()
    if "low" in integers:
        low = (integers["low"][:, None] >> torch.tensor([0, 2, 4, 6])) & 3
        values = (values << LOW_BITS) | low.flatten()[: values.numel()].view(values.shape).short()
    return values.float() * integers["scale"].float()
