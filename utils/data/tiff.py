"""TIFF: what its tags say of samples is asked before they are believed (TIFF 6.0; Adobe's supplements).

Pillow reads what its table knows of bits, interpretation and format, but does not scale 12 bits, takes signed samples
for unsigned ones, 16 bits that count from white for such that count from black, and mistakes some planes.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImagePalette, TiffImagePlugin
from PIL.TiffImagePlugin import OPEN_INFO, ImageFileDirectory_v2

BITS, COMPRESSION, INTERPRETATION, PLANES, COLORMAP = 258, 259, 262, 284, 320
INK_SET, EXTRA, FORMAT = 332, 338, 339
WHITE_IS_ZERO, CMYK, YCBCR = 0, 5, 6
INTERPRETATIONS = {
    0: "WhiteIsZero",
    1: "BlackIsZero",
    2: "RGB",
    3: "palette",
    4: "mask",
    5: "CMYK",
    6: "YCbCr",
    8: "CIELab",
    9: "ICCLab",
    10: "ITULab",
    32803: "colour filter array",
    32844: "LogL",
    32845: "LogLuv",
    34892: "LinearRaw",
}
FORMATS = {1: "unsigned", 2: "signed", 3: "floating-point", 4: "undefined", 5: "complex", 6: "complex"}
WAY_OUT = "convert it to 8 or 16 unsigned bits a sample"
MOST_BITS = 16

for _order in (b"II", b"MM"):  # what Pillow's decoders can do, but its table lacks
    OPEN_INFO.setdefault((_order, 0, (1,), 1, (12,), ()), ("I;16", "I;12"))
    OPEN_INFO.setdefault((_order, 1, (1,), 1, (12,), ()), ("I;16", "I;12"))
OPEN_INFO.setdefault((b"MM", 0, (1,), 1, (16,), ()), ("I;16B", "I;16B"))


def prepare(image: Image.Image, path: str | Path) -> Image.Image:
    """The opened image, opened in another way where Pillow would misread it. Raises ValueError where it cannot be."""
    refuse(image.tag_v2)
    tags, raw = image.tag_v2, image.tag_v2.get(COMPRESSION, 1) == 1
    apart = tags.get(PLANES) == 2
    if apart and image.mode in ("LA", "La", "PA"):  # libtiff gives Pillow no alpha of these
        raise ValueError("grey or a palette with alpha in a plane of its own is not read; put them into one plane")
    if raw and (apart or tags.get(INTERPRETATION) == YCBCR):
        image = _by_libtiff(path)
    colours = image.tag_v2.get(COLORMAP)
    if image.mode in ("P", "PA") and colours and 0 < max(colours) < 256:  # a palette of 8 bits where 16 belong
        image.palette = ImagePalette.raw("RGB;L", bytes(colours))
    return image


def _by_libtiff(path: str | Path) -> Image.Image:
    """Opened for libtiff, which Pillow uses for compressed files only; planes and subsampling are its business."""
    before, TiffImagePlugin.READ_LIBTIFF = TiffImagePlugin.READ_LIBTIFF, True
    try:
        return Image.open(path, formats=("TIFF",))
    finally:
        TiffImagePlugin.READ_LIBTIFF = before


def refuse(tags: ImageFileDirectory_v2) -> None:
    """Raise ValueError where the range of the samples is not known, or the colours are not those of a screen."""
    formats, bits = set(tags.get(FORMAT, (1,))), max(tags.get(BITS, (1,)))
    strange = formats - {1, 4}
    if strange:
        name = FORMATS.get(min(strange), f"format {min(strange)}")
        raise ValueError(f"{name} samples have no known range; {WAY_OUT}")
    if bits > MOST_BITS:
        raise ValueError(f"{bits}-bit samples have no known range; {WAY_OUT}")
    if tags.get(INTERPRETATION) == CMYK and tags.get(INK_SET, 1) != 1:
        raise ValueError("its inks are not cyan, magenta, yellow and black; convert it to RGB")


def brightness(tags: ImageFileDirectory_v2) -> tuple[int, bool]:
    """The largest value of a grey sample, and whether it stands for white (or for black)."""
    return 2 ** tags.get(BITS, (1,))[0] - 1, tags.get(INTERPRETATION, WHITE_IS_ZERO) != WHITE_IS_ZERO


def describe(path: str | Path) -> str | None:
    """Why a TIFF is not read, in words; None where it is none."""
    with open(path, "rb") as file:
        head = file.read(8)
        if head[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return None
        head += file.read(8) if b"+" in head[:4] else b""
        tags = ImageFileDirectory_v2(head)
        file.seek(tags.next)
        tags.load(file)
    try:
        refuse(tags)
    except ValueError as error:
        return str(error)
    kind, bits = tags.get(INTERPRETATION), "+".join(map(str, tags.get(BITS, (1,))))
    name = INTERPRETATIONS.get(kind, f"interpretation {kind}")
    extra = f", {len(tags[EXTRA])} of them extra," if tags.get(EXTRA) else ""
    return f"a TIFF of {name} with samples of {bits} bits{extra} is not read; {WAY_OUT}"
