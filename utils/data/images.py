"""Images in and out: any common file to 8-bit sRGB pixels, PNG back, and the padding a model's sizes need."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from utils.cli import UserError
from utils.files import atomic_write

SUFFIXES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".webp",
    ".tif",
    ".tiff",
    ".bmp",
    ".dib",
    ".ppm",
    ".pgm",
    ".pbm",
    ".pnm",
)
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "DIB", "PPM")
MAX_PIXELS = 2**30  # 3 GiB as 8-bit RGB; beyond it a file's claim is likelier than its content

WHITE = "transparent pixels are composited on white"
DEEP = "16-bit samples are reduced to 8 bits"
PROFILE = "the embedded ICC profile is converted to sRGB"
BAD_PROFILE = "the embedded ICC profile is broken or does not fit the image, and is ignored"
PLAIN_CMYK = "CMYK without a usable ICC profile is converted by the plain formula"
BAD_EXIF = "the EXIF orientation is unreadable and is ignored"
FIRST_FRAME = "of several frames or pages the first is read"


def find_images(path: str | Path, recursive: bool = False) -> list[Path]:
    """Return the image files of a folder in sorted order, or the one file that `path` names (whatever its suffix).

    In folders, files are chosen by suffix in any case; hidden ones are left out. Raises UserError if there is none.
    """
    path = Path(path)
    if not path.is_dir():
        if not path.exists():
            raise UserError(f"{path}: there is no such file or folder")
        return [path]
    found = path.rglob("*") if recursive else path.glob("*")
    images = sorted(p for p in found if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and not p.is_dir())
    if not images:
        hint = "" if recursive else " (--recursive looks into the folders below it)"
        raise UserError(f"{path}: no images in this folder{hint}; known are {' '.join(SUFFIXES)}")
    return images


def read_image(path: str | Path) -> tuple[np.ndarray, list[str]]:
    """Read an image file as 8-bit sRGB.

    Returns:
        uint8 array (H, W, 3), upright (EXIF orientation applied), and what was lost or changed on the way as a
        list of fixed sentences, so that a program can say each of them once for a whole folder.

    Raises:
        UserError: the file is missing, no image of a known kind, broken, truncated or of more than MAX_PIXELS.
    """
    notes: list[str] = []
    try:
        with _unguarded_pillow(), Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(f"{path}: {image.width} x {image.height} are more than {MAX_PIXELS} pixels; cut it up")
            return np.asarray(_to_srgb(_decode(image, notes), notes)), notes
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise UserError(f"{path}: not an image, or not of a known kind ({', '.join(FORMATS)})") from error
    except MemoryError as error:
        raise UserError(f"{path}: not enough memory to read this image") from error
    except Exception as error:  # parsers of foreign data raise nearly everything
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(f"{path}: cannot be read as an image: {' '.join(reason.split())}") from error


_one_at_a_time = Lock()  # limit and warnings are the whole process's


@contextmanager
def _unguarded_pillow() -> Iterator[None]:
    """Lift Pillow's limit on sizes, which warns long before it refuses, and silence its warnings about metadata."""
    Image.init()  # registers the formats that Pillow would look up only if no list of them was given
    with _one_at_a_time:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _decode(image: Image.Image, notes: list[str]) -> Image.Image:
    """Decode the first frame, upright, with 8 bits a sample.

    Pillow decodes deep colour to its high bytes by itself, and says so only in the raw mode ("RGB;16B") or the
    largest value (PPM) of its undecoded tiles; deep grey arrives as 16 or 32-bit integers, and would be clipped.
    """
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # a phone's JPEG; the others are previews
        notes.append(FIRST_FRAME)
    deep = any(_is_deep(tile) for tile in image.tile)
    image.load()
    image = _upright(image, notes)
    if image.mode == "F":
        raise ValueError("floating-point samples have no known range; convert it to 8 or 16 bits")
    if deep or image.mode.startswith("I"):
        notes.append(DEEP)
        image = _grey_to_8_bit(image) if image.mode.startswith("I") else image
        if isinstance(image.info.get("transparency"), tuple):  # a PNG's transparent colour, still of 16 bits
            image.info["transparency"] = tuple(value >> 8 for value in image.info["transparency"])
    return image


