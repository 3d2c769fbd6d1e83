"""Every kind of image file comes in as the same 8-bit sRGB pixels, and padding comes off as it went on."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from utils.cli import UserError
from utils.data import images, padding
from utils.data.colour import EMBEDDED
from utils.data.samples import DEEP, FIRST_FRAME


@pytest.fixture
def pixels():
    """A smooth 40 x 56 RGB image, which JPEG and chroma subsampling leave nearly as it is."""
    y, x = np.mgrid[0:40, 0:56]
    return np.stack([x * 4, y * 6, (x + y) * 2], -1).astype(np.uint8)


def png_of(samples: np.ndarray, transparent: bytes = b"") -> bytes:
    """A 16-bit PNG, which Pillow writes for grey only, from uint16 (H, W) or (H, W, C)."""
    channels = 1 if samples.ndim == 2 else samples.shape[2]
    header = struct.pack(
        ">IIBBBBB", samples.shape[1], samples.shape[0], 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0
    )
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    chunks = [(b"IHDR", header), (b"tRNS", transparent), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
        if data or name == b"IEND"
    )
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a.bmp", "a.ppm", "a.tiff", "a.TIF"])
def test_lossless_formats_come_in_unchanged(tmp_path, pixels, name):
    Image.fromarray(pixels).save(tmp_path / name)
    array, notes = images.read_image(tmp_path / name)
    assert array.dtype == np.uint8 and np.array_equal(array, pixels) and notes == []


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG", "a.webp"])
def test_lossy_formats_come_in_close(tmp_path, pixels, name):
    Image.fromarray(pixels).save(tmp_path / name, quality=95)
    array, notes = images.read_image(tmp_path / name)
    assert np.abs(array.astype(int) - pixels).mean() < 3 and notes == []


def test_grey_palette_and_bilevel(tmp_path, pixels):
    for mode in ("L", "P", "1"):
        image = Image.fromarray(pixels).convert(mode)
        image.save(tmp_path / "a.png")
        assert np.array_equal(images.read_image(tmp_path / "a.png")[0], np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGB"])
def test_transparency_is_composited_on_white(tmp_path, pixels, mode):
    path = tmp_path / "a.png"
    image = Image.fromarray(pixels)
    if mode == "RGB":  # one colour of an opaque image declared transparent
        image.save(path, transparency=tuple(int(v) for v in pixels[3, 5]))
        clear = (pixels == pixels[3, 5]).all(-1)
    elif mode == "PA":
        palette = image.quantize(16)
        palette.save(path, transparency=3)
        clear = np.asarray(palette) == 3
    else:
        image = image.convert(mode)
        clear = np.zeros(pixels.shape[:2], bool)
        clear[:7] = True
        image.putalpha(Image.fromarray(np.where(clear, 0, 255).astype(np.uint8)))
        image.save(path)
    array, notes = images.read_image(path)
    assert notes == [images.WHITE] and clear.any()
    assert (array[clear] == 255).all() and not (array[~clear] == 255).all(-1).all()


def test_half_transparency_and_opaque_alpha(tmp_path):
    Image.new("RGBA", (4, 4), (100, 0, 200, 128)).save(tmp_path / "half.png")
    Image.new("RGBA", (4, 4), (100, 0, 200, 255)).save(tmp_path / "opaque.png")
    half, opaque = images.read_image(tmp_path / "half.png"), images.read_image(tmp_path / "opaque.png")
    assert np.abs(half[0][0, 0].astype(int) - [177, 127, 227]).max() <= 1 and half[1] == [images.WHITE]
    assert opaque[0][0, 0].tolist() == [100, 0, 200] and opaque[1] == []


def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path):
    samples = np.linspace(0, 65535, 30 * 20).reshape(20, 30).astype(np.uint16)
    Image.fromarray(samples).save(tmp_path / "a.png")
    Image.fromarray(samples).save(tmp_path / "a.tif")
    (tmp_path / "a.pgm").write_bytes(b"P5 30 20 65535\n" + samples.astype(">u2").tobytes())
    expected = np.repeat(np.round(samples / 257).astype(np.uint8)[..., None], 3, -1)
    for name in ("a.png", "a.tif", "a.pgm"):
        array, notes = images.read_image(tmp_path / name)
        assert np.array_equal(array, expected) and notes == [DEEP], name


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_sixteen_bit_colour_is_found_out(tmp_path, channels):
    samples = np.random.default_rng(1).integers(0, 65536, (6, 9, channels)).astype(np.uint16)
    if channels != 3:
        samples[..., -1] = 65535
    (tmp_path / "a.png").write_bytes(png_of(samples))
    array, notes = images.read_image(tmp_path / "a.png")
    colour = samples[..., [0, 0, 0]] if channels == 2 else samples[..., :3]
    assert notes == [DEEP] and np.abs(array - colour / 257).max() <= 1


def test_sixteen_bit_ppm_and_transparent_colours(tmp_path):
    samples = np.random.default_rng(2).integers(0, 1024, (5, 7, 3)).astype(np.uint16)
    (tmp_path / "a.ppm").write_bytes(b"P6 7 5 1023\n" + samples.astype(">u2").tobytes())
    array, notes = images.read_image(tmp_path / "a.ppm")
    assert notes == [DEEP] and np.abs(array - samples / 1023 * 255).max() <= 0.51
    (tmp_path / "rgb.png").write_bytes(png_of(samples * 64, struct.pack(">HHH", *(samples[2, 3] * 64))))
    array, notes = images.read_image(tmp_path / "rgb.png")
    assert notes == [DEEP, images.WHITE] and array[2, 3].tolist() == [255] * 3
    (tmp_path / "grey.png").write_bytes(png_of(samples[..., 0] * 64, struct.pack(">H", samples[2, 3, 0] * 64)))
    array, notes = images.read_image(tmp_path / "grey.png")
    assert notes == [DEEP, images.WHITE] and array[2, 3].tolist() == [255] * 3


def test_cmyk(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.tif")
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    for name in ("a.tif", "a.jpg"):
        array, notes = images.read_image(tmp_path / name)
        assert np.abs(array[0, 0].astype(int) - [255, 0, 0]).max() <= 3 and notes == [images.PLAIN_CMYK]


def linear_profile(space: str = "RGB") -> bytes:
    """An ICC profile with sRGB's primaries and gamma 1.0 (RGB), or grey with gamma 1.0, written by hand."""
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, 256) + b"\0\0"

    def xyz(*values):
        return b"XYZ \0\0\0\0" + struct.pack(">iii", *(round(v * 65536) for v in values))

    tags = {b"wtpt": xyz(0.9642, 1.0, 0.8249)}
    if space == "RGB":
        tags |= {b"rTRC": curve, b"gTRC": curve, b"bTRC": curve}
        tags |= {b"rXYZ": xyz(0.4360, 0.2225, 0.0139), b"gXYZ": xyz(0.3851, 0.7169, 0.0971)}
        tags |= {b"bXYZ": xyz(0.1431, 0.0606, 0.7139)}
    else:
        tags[b"kTRC"] = curve
    offset, table, body = 132 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        table += name + struct.pack(">II", offset + len(body), len(data))
        body += data
    signature = {"RGB": b"RGB ", "GRAY": b"GRAY"}[space]
    head = struct.pack(
        ">I4sI4s4s4s12s4s", offset + len(body), b"\0" * 4, 0x02100000, b"mntr", signature, b"XYZ ", b"", b"acsp"
    )
    head += b"\0" * 28 + struct.pack(">iii", 63190, 65536, 54061) + b"\0" * 48
    return head + struct.pack(">I", len(tags)) + table + body


