"""What Pillow does not tell of a file: chunks of a PNG, boxes of AVIF, HEIF and JPEG 2000, bits a sample."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

LARGEST = 2**22  # bytes of a chunk or box that is read: the largest ICC profiles have about a quarter of it
Box = tuple[bytes, int, int]  # type, first and last byte of the content


def png_chunk(path: str | Path, name: bytes) -> bytes | None:
    """The content of a chunk before the pixels of a PNG, None where there is none."""
    with open(path, "rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind in (name, b"IDAT", b"IEND"):
                return file.read(min(length, LARGEST)) if kind == name else None
            file.seek(length + 4, os.SEEK_CUR)
    return None


def boxes(path: str | Path, *names: bytes) -> Iterator[bytes]:
    """The contents of all boxes on a path such as b"meta", b"iprp", b"ipco", b"colr" (ISO/IEC 14496-12, 15444-1)."""
    with open(path, "rb") as file:
        whole = [(b"", 0, file.seek(0, os.SEEK_END))]
        for _, start, stop in _below(file, whole, names):
            file.seek(start)
            yield file.read(min(stop - start, LARGEST))


def _below(file: BinaryIO, outer: Sequence[Box], names: Sequence[bytes]) -> list[Box]:
    for name in names:
        outer = [box for around in outer for box in _inside(file, around) if box[0] == name]
    return list(outer)


def _inside(file: BinaryIO, around: Box) -> Iterator[Box]:
    kind, place, end = around
    place += 4 if kind == b"meta" else 0  # version and flags
    while place + 8 <= end:
        file.seek(place)
        length, name = struct.unpack(">I4s", file.read(8))
        start = place + 8
        if length == 1:
            length, start = struct.unpack(">Q", file.read(8))[0], place + 16
        stop = end if length == 0 else place + length
        if stop < start or stop > end:
            return
        yield name, start, stop
        place = stop


def bits_a_sample(path: str | Path, format: str | None) -> int:
    """The largest number of bits of a sample in AVIF, HEIF or JPEG 2000, 8 where that is not said."""
    if format in ("AVIF", "HEIF"):
        return max((max(box[5:], default=8) for box in boxes(path, b"meta", b"iprp", b"ipco", b"pixi")), default=8)
    if format == "JPEG2000":
        return max(((box[10] & 0x7F) + 1 for box in boxes(path, b"jp2h", b"ihdr") if box[10] != 255), default=8)
    return 8
