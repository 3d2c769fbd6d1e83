"""Samples of any depth and sense to 8 bits, upright: what a file says of its samples is asked, not guessed.

Pillow decodes deep colour to its high bytes by itself, and says so only in the raw mode ("RGB;16B") or the largest
value (PPM) of its undecoded tiles; deep grey arrives as 16 or 32-bit integers, and would be clipped.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageOps

from utils.data import tiff
from utils.data.bitmap import DEEP_MASKS
from utils.data.containers import bits_a_sample

DEEP = "samples of more than 8 bits are reduced to 8 bits"
BAD_EXIF = "the EXIF orientation is unreadable and is ignored"
FIRST_FRAME = "of several frames or pages the first is read"
NO_ALPHA = "an alpha channel of nothing but zeros is ignored"


def to_eight_bits(image: Image.Image, path: str | Path, notes: list[str]) -> Image.Image:
    """Decode the first frame of an opened image, upright, with 8 bits a sample.

    Raises ValueError where the range of the samples is not known, and what Pillow raises of broken files.
    """
    if has_several_frames(image, path):
        notes.append(FIRST_FRAME)
    tiles = list(getattr(image, "tile", ()))
    deep = any(_is_deep(tile) for tile in tiles) or bits_a_sample(path, image.format) > 8 or DEEP_MASKS in image.info
    image.load()
    form, (largest, upward) = image.format, _brightness(image)
    plain_ink = form == "JPEG" and image.mode == "CMYK" and "adobe" not in image.info
    image = _upright(image, notes)
    if image.mode == "F":
        raise ValueError("floating-point samples have no known range; convert it to 8 or 16 bits")
    if deep or image.mode.startswith("I"):
        notes.append(DEEP)
    if image.mode.startswith("I"):
        image = _grey_to_eight_bits(image, largest, upward)
    elif form == "PNG":
        _scale_transparent_colour(image, tiles)
    return _usual_mode(image, form, plain_ink, notes)


def has_several_frames(image: Image.Image, path: str | Path) -> bool:
    """Whether an opened file holds more than one picture; a preview behind a phone's JPEG is none."""
    if image.format == "MPO" and Path(path).suffix.lower() != ".mpo":
        return False
    return image.is_animated if image.format == "GIF" else getattr(image, "n_frames", 1) > 1  # GIF counts by decoding


def _brightness(image: Image.Image) -> tuple[int, bool]:
    """The largest value of deep grey, and whether it stands for white."""
    return tiff.brightness(image.tag_v2) if image.format == "TIFF" else (65535, True)


def _is_deep(tile: tuple) -> bool:
    """Tell whether a tile of Pillow's (codec, box, offset, codec arguments) holds samples of 16 bits."""
    args = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
    largest = args[1] if tile[0] in ("ppm", "ppm_plain") and len(args) > 1 else 0
    return largest > 255 or any(isinstance(arg, str) and ";16" in arg for arg in args)


def _grey_to_eight_bits(image: Image.Image, largest: int, upward: bool) -> Image.Image:
    """Scale deep grey to 8 bits, `largest` to 255 (or to 0), rounded; a PNG's transparent value becomes alpha."""
    values = np.asarray(image)
    if values.min() < 0 or values.max() > largest:
        raise ValueError("its samples are outside their range; convert it to 8 or 16 bits")
    levels = (np.arange(largest + 1, dtype=np.int64) * 255 + largest // 2) // largest
    grey = Image.fromarray((levels if upward else levels[::-1]).astype(np.uint8)[values])
    if "transparency" in image.info:
        grey.putalpha(Image.fromarray((values != image.info["transparency"]).astype(np.uint8) * 255))
    return grey


def _scale_transparent_colour(image: Image.Image, tiles: list) -> None:
    """Bring a PNG's transparent colour, which is in the file's bits, to the 8 bits that Pillow has scaled pixels to."""
    colour, mode = image.info.get("transparency"), tiles[0][3] if tiles else ""
    if isinstance(colour, tuple) and ";16" in mode:
        image.info["transparency"] = tuple(value >> 8 for value in colour)
    elif image.mode == "L" and isinstance(colour, int) and mode in ("L;2", "L;4"):
        image.info["transparency"] = colour * 255 // (2 ** int(mode[-1]) - 1)


def _upright(image: Image.Image, notes: list[str]) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # broken metadata is no reason to refuse the pixels
        notes.append(BAD_EXIF)
        return image


def _usual_mode(image: Image.Image, form: str | None, plain_ink: bool, notes: list[str]) -> Image.Image:
    """Out of modes that Pillow converts to few others, and of what a format means otherwise than Pillow takes it."""
    if plain_ink:  # Pillow turns all inks about, as Adobe's programs write them and say in a marker
        return ImageChops.invert(image)
    if image.mode in ("La", "RGBa"):  # premultiplied
        return image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if form == "BMP" and image.mode == "RGBA" and not image.getchannel("A").getextrema()[1]:
        notes.append(NO_ALPHA)
        return image.convert("RGB")
    return image
