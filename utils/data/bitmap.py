"""BMP whose header says by masks which bits of a pixel are red, green, blue and alpha: Pillow knows few such masks.

Microsoft, BITMAPV4HEADER and BITMAPV5HEADER.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
from PIL import Image

BITFIELDS, ALPHA_BITFIELDS = 3, 6
HEAD = 14 + 56  # up to the mask of alpha
DEEP_MASKS = "deep masks"


def masked_image(path: str | Path) -> Image.Image | None:
    """The image of a BMP with masks, RGB or RGBA, DEEP_MASKS in its info where they have more than 8 bits; None for
    other files.

    Raises ValueError where masks or pixels make no sense.
    """
    with open(path, "rb") as file:
        head = file.read(HEAD)
        if head[:2] != b"BM" or len(head) < HEAD:
            return None
        start, size, width, height, _, bits, compression = struct.unpack("<IIiiHHI", head[10:34])
        if size < 40 or bits not in (16, 32) or compression not in (BITFIELDS, ALPHA_BITFIELDS):
            return None
        masks = struct.unpack("<4I", head[54:70])
        alpha = size >= 56 or compression == ALPHA_BITFIELDS
        rows, step = abs(height), 4 * ((width * bits + 31) // 32)
        if width <= 0 or not rows or not all(masks[:3]):
            raise ValueError("a broken BMP header")
        if file.seek(0, os.SEEK_END) < start + rows * step:
            raise ValueError("image file is truncated")
        file.seek(start)
        data = file.read(rows * step)
    pixels = np.frombuffer(data, f"<u{bits // 8}").reshape(rows, -1)[:, :width]
    pixels = pixels[::-1] if height > 0 else pixels
    used = masks if alpha and masks[3] else masks[:3]
    samples = np.stack([_sample(pixels, mask) for mask in used], -1)
    image = Image.fromarray(samples)
    image.format, image.tile = "BMP", []
    if any(mask.bit_count() > 8 for mask in used):
        image.info[DEEP_MASKS] = True
    return image


def _sample(pixels: np.ndarray, mask: int) -> np.ndarray:
    """The bits of a mask, scaled to 0..255, uint8 (H, W)."""
    shift = (mask & -mask).bit_length() - 1
    largest = mask >> shift
    if largest & (largest + 1) or largest > 65535:
        raise ValueError("a mask of the BMP header has holes, or more than 16 bits")
    levels = (np.arange(largest + 1, dtype=np.int64) * 255 + largest // 2) // largest
    return levels.astype(np.uint8)[pixels >> shift & largest]
