"""The images of a folder, and where their reconstructions go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.cli import UserError
from utils.data import listing
from utils.data.listing import LeftOut


@dataclass(frozen=True)
class ImageFile:
    """An image, its name below the folder it was found in, and the relative path of its reconstruction."""

    path: Path
    name: Path
    png: Path


def list_images(data: Path, recursive: bool = False) -> tuple[list[ImageFile], LeftOut]:
    """The images of the folder `data`, or the one image it names, and what was left out.

    Raises UserError if there is none.
    """
    found = listing.list_images(data, recursive)
    names = [path.relative_to(data if data.is_dir() else data.parent) for path in found.paths]
    return [ImageFile(*fields) for fields in zip(found.paths, names, output_names(names))], found.left_out


def output_names(names: Sequence[Path], suffix: str = ".png") -> list[Path]:
    """An output's relative path for each relative path: photo.jpg gives photo.png, or photo.jpg.png where shared."""
    short = [name.with_suffix(suffix) for name in names]
    count, full = Counter(short), [Path(f"{name}{suffix}") for name in names]
    mixed = [s if count[s] == 1 else f for s, f in zip(short, full)]
    return mixed if len(set(mixed)) == len(mixed) else full  # photo.jpg, photo.tif and photo.jpg.bmp share again


def refuse_overwriting(folders: Iterable[Path], images: Sequence[ImageFile]) -> None:
    """Raise UserError where a reconstruction in one of `folders` would take the place of an original."""
    originals = {image.path.resolve() for image in images}
    for folder in folders:
        for image in images:
            if (folder / image.png).resolve() in originals:
                raise UserError(f"--save_path: {folder / image.png} would overwrite an original; choose another folder")
