"""The images of a training run, as the first process finds them for all."""

from __future__ import annotations

import argparse
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from utils.data.datasets import HeldImages, ImageFiles, Usable, usable_images
from utils.data.listing import LeftOut, closing_line, first_of, left_out_line
from utils.data.split import Split, split_folder
from utils.text import one_line


@dataclass(frozen=True)
class Survey:
    """Images to train on and to validate on, what to say about them, and what tells this set from another."""

    images: Usable
    validation: list[Path]
    text: str
    identity: dict[str, Any]
    left_out: LeftOut

    def closing(self, undecoded: int, unvalidated: int) -> str:
        """What became of the files, as every program says it at its end.

        undecoded: samples for which the next image had to stand in; unvalidated: images validation had no number for.
        """
        done = len(self.images.paths) + len(self.validation) - unvalidated
        line = closing_line(done, 0, self.images.unreadable + unvalidated, self.left_out)
        stood_in = f"; samples of the next image for one that cannot be decoded: {undecoded}" if undecoded else ""
        return f"images: {line}{stood_in}"


def survey_images(args: argparse.Namespace) -> Survey:
    """Look through --dataset. Raises UserError where it holds nothing to train on."""
    split: Split = split_folder(args.dataset, args.val_share, args.val_images)
    images = usable_images(split.train, args.patch_size[0], progress=True)
    skipped = f"skipped {images.unreadable} unreadable and {images.small} smaller than {args.patch_size[0]} pixels"
    text = f"{len(images.paths)} images to train on, {len(split.validation)} to validate on ({split.origin}); {skipped}"
    text += f" (unreadable: {first_of(shown(images.not_opened, args.dataset))})" if images.not_opened else ""
    text += f"; {left_out_line(split.left_out)}" if split.left_out else ""
    text += f"; {images.unconverted} of high dynamic range, not converted" if images.unconverted else ""
    several = f"; {images.several_frames} of several frames or pages, of which the first is read"
    text += several if images.several_frames else ""
    identity = {"images": len(images.paths), "hash": hash_of_list(images.paths, args.dataset)}
    identity["validation"] = hash_of_list(split.validation, args.dataset)
    small = shown(images.too_small, args.dataset)
    left_out = split.left_out | ({f"smaller than {args.patch_size[0]} pixels": small} if small else {})
    return Survey(images, split.validation, text, identity, left_out)


def hash_of_list(paths: Sequence[Path], folder: Path) -> str:
    """SHA-256 of the names below the folder, a line each, in hexadecimal digits."""
    names = "\n".join(path.relative_to(folder).as_posix() for path in paths)
    return hashlib.sha256(os.fsencode(names)).hexdigest()


def shown(paths: Sequence[Path], folder: Path) -> list[str]:
    """Names below the folder as they can be printed."""
    return [one_line(str(path.relative_to(folder))) for path in paths]


def hold_images(args: argparse.Namespace, images: Usable, device: torch.device, progress: bool):
    """The images as --cache asks for them."""
    if args.cache == "none":
        return ImageFiles(images.paths)
    return HeldImages(images, device if args.cache == "device" else torch.device("cpu"), progress)
