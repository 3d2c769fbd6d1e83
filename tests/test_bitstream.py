"""The file format: what is written comes back, and nothing else is taken for a file."""

from __future__ import annotations

import dataclasses
import io
import re
import struct
import time
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from utils.codec.bitstream import (
    LEAST_BITS,
    Bitstream,
    BitstreamError,
    ModelMismatch,
    check_plausible,
    pack,
    pack_official,
    quality_steps,
    unpack,
    unpack_official,
)
from utils.codec.environment import current_environment, describe_environment, foreign_environment
from utils.entropy_coding.rans import Encoder, Tables

DOCUMENT = Path(__file__).parent.parent / "docs" / "bitstream.md"
RNG = np.random.default_rng(0)
Y, Z = RNG.bytes(60), RNG.bytes(24)
PORTABLE = Bitstream(512, 768, (Y, Z), b"\x01\x02\x03\x04", 0xBEEF)
STREAMS = {
    "portable": PORTABLE,
    "quality": dataclasses.replace(PORTABLE, quality=37.25),
    "fast": dataclasses.replace(PORTABLE, portable=False, environment=current_environment("cpu")),
    "fast-quality": dataclasses.replace(PORTABLE, portable=False, quality=100.0, environment=b"\x1f\x42"),
    "huge": dataclasses.replace(PORTABLE, height=2**31, width=2**31, quality=1.0),
    "pixel": dataclasses.replace(PORTABLE, height=1, width=1, strings=(Y[:8], Z[:8])),
    "official": Bitstream(200, 312, (Y, Z), portable=False, official=True),
}
OWN = [name for name in STREAMS if name != "official"]
TALL = Bitstream(0xD149, 0x4311, (Y, Z), portable=False, official=True)  # begins like one of our own files


def sealed(body: bytes) -> bytes:
    return body + struct.pack("<I", zlib.crc32(body))


def refused(data: bytes) -> str:
    with pytest.raises(BitstreamError) as error:
        unpack(data)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
def test_round_trip(stream):
    assert unpack(pack(stream)) == stream


@pytest.mark.parametrize(("name", "size"), [("portable", 20), ("quality", 22), ("fast", 22), ("fast-quality", 24)])
def test_header_is_small(name, size):
    """On a Kodak image with strings of common lengths."""
    stream = dataclasses.replace(STREAMS[name], strings=(b"\0" * 40000, b"\0" * 1600))
    assert len(pack(stream)) - 41600 == size


def test_layout_is_the_documented_one():
    body = b"\xd1IC\x13" + b"\x01\x02\x03\x04" + b"\x80\x04" + b"\x80\x06" + struct.pack("<H", 3725) + b"\x18"
    body += b"\xef\xbe" + Z + Y
    assert pack(STREAMS["quality"]) == sealed(body)
    body = b"\xd1IC\x12" + b"\x01\x02\x03\x04" + b"\x80\x04" + b"\x80\x06" + struct.pack("<H", 10000) + b"\x1f\x42\x18"
    assert pack(STREAMS["fast-quality"]) == sealed(body + b"\xef\xbe" + Z + Y)
    published = b"\0\xc8\x01\x38" + b"\0\0\0\x3c" + Y + b"\0\0\0\x18" + Z
    assert pack_official(200, 312, Y, Z) == published == pack(STREAMS["official"])


def strings_of_example() -> tuple[bytes, bytes]:
    """z holds 0, 1; y holds 0, 0, 2, 0, all under one table of -1, 0, 1 and the escape."""
    table = Tables(np.array([[0, 16384, 49152, 65535, 65536]]), np.array([5]), np.array([-1]))
    strings = []
    for symbols in ([0, 0, 2, 0], [0, 1]):
        encoder = Encoder()
        encoder.put(symbols, [0] * len(symbols), table)
        strings.append(encoder.finish())
    return tuple(strings)


