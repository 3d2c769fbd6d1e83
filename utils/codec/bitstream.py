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
import struct
import zlib
from dataclasses import dataclass

from models.layers.gain import QUALITY_MAX, QUALITY_MIN, is_quality
from utils.data.padding import padded_size

MAGIC = b"\xd1IC"
VERSION = 1
PORTABLE, HAS_QUALITY = 1, 2
MAX_SIDE = 2**31
CRC_BYTES = 4
LEAST_STRING = 8  # an rANS string is its 64-bit state, then words of 4 bytes
SMALLEST = 3 + 1 + 4 + 1 + 1 + 1 + 2 + 2 * LEAST_STRING + CRC_BYTES
# No frequency exceeds 65535 of 65536; rounding the integer state saves a share of at most 2^-14 (docs/bitstream.md).
LEAST_BITS = math.log2(65536 / 65535) * (1 - 2**-13)


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
    """The bytes of a file, in the published layout if the stream is `official`. Raises ValueError for bad fields."""
    y, z = stream.strings
    if stream.official:
        return pack_official(stream.height, stream.width, y, z)
    _check_fields(stream)
    flags = PORTABLE * stream.portable | HAS_QUALITY * (stream.quality is not None)
    parts = [MAGIC, bytes([VERSION << 4 | flags]), stream.fingerprint, _varint(stream.height), _varint(stream.width)]
    if stream.quality is not None:
        parts.append(struct.pack("<H", quality_steps(stream.quality)))
    if not stream.portable:
        parts.append(stream.environment)
    parts += [_varint(len(z)), struct.pack("<H", stream.check), z, y]
    body = b"".join(parts)
    return body + struct.pack("<I", zlib.crc32(body))


def _check_fields(stream: Bitstream) -> None:
    if not (1 <= stream.height <= MAX_SIDE and 1 <= stream.width <= MAX_SIDE):
        raise ValueError(f"{stream.width}x{stream.height} is not a size that a file can hold")
    if len(stream.fingerprint) != 4 or stream.check is None or not 0 <= stream.check <= 0xFFFF:
        raise ValueError("a file needs a fingerprint of 4 bytes and a check of 16 bits")
    if len(stream.environment or b"") != (0 if stream.portable else 2):
        raise ValueError("files that are not portable, and only those, name the environment in 2 bytes")
    if not all(map(_is_coded, stream.strings)):
        raise ValueError("a string is not what the entropy coder writes")


def _is_coded(string: bytes) -> bool:
    return len(string) >= LEAST_STRING and len(string) % 4 == 0


def quality_steps(quality: float) -> int:
    """Quality 1..100 in hundredths, as files hold it. Raises ValueError outside."""
    steps = round(quality * 100) if math.isfinite(quality) else 0
    if not is_quality(steps / 100):
        raise ValueError(f"quality {quality:g} is outside {QUALITY_MIN:g}..{QUALITY_MAX:g}")
    return steps


def unpack(data: bytes) -> Bitstream:
    """The content of a file of either layout, verified. Raises BitstreamError with the reason.

    A file with our magic and a matching CRC is ours; any other is a published one if its lengths add up to exactly
    its size. So both are told apart by all of their bytes, and a published file that happens to start with our magic
    (it would be 53577 pixels high) is still read as what it is.
    """
    if not data:
        raise BitstreamError("the file is empty")
    if data[:3] != MAGIC:
        return unpack_official(data)
    try:
        return _unpack_own(data)
    except BitstreamError as error:
        try:
            return unpack_official(data)
        except BitstreamError:
            raise error from None


def is_compressed(data: bytes) -> bool:
    """Whether bytes are what this program wrote, damaged or not, or a whole file of the published layout.

    The latter has no magic: what can be told of it is that its lengths add up.
    """
    try:
        return data[:3] == MAGIC or unpack_official(data).official
    except BitstreamError:
        return False


def _unpack_own(data: bytes) -> Bitstream:
    if len(data) < SMALLEST:
        raise BitstreamError("truncated: too short to hold an image")
    if struct.unpack("<I", data[-CRC_BYTES:])[0] != zlib.crc32(memoryview(data)[:-CRC_BYTES]):
        raise BitstreamError("damaged or truncated: the checksum does not match; fetch or copy it again")
    version, flags = data[3] >> 4, data[3] & 15
    if version > VERSION:
        raise BitstreamError(f"written in format version {version}, this program reads up to {VERSION}; update it")
    if version != VERSION or flags & ~(PORTABLE | HAS_QUALITY):
        raise BitstreamError("its header has flags that no version of this program writes")
    return _read_fields(_Reader(data[:-CRC_BYTES], 4), flags)


def _read_fields(reader: _Reader, flags: int) -> Bitstream:
    fingerprint, height, width = reader.take(4), reader.varint(), reader.varint()
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        raise BitstreamError("its header claims an impossible size")
    quality = struct.unpack("<H", reader.take(2))[0] / 100 if flags & HAS_QUALITY else None
    if quality is not None and not is_quality(quality):
        raise BitstreamError("its header claims an impossible quality")
    environment = None if flags & PORTABLE else reader.take(2)
    z_length, check = reader.varint(), struct.unpack("<H", reader.take(2))[0]
    z, y = reader.take(z_length), reader.rest()
    if not (_is_coded(y) and _is_coded(z)):
        raise BitstreamError("its header claims impossible lengths of its strings")
    return Bitstream(height, width, (y, z), fingerprint, check, bool(flags & PORTABLE), quality, environment)


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
            if byte == 0 and shift:  # one spelling a number: no zeros on top
                break
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


def unpack_official(data: bytes) -> Bitstream:
    """The content of a published file. Raises BitstreamError where the lengths do not add up to exactly its size."""
    foreign = BitstreamError("not a compressed image, or its beginning or end is damaged")
    if len(data) < 12 + 2 * LEAST_STRING:
        raise foreign
    height, width, y_length = struct.unpack(">HHI", data[:8])
    if not (height and width) or 12 + y_length > len(data):
        raise foreign
    y, z = data[8 : 8 + y_length], data[12 + y_length :]
    if struct.unpack(">I", data[8 + y_length : 12 + y_length])[0] != len(z) or not (_is_coded(y) and _is_coded(z)):
        raise foreign
    return Bitstream(height, width, (y, z), portable=False, official=True)


def check_plausible(stream: Bitstream, size_multiple: int, y_channels: int, z_channels: int) -> None:
    """Raise BitstreamError where the strings are too short to hold the claimed image, whatever it shows.

    The state starts at 2^31, every symbol multiplies it by at least 2^LEAST_BITS, and it ends below 2^63 with all but
    8 bytes of the string moved out of it: that leaves room for less than 8 len - 32 bits.
    """
    height, width = padded_size(stream.height, stream.width, size_multiple)
    positions = height * width // 256, height * width // 4096  # y is 1/16, z is 1/64 of a side
    for string, count, channels in zip(stream.strings, positions, (y_channels, z_channels)):
        if count * channels * LEAST_BITS > 8 * len(string) - 32:
            raise BitstreamError(
                f"claims {stream.width}x{stream.height} pixels, which its {len(string)} bytes cannot hold"
            )
