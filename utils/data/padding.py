"""Images to the sizes that a model takes, and back: borders of equal width on opposite sides."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

PADDINGS = ("zero", "replicate", "reflect")
DEFAULT_PADDING = "replicate"  # see scripts/measure_padding.py


def padding_of(side: int, multiple: int) -> tuple[int, int]:
    """Return how many pixels to add before and after `side` to reach a multiple; the smaller half goes before."""
    extra = -side % multiple
    return extra // 2, extra - extra // 2


def padded_size(height: int, width: int, multiple: int) -> tuple[int, int]:
    """The sides of an image once they are padded to multiples of `multiple`."""
    return height + -height % multiple, width + -width % multiple


def pad_centred(x: Tensor, multiple: int, mode: str = "zero") -> Tensor:
    """Pad (..., H, W) to multiples of `multiple`, centred.

    Modes: "zero", "replicate" (the border goes on) and "reflect" (mirrored about the border's pixel centres, to
    and fro where the padding is wider than the image). A decoder crops it all, so the choice is the encoder's.
    """
    if mode not in PADDINGS:
        raise ValueError(f"unknown padding {mode!r}; known are {', '.join(PADDINGS)}")
    (top, bottom), (left, right) = (padding_of(side, multiple) for side in x.shape[-2:])
    if not (top or bottom or left or right):
        return x
    if mode == "zero":
        return F.pad(x, (left, right, top, bottom))
    rows = _source_indices(x.shape[-2], top, bottom, mode).to(x.device)
    columns = _source_indices(x.shape[-1], left, right, mode).to(x.device)
    return x.index_select(-2, rows).index_select(-1, columns)


def _source_indices(side: int, before: int, after: int, mode: str) -> Tensor:
    """Return for each place of a padded side (before + side + after,) the place it copies."""
    places = torch.arange(-before, side + after)
    if mode == "replicate" or side == 1:
        return places.clamp(0, side - 1)
    return (side - 1) - (places % (2 * side - 2) - (side - 1)).abs()


def crop_centred(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut the centre (..., height, width) out of (..., H, W): what `pad_centred` added goes."""
    top, left = ((padded - side) // 2 for padded, side in zip(x.shape[-2:], size))
    return x[..., top : top + size[0], left : left + size[1]]
