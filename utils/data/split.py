"""Which images a model is trained on and which it is validated on: decided by hashes of their names."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from utils.cli import UserError
from utils.data.listing import LeftOut, list_images, merged

FEWEST_IMAGES = 2  # one image to train on, one to validate on
VALIDATION_SHARE, VALIDATION_IMAGES = 0.02, 24


@dataclass(frozen=True)
class Split:
    """Images to train on and to validate on, where the division comes from, in words, and what was left out."""

    train: list[Path]
    validation: list[Path]
    origin: str
    left_out: LeftOut = field(default_factory=dict)


def split_folder(folder: Path, share: float | None = None, most: int | None = None) -> Split:
    """DIR/train and DIR/test where they exist, else a division of all images in and below the folder.

    An image is for validation if the hash of its path below the folder falls into the lowest `share` (0..1): that
    never changes when other images come or go. At most `most` of them, those of the lowest hashes, are validated.
    Raises UserError where there are too few images, or a share of a folder that is divided already.
    """
    if not folder.is_dir():
        raise UserError(f"--dataset {folder}: there is no such folder")
    below, test = folder / "train" if (folder / "train").is_dir() else folder, folder / "test"
    listing = list_images(below, recursive=True)
    found = listing.paths
    if below != folder and test.is_dir():
        if share is not None:
            raise UserError(f"--val-share {share:g}: {test} holds the images to validate on; leave out the flag")
        other = list_images(test, recursive=True)
        validation = by_hash(other.paths, test)[:most]
        return Split(found, validation, f"{below} and {test}", merged(listing.left_out, other.left_out))
    if len(found) < FEWEST_IMAGES:
        raise UserError(f"--dataset {folder}: one image is too few, validation needs another; add images")
    split = divide(found, below, VALIDATION_SHARE if share is None else share, most or VALIDATION_IMAGES)
    return replace(split, left_out=listing.left_out)


def divide(found: Sequence[Path], below: Path, share: float, most: int) -> Split:
    """All images of the folder `below`, divided by the hashes of their paths."""
    order = by_hash(found, below)
    held = min(max(1, sum(path_hash(path, below) < share for path in order)), len(order) - 1)
    chosen = set(order[:held])
    train = [path for path in found if path not in chosen]
    return Split(train, order[: min(held, most)], f"{share:.3g} of {below} by hash of path, at most {most}")


def by_hash(paths: Sequence[Path], folder: Path) -> list[Path]:
    """The paths in an order that looks random and is always the same."""
    return sorted(paths, key=lambda path: path_hash(path, folder))


def path_hash(path: Path, folder: Path) -> float:
    """A number in [0, 1) that depends on the path below `folder` alone."""
    return name_hash(path.relative_to(folder).as_posix())


def name_hash(name: str) -> float:
    """A number in [0, 1) that looks random and is the same everywhere: of the bytes that the disk has for the name."""
    return int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:8], "big") / 2**64