def _is_deep(tile: tuple) -> bool:
    """Tell whether a tile of Pillow's (codec, box, offset, codec arguments) holds samples of 16 bits."""
    args = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
    largest = args[1] if tile[0] == "ppm" and len(args) > 1 else 0
    return largest > 255 or any(isinstance(arg, str) and ";16" in arg for arg in args)


def _grey_to_8_bit(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey to 8 bits, 65535 to 255, rounded; a PNG's transparent value becomes an alpha channel."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("32-bit samples have no known range; convert it to 8 or 16 bits")
    grey = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if "transparency" in image.info:
        opaque = values != image.info["transparency"]
        grey.putalpha(Image.fromarray((opaque * 255).astype(np.uint8)))
    if "icc_profile" in image.info:
        grey.info["icc_profile"] = image.info["icc_profile"]
    return grey


def _upright(image: Image.Image, notes: list[str]) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # broken metadata is no reason to refuse the pixels
        notes.append(BAD_EXIF)
        return image


def _to_srgb(image: Image.Image, notes: list[str]) -> Image.Image:
    """Convert any 8-bit mode to RGB: embedded profile to sRGB, then transparency on white."""
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    kinds = {"1": "L", "L": "L", "LA": "L", "CMYK": "CMYK"}
    colour = image.convert(kinds.get(image.mode, "RGB"))
    colour = _convert_profile(colour, image.info.get("icc_profile"), notes)
    if colour.mode == "CMYK":
        notes.append(PLAIN_CMYK)
    colour = colour.convert("RGB")
    if alpha is not None and alpha.getextrema()[0] < 255:
        notes.append(WHITE)
        colour = Image.composite(colour, Image.new("RGB", colour.size, "white"), alpha)
    return colour


def _convert_profile(image: Image.Image, profile: bytes | None, notes: list[str]) -> Image.Image:
    """Convert an L, RGB or CMYK image from its ICC profile to sRGB (relative colorimetric); keep it if that fails."""
    if not profile:
        return image
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        if space == "RGB" and image.mode == "L":
            image = image.convert("RGB")
        if space != {"L": "GRAY"}.get(image.mode, image.mode):
            raise ValueError(f"a profile for {space}")
        transform = _srgb_transform(source, image.mode)
        if image.mode == "RGB" and _changes_nothing(transform):
            return image
        converted = ImageCms.applyTransform(image, transform)
    except (ImageCms.PyCMSError, OSError, ValueError):
        notes.append(BAD_PROFILE)
        return image
    notes.append(PROFILE)
    return converted


def _srgb_transform(source: ImageCms.ImageCmsProfile, mode: str) -> ImageCms.ImageCmsTransform:
    intent, flags = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
    return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB", intent, flags)


def _changes_nothing(transform: ImageCms.ImageCmsTransform) -> bool:
    """Tell whether the profile is sRGB under whatever name: a grid of colours moves by no more than rounding."""
    steps = np.linspace(0, 255, 9).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(9, 81, 3)
    moved = np.asarray(ImageCms.applyTransform(Image.fromarray(grid), transform)).astype(int)
    return int(np.abs(moved - grid).max()) <= 2


def write_png(path: str | Path, array: np.ndarray, replace: bool = True, comment: str | None = None) -> None:
    """Write a uint8 array (H, W, 3) as an 8-bit RGB PNG, complete or not at all, with a comment in it.

    Raises FileExistsError where there is a file already that is not to be replaced.
    """
    text = PngInfo()
    if comment:
        text.add_text("Comment", comment)
    with atomic_write(path, replace) as file:
        Image.fromarray(array).save(file, format="PNG", pnginfo=text)


def comment_of(path: str | Path) -> str | None:
    """The comment that `write_png` put into a file; None for any other file."""
    try:
        with _unguarded_pillow(), Image.open(path, formats=("PNG",)) as image:
            return image.info.get("Comment")
    except Exception:  # parsers of foreign data raise nearly everything
        return None


def to_tensor(array: np.ndarray) -> Tensor:
    """Turn uint8 pixels (H, W, 3) into a float32 tensor (1, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.array(array)).permute(2, 0, 1)[None].contiguous().float() / 255


def to_uint8(x: Tensor) -> np.ndarray:
    """Turn a tensor (1, 3, H, W) or (3, H, W), nominally in [0, 1], into clamped, rounded uint8 pixels (H, W, 3)."""
    x = x.detach().reshape(x.shape[-3:]).float().clamp(0, 1)
    return (x * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
