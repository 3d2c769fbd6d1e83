"""Samples of any depth and sense come in as their brightness says, or are refused in one line: none at face value."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tests.image_files import LONG, SHORT, packed_bits, write_bmp, write_png, write_tiff
from utils.cli import UserError
from utils.data.images import LAB, PLAIN_CMYK, WHITE, read_image
from utils.data.samples import DEEP, FIRST_FRAME, NO_ALPHA

RAMP = np.tile(np.linspace(0, 1, 24), (5, 1))  # black to white
SIZE = RAMP.shape[::-1]


def levels(bits: int, ramp: np.ndarray = RAMP) -> np.ndarray:
    return np.round(ramp * (2**bits - 1)).astype(np.int64)


def grey_of(bits: int) -> np.ndarray:
    """What the ramp in so many bits is in 8."""
    return np.round(levels(bits) * 255 / (2**bits - 1)).astype(int)


def stored(values: np.ndarray, bits: int, order: str) -> bytes:
    return values.astype(f"{order}u2").tobytes() if bits == 16 else packed_bits(values, bits)


def refused(path) -> str:
    with pytest.raises(UserError, match=path.name) as error:
        read_image(path)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- TIFF ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("white_is_zero", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 12, 16])
def test_grey_tiff_of_any_bits_counted_from_black_and_from_white(tmp_path, bits, white_is_zero, order):
    values = levels(bits, 1 - RAMP if white_is_zero else RAMP)
    path = write_tiff(tmp_path / "a.tif", [stored(values, bits, order)], SIZE, [bits], int(not white_is_zero), order)
    array, notes = read_image(path)
    expected = grey_of(bits) if not white_is_zero else 255 - np.round(values * 255 / (2**bits - 1)).astype(int)
    assert np.array_equal(array[..., 1], expected) and notes == [DEEP] * (bits > 8)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_compressed_deep_grey_is_scaled_too(tmp_path, compression):
    Image.fromarray(levels(16).astype(np.uint16)).save(tmp_path / "a.tif", compression=compression)
    assert np.array_equal(read_image(tmp_path / "a.tif")[0][..., 0], grey_of(16))


@pytest.mark.parametrize(
    ("bits", "format", "what"),
    [
        (8, 2, "signed samples have no known range"),
        (16, 2, "signed samples have no known range"),
        (32, 1, "32-bit samples have no known range"),
        (32, 2, "signed samples have no known range"),
        (32, 3, "floating-point samples have no known range"),
        (64, 3, "floating-point samples have no known range"),
        (16, 3, "floating-point samples have no known range"),
        (10, 1, "a TIFF of BlackIsZero with samples of 10 bits is not read"),
        (14, 1, "a TIFF of BlackIsZero with samples of 14 bits is not read"),
        (24, 1, "24-bit samples have no known range"),
    ],
)
@pytest.mark.parametrize("order", ["<", ">"])
def test_samples_without_a_known_range_are_refused(tmp_path, bits, format, what, order):
    data = bytes(SIZE[0] * SIZE[1] * (bits + 7) // 8 + 64)
    path = write_tiff(tmp_path / "a.tif", [data], SIZE, [bits], 1, order, {339: (SHORT, [format])})
    message = refused(path)
    assert what in message and "convert it to 8 or 16 unsigned bits a sample" in message


@pytest.mark.parametrize(("interpretation", "name"), [(9, "ICCLab"), (32803, "colour filter array"), (4, "mask")])
def test_other_interpretations_are_refused_by_name(tmp_path, interpretation, name):
    path = write_tiff(tmp_path / "a.tif", [bytes(SIZE[0] * SIZE[1])], SIZE, [8], interpretation)
    assert f"a TIFF of {name}" in refused(path)


def test_inks_other_than_cmyk_are_refused(tmp_path):
    path = write_tiff(tmp_path / "a.tif", [bytes(4 * 24 * 5)], SIZE, [8] * 4, 5, more={332: (SHORT, [2])})
    assert "its inks are not cyan" in refused(path)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("bits", [8, 16])
def test_colours_in_one_plane_or_in_three(tmp_path, bits, apart, order):
    ramp = np.stack([RAMP, 1 - RAMP, RAMP / 2], -1)
    values = levels(bits, ramp)
    planes = [values[..., i] for i in range(3)] if apart else [values.reshape(len(values), -1)]
    data = [stored(plane, bits, order) for plane in planes]
    array, notes = read_image(write_tiff(tmp_path / "a.tif", data, SIZE, [bits] * 3, 2, order))
    assert np.abs(array - ramp * 255).max() <= (0.51 if bits == 8 else 1) and notes == [DEEP] * (bits > 8)


@pytest.mark.parametrize("bits", [1, 4, 8, 16])
def test_one_sample_in_planes_of_its_own_is_still_counted_from_white(tmp_path, bits):
    values = levels(bits, 1 - RAMP)
    more = {284: (SHORT, [2])}
    array, _ = read_image(write_tiff(tmp_path / "a.tif", [stored(values, bits, "<")], SIZE, [bits], 0, more=more))
    assert np.array_equal(array[..., 0], 255 - np.round(values * 255 / (2**bits - 1)))


@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize("extra", [0, 1, 2])
def test_extra_samples_are_nothing_or_alpha_premultiplied_or_not(tmp_path, extra, colours):
    """A pixel of value 100 under alpha 128: on white it is 177 (not multiplied yet) or 227 (multiplied already)."""
    pixel = bytes([100] * colours + [128])
    bits = [8] * (colours + 1)
    path = write_tiff(
        tmp_path / "a.tif", [pixel * 24 * 5], SIZE, bits, 1 if colours == 1 else 2, more={338: (SHORT, [extra])}
    )
    array, notes = read_image(path)
    assert abs(int(array[2, 3, 0]) - {0: 100, 1: 227, 2: 177}[extra]) <= 1 and notes == [WHITE] * (extra > 0)


@pytest.mark.parametrize(("extra", "colour"), [(1, 227), (2, 177)])
@pytest.mark.parametrize("bits", [8, 16])
def test_alpha_in_a_plane_of_its_own(tmp_path, bits, extra, colour):
    planes = [stored(np.full((5, 24), value * (2**bits // 255)), bits, "<") for value in (100, 100, 100, 128)]
    path = write_tiff(tmp_path / "a.tif", planes, SIZE, [bits] * 4, 2, more={338: (SHORT, [extra])})
    assert abs(int(read_image(path)[0][2, 3, 1]) - colour) <= 1
    path = write_tiff(tmp_path / "b.tif", planes[2:], SIZE, [bits] * 2, 1, more={338: (SHORT, [extra])})
    assert "is not read" in refused(path)


def test_cmyk_of_eight_and_sixteen_bits(tmp_path):
    for bits in (8, 16):
        pixel = np.full((5, 24, 4), [0, 2**bits - 1, 2**bits - 1, 0], np.int64).reshape(5, -1)
        path = write_tiff(tmp_path / "a.tif", [stored(pixel, bits, "<")], SIZE, [bits] * 4, 5)
        array, notes = read_image(path)
        assert array[0, 0].tolist() == [255, 0, 0] and notes == [DEEP] * (bits > 8) + [PLAIN_CMYK]


@pytest.mark.parametrize("subsampling", [[1, 1], [2, 2]])
def test_uncompressed_ycbcr(tmp_path, subsampling):
    """Red: Y 76, Cb 85, Cr 255; with two by two, four Y come before each pair of the others."""
    block = bytes([76] * (subsampling[0] * subsampling[1]) + [85, 255])
    data = block * (24 * 6 // (subsampling[0] * subsampling[1]))
    path = write_tiff(tmp_path / "a.tif", [data], (24, 6), [8] * 3, 6, more={530: (SHORT, subsampling)})
    array, _ = read_image(path)
    assert np.abs(array.astype(int) - [254, 0, 0]).max() <= 2


def test_cielab(tmp_path):
    """sRGB's (200, 60, 40) under D50 is L* 47.3, a* 55.4, b* 44.6 (rounded here): a and b are signed in the file."""
    path = write_tiff(tmp_path / "a.tif", [bytes([121, 55, 45]) * 24 * 5], SIZE, [8] * 3, 8)
    array, notes = read_image(path)
    assert np.abs(array[0, 0].astype(int) - [200, 60, 40]).max() <= 2 and notes == [LAB]
    path = write_tiff(tmp_path / "b.tif", [bytes([255, 0, 0]) * 24 * 5], SIZE, [8] * 3, 8)
    assert read_image(path)[0].min() >= 254


