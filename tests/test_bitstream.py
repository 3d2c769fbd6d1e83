"""The file format: what is written comes back, and nothing else is taken for a file."""

from __future__ import annotations

import dataclasses
import struct
import zlib

import numpy as np
import pytest

from utils.bitstream import (
    Bitstream,
    BitstreamError,
    check_plausible,
    current_environment,
    describe_environment,
    pack,
    pack_official,
    unpack,
)

RNG = np.random.default_rng(0)
Y, Z = RNG.bytes(60), RNG.bytes(24)
PORTABLE = Bitstream(512, 768, (Y, Z), b"\x01\x02\x03\x04", 0xBEEF)
STREAMS = {
    "portable": PORTABLE,
    "quality": dataclasses.replace(PORTABLE, quality=37.25),
    "fast": dataclasses.replace(PORTABLE, portable=False, environment=current_environment("cpu")),
    "fast-quality": dataclasses.replace(PORTABLE, portable=False, quality=100.0, environment=b"\x1f\x42"),
    "huge": dataclasses.replace(PORTABLE, height=2**31, width=2**31),
    "pixel": dataclasses.replace(PORTABLE, height=1, width=1),
}


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
def test_round_trip(stream):
    assert unpack(pack(stream)) == stream


def test_header_is_small():
    """On a Kodak image with strings of common lengths."""
    for name in ("portable", "quality", "fast"):
        stream = dataclasses.replace(STREAMS[name], strings=(b"\0" * 40000, b"\0" * 1600))
        assert len(pack(stream)) - 41600 <= 24, name


def test_layout_is_the_documented_one():
    body = b"\xd1IC\x13" + b"\x01\x02\x03\x04" + b"\x80\x04" + b"\x80\x06" + struct.pack("<H", 3725) + b"\x18"
    body += b"\xef\xbe" + Z + Y
    assert pack(STREAMS["quality"]) == body + struct.pack("<I", zlib.crc32(body))


def test_every_truncation_and_every_flipped_bit_is_refused():
    cases = 0
    for stream in STREAMS.values():
        data = pack(stream)
        for length in range(len(data)):
            with pytest.raises(BitstreamError):
                unpack(data[:length])
            cases += 1
        for bit in range(8 * len(data)):
            broken = bytearray(data)
            broken[bit // 8] ^= 1 << bit % 8
            with pytest.raises(BitstreamError):
                unpack(bytes(broken))
            cases += 1
    print(f"{cases} damaged files refused")
    assert cases > 5000


def test_random_and_foreign_files_are_refused():
    headers = (
        b"",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff\xe0",
        b"RIFF\x24\0\0\0WEBPVP8 ",
        b"\xd1IC",
        b"PK\x03\x04",
        b"BM",
    )
    for i in range(2000):
        data = headers[i % len(headers)] + RNG.bytes(int(RNG.integers(0, 200)))
        with pytest.raises(BitstreamError):
            unpack(data)


def test_a_crafted_header_is_refused():
    def sealed(body: bytes) -> bytes:
        return body + struct.pack("<I", zlib.crc32(body))

    start = b"\xd1IC\x11" + bytes(4)
    bodies = {
        "endless varint": start + b"\xff" * 30,
        "no height": start + b"\0\x01\x08\0\0" + Y,
        "too high": start + b"\xff\xff\xff\xff\x0f" + b"\x01\x08\0\0" + Y,
        "z longer than the file": start + b"\x01\x01" + b"\xff\xff\x7f" + b"\0\0" + Y,
        "unknown flag": b"\xd1IC\x15" + bytes(4) + b"\x01\x01\x08\0\0" + Y,
        "quality 0": b"\xd1IC\x13" + bytes(4) + b"\x01\x01\0\0\x08\0\0" + Y,
        "quality 0.01": b"\xd1IC\x13" + bytes(4) + b"\x01\x01\x01\0\x08\0\0" + Y,
    }
    for name, body in bodies.items():
        with pytest.raises(BitstreamError):
            unpack(sealed(body))
            pytest.fail(name)
    with pytest.raises(BitstreamError, match="version 2"):
        unpack(sealed(b"\xd1IC\x21" + bytes(40)))


def test_a_claim_that_the_strings_cannot_hold_is_refused():
    with pytest.raises(BitstreamError, match="cannot hold"):
        check_plausible(STREAMS["huge"], 128, 320, 192)
    check_plausible(PORTABLE, 128, 320, 192)


def test_official_round_trip_and_size():
    data = pack_official(200, 312, Y, Z)
    assert len(data) == 12 + len(Y) + len(Z)
    stream = unpack(data)
    assert (stream.height, stream.width, stream.strings, stream.arithmetic) == (200, 312, (Y, Z), "published")
    with pytest.raises(BitstreamError):
        unpack(data + b"\0")
    with pytest.raises(ValueError, match="65535"):
        pack_official(65536, 1, Y, Z)


def test_environments_in_words():
    assert describe_environment(current_environment("cpu")).startswith("cpu on ")
    assert describe_environment(b"\x11\x4b") == "cuda on arm64 with torch 2.11"
