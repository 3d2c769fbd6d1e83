"""What is compared by eye: an image as a codec, a model or somebody else's program gives it back.

A source is named on the command line as

    jpeg:30  webp:40  avif:50     a codec of utils/figures/classical_codecs.py at a setting ("jpeg" is jpeg-420)
    model.pt  model.pt:30         a checkpoint; at a quality, if it has several
    photo.webp  folder            a reconstruction, or a folder of reconstructions under the images' names

each with a label of its own if it is written as "label=source".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from utils.cli import UserError
from utils.codec.targets import Target, compress_to_target
from utils.data.images import read_image, to_tensor, to_uint8
from utils.data.listing import find_images
from utils.evaluation.curve import Point, checkpoint_stem, load_for
from utils.figures.classical_codecs import CODECS, ClassicalCodec, PillowCodec

if TYPE_CHECKING:
    from utils.codec.codec import Codec

ALIASES = {"jpeg": "jpeg-420"}
CHECKPOINTS = (".pt", ".pth", ".tar", ".ckpt")
LOSSLESS = (".png", ".ppm", ".bmp", ".tif", ".tiff")  # a reconstruction's size says nothing in these formats
SEARCH_STEPS = 12
CLOSE_ENOUGH = 0.002  # relative difference of sizes at which a search ends


@dataclass(frozen=True)
class Reconstruction:
    """Pixels, uint8 (H, W, 3); bytes of the file they came in, None if not known; the setting used, in words."""

    pixels: np.ndarray
    bytes: int | None
    setting: str


class Source(Protocol):
    """Where reconstructions come from."""

    label: str

    def reconstruct(self, path: Path, pixels: np.ndarray, size: int | None) -> Reconstruction:
        """The image at `path` with `pixels`, uint8 (H, W, 3); in about `size` bytes if that is given."""


@dataclass(frozen=True)
class CodecSource:
    """A classical codec; setting: None where a size decides."""

    label: str
    codec: ClassicalCodec
    setting: float | None

    def reconstruct(self, path: Path, pixels: np.ndarray, size: int | None) -> Reconstruction:
        setting = self.setting if size is None else closest_setting(self.codec, pixels, size)
        if setting is None:
            raise UserError(f"{self.label}: at what {self.codec.setting_name}? write {self.codec.name}:NUMBER")
        data = encode(self.codec, pixels, setting)
        return Reconstruction(
            self.codec.decode(data, pixels.shape), len(data), f"{self.codec.setting_name} {setting:g}"
        )


def encode(codec: ClassicalCodec, pixels: np.ndarray, setting: float) -> bytes:
    """The bytes of the file of pixels, uint8 (H, W, 3). Raises UserError for a setting that the codec does not have."""
    try:
        return codec.encode(pixels, setting)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{codec.name}, {codec.setting_name} {setting:g}: {error}") from error


def closest_setting(codec: ClassicalCodec, pixels: np.ndarray, size: int) -> float:
    """The setting whose file of pixels, uint8 (H, W, 3), comes closest to `size` bytes, by bisection."""
    whole = isinstance(codec, PillowCodec) and codec.setting_name == "quality"
    low, high = (1.0, 100.0) if whole else (float(codec.settings[0]), float(codec.settings[-1]))
    tried: dict[float, float] = {}

    def excess(setting: float) -> float:
        tried[setting] = math.log(len(encode(codec, pixels, setting)) / size)
        return tried[setting]

    if excess(low) < 0 < excess(high):
        for _ in range(SEARCH_STEPS):
            middle = float(round((low + high) / 2)) if whole else (low + high) / 2
            if middle in tried or min(map(abs, tried.values())) < CLOSE_ENOUGH:
                break
            low, high = (middle, high) if excess(middle) < 0 else (low, middle)
    return min(tried, key=lambda setting: abs(tried[setting]))


@dataclass(frozen=True)
class ModelSource:
    """A learned model; quality: None if it has one only."""

    label: str
    codec: Codec
    quality: float | None

    @torch.inference_mode()
    def reconstruct(self, path: Path, pixels: np.ndarray, size: int | None) -> Reconstruction:
        codec, quality = self.codec, self.quality
        x = to_tensor(pixels).to(codec.device)
        if size is None:
            data = codec.compress(x, quality)
        elif quality is None:
            raise UserError(f"{self.label}: has one quality only; name it first, so that the others match its sizes")
        else:
            trial = compress_to_target(codec, x, Target("size", size))
            data, quality = trial.data, trial.quality
        setting = "" if quality is None else f"quality {quality:g}"
        return Reconstruction(to_uint8(codec.decompress(data)), len(data), setting)


@dataclass(frozen=True)
class FileSource:
    """What another program made: one image, or a folder with an image for each name."""

    label: str
    place: Path

    def reconstruct(self, path: Path, pixels: np.ndarray, size: int | None) -> Reconstruction:
        file = self.place if self.place.is_file() else self.find(path.stem)
        decoded = read_image(file)[0]
        if decoded.shape != pixels.shape:
            shapes = ["x".join(map(str, shape[1::-1])) for shape in (decoded.shape, pixels.shape)]
            raise UserError(f"{file}: is {shapes[0]} and the original {shapes[1]} pixels")
        return Reconstruction(decoded, None if file.suffix.lower() in LOSSLESS else file.stat().st_size, "")

    def find(self, stem: str) -> Path:
        """The image of this name in the folder."""
        for file in find_images(self.place):
            if file.stem == stem:
                return file
        raise UserError(f"{self.place}: has no reconstruction called {stem}")


def parse_source(text: str, device: torch.device) -> Source:
    """The source that `text` names, see above. Raises UserError, saying what it could be, if it names none."""
    label, separator, rest = text.partition("=")
    if not separator or Path(text).exists():
        label, rest = "", text
    for make in (_codec, _checkpoint, _files):
        if source := make(label, rest, device):
            return source
    raise UserError(f"{text}: neither CODEC:SETTING ({', '.join([*ALIASES, *CODECS])}) nor a checkpoint nor an image")


def _codec(label: str, text: str, device: torch.device) -> CodecSource | None:
    name, _, setting = text.partition(":")
    codec = CODECS.get(ALIASES.get(name, name))
    if codec is None:
        return None
    if reason := codec.missing():
        raise UserError(f"{text}: {reason}")
    return CodecSource(label or codec.label, codec, _number(text, setting) if setting else None)


def _checkpoint(label: str, text: str, device: torch.device) -> ModelSource | None:
    name, separator, quality = text.rpartition(":")
    if not separator or Path(text).is_file():
        name, quality = text, ""
    path = Path(name)
    if path.suffix.lower() not in CHECKPOINTS or not path.is_file():
        return None
    from utils.codec.codec import Codec  # here, as CompressAI takes seconds to load

    model, used = load_for(Point(path, _number(text, quality) if quality else None, "", None), device)
    return ModelSource(label or checkpoint_stem(path), Codec(model), used)


def _files(label: str, text: str, device: torch.device) -> FileSource | None:
    path = Path(text)
    return FileSource(label or path.stem, path) if path.exists() else None


def _number(text: str, number: str) -> float:
    convert: Callable[[str], float] = float
    try:
        return convert(number)
    except ValueError as error:
        raise UserError(f"{text}: {number} is no number") from error
