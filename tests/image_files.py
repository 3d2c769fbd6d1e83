"""Image files made byte by byte, for what Pillow does not write."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

SHORT, LONG, RATIONAL = 3, 4, 5


def write_tiff(
    path: Path,
    planes: Sequence[bytes],
    size: tuple[int, int],
    bits: Sequence[int],
    interpretation: int,
    order: str = "<",
    more: dict[int, tuple[int, Sequence[int]]] | None = None,
) -> Path:
    """An uncompressed TIFF; `planes`: the pixels, or those of each sample apart; size (width, height).

    more: tag -> (type, values); a rational is two values.
    """
    tags = {256: (LONG, [size[0]]), 257: (LONG, [size[1]]), 258: (SHORT, bits), 259: (SHORT, [1])}
    tags |= {262: (SHORT, [interpretation]), 277: (SHORT, [len(bits)]), 278: (LONG, [size[1]])}
    tags |= {279: (LONG, [len(plane) for plane in planes]), 284: (SHORT, [2 if len(planes) > 1 else 1]), **(more or {})}
    starts = [8 + sum(map(len, planes[:i])) for i in range(len(planes))]
    tags[273] = LONG, starts
    body = b"".join(planes)
    place = 8 + len(body)
    entries, beyond = b"", b""
    after = place + 2 + 12 * len(tags) + 4
    for tag, (kind, values) in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(values)}{'H' if kind == SHORT else 'I'}", *values)
        count = len(values) // 2 if kind == RATIONAL else len(values)
        if len(packed) > 4:
            where, beyond = struct.pack(f"{order}I", after + len(beyond)), beyond + packed + bytes(-len(packed) % 2)
        else:
            where = packed.ljust(4, b"\0")
        entries += struct.pack(f"{order}HHI", tag, kind, count) + where
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", place)
    path.write_bytes(head + body + struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + beyond)
    return path


def packed_bits(values: np.ndarray, bits: int) -> bytes:
    """Rows of samples of so many bits, the highest first, each row filled up to a byte."""
    places = np.arange(bits - 1, -1, -1)
    spread = (values[..., None].astype(np.int64) >> places & 1).astype(np.uint8).reshape(len(values), -1)
    return np.packbits(spread, axis=1).tobytes()


def write_png(path: Path, samples: np.ndarray, bits: int = 8, chunks: dict[bytes, bytes] | None = None) -> Path:
    """A PNG of samples (H, W) or (H, W, C) with chunks before its pixels."""
    channels = 1 if samples.ndim == 2 else samples.shape[2]
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = packed_bits(samples.reshape(len(samples), -1), bits)
    step = len(rows) // len(samples)
    pixels = zlib.compress(b"".join(b"\0" + rows[i : i + step] for i in range(0, len(rows), step)))
    head = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], bits, kind, 0, 0, 0)
    parts = [(b"IHDR", head), *(chunks or {}).items(), (b"IDAT", pixels), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def write_bmp(
    path: Path,
    pixels: np.ndarray,
    masks: Sequence[int] | None,
    header: int = 108,
    colours: bytes = b"",
    more: bytes = b"",
) -> Path:
    """A BMP of uint16 or uint32 pixels (H, W), rows from the bottom up; `colours`: the header from its 57th byte on."""
    bits = 8 * pixels.itemsize
    rows = b"".join((row := r.tobytes()) + bytes(-len(row) % 4) for r in pixels[::-1])
    info = struct.pack("<IiiHHIIiiII", header, *pixels.shape[::-1], 1, bits, 3 if masks else 0, len(rows), 0, 0, 0, 0)
    info += struct.pack(f"<{len(masks or ())}I", *(masks or ())) + colours
    info = info.ljust(max(header, 52 if masks else 40), b"\0")
    start = 14 + len(info)
    path.write_bytes(b"BM" + struct.pack("<IHHI", start + len(rows), 0, 0, start) + info + rows + more)
    return path


def box(name: bytes, content: bytes) -> bytes:
    """A box of ISO/IEC 14496-12."""
    return struct.pack(">I4s", 8 + len(content), name) + content
