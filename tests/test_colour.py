"""What a file says of its colours otherwise than by an ICC profile is converted to sRGB, or said not to be."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from tests.image_files import LONG, RATIONAL, SHORT, box, write_bmp, write_png, write_tiff
from utils.data import colour
from utils.data.images import WHITE, read_image

COLOUR = (40, 200, 60)
PIXELS = np.full((6, 8, 3), COLOUR, np.uint8)
P3 = (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, 0.3127, 0.3290)
GAMMAS = {"adobe": 563 / 256, "linear": 1.0, "1.8": 1.8}


def srgb_decoded(v):
    return np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)


def in_srgb(samples, chromaticities, decode) -> np.ndarray:
    """Samples 0..255 of the primaries and white, under D65, as sRGB 0..255."""

    def matrix(values):
        x, y = np.array(values).reshape(4, 2).T
        columns = np.stack([x / y, np.ones(4), (1 - x - y) / y])
        return columns[:, :3] * np.linalg.solve(columns[:, :3], columns[:, 3])

    linear = np.linalg.solve(matrix(colour.BT709), matrix(chromaticities) @ decode(np.array(samples) / 255))
    linear = linear.clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def assert_converted(path, chromaticities, decode, teller, more=()):
    array, notes = read_image(path)
    assert np.abs(array[2, 3] - in_srgb(COLOUR, chromaticities, decode)).max() <= 1.5
    assert notes == [colour.TOLD.format(teller), *more]


def assert_untouched(path, *notes):
    array, said = read_image(path)
    assert np.abs(array.astype(int) - PIXELS).max() <= 2 and said == list(notes)


# ---- PNG -----------------------------------------------------------------------------------------------------------


def g_ama(exponent: float) -> bytes:
    return struct.pack(">I", round(100000 / exponent))


def c_hrm(chromaticities) -> bytes:
    return struct.pack(">8I", *(round(100000 * v) for v in (*chromaticities[6:], *chromaticities[:6])))


def icc_of(chromaticities, exponent: float) -> bytes:
    return colour.matrix_profile(chromaticities, [colour.gamma(exponent)])


@pytest.mark.parametrize("exponent", [1.0, 1.8, 2.6])
def test_gama_of_a_png(tmp_path, exponent):
    path = write_png(tmp_path / "a.png", PIXELS, chunks={b"gAMA": g_ama(exponent)})
    assert_converted(path, colour.BT709, lambda v: v**exponent, "gAMA or cHRM")


def test_gama_of_a_grey_png(tmp_path):
    path = write_png(tmp_path / "a.png", PIXELS[..., 1], chunks={b"gAMA": g_ama(1.0)})
    expected = in_srgb([200] * 3, colour.BT709, lambda v: v)
    assert np.abs(read_image(path)[0][0, 0] - expected).max() <= 1.5


def test_chrm_of_a_png_with_and_without_gama(tmp_path):
    path = write_png(tmp_path / "a.png", PIXELS, chunks={b"cHRM": c_hrm(P3)})
    assert_converted(path, P3, srgb_decoded, "gAMA or cHRM")
    path = write_png(tmp_path / "a.png", PIXELS, chunks={b"gAMA": g_ama(2.2), b"cHRM": c_hrm(colour.ADOBE)})
    assert_converted(path, colour.ADOBE, lambda v: v**2.2, "gAMA or cHRM")


def test_what_programs_write_of_srgb_changes_nothing(tmp_path):
    for chunks in (
        {b"gAMA": struct.pack(">I", 45455)},
        {b"gAMA": struct.pack(">I", 45455), b"cHRM": c_hrm(colour.BT709)},
        {b"cHRM": c_hrm(colour.BT709)},
        {b"cICP": bytes([1, 13, 0, 1])},
        {b"gAMA": bytes(4)},
    ):
        array, notes = read_image(write_png(tmp_path / "a.png", PIXELS, chunks=chunks))
        assert np.array_equal(array, PIXELS) and notes == [], chunks


def test_cicp_comes_before_a_profile_a_profile_before_srgb_and_srgb_before_gama(tmp_path):
    """Each of the chunks alone would be converted, and to something else."""
    import zlib

    profile = b"x\0\0" + zlib.compress(icc_of(colour.ADOBE, 563 / 256))
    lower = {b"sRGB": b"\0", b"gAMA": g_ama(1.0), b"cHRM": c_hrm(P3)}
    assert_untouched(write_png(tmp_path / "a.png", PIXELS, chunks=lower))
    with_profile = {b"iCCP": profile, **lower}
    array, notes = read_image(write_png(tmp_path / "a.png", PIXELS, chunks=with_profile))
    assert np.abs(array[0, 0] - in_srgb(COLOUR, colour.ADOBE, lambda v: v ** (563 / 256))).max() <= 1.5
    assert notes == [colour.EMBEDDED]
    path = write_png(tmp_path / "a.png", PIXELS, chunks={b"cICP": bytes([12, 13, 0, 1]), **with_profile})
    assert_converted(path, P3, srgb_decoded, "cICP")


@pytest.mark.parametrize(
    ("codes", "chromaticities", "decode"),
    [
        ((12, 13, 0, 1), P3, srgb_decoded),
        ((9, 13, 0, 1), colour.PRIMARIES[9], srgb_decoded),
        ((1, 8, 0, 1), colour.BT709, lambda v: v),
        ((1, 4, 0, 1), colour.BT709, lambda v: v**2.2),
    ],
)
def test_cicp_that_is_converted(tmp_path, codes, chromaticities, decode):
    assert_converted(
        write_png(tmp_path / "a.png", PIXELS, chunks={b"cICP": bytes(codes)}), chromaticities, decode, "cICP"
    )


@pytest.mark.parametrize(
    ("codes", "notes"),
    [
        ((9, 16, 0, 1), [colour.HDR]),
        ((9, 18, 0, 1), [colour.HDR]),
        ((1, 1, 0, 1), [colour.VIDEO]),
        ((77, 13, 0, 1), [colour.UNKNOWN.format("cICP")]),
        ((1, 17, 0, 1), [colour.UNKNOWN.format("cICP")]),
        ((1, 13, 0, 0), [colour.NARROW]),
    ],
)
def test_cicp_that_is_not_converted_is_said(tmp_path, codes, notes):
    assert_untouched(write_png(tmp_path / "a.png", PIXELS, chunks={b"cICP": bytes(codes)}), *notes)
    assert all("not" in note or "makes no sense" in note for note in notes)


def test_chromaticities_without_sense_are_said_and_ignored(tmp_path):
    for values in (bytes(32), struct.pack(">8I", *[33333] * 8)):
        path = write_png(tmp_path / "a.png", PIXELS, chunks={b"cHRM": values})
        assert_untouched(path, colour.SENSELESS.format("gAMA or cHRM"))


# ---- EXIF ----------------------------------------------------------------------------------------------------------


def exif_of(space: int | None, index: str | None) -> bytes:
    exif = Image.Exif()
    exif[0x8769] = ({0xA001: space} if space else {}) | ({0xA005: {1: index}} if index else {})
    return exif.tobytes()


@pytest.mark.parametrize("name", ["a.jpg", "a.webp", "a.png"])
def test_adobe_rgb_by_exif(tmp_path, name):
    """DCF: index R03 stands for Adobe RGB, whose (40, 200, 60) is (0, 201, 37) in sRGB."""
    options = {"a.jpg": {"quality": 100, "subsampling": 0}, "a.webp": {"lossless": True}}
    Image.fromarray(PIXELS.repeat(4, 0).repeat(4, 1)).save(
        tmp_path / name, exif=exif_of(0xFFFF, "R03"), **options.get(name, {})
    )
    array, notes = read_image(tmp_path / name)
    assert np.abs(array[9, 9].astype(int) - [0, 201, 37]).max() <= 3 and notes == [colour.TOLD.format("EXIF")]


def test_adobe_rgb_by_the_exif_of_a_tiff(tmp_path):
    index = struct.pack("<HHHI4sI", 1, 1, 2, 4, b"R03\0", 0)
    start = 8 + PIXELS.size
    exif = struct.pack("<HHHIIHHIII", 2, 0xA001, SHORT, 1, 0xFFFF, 0xA005, LONG, 1, start, 0)
    data, more = PIXELS.tobytes() + index + exif, {34665: (LONG, [start + len(index)])}
    array, notes = read_image(write_tiff(tmp_path / "a.tif", [data], (8, 6), [8] * 3, 2, more=more))
    assert np.abs(array[0, 0].astype(int) - [0, 201, 37]).max() <= 1 and notes == [colour.TOLD.format("EXIF")]


@pytest.mark.parametrize(
    ("space", "index", "notes"),
    [
        (1, None, []),
        (1, "R98", []),
        (None, "R98", []),
        (1, "R03", []),
        (0xFFFF, None, [colour.UNKNOWN.format("EXIF")]),
        (0xFFFD, None, [colour.UNKNOWN.format("EXIF")]),
        (2, None, [colour.TOLD.format("EXIF")]),
        (None, "R03", [colour.TOLD.format("EXIF")]),
    ],
)
def test_exif_that_says_srgb_adobe_rgb_or_neither(tmp_path, space, index, notes):
    Image.fromarray(PIXELS).save(tmp_path / "a.png", exif=exif_of(space, index))
    array, said = read_image(tmp_path / "a.png")
    assert said == notes and np.array_equal(array, PIXELS) == (notes != [colour.TOLD.format("EXIF")])


@pytest.mark.parametrize(("exponent", "notes"), [(2.2, []), (1.0, [colour.UNKNOWN.format("EXIF")])])
def test_a_gamma_of_exif_that_is_not_that_of_screens_is_said(tmp_path, exponent, notes):
    exif = Image.Exif()
    exif[0x8769] = {0xA500: exponent}
    Image.fromarray(PIXELS).save(tmp_path / "a.png", exif=exif.tobytes())
    array, said = read_image(tmp_path / "a.png")
    assert said == notes and np.array_equal(array, PIXELS)


def test_a_profile_comes_before_exif_and_orientation_is_applied_with_it(tmp_path):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(PIXELS).save(tmp_path / "a.png", exif=exif_of(0xFFFF, "R03"), icc_profile=srgb)
    assert_untouched(tmp_path / "a.png")
    exif = Image.Exif()
    exif.load(exif_of(0xFFFF, "R03"))
    exif[0x112] = 6
    Image.fromarray(PIXELS).save(tmp_path / "b.png", exif=exif.tobytes())
    array, _ = read_image(tmp_path / "b.png")
    assert array.shape == (8, 6, 3) and np.abs(array[0, 0].astype(int) - [0, 201, 37]).max() <= 1


# ---- AVIF, JPEG 2000 -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codes", "chromaticities", "notes"),
    [
        ((12, 13), P3, [colour.TOLD.format("nclx")]),
        ((9, 16), None, [colour.HDR]),
        ((9, 18), None, [colour.HDR]),
        ((1, 13), None, []),
        ((2, 2), None, []),
        ((1, 1), None, [colour.VIDEO]),
    ],
)
def test_code_points_of_avif(tmp_path, codes, chromaticities, notes):
    path = tmp_path / "a.avif"
    inside = (120, 150, 100)  # a colour far from the borders of both gamuts
    Image.new("RGB", (32, 32), inside).save(path, quality=100, subsampling="4:4:4")
    head, tail = path.read_bytes().split(b"colrnclx", 1)
    path.write_bytes(head + b"colrnclx" + struct.pack(">HH", *codes) + tail[4:])
    array, said = read_image(path)
    expected = inside if chromaticities is None else in_srgb(inside, chromaticities, srgb_decoded)
    assert np.abs(array[9, 9] - np.array(expected)).max() <= 2 and said == notes


@pytest.mark.parametrize("unknown", [14, 21])
def test_colour_specification_of_jpeg_2000(tmp_path, unknown):
    path = tmp_path / "a.jp2"
    Image.fromarray(PIXELS).save(path, irreversible=False)
    assert_untouched(path)
    data = path.read_bytes()
    usual = box(b"colr", b"\1\0\0" + struct.pack(">I", 16))
    assert data.count(usual) == 1
    path.write_bytes(data.replace(usual, box(b"colr", b"\1\0\0" + struct.pack(">I", unknown))))
    assert_untouched(path, colour.UNKNOWN.format("the JPEG 2000 header"))
    header = data.index(b"jp2h") - 4
    length = int.from_bytes(data[header : header + 4], "big")
    inside = data[header + 8 : header + length]
    profile = box(b"colr", b"\2\0\0" + icc_of(colour.ADOBE, 563 / 256))
    path.write_bytes(data[:header] + box(b"jp2h", inside.replace(usual, profile)) + data[header + length :])
    array, notes = read_image(path)
    assert np.abs(array[0, 0].astype(int) - [0, 201, 37]).max() <= 2 and notes == [colour.EMBEDDED]


# ---- BMP, TIFF -----------------------------------------------------------------------------------------------------

MASKS = (0xFF0000, 0xFF00, 0xFF, 0)
WORDS = np.full((6, 8), (COLOUR[0] << 16) | (COLOUR[1] << 8) | COLOUR[2], "<u4")


def test_primaries_and_gammas_of_a_bmp(tmp_path):
    x, y = np.array(P3).reshape(4, 2).T
    columns = np.stack([x / y, np.ones(4), (1 - x - y) / y])
    xyz = (columns[:, :3] * np.linalg.solve(columns[:, :3], columns[:, 3])).T.ravel()
    told = (
        bytes(4) + struct.pack("<9i", *(round(v * 2**30) for v in xyz)) + struct.pack("<3I", *[round(1.8 * 65536)] * 3)
    )
    path = write_bmp(tmp_path / "a.bmp", WORDS, MASKS, colours=told)
    assert_converted(path, P3, lambda v: v**1.8, "the BMP header")
    assert_untouched(write_bmp(tmp_path / "b.bmp", WORDS, MASKS, colours=b"BGRs"))
    assert_untouched(write_bmp(tmp_path / "c.bmp", WORDS, MASKS))
    broken = bytes(4) + struct.pack("<9i", *[-5] * 9)
    path = write_bmp(tmp_path / "d.bmp", WORDS, MASKS, colours=broken)
    assert_untouched(path, colour.SENSELESS.format("the BMP header"))


def test_profile_of_a_bmp(tmp_path):
    profile = icc_of(colour.ADOBE, 563 / 256)
    start = 124 + 4 * WORDS.size
    told = b"DEBM" + bytes(48) + struct.pack("<IIII", 4, start, len(profile), 0)
    path = write_bmp(tmp_path / "a.bmp", WORDS, MASKS, header=124, colours=told, more=profile)
    array, notes = read_image(path)
    assert np.abs(array[0, 0].astype(int) - [0, 201, 37]).max() <= 1 and notes == [colour.EMBEDDED]
    told = b"KNIL" + bytes(48) + struct.pack("<IIII", 4, start, 9, 0)
    path = write_bmp(tmp_path / "b.bmp", WORDS, MASKS, header=124, colours=told, more=b"C:\\p.icm\0")
    assert_untouched(path, colour.UNKNOWN.format("the BMP header"))


def test_alpha_and_gamma_of_a_bmp_together(tmp_path):
    words = WORDS | np.uint32(0x80000000)
    array, notes = read_image(write_bmp(tmp_path / "a.bmp", words, (*MASKS[:3], 0xFF000000)))
    assert np.abs(array[0, 0] - (255 - (255 - np.array(COLOUR)) * 128 / 255)).max() <= 1 and notes == [WHITE]


def rationals(values) -> tuple[int, list[int]]:
    return RATIONAL, [part for value in values for part in (round(value * 100000), 100000)]


def test_primaries_and_curve_of_a_tiff(tmp_path):
    data, told = [PIXELS.tobytes()], {318: rationals(P3[6:]), 319: rationals(P3[:6])}
    path = write_tiff(tmp_path / "a.tif", data, (8, 6), [8] * 3, 2, more=told)
    assert_converted(path, P3, srgb_decoded, "a TIFF tag")
    curve = [round(65535 * (i / 255) ** 1.8) for i in range(256)]
    for values in (curve, curve * 3):
        path = write_tiff(tmp_path / "a.tif", data, (8, 6), [8] * 3, 2, more={301: (SHORT, values)})
        assert_converted(path, colour.BT709, lambda v: v**1.8, "a TIFF tag")
    path = write_tiff(tmp_path / "a.tif", data, (8, 6), [8] * 3, 2, more={319: (LONG, [0] * 6)})
    assert_untouched(path, colour.SENSELESS.format("a TIFF tag"))
