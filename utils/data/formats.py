"""Which image files are read, by suffix and by Pillow's name of the format; which need a plug-in, which are not read.

A Pillow plug-in that is installed is registered when this is imported; nothing else has to know of it.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from PIL import features


@dataclass(frozen=True)
class PlugIn:
    """A package that teaches Pillow another format: its module, a function of it to call, its suffixes and brands."""

    package: str
    module: str
    register: str | None
    format: str
    suffixes: tuple[str, ...]
    heads: tuple[tuple[int, bytes], ...]  # where in a file, and what is there


OWN = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "GIF": (".gif",),
    "AVIF": (".avif", ".avifs"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
}
NEEDED = {"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}  # what Pillow may be built without
BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
PLUG_INS = (
    PlugIn(
        "pillow-heif", "pillow_heif", "register_heif_opener", "HEIF", (".heic", ".heif", ".hif"),
        tuple((4, b"ftyp" + brand) for brand in BRANDS),
    ),
    PlugIn(
        "pillow-jxl-plugin", "pillow_jxl", None, "JXL", (".jxl",), ((0, b"\xff\x0a"), (4, b"JXL \r\n\x87\n")),
    ),
)  # fmt: skip
UNREAD = (
    *(".tga", ".ico", ".cur", ".pcx", ".psd", ".psb", ".xcf", ".svg", ".eps", ".ai", ".wmf", ".emf", ".icns", ".sgi"),
    *(".dng", ".cr2", ".cr3", ".nef", ".nrw", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw", ".x3f", ".3fr", ".iiq"),
    *(".exr", ".hdr", ".pic", ".pfm", ".pam", ".qoi", ".flif", ".bpg", ".jxr", ".wdp", ".hdp", ".dds", ".ktx", ".ktx2"),
    *(".fits", ".fit", ".dcm", ".nii", ".djvu", ".xbm", ".xpm", ".ras", ".jls", ".jp3", ".jph", ".jps", ".bigtiff"),
)


def _register(plug_in: PlugIn) -> bool:
    """Import a plug-in and let it make itself known to Pillow; whether that went well."""
    try:
        module = importlib.import_module(plug_in.module)
        if plug_in.register:
            getattr(module, plug_in.register)()
    except (ImportError, AttributeError, OSError):  # not installed, of another version, or a library of it is missing
        return False
    return True


PRESENT = tuple(plug_in for plug_in in PLUG_INS if _register(plug_in))
ABSENT = tuple(plug_in for plug_in in PLUG_INS if plug_in not in PRESENT)
LACKING = tuple(name for name, feature in NEEDED.items() if not features.check(feature))
FORMATS = (*(name for name in OWN if name not in LACKING), *(plug_in.format for plug_in in PRESENT))
SUFFIXES = (
    *(suffix for name, suffixes in OWN.items() if name not in LACKING for suffix in suffixes),
    *(suffix for plug_in in PRESENT for suffix in plug_in.suffixes),
)
NOT_READ: dict[str, str] = {  # suffix -> why files of that name are left out
    **dict.fromkeys(UNREAD, "of a format that is not read"),
    **{suffix: f"in {name}, which this Pillow was built without" for name in LACKING for suffix in OWN[name]},
    **{s: f"in {p.format}, which needs the Pillow plug-in {p.package}" for p in ABSENT for s in p.suffixes},
}


def absent_plug_in(head: bytes) -> PlugIn | None:
    """The plug-in that a file beginning with `head` (16 bytes) needs, where it is not installed."""
    matches = (p for p in ABSENT if any(head[place:].startswith(mark) for place, mark in p.heads))
    return next(matches, None)