def test_examples_in_the_document():
    """The hexadecimal columns there are the files that the text says they are."""
    blocks = re.findall(r"^### Example.*?(?=^##)", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    columns = [re.findall(r"^    ([0-9a-f ]+?)   ", block, re.MULTILINE) for block in blocks]
    examples = [bytes.fromhex("".join(column)) for column in columns]
    strings = strings_of_example()
    check = zlib.crc32(np.array([0, 1, 0, 0, 2, 0], "<i4").tobytes()) & 0xFFFF
    own = Bitstream(512, 768, strings, b"\x9a\x0b\x4e\x77", check, quality=37.25)
    assert examples == [pack(own), pack_official(512, 768, *strings)]
    assert unpack(examples[0]) == own


@pytest.mark.parametrize("name", OWN)
def test_every_truncation_is_refused(name):
    data = pack(STREAMS[name])
    for length in range(len(data)):
        refused(data[:length])


@pytest.mark.parametrize("name", OWN)
def test_every_flipped_bit_is_refused(name):
    data = pack(STREAMS[name])
    for bit in range(8 * len(data)):
        broken = bytearray(data)
        broken[bit // 8] ^= 1 << bit % 8
        refused(bytes(broken))


@pytest.mark.parametrize("name", OWN)
def test_every_wrong_or_missing_or_additional_byte_is_refused(name):
    data = pack(STREAMS[name])
    for at in range(len(data)):
        for change in range(1, 256, 7):
            refused(data[:at] + bytes([data[at] ^ change]) + data[at + 1 :])
        refused(data[:at] + data[at + 1 :])
        refused(data[:at] + b"\0" + data[at:])


def test_published_files_of_another_length_are_refused():
    data = pack(STREAMS["official"])
    for length in range(len(data)):
        refused(data[:length])
    for surplus in range(1, 70):
        refused(data + bytes(surplus))
    for at in [*range(4, 8), *range(68, 72)]:  # both lengths
        for change in range(1, 256):
            refused(data[:at] + bytes([data[at] ^ change]) + data[at + 1 :])
    refused(b"\0\0" + data[2:])


def test_random_bytes_are_refused():
    heads = [
        b"",
        b"\xd1",
        b"\xd1I",
        b"\xd1IC",
        b"\xd1IC\x10",
        b"\xd1IC\x11",
        b"\xd1IC\x13\1\2\3\4\1\1",
        b"\0\x80\1\0\0\0",
    ]
    for case in range(20000):
        refused(heads[case % len(heads)] + RNG.bytes(int(RNG.integers(0, 200))))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "PPM", "GIF", "text", "zip", "zeros", "ones"])
def test_other_formats_are_refused(kind):
    others = {
        "text": b"# The .bin file\n" * 9,
        "zip": b"PK\x03\x04" + bytes(99),
        "zeros": bytes(99),
        "ones": b"\xff" * 99,
    }
    buffer = io.BytesIO(others.get(kind, b""))
    if kind not in others:
        Image.fromarray(RNG.integers(0, 256, (33, 21, 3), np.uint8)).save(buffer, kind)
    assert "not a compressed image" in refused(buffer.getvalue())


def test_each_reason_is_named():
    data = pack(PORTABLE)
    assert "empty" in refused(b"")
    assert "not a compressed image" in refused(b"x" + data[1:])
    assert "truncated" in refused(data[:20])
    assert "checksum" in refused(data[:-1])
    assert "version 2, this program reads up to 1" in refused(sealed(b"\xd1IC\x21" + bytes(40)))
    assert "checksum" in refused(b"\xd1IC\x21" + data[4:])  # damaged rather than newer
    assert "01020304" in str(ModelMismatch(b"\1\2\3\4", b"\xa0\xb0\xc0\xd0"))
    assert "a0b0c0d0" in str(ModelMismatch(b"\1\2\3\4", b"\xa0\xb0\xc0\xd0"))


START, TAIL = b"\xd1IC\x11" + bytes(4), b"\x08\0\0" + Z[:8] + Y
CRAFTED = {
    "version 0": (b"\xd1IC\x01" + bytes(4) + b"\1\1" + TAIL, "flags"),
    "flag 2": (b"\xd1IC\x15" + bytes(4) + b"\1\1" + TAIL, "flags"),
    "flag 3": (b"\xd1IC\x19" + bytes(4) + b"\1\1" + TAIL, "flags"),
    "endless varint": (START + b"\xff" * 70, "impossible size"),
    "varint of zeros": (START + b"\x80" * 70, "impossible size"),
    "two spellings of 1": (START + b"\x81\0\1" + TAIL, "impossible size"),
    "no height": (START + b"\0\1" + TAIL, "impossible size"),
    "no width": (START + b"\1\0" + TAIL, "impossible size"),
    "height of 2^31 + 1": (START + b"\x81\x80\x80\x80\x08\1" + TAIL, "impossible size"),
    "height of 2^35 - 1": (START + b"\xff\xff\xff\xff\x7f\1" + TAIL, "impossible size"),
    "z longer than the file": (START + b"\1\1\xff\xff\x7f\0\0" + Y, "more than the file holds"),
    "z is all": (START + b"\1\1\x3c\0\0" + Y, "lengths"),
    "no z": (START + b"\1\1\0\0\0" + Y, "lengths"),
    "half a word": (START + b"\1\1\x09\0\0" + Y, "lengths"),
    "quality 0": (b"\xd1IC\x13" + bytes(4) + b"\1\1\0\0" + TAIL, "quality"),
    "quality 0.99": (b"\xd1IC\x13" + bytes(4) + b"\1\1\x63\0" + TAIL, "quality"),
    "quality 100.01": (b"\xd1IC\x13" + bytes(4) + b"\1\1\x11\x27" + TAIL, "quality"),
}


@pytest.mark.parametrize(("body", "message"), CRAFTED.values(), ids=CRAFTED)
def test_a_crafted_header_is_refused(body, message):
    assert message in refused(sealed(body))


