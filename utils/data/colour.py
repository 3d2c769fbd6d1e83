"""Which colours an image's samples stand for, as an ICC profile: embedded, or made from what the file says otherwise.

What the file says comes in this order: cICP, an embedded profile, sRGB, gAMA and cHRM of a PNG (PNG, third edition,
4.3); an embedded profile, then "nclx" code points of AVIF and HEIF (ISO/IEC 23000-22), the header of a BMP, or tags of
a TIFF; last the interoperability index of EXIF, "R03" for Adobe RGB (DCF 2.0). Whatever says nothing is sRGB.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from utils.data.containers import boxes, png_chunk

EMBEDDED = "the embedded ICC profile is converted to sRGB"
TOLD = "the colour space that {} tells is converted to sRGB"
HDR = "PQ or HLG (high dynamic range) is not converted: the samples are taken for sRGB"
VIDEO = "a video's transfer curve (BT.709 and its kin) is not converted: it is taken for sRGB's, as browsers do"
NARROW = "the narrow range that cICP tells is not converted"
UNKNOWN = "a colour space that {} tells is not known and is not converted: the samples are taken for sRGB"
SENSELESS = "the colour space that {} tells makes no sense and is ignored"

Told = tuple[bytes | None, tuple[str, ...]]  # an ICC profile, None for sRGB; what to say about it
Chromaticities = Sequence[float]  # x and y of red, green, blue and white

D65 = (0.3127, 0.3290)
BT709 = (0.640, 0.330, 0.300, 0.600, 0.150, 0.060, *D65)
ADOBE = (0.640, 0.330, 0.210, 0.710, 0.150, 0.060, *D65)
BT601_625 = (0.640, 0.330, 0.290, 0.600, 0.150, 0.060, *D65)
BT601_525 = (0.630, 0.340, 0.310, 0.595, 0.155, 0.070, *D65)
PRIMARIES: dict[int, Chromaticities] = {  # by code point, ITU-T H.273, table 2; 2 stands for "not said"
    1: BT709,
    2: BT709,
    5: BT601_625,
    6: BT601_525,
    7: BT601_525,
    4: (0.670, 0.330, 0.210, 0.710, 0.140, 0.080, 0.310, 0.316),
    8: (0.681, 0.319, 0.243, 0.692, 0.145, 0.049, 0.310, 0.316),
    9: (0.708, 0.292, 0.170, 0.797, 0.131, 0.046, *D65),
    11: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, 0.314, 0.351),
    12: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, *D65),
    22: (0.630, 0.340, 0.295, 0.605, 0.155, 0.077, *D65),
}


def _fixed(*values: float) -> bytes:
    """s15Fixed16 numbers."""
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))


def gamma(exponent: float) -> bytes:
    """The curve v^exponent as a tag of an ICC profile."""
    return b"para\0\0\0\0\0\0\0\0" + _fixed(exponent)


def table(values: Sequence[int]) -> bytes:
    """A curve through equidistant values of 0..65535 as a tag of an ICC profile."""
    return b"curv\0\0\0\0" + struct.pack(f">I{len(values)}H", len(values), *values)


SRGB = b"para\0\0\0\0\0\3\0\0" + _fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
CURVES = {2: SRGB, 4: gamma(2.2), 5: gamma(2.8), 8: gamma(1.0), 13: SRGB}  # by code point, ITU-T H.273, table 3
VIDEO_CURVES, HDR_CURVES = (1, 6, 7, 11, 12, 14, 15), (16, 18)
GAMMA_OF_SRGB = 1 / 2.2  # what the PNG specification has gAMA say of sRGB


def colours_of(image: Image.Image, path: str | Path) -> Told:
    """The profile to convert an opened image from, and what to say about that."""
    profile = image.info.get("icc_profile")
    if image.format == "PNG":
        return _of_png(image, path)
    if profile:
        return profile, (EMBEDDED,)
    tellers = {"AVIF": _of_boxes, "HEIF": _of_boxes, "JPEG2000": _of_jp2, "BMP": _of_bmp, "TIFF": _of_tiff}
    told = tellers[image.format](image, path) if image.format in tellers else None
    return told or _of_exif(image)


def high_dynamic_range(image: Image.Image, path: str | Path) -> bool:
    """Whether an opened image has a transfer curve that is not converted, as its header says; nothing is decoded."""
    if image.format == "PNG":
        codes = png_chunk(path, b"cICP") or b""
        return len(codes) == 4 and codes[1] in HDR_CURVES
    told = _of_boxes(image, path) if image.format in ("AVIF", "HEIF") and "icc_profile" not in image.info else None
    return bool(told and HDR in told[1])


def _made(teller: str, chromaticities: Chromaticities, *curves: bytes) -> Told:
    try:
        return matrix_profile(chromaticities, curves), (TOLD.format(teller),)
    except (ArithmeticError, ValueError, struct.error, np.linalg.LinAlgError):
        return None, (SENSELESS.format(teller),)


def matrix_profile(chromaticities: Chromaticities, curves: Sequence[bytes]) -> bytes:
    """An ICC profile of three primaries and one curve, or one for each (ICC.1:2022, 9.2 and annex E).

    Raises ArithmeticError, LinAlgError or struct.error where the numbers make no sense.
    """
    x, y = np.array(chromaticities, float).reshape(4, 2).T
    if (y <= 0).any():
        raise ArithmeticError("a chromaticity without luminance")
    columns = np.stack([x / y, np.ones(4), (1 - x - y) / y])  # XYZ of red, green, blue, white, each of luminance 1
    white = columns[:, 3]
    colorants = columns[:, :3] * np.linalg.solve(columns[:, :3], white)
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    d50 = np.array([0.9642, 1.0, 0.8249])
    adapted = np.linalg.solve(bradford, ((bradford @ d50) / (bradford @ white))[:, None] * (bradford @ colorants))
    names = ((b"rXYZ", b"rTRC"), (b"gXYZ", b"gTRC"), (b"bXYZ", b"bTRC"))
    tags = {b"wtpt": b"XYZ \0\0\0\0" + _fixed(*d50)}
    for (colorant, curve), values, shape in zip(names, adapted.T, curves if len(curves) == 3 else 3 * [curves[0]]):
        tags |= {colorant: b"XYZ \0\0\0\0" + _fixed(*values), curve: shape}
    return _icc_file(tags, d50)


def _icc_file(tags: dict[bytes, bytes], white: np.ndarray) -> bytes:
    index, body, start = b"", b"", 132 + 12 * len(tags)
    for name, data in tags.items():
        index += name + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I4xI12s12x4s28x", start + len(body), 0x04200000, b"mntrRGB XYZ ", b"acsp") + _fixed(*white)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + index + body


# ---- what files say ------------------------------------------------------------------------------------------------


def _of_png(image: Image.Image, path: str | Path) -> Told:
    info, codes = image.info, png_chunk(path, b"cICP")
    if codes and len(codes) == 4:
        profile, notes = _of_code_points("cICP", codes[0], codes[1])
        return profile, notes if codes[3] else (*notes, NARROW)
    if info.get("icc_profile"):
        return info["icc_profile"], (EMBEDDED,)
    if "srgb" in info:
        return None, ()
    if info.get("gamma") or "chromaticity" in info:
        return _of_gamma(info.get("gamma") or None, info.get("chromaticity"))
    return _of_exif(image)


def _of_gamma(encoding: float | None, chromaticity: Sequence[float] | None) -> Told:
    """gAMA (an exponent from light to samples) and cHRM (white, red, green, blue)."""
    chromaticities = (*chromaticity[2:], *chromaticity[:2]) if chromaticity else BT709
    usual = not encoding or abs(encoding / GAMMA_OF_SRGB - 1) < 0.02
    if usual and np.allclose(chromaticities, BT709, atol=0.002):
        return None, ()
    return _made("gAMA or cHRM", chromaticities, gamma(1 / encoding) if encoding else SRGB)


def _of_code_points(teller: str, primaries: int, transfer: int) -> Told:
    if transfer in HDR_CURVES:
        return None, (HDR,)
    if primaries not in PRIMARIES or transfer not in (*CURVES, *VIDEO_CURVES):
        return None, (UNKNOWN.format(teller),)
    video = (VIDEO,) if transfer in VIDEO_CURVES else ()
    if PRIMARIES[primaries] == BT709 and CURVES.get(transfer, SRGB) == SRGB:
        return None, video
    profile, notes = _made(teller, PRIMARIES[primaries], CURVES.get(transfer, SRGB))
    return profile, (*notes, *video)


def _of_boxes(image: Image.Image, path: str | Path) -> Told | None:
    """The first code points among the item properties of AVIF and HEIF."""
    for box in boxes(path, b"meta", b"iprp", b"ipco", b"colr"):
        if box[:4] == b"nclx" and len(box) >= 8:
            return _of_code_points("nclx", *struct.unpack(">HH", box[4:8]))
    return None


def _of_jp2(image: Image.Image, path: str | Path) -> Told | None:
    """The colour specification of JPEG 2000: a profile, or a number (ISO/IEC 15444-1, I.5.3.3)."""
    for box in boxes(path, b"jp2h", b"colr"):
        if box[0] in (2, 3) and len(box) > 128:
            return box[3:], (EMBEDDED,)
        if box[0] == 1 and len(box) >= 7 and struct.unpack(">I", box[3:7])[0] not in (0, 12, 15, 16, 17, 18):
            return None, (UNKNOWN.format("the JPEG 2000 header"),)
    return None


def _of_bmp(image: Image.Image, path: str | Path) -> Told | None:
    """Primaries and gammas, or a profile, of a version 4 or 5 header."""
    with open(path, "rb") as file:
        head = file.read(14 + 124)
        size, kind = struct.unpack("<I", head[14:18])[0], head[70:74]
        if size >= 124 and kind == b"DEBM":  # "MBED"
            start, length = struct.unpack("<II", head[126:134])
            file.seek(14 + start)
            return file.read(min(length, 2**22)), (EMBEDDED,)
    if size >= 124 and kind == b"KNIL":  # "LINK"
        return None, (UNKNOWN.format("the BMP header"),)
    if size < 108 or kind != bytes(4) or not any(head[74:122]):
        return None
    xyz = np.array(struct.unpack("<9i", head[74:110])).reshape(3, 3) / 2**30
    xyz = np.vstack([xyz, xyz.sum(0)])
    if (xyz.sum(1) <= 0).any() or not all(gammas := struct.unpack("<3I", head[110:122])):
        return None, (SENSELESS.format("the BMP header"),)
    return _made(
        "the BMP header", (xyz[:, :2] / xyz.sum(1, keepdims=True)).ravel(), *(gamma(g / 2**16) for g in gammas)
    )


def _of_tiff(image: Image.Image, path: str | Path) -> Told | None:
    """WhitePoint, PrimaryChromaticities and TransferFunction (TIFF 6.0, section 20)."""
    tags = image.tag_v2
    white, primaries, transfer = (tags.get(tag) for tag in (318, 319, 301))
    if not (primaries or transfer):
        return None
    values = [float(value) for value in (*(primaries or BT709[:6]), *(white or D65))]
    if len(values) != 8 or (transfer and len(transfer) < 2):
        return None, (SENSELESS.format("a TIFF tag"),)
    levels = 2 ** tags.get(258, (1,))[0]
    curves = [table(transfer[i : i + levels]) for i in range(0, len(transfer), levels)] if transfer else [SRGB]
    return _made("a TIFF tag", values, *curves[:3])


def _of_exif(image: Image.Image) -> Told:
    """Adobe RGB: index "R03", or 2 for the colour space, as some cameras write; neither where that is 1, sRGB."""
    try:
        tags = image.getexif()
        space = tags.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.ColorSpace)
        curve = float(tags.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.Gamma, 2.2))
        index = str(tags.get_ifd(ExifTags.IFD.Interop).get(ExifTags.Interop.InteropIndex, ""))
    except Exception:  # broken metadata is no reason to refuse the pixels
        return None, ()
    if space == 2 or (space != 1 and index.startswith("R03")):
        return _made("EXIF", ADOBE, gamma(563 / 256))
    odd = (space or 0) > 2 or not 2 <= curve <= 2.6  # "uncalibrated", wide gamut; cameras say 2.2 of sRGB too
    return None, (UNKNOWN.format("EXIF"),) if odd else ()
