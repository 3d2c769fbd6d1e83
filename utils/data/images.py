"""Images in and out: any common file to 8-bit sRGB pixels, and PNG back."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from PIL import Image, ImageCms, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from utils.cli import UserError
from utils.data import bitmap, tiff
from utils.data.colour import Told, colours_of
from utils.data.formats import FORMATS, absent_plug_in
from utils.data.samples import to_eight_bits
from utils.files import atomic_write

MAX_PIXELS = 2**30  # 3 GiB as 8-bit RGB; beyond it a file's claim is likelier than its content

WHITE = "transparent pixels are composited on white"
BAD_PROFILE = "the embedded ICC profile is broken or does not fit the image, and is ignored"
PLAIN_CMYK = "CMYK without a usable ICC profile is converted by the plain formula"
LAB = "CIELAB is converted to sRGB"


def read_image(path: str | Path) -> tuple[np.ndarray, list[str]]:
    """Read an image file as 8-bit sRGB.

    Returns:
        uint8 array (H, W, 3), upright (EXIF orientation applied), and what was lost or changed on the way as a
        list of fixed sentences, so that a program can say each of them once for a whole folder.

    Raises:
        UserError: the file is missing, no image of a known kind, broken, truncated, of samples whose range is not
        known or of more than MAX_PIXELS.
    """
    notes: list[str] = []
    with opened(path) as image:
        told = None if image.format == "PNG" else colours_of(image, path)  # while the file is open
        decoded = to_eight_bits(image, path, notes)
        pixels = np.asarray(_to_srgb(decoded, told or colours_of(image, path), notes))  # a PNG's EXIF may come last
    return pixels, notes


@contextmanager
def opened(path: str | Path) -> Iterator[Image.Image]:
    """An image file of a known kind, not decoded yet. What goes wrong in the block becomes a UserError, see above."""
    try:
        with _unguarded_pillow(), _open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(f"{path}: {image.width} x {image.height} are more than {MAX_PIXELS} pixels; cut it up")
            yield image
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise UserError(f"{path}: {_why_unknown(path)}") from error
    except MemoryError as error:
        raise UserError(f"{path}: not enough memory to read this image") from error
    except Exception as error:  # parsers of foreign data raise nearly everything
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(f"{path}: cannot be read as an image: {' '.join(reason.split())}") from error


def _open(path: str | Path) -> Image.Image:
    if Path(path).exists() and not Path(path).is_file() and not Path(path).is_dir():
        raise ValueError("it is neither a file nor a folder")  # reading a pipe would wait for ever
    image = bitmap.masked_image(path) or Image.open(path, formats=FORMATS)
    return tiff.prepare(image, path) if image.format == "TIFF" else image


def _why_unknown(path: str | Path) -> str:
    """What to say of a file that Pillow does not know."""
    with open(path, "rb") as file:
        plug_in = absent_plug_in(file.read(16))
    if plug_in:
        return f"is {plug_in.format}, which needs the Pillow plug-in {plug_in.package}; install it, or convert the file"
    try:
        with _unguarded_pillow():
            reason = tiff.describe(path)
    except Exception:  # a TIFF that breaks off
        reason = None
    return reason or f"not an image, or not of a known kind ({', '.join(FORMATS)})"


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


def _to_srgb(image: Image.Image, told: Told, notes: list[str]) -> Image.Image:
    """Convert any 8-bit mode to RGB: the profile told to sRGB, then transparency on white."""
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    if image.mode == "LAB":
        colour = _lab_to_srgb(image, notes)
    else:
        kinds = {"1": "L", "L": "L", "LA": "L", "CMYK": "CMYK"}
        colour = _convert_profile(image.convert(kinds.get(image.mode, "RGB")), told, notes)
    if colour.mode == "CMYK":
        notes.append(PLAIN_CMYK)
    colour = colour.convert("RGB")
    if alpha is not None and alpha.getextrema()[0] < 255:
        notes.append(WHITE)
        colour = Image.composite(colour, Image.new("RGB", colour.size, "white"), alpha)
    return colour


def _lab_to_srgb(image: Image.Image, notes: list[str]) -> Image.Image:
    """CIELAB under D50 to sRGB (relative colorimetric)."""
    notes.append(LAB)
    return ImageCms.applyTransform(image, _srgb_transform(ImageCms.createProfile("LAB"), "LAB"))


def _convert_profile(image: Image.Image, told: Told, notes: list[str]) -> Image.Image:
    """Convert an L, RGB or CMYK image from its ICC profile to sRGB (relative colorimetric); keep it if that fails."""
    profile, sentences = told
    if not profile:
        notes.extend(sentences)
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
    notes.extend(sentences)
    return converted


def _srgb_transform(
    source: ImageCms.ImageCmsProfile | ImageCms.core.CmsProfile, mode: str
) -> ImageCms.ImageCmsTransform:
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
