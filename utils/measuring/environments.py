"""Other machines, as far as one machine can play them: other orders of summation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from utils.codec.codec import without_onednn
from utils.inference.rows import stripes_of

THIN_STRIPE = 4000  # bytes: a few rows of a small model's maps


@contextmanager
def environment(threads: int, onednn: bool, explicit: bool, striped: bool = False) -> Iterator[None]:
    """Threads, oneDNN on or off, explicit or fused attention, thin stripes or none."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with ExitStack() as stack:
            if not onednn:
                stack.enter_context(without_onednn())
            stack.enter_context(stripes_of(THIN_STRIPE if striped else None))
            if explicit:
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            yield
    finally:
        torch.set_num_threads(before)