@pytest.mark.parametrize("unit", [257, 1])
def test_palette_of_sixteen_bits_and_of_eight_in_their_place(tmp_path, unit):
    colours = [unit * value for channel in ((10, 200), (20, 100), (30, 0)) for value in [*channel, *[0] * 14]]
    path = write_tiff(tmp_path / "a.tif", [b"\x01" * 12 * 5], SIZE, [4], 3, more={320: (SHORT, colours)})
    array, notes = read_image(path)
    assert array[0, 0].tolist() == [10, 20, 30] and array[0, 1].tolist() == [200, 100, 0] and notes == []


def test_a_tiff_that_breaks_off_in_its_tags_is_no_traceback(tmp_path):
    path = write_tiff(tmp_path / "a.tif", [bytes(24 * 5)], SIZE, [10], 1)
    path.write_bytes(path.read_bytes()[:-20])
    refused(path)


def test_tiles_and_big_endian_orientation_do_not_disturb_the_scale(tmp_path):
    values = levels(16, 1 - np.tile(np.linspace(0, 1, 16), (16, 1)))
    more = {274: (SHORT, [3]), 322: (LONG, [16]), 323: (LONG, [16])}
    path = write_tiff(tmp_path / "a.tif", [values.astype(">u2").tobytes()], (16, 16), [16], 0, ">", more)
    array, _ = read_image(path)
    assert array[0, 0].tolist() == [255] * 3 and array[-1, -1].tolist() == [0] * 3


