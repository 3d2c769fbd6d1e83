"""Points of a rate-distortion curve: which there are, and what each of them comes to."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from tqdm import tqdm

from models.layers.gain import DEFAULT_QUALITY
from utils.cli import UserError
from utils.codec.checkpoint import load_model
from utils.codec.flags import require_quality
from utils.data.images import write_png
from utils.data.reconstructions import EVALUATED, ImageFile
from utils.devices import describe_device
from utils.evaluation.evaluation import average, evaluate_images
from utils.text import printable

if TYPE_CHECKING:
    import numpy as np

    from models.base import SliceCompressionModel

CHECKPOINT_SUFFIXES = re.compile(r"(\.(pth|pt|ckpt|tar))+$")


@dataclass(frozen=True)
class Point:
    """A checkpoint, at one quality if it has several; `folder`: where its reconstructions go, None for nowhere."""

    checkpoint: Path
    quality: float | None
    label: str
    folder: Path | None


def plan_points(checkpoints: Sequence[Path], qualities: Sequence[float] | None, folder: Path | None) -> list[Point]:
    """Every checkpoint at every quality, with a label of its own; of several, each gets a folder of that name."""
    hundredths = [round(quality, 2) for quality in qualities] if qualities else [None]  # as files hold it
    named = [
        (checkpoint, quality, label if quality is None else f"{label}_q{quality:g}")
        for checkpoint, label in zip(checkpoints, checkpoint_labels(checkpoints))
        for quality in hundredths
    ]
    return [Point(*names, folder / names[-1] if folder and len(named) > 1 else folder) for names in named]


def checkpoint_stem(checkpoint: Path) -> str:
    """A checkpoint's name without its suffixes."""
    return CHECKPOINT_SUFFIXES.sub("", checkpoint.name) or checkpoint.name


def checkpoint_labels(checkpoints: Sequence[Path]) -> list[str]:
    """A short name for each checkpoint, numbered where they share one; usable as a folder's name."""
    stems = [checkpoint_stem(checkpoint) for checkpoint in checkpoints]
    count = Counter(stems)
    return [stem if count[stem] == 1 else f"{number}_{stem}" for number, stem in enumerate(stems, 1)]


class Watcher(Protocol):
    """Who is told what becomes of each image: see evaluate_images."""

    def keep(self, path: Path, pixels: np.ndarray) -> None:
        """The reconstruction of the image at `path`: uint8 (H, W, 3)."""

    def keep_bits(self, path: Path, bits: np.ndarray) -> None:
        """Bits at each position of its latent: (h, w)."""


class Report:
    """Says on stderr what went wrong and what reading an image changed, and counts failures."""

    def __init__(self, debug: bool = False) -> None:
        self.debug = debug
        self.failures: list[dict[str, str]] = []
        self.failed_files: set[Path] = set()
        self.said: set[str] = set()

    def failed(self, path: Path, error: Exception) -> None:
        """Count what could not be evaluated, and go on; raise the error in debug mode."""
        if self.debug:
            raise error
        text = " ".join(str(error).split())[:300] or type(error).__name__
        text = printable(text if text.startswith(str(path)) else f"{path}: {text}")
        self.failed_files.add(path)
        self.failures.append({"name": printable(str(path)), "reason": text})
        tqdm.write(f"error: {text}", sys.stderr)

    def noted(self, path: Path, notes: list[str]) -> None:
        """Say what has not been said of an earlier image."""
        for note in notes:
            if note not in self.said:
                self.said.add(note)
                tqdm.write(f"note: {note} (first in {path})", sys.stderr)


def load_for(point: Point, device: torch.device) -> tuple[SliceCompressionModel, float | None]:
    """The point's model and the quality to use. Raises UserError where the model has no such quality."""
    model = load_model(point.checkpoint, device)
    if not model.variable_rate:
        if point.quality is not None:
            raise UserError(f"{point.checkpoint}: has one quality only; leave out --quality")
        return model, None
    if point.quality is None:
        print(f"{point.checkpoint}: evaluated at quality {DEFAULT_QUALITY:g}; --quality chooses", file=sys.stderr)
        return model, DEFAULT_QUALITY
    require_quality(point.quality, f"{point.checkpoint}: quality")
    return model, point.quality


def evaluate_point(
    point: Point,
    images: Sequence[ImageFile],
    device: torch.device,
    real: bool,
    report: Report,
    watcher: Watcher | None = None,
    **options: Any,
) -> dict[str, Any] | None:
    """Evaluate one point on all images, with a warm-up; `options` are arguments of Codec.

    Returns an entry of "points" in utils/evaluation/results.py, None if all failed. Raises UserError where the
    checkpoint cannot be used.
    """
    from utils.codec.codec import Codec  # here, as CompressAI takes seconds to load

    model, quality = load_for(point, device)
    codec = Codec(model, **options)
    names = {image.path.as_posix(): printable(image.name.as_posix()) for image in images}
    first = len(report.failures)
    records = evaluate_images(
        codec, [image.path for image in images], quality=quality, real=real, warm_up=True, progress=point.label,
        keep=keeper(point, images, watcher),
        keep_bits=watcher.keep_bits if watcher else None, failed=report.failed, noted=report.noted,
    )  # fmt: skip
    if not records:
        return None
    return {
        "label": point.label,
        "checkpoint": str(point.checkpoint),
        "model": model.model_name,
        "quality": quality,
        "rate": "real" if real else "estimated",
        "arithmetic": codec.arithmetic if real else None,
        "effort": codec.effort if real else None,
        "device": describe_device(device),
        "average": average(records),
        "images": [{**record, "name": names[record["name"]]} for record in records],
        "failed": report.failures[first:],
    }


def keeper(point: Point, images: Sequence[ImageFile], watcher: Watcher | None) -> Callable[[Path, np.ndarray], None]:
    """A function that hands each reconstruction, uint8 (H, W, 3), to everyone who wants it."""
    takers = [taker for taker in (png_writer(point, images), watcher and watcher.keep) if taker]

    def keep(path: Path, pixels: np.ndarray) -> None:
        for taker in takers:
            taker(path, pixels)

    return keep


def png_writer(point: Point, images: Sequence[ImageFile]) -> Callable[[Path, np.ndarray], None] | None:
    """A function that writes the reconstruction, uint8 (H, W, 3), of the image at a path; None for nowhere."""
    if point.folder is None:
        return None
    pngs = {image.path: point.folder / image.png for image in images}
    return lambda path, pixels: write_png(pngs[path], pixels, comment=EVALUATED)