def srgb_of_linear(v):
    return 255 * np.where(v <= 0.0031308, 12.92 * v, 1.055 * v ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tif"])
def test_icc_profiles_are_converted(tmp_path, name):
    options = {"lossless": True} if name == "a.webp" else {"quality": 100} if name == "a.jpg" else {}
    Image.new("RGB", (16, 16), (120, 120, 120)).save(tmp_path / name, icc_profile=linear_profile(), **options)
    array, notes = images.read_image(tmp_path / name)
    assert notes == [EMBEDDED]
    assert np.abs(array - srgb_of_linear(np.float64(120 / 255))).max() <= 2


@pytest.mark.parametrize("profile", ["RGB", "GRAY"])
def test_icc_profile_of_a_grey_image_with_alpha(tmp_path, profile):
    image = Image.new("LA", (8, 8), (60, 255))
    image.putpixel((0, 0), (60, 0))
    image.save(tmp_path / "a.png", icc_profile=linear_profile(profile))
    array, notes = images.read_image(tmp_path / "a.png")
    assert notes == [EMBEDDED, images.WHITE] and array[0, 0].tolist() == [255] * 3
    assert np.abs(array[4, 4] - srgb_of_linear(np.float64(60 / 255))).max() <= 2


def test_icc_profile_of_sixteen_bit_grey(tmp_path):
    samples = np.full((8, 8), 30000, np.uint16)
    Image.fromarray(samples).save(tmp_path / "a.png", icc_profile=linear_profile("GRAY"))
    array, notes = images.read_image(tmp_path / "a.png")
    assert notes == [DEEP, EMBEDDED]
    assert np.abs(array - srgb_of_linear(np.float64(30000 / 65535))).max() <= 2


def test_srgb_profile_changes_nothing(tmp_path, pixels):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(pixels).save(tmp_path / "a.png", icc_profile=srgb)
    array, notes = images.read_image(tmp_path / "a.png")
    assert np.array_equal(array, pixels) and notes == []


@pytest.mark.parametrize("profile", [b"no profile at all", linear_profile()[:200], linear_profile("GRAY")])
def test_broken_or_unfitting_profile_is_said_and_ignored(tmp_path, pixels, profile):
    Image.fromarray(pixels).save(tmp_path / "a.png", icc_profile=profile)
    array, notes = images.read_image(tmp_path / "a.png")
    assert np.array_equal(array, pixels) and notes == [images.BAD_PROFILE]


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp", ".jpg"])
def test_exif_orientation_is_applied(tmp_path, pixels, suffix):
    exif = Image.Exif()
    exif[274] = 6  # turn clockwise to see it upright
    image = Image.fromarray(pixels)
    image.save(tmp_path / f"a{suffix}", exif=exif, **({"lossless": True} if suffix == ".webp" else {"quality": 95}))
    array, notes = images.read_image(tmp_path / f"a{suffix}")
    upright = np.rot90(pixels, -1)
    assert array.shape == upright.shape and notes == []
    assert np.abs(array.astype(int) - upright).mean() < (3 if suffix == ".jpg" else 1e-9)


def test_exif_orientation_of_sixteen_bit_grey(tmp_path):
    exif = Image.Exif()
    exif[274] = 3
    samples = np.arange(0, 60000, 100, dtype=np.uint16).reshape(20, 30)
    Image.fromarray(samples).save(tmp_path / "a.png", exif=exif)
    array, _ = images.read_image(tmp_path / "a.png")
    assert np.array_equal(array[..., 0], np.round(samples[::-1, ::-1] / 257))


def test_broken_exif_is_no_obstacle(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=95, exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xff garbage")
    assert images.read_image(tmp_path / "a.jpg")[0].shape == pixels.shape


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif"])
def test_first_frame_of_several(tmp_path, pixels, name):
    frames = [Image.fromarray(255 - pixels), Image.fromarray(pixels // 2)]
    Image.fromarray(pixels).save(tmp_path / name, save_all=True, append_images=frames, lossless=True)
    array, notes = images.read_image(tmp_path / name)
    assert np.array_equal(array, pixels) and notes == [FIRST_FRAME]


def test_phone_jpeg_with_a_preview_is_one_picture(tmp_path, pixels):
    preview = Image.fromarray(pixels[::2, ::2])
    Image.fromarray(pixels).save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[preview], quality=95)
    array, notes = images.read_image(tmp_path / "a.jpg")
    assert array.shape == pixels.shape and notes == []


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".bmp", ".ppm"])
def test_truncated_and_broken_files_are_errors_that_name_the_file(tmp_path, suffix):
    noise = np.random.default_rng(3).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    path = tmp_path / f"a{suffix}"
    Image.fromarray(noise).save(path)
    data = path.read_bytes()
    for part in (data[: len(data) // 2], data[:30], data[:3], b"", bytes(1000), b"%PDF-1.4 something else"):
        path.write_bytes(part)
        with pytest.raises(UserError, match=f"a{suffix}: ") as error:
            images.read_image(path)
        assert "\n" not in str(error.value)


def test_missing_file_folder_and_float_samples(tmp_path):
    Image.new("F", (4, 4), 0.5).save(tmp_path / "a.tif")
    for name in ("none.png", ".", "a.tif"):
        with pytest.raises(UserError, match="read as an image"):
            images.read_image(tmp_path / name)


def test_large_images_without_warnings_and_a_bomb_refused(tmp_path, monkeypatch, recwarn):
    limit = Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("RGB", (60, 50)).save(tmp_path / "a.png")
    assert images.read_image(tmp_path / "a.png")[0].shape == (50, 60, 3)
    assert Image.MAX_IMAGE_PIXELS == 100 and not recwarn.list and limit
    header = struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "bomb.png").write_bytes(bomb + struct.pack(">I", 9) + b"IDAT" + zlib.compress(b"")[:9])
    with pytest.raises(UserError, match="bomb.png: 2147483647 x 2147483647"):
        images.read_image(tmp_path / "bomb.png")


def test_pixels_survive_the_tensor_and_the_png(tmp_path, pixels):
    x = images.to_tensor(pixels)
    assert x.shape == (1, 3, 40, 56) and x.dtype == torch.float32 and x.is_contiguous() and 0 <= x.min() <= x.max() <= 1
    assert np.array_equal(images.to_uint8(x), pixels) and np.array_equal(images.to_uint8(x[0]), pixels)
    images.write_png(tmp_path / "a.png", images.to_uint8(x))
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "RGB" and np.array_equal(np.asarray(image), pixels)


def test_to_uint8_rounds_and_clamps():
    x = torch.tensor([-0.5, 0.0, 0.6 / 255, 1.4 / 255, 254.6 / 255, 1.0, 7.0]).expand(3, 1, 7)
    assert images.to_uint8(x)[0, :, 0].tolist() == [0, 0, 1, 1, 255, 255, 255]


@pytest.mark.parametrize("mode", padding.PADDINGS)
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3), (5, 127), (128, 16), (129, 1)])
def test_padding_is_centred_and_comes_off(mode, size):
    x = torch.rand(2, 3, *size)
    padded = padding.pad_centred(x, 16, mode)
    assert all(side % 16 == 0 and side - old < 16 for side, old in zip(padded.shape[-2:], size))
    assert torch.equal(padding.crop_centred(padded, size), x)
    extra = padded.shape[-1] - size[1]
    assert padding.padding_of(size[1], 16) == (extra // 2, extra - extra // 2)


def test_padding_modes():
    x = torch.arange(1.0, 4.0).reshape(1, 1, 1, 3)
    assert padding.pad_centred(x, 10, "zero")[0, 0, 4].tolist() == [0, 0, 0, 1, 2, 3, 0, 0, 0, 0]
    assert padding.pad_centred(x, 10, "replicate")[0, 0, 0].tolist() == [1, 1, 1, 1, 2, 3, 3, 3, 3, 3]
    assert padding.pad_centred(x, 10, "reflect")[0, 0, 0].tolist() == [2, 3, 2, 1, 2, 3, 2, 1, 2, 3]
    wide = torch.rand(1, 3, 30, 30)
    expected = torch.nn.functional.pad(wide, (1, 1, 1, 1), mode="reflect")
    assert torch.equal(padding.pad_centred(wide, 32, "reflect"), expected)
    with pytest.raises(ValueError, match="unknown padding"):
        padding.pad_centred(x, 10, "mirror")
