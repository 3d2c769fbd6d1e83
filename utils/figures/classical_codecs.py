"""Image codecs that Pillow brings, as anchors: JPEG, WebP, JPEG 2000 and AVIF, each at what it does best.

A codec turns pixels, uint8 (H, W, 3), into the bytes of a whole file at a setting of its own and back. `settings` cover
about 0.1 to 1.5 bits per pixel on photographs, from few bits to many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, Protocol

import numpy as np
from PIL import Image, features

from utils.figures.codec_programs import PROGRAM_CODECS


class ClassicalCodec(Protocol):
    """What scripts/bench_codecs.py asks of a codec. A codec can be sent to another process."""

    name: str  # on the command line and of the results' file
    label: str  # in tables and plots
    setting_name: str
    settings: Sequence[float]

    def missing(self) -> str | None:
        """Why the codec cannot be used here; None if it can."""

    def description(self) -> str:
        """Library or program, its version and its options."""

    def encode(self, pixels: np.ndarray, setting: float) -> bytes:
        """Pixels, uint8 (H, W, 3), to the bytes of a file."""

    def decode(self, data: bytes, shape: tuple[int, ...]) -> np.ndarray:
        """The bytes of a file to pixels, uint8 (H, W, 3), of this shape."""


@dataclass(frozen=True)
class PillowCodec:
    """A codec inside Pillow; `feature` is what Pillow calls its library, `options` go to `Image.save`."""

    name: str
    label: str
    format: str
    feature: str
    library: str
    settings: tuple[float, ...]
    options: dict[str, Any] = field(default_factory=dict)
    setting_name: str = "quality"

    def missing(self) -> str | None:
        return None if features.check(self.feature) else f"this Pillow was built without {self.feature}"

    def description(self) -> str:
        options = ", ".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.library} {features.version(self.feature)} in Pillow {Image.__version__}, {options}"

    def encode(self, pixels: np.ndarray, setting: float) -> bytes:
        file = BytesIO()
        Image.fromarray(pixels).save(file, self.format, **self.options, **self.save_setting(setting))
        return file.getvalue()

    def save_setting(self, setting: float) -> dict[str, Any]:
        return {"quality": round(setting)}

    def decode(self, data: bytes, shape: tuple[int, ...]) -> np.ndarray:
        with Image.open(BytesIO(data), formats=[self.format]) as image:
            return np.asarray(image.convert("RGB"))


@dataclass(frozen=True)
class Jpeg2000Codec(PillowCodec):
    """JPEG 2000 is told what to reach.

    By "ratio", 24 bits per pixel divided by the setting are the rate of every image; by "dB" the setting is the PSNR
    of every image. Other codecs keep a step size, so that images differ in both.
    """

    setting_name: str = "ratio"

    def save_setting(self, setting: float) -> dict[str, Any]:
        return {"quality_layers": [setting]}


JPEG = ("JPEG", "libjpeg_turbo", "libjpeg-turbo")
SMALLER = {"optimize": True, "progressive": True}  # same pixels as without, in fewer bytes
JPEG_QUALITIES = (5, 9, 14, 22, 34, 50, 66, 80)
AVIF = ("AVIF", "avif", "libavif")
AVIF_DEFAULT = {"speed": 6, "subsampling": "4:2:0", "max_threads": 1}  # Pillow's defaults, said for the record
# One thread, so that seconds compare. Tuned for PSNR, since by default libavif tunes for the eye. Speed 0 takes twice
# as long as speed 1 and gains less than 0.1 dB.
AVIF_BEST = {"speed": 1, "subsampling": "4:4:4", "autotiling": False, "advanced": {"tune": "psnr"}, "max_threads": 1}
WAVELET = {"irreversible": True, "mct": 1}  # mct: Pillow leaves R, G and B apart by default

PILLOW_CODECS = (
    PillowCodec("jpeg-444", "JPEG 4:4:4", *JPEG, JPEG_QUALITIES, {"subsampling": "4:4:4", **SMALLER}),
    PillowCodec("jpeg-420", "JPEG 4:2:0", *JPEG, JPEG_QUALITIES, {"subsampling": "4:2:0", **SMALLER}),
    PillowCodec("webp", "WebP", "WEBP", "webp", "libwebp", (0, 6, 18, 35, 55, 72, 80, 87), {"method": 6}),
    Jpeg2000Codec(
        *("jpeg2000", "JPEG 2000", "JPEG2000", "jpg_2000", "OpenJPEG", (240, 150, 96, 60, 40, 28, 20, 15)),
        {**WAVELET, "quality_mode": "rates"},
    ),
    Jpeg2000Codec(
        *("jpeg2000-db", "JPEG 2000, equal PSNR", "JPEG2000", "jpg_2000", "OpenJPEG", (25, 27, 29, 31, 33, 35, 37, 39)),
        {**WAVELET, "quality_mode": "dB"},
        "dB",
    ),
    PillowCodec(*("avif", "AVIF"), *AVIF, (10, 22, 34, 45, 56, 66, 75, 82), AVIF_DEFAULT),
    PillowCodec(*("avif-best", "AVIF, best effort"), *AVIF, (8, 18, 30, 44, 60), AVIF_BEST),
)
CODECS: dict[str, ClassicalCodec] = {codec.name: codec for codec in (*PILLOW_CODECS, *PROGRAM_CODECS)}