# ---- other formats -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("largest", [1, 15, 100, 255, 256, 1023, 4095, 40000, 65535])
@pytest.mark.parametrize("magic", ["P2", "P3", "P5", "P6"])
def test_ppm_of_any_largest_value(tmp_path, magic, largest):
    values = np.round(RAMP * largest).astype(int)
    if magic in ("P3", "P6"):
        values = np.repeat(values[..., None], 3, -1)
    head = f"{magic} 24 5 {largest}\n".encode()
    plain = " ".join(map(str, values.ravel())).encode()
    raw = values.astype("u1" if largest < 256 else ">u2").tobytes()
    (tmp_path / "a.pnm").write_bytes(head + (plain if magic in ("P2", "P3") else raw))
    array, notes = read_image(tmp_path / "a.pnm")
    expected = values * 255 / largest
    assert np.abs(array - (expected if expected.ndim == 3 else expected[..., None])).max() <= 1
    assert array[0, 0].tolist() == [0] * 3 and array[0, -1].tolist() == [255] * 3 and notes == [DEEP] * (largest > 255)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_the_transparent_grey_of_a_png_is_of_its_own_bits(tmp_path, bits):
    values = levels(bits)
    clear = int(values[0, 8])
    array, notes = read_image(write_png(tmp_path / "a.png", values, bits, {b"tRNS": clear.to_bytes(2, "big")}))
    expected = np.where(values == clear, 255, grey_of(bits))
    assert np.array_equal(array[..., 0], expected) and notes == [DEEP] * (bits > 8) + [WHITE]


