"""The .bin file, version 1, and the published program's layout; byte by byte in docs/bitstream.md.

    offset  size  field
    0       3     magic d1 49 43
    3       1     version (high nibble, 1) and flags (low nibble): bit 0 portable, bit 1 quality present
    4       4     fingerprint of the model: weights and entropy tables
    8       1..5  height, LEB128        then width, LEB128
    ..      2     quality * 100, little-endian, if flag bit 1
    ..      2     environment that wrote it, unless portable
    ..      1..5  length of the z string, LEB128
    ..      2     check of the decoded symbols, little-endian
    ..      n     z string, then y string (what is left)
    end-4   4     CRC-32 of all bytes before, little-endian

Everything is verified before anything is decoded or allocated.
"""

from __future__ import annotations

import math
import platform
import struct
import zlib
from dataclasses import dataclass

MAGIC = b"\xd1IC"
VERSION = 1
PORTABLE, HAS_QUALITY = 1, 2
MAX_SIDE = 2**31
CRC_BYTES = 4
SMALLEST = 3 + 1 + 4 + 1 + 1 + 1 + 2 + 8 + 8 + CRC_BYTES
DEVICES = ("cpu", "cuda", "another device")
PROCESSORS = {"x86_64": 0, "amd64": 0, "aarch64": 1, "arm64": 1}
PROCESSOR_NAMES = {0: "x86-64", 1: "arm64"}
# No frequency exceeds 65535 of 65536, so n symbols cost at least this many bits each.
LEAST_BITS = math.log2(65536 / 65535)


class BitstreamError(ValueError):
    """Why some bytes are no file that can be decoded, in one clause."""


class ModelMismatch(BitstreamError):
    """The file was written with other weights."""

    def __init__(self, written: bytes, loaded: bytes) -> None:
        super().__init__(
            f"written with model {written.hex()}, but the loaded checkpoint is model {loaded.hex()}; "
            "give the checkpoint that it was compressed with"
        )


@dataclass(frozen=True)
class Bitstream:
    """What a file holds. `strings` are (y, z); sides in pixels; quality 1..100 or None for models with one quality.

    `environment` is two bytes of `current_environment`, None in portable files. Files in the published layout
    (`official`) have neither fingerprint nor check.
    """

    height: int
    width: int
    strings: tuple[bytes, bytes]
    fingerprint: bytes = b""
    check: int | None = None
    portable: bool = True
    quality: float | None = None
    environment: bytes | None = None
    official: bool = False

    @property
    def arithmetic(self) -> str:
        """What `model.decompress` is to be asked for."""
        return "published" if self.official else "fp64" if self.portable else "fp32"


def pack(stream: Bitstream) -> bytes:
    """The bytes of a file. Raises ValueError for fields that are out of range."""
    if not (1 <= stream.height <= MAX_SIDE and 1 <= stream.width <= MAX_SIDE):
        raise ValueError(f"{stream.width}x{stream.height} is not a size that a file can hold")
    y, z = stream.strings
    flags = PORTABLE * stream.portable | HAS_QUALITY * (stream.quality is not None)
    parts = [MAGIC, bytes([VERSION << 4 | flags]), stream.fingerprint, _varint(stream.height), _varint(stream.width)]
    if stream.quality is not None:
        parts.append(struct.pack("<H", quality_steps(stream.quality)))
    if not stream.portable:
        parts.append(stream.environment or b"")
    parts += [_varint(len(z)), struct.pack("<H", stream.check), z, y]
    body = b"".join(parts)
    return body + struct.pack("<I", zlib.crc32(body))


def quality_steps(quality: float) -> int:
    """Quality 1..100 in hundredths, as files hold it. Raises ValueError outside."""
    steps = round(quality * 100)
    if not 100 <= steps <= 10000:
        raise ValueError(f"quality {quality:g} is outside 1..100")
    return steps


def unpack(data: bytes) -> Bitstream:
    """The content of a file of either layout, verified. Raises BitstreamError.

    The first three bytes tell them apart: a file in the published layout that started with our magic would be
    53577 pixels high, which its program cannot have coded, and would fail the CRC.
    """
    if data[:3] == MAGIC:
        return _unpack_own(data)
    stream = _unpack_official(data)
    if stream is None:
        raise BitstreamError("not a file that this program wrote, or its beginning is damaged")
    return stream