@pytest.mark.parametrize(
    "fields",
    [
        {"height": 0},
        {"width": 2**31 + 1},
        {"quality": 0.9},
        {"quality": 100.1},
        {"quality": float("nan")},
        {"quality": float("inf")},
        {"fingerprint": b"123"},
        {"check": None},
        {"check": 65536},
        {"portable": False},
        {"environment": b"\0\0"},
        {"strings": (Y[:59], Z)},
        {"strings": (Y, Z[:4])},
    ],
)
def test_bad_fields_are_not_written(fields):
    with pytest.raises(ValueError):
        pack(dataclasses.replace(PORTABLE, **fields))


def test_quality_is_kept_in_hundredths():
    for steps in range(100, 10001):
        assert quality_steps(steps / 100) == steps
        if steps % 50 == 1:
            assert unpack(pack(dataclasses.replace(PORTABLE, quality=steps / 100))).quality == steps / 100


def test_the_layouts_are_told_apart():
    """A published file that begins with our magic is read as one; a file that is both is ours."""
    assert unpack(pack(TALL)) == TALL
    y = Y + struct.pack(">I", 12) + Y[:8]  # 12: what follows that number, and its last 4 bytes are the checksum
    fingerprint = struct.pack(">I", 8 + len(Z + Y))  # 8: from the fingerprint to the z string
    both = dataclasses.replace(PORTABLE, height=1, width=2**21, fingerprint=fingerprint, strings=(y, Z))
    data = pack(both)
    assert unpack_official(data).height == TALL.height
    assert unpack(data) == both


@pytest.mark.parametrize("side", [16384, 65535, 2**20, 2**31])
@pytest.mark.parametrize("official", [False, True])
def test_a_claim_that_the_strings_cannot_hold_is_refused(side, official):
    """With a valid checksum, in no time and without memory for it."""
    if official and side > 65535:
        side = 65535
    stream = dataclasses.replace(STREAMS["official" if official else "portable"], height=side, width=side)
    data = pack(stream)
    tracemalloc.start()
    begin = time.perf_counter()
    for size_multiple, y_channels, z_channels in ((128, 320, 192), (64, 128, 64)):
        with pytest.raises(BitstreamError, match=f"claims {side}x{side} pixels"):
            check_plausible(unpack(data), size_multiple, y_channels, z_channels)
    assert tracemalloc.get_traced_memory()[1] < 1e5 and time.perf_counter() - begin < 1
    tracemalloc.stop()


def test_one_long_side_is_refused_too():
    for size in ((1, 2**31), (2**31, 1)):
        with pytest.raises(BitstreamError, match="cannot hold"):
            check_plausible(dataclasses.replace(PORTABLE, height=size[0], width=size[1]), 128, 320, 192)


def test_plausible_images_pass():
    check_plausible(PORTABLE, 128, 320, 192)
    check_plausible(dataclasses.replace(PORTABLE, strings=(Y[:8], Z[:8]), height=1, width=1), 128, 320, 192)


@pytest.mark.parametrize("side", [8, 128, 1024, 2048])
@pytest.mark.parametrize("frequency", [65535, 65534, 60000])
def test_the_shortest_strings_pass(side, frequency):
    """The most certain symbol, over and over, for one channel of y and sixteen of z: as many symbols."""
    symbols, table = np.zeros(side * side, np.int32), Tables(np.array([[0, frequency, 65536]]), [3], [0])
    encoder = Encoder()
    encoder.put(symbols, symbols, table)
    string = encoder.finish()
    claim = dataclasses.replace(PORTABLE, height=16 * side, width=16 * side, strings=(string, string))
    check_plausible(claim, 128, 1, 16)
    most = int((8 * len(string) - 32) / LEAST_BITS)
    assert side * side <= most
    with pytest.raises(BitstreamError, match="cannot hold"):
        check_plausible(claim, 128, most // (side * side) + 1, 16)


def test_environments_in_words():
    assert describe_environment(current_environment("cpu")).startswith("cpu on ")
    assert current_environment("cuda:1") == current_environment("cuda")
    assert describe_environment(current_environment("mps")).startswith("another device on ")
    assert describe_environment(b"\x01\x4b") == "cpu on arm64 with torch 2.11 and --products torch"
    assert describe_environment(b"\x40\x4f") == "cpu on x86-64 with torch 2.15 and --products onednn"
    assert describe_environment(current_environment("cpu", "numpy")).endswith(" and --products numpy")
    here = current_environment("cpu", "onednn")
    assert foreign_environment(None, here) is foreign_environment(here, here) is None
    assert foreign_environment(current_environment("cpu"), here).endswith(" and --products torch")
    assert describe_environment(b"\x11\x4b") == "cuda on arm64 with torch 2.11"
    assert describe_environment(b"\xff\xff") == "another device on another processor with torch 7.31"