def test_jpeg_2000_of_sixteen_bits(tmp_path):
    Image.fromarray(levels(16, np.tile(RAMP, (5, 2))).astype(np.uint16)).save(tmp_path / "a.jp2", irreversible=False)
    array, notes = read_image(tmp_path / "a.jp2")
    assert np.array_equal(array[:5, :24, 0], grey_of(16)) and notes == [DEEP]


def test_cmyk_jpeg_with_and_without_adobes_marker(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    data = (tmp_path / "a.jpg").read_bytes()
    start = data.index(b"\xff\xee")
    length = int.from_bytes(data[start + 2 : start + 4], "big")
    (tmp_path / "b.jpg").write_bytes(data[:start] + data[start + 2 + length :])
    marked, plain = (read_image(tmp_path / name)[0][0, 0].astype(int) for name in ("a.jpg", "b.jpg"))
    assert np.abs(marked - [255, 0, 0]).max() <= 3
    assert np.abs(plain - [0, 0, 0]).max() <= 3  # the same samples, not turned about: cyan and black ink in full


@pytest.mark.parametrize(
    ("kind", "masks", "pixel", "colour", "said"),
    [
        ("u2", (0x7C00, 0x3E0, 0x1F, 0x8000), 0b1_11111_00000_00000, (255, 0, 0), []),
        ("u2", (0x7C00, 0x3E0, 0x1F, 0x8000), 0b0_11111_00000_00000, (255, 255, 255), [WHITE]),
        ("u2", (0xF00, 0xF0, 0xF, 0xF000), 0x8F00, (255, 119, 119), [WHITE]),
        ("u2", (0xF800, 0x7E0, 0x1F, 0), 0b11111_000000_10000, (255, 0, 132), []),
        ("u4", (0x3FF00000, 0xFFC00, 0x3FF, 0), (1023 << 20) | (512 << 10), (255, 128, 0), [DEEP]),
        ("u4", (0xFF0000, 0xFF00, 0xFF, 0xFF000000), 0x8064C832, (177, 227, 152), [WHITE]),
    ],
)
def test_bmp_with_masks(tmp_path, kind, masks, pixel, colour, said):
    pixels = np.full((3, 5), pixel, f"<{kind}")
    pixels[0, 0] = masks[0] | masks[3]  # red, in the upper left corner and opaque
    array, notes = read_image(write_bmp(tmp_path / "a.bmp", pixels, masks))
    assert array.shape == (3, 5, 3) and array[0, 0].tolist() == [255, 0, 0] and notes == said
    assert np.abs(array[1, 1].astype(int) - colour).max() <= 1


def test_bmp_whose_alpha_is_nothing_but_zeros_is_opaque(tmp_path):
    pixels = np.full((3, 5), 0x0064C832, "<u4")
    path = write_bmp(tmp_path / "a.bmp", pixels, (0xFF0000, 0xFF00, 0xFF, 0xFF000000))
    array, notes = read_image(path)
    assert array[0, 0].tolist() == [100, 200, 50] and notes == [NO_ALPHA]
    path.write_bytes(path.read_bytes()[:-9])
    assert "truncated" in refused(path)


def test_bmp_of_32_bits_without_masks_has_no_alpha(tmp_path):
    path = write_bmp(tmp_path / "a.bmp", np.full((3, 5), 0x0064C832, "<u4"), None, header=40)
    array, notes = read_image(path)
    assert array[0, 0].tolist() == [100, 200, 50] and notes == []


# ---- several pictures in a file ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif", "a.avif", "a.mpo"])
def test_the_first_of_several_frames_is_read_and_that_is_said(tmp_path, name):
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    array, notes = read_image(tmp_path / name)
    assert np.abs(array.astype(int) - [255, 0, 0]).max() <= 3 and notes == [FIRST_FRAME]


def test_a_gif_of_one_frame(tmp_path):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((0, 0), 0)
    image.save(tmp_path / "a.GIF", transparency=0)
    array, notes = read_image(tmp_path / "a.GIF")
    assert array[1, 1].tolist() == [200, 100, 50] and array[0, 0].tolist() == [255] * 3 and notes == [WHITE]