def _unpack_own(data: bytes) -> Bitstream:
    if len(data) < SMALLEST:
        raise BitstreamError("truncated: too short to hold an image")
    version, flags = data[3] >> 4, data[3] & 15
    if version > VERSION:
        raise BitstreamError(f"written in format version {version}, this program reads up to {VERSION}; update it")
    if struct.unpack("<I", data[-CRC_BYTES:])[0] != zlib.crc32(memoryview(data)[:-CRC_BYTES]):
        raise BitstreamError("damaged or truncated: the checksum does not match; fetch or copy it again")
    if version != VERSION or flags & ~(PORTABLE | HAS_QUALITY):
        raise BitstreamError("its header has flags that no version of this program writes")
    reader = _Reader(data[:-CRC_BYTES], 4)
    fingerprint, height, width = reader.take(4), reader.varint(), reader.varint()
    quality = struct.unpack("<H", reader.take(2))[0] if flags & HAS_QUALITY else None
    environment = None if flags & PORTABLE else reader.take(2)
    z_length, check = reader.varint(), struct.unpack("<H", reader.take(2))[0]
    z, y = reader.take(z_length), reader.rest()
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE) or (
        quality is not None and not 100 <= quality <= 10000
    ):
        raise BitstreamError("its header claims an impossible size or quality")
    return Bitstream(
        height,
        width,
        (y, z),
        fingerprint,
        check,
        bool(flags & PORTABLE),
        None if quality is None else quality / 100,
        environment,
    )


class _Reader:
    """Takes fields off the front; running out of bytes is a BitstreamError."""

    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at = data, at

    def take(self, count: int) -> bytes:
        if self.at + count > len(self.data):
            raise BitstreamError("its header claims more than the file holds")
        self.at += count
        return self.data[self.at - count : self.at]

    def varint(self) -> int:
        value = 0
        for shift in range(0, 35, 7):
            byte = self.take(1)[0]
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise BitstreamError("its header claims an impossible size")

    def rest(self) -> bytes:
        return self.data[self.at :]


def _varint(value: int) -> bytes:
    """Unsigned LEB128: seven bits a byte, low first, the top bit says that more follow."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def pack_official(height: int, width: int, y: bytes, z: bytes) -> bytes:
    """The published program's file: sides as big-endian uint16, then y and z, each behind its length as uint32.

    Raises ValueError for sides above 65535, which that layout cannot hold.
    """
    if not (1 <= height <= 65535 and 1 <= width <= 65535):
        raise ValueError(f"the published layout holds sides up to 65535, not {width}x{height}")
    return struct.pack(f">HHI{len(y)}sI{len(z)}s", height, width, len(y), y, len(z), z)


def _unpack_official(data: bytes) -> Bitstream | None:
    """The content of a published file, None where the lengths do not add up to exactly the file's."""
    if len(data) < 28:
        return None
    height, width, y_length = struct.unpack(">HHI", data[:8])
    if 12 + y_length > len(data) or not (height and width):
        return None
    (z_length,) = struct.unpack(">I", data[8 + y_length : 12 + y_length])
    if 12 + y_length + z_length != len(data) or y_length % 4 or z_length % 4 or min(y_length, z_length) < 8:
        return None
    y, z = data[8 : 8 + y_length], data[12 + y_length :]
    return Bitstream(height, width, (y, z), portable=False, official=True)


def check_plausible(stream: Bitstream, size_multiple: int, y_channels: int, z_channels: int) -> None:
    """Raise BitstreamError where the strings are too short to hold the claimed image, whatever it shows.

    Each string carries a state of 31 bits when it ends; up to 64 bits of it are not lost but hold symbols.
    """
    height, width = (-(-side // size_multiple) * size_multiple for side in (stream.height, stream.width))
    pixels = height * width
    for string, symbols in zip(stream.strings, (pixels // 256 * y_channels, pixels // 4096 * z_channels)):
        if symbols * LEAST_BITS > 8 * len(string):
            raise BitstreamError(
                f"claims {stream.width}x{stream.height} pixels, which its {len(string)} bytes cannot hold"
            )


def current_environment(device: str) -> bytes:
    """Two bytes: device kind and processor; major and minor version of torch. `device` is torch's device type."""
    import torch

    kind = DEVICES.index(device) if device in DEVICES else 2
    processor = PROCESSORS.get(platform.machine().lower(), 15)
    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    return bytes([kind << 4 | processor, (major & 7) << 5 | minor & 31])


def describe_environment(environment: bytes) -> str:
    """Those two bytes in words."""
    kind, processor = environment[0] >> 4, environment[0] & 15
    device = DEVICES[min(kind, 2)]
    name = PROCESSOR_NAMES.get(processor, "another processor")
    return f"{device} on {name} with torch {environment[1] >> 5}.{environment[1] & 31}"
