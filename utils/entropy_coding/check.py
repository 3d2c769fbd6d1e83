"""A check of what was coded, for decoders to compare."""

from __future__ import annotations

import zlib

import numpy as np


class SymbolCheck:
    """16 bits over all symbols of one image, z first, then the slices in order: the low half of their CRC-32."""

    def __init__(self) -> None:
        self.crc = 0

    def add(self, symbols: np.ndarray) -> None:
        """Go on with integers of any shape, row-major, as little-endian int32."""
        self.crc = zlib.crc32(np.ascontiguousarray(symbols, "<i4").view(np.uint8), self.crc)

    @property
    def value(self) -> int:
        """In 0..65535."""
        return self.crc & 0xFFFF
