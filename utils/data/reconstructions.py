"""The images of a folder, and where their reconstructions go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.cli import UserError
from utils.data import listing
from utils.data.images import comment_of
from utils.data.listing import LeftOut

DECODED, EVALUATED = "decoded from a .bin file", "reconstructed by eval.py"  # comments that tell PNGs from originals


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


def is_reconstruction(path: Path) -> bool:
    """Whether a file is a PNG that one of the programs wrote."""
    return comment_of(path) in (DECODED, EVALUATED)


def refuse_overwriting(folders: Iterable[Path], images: Sequence[ImageFile]) -> None:
    """Raise UserError where a reconstruction in one of `folders` would replace an original or what is none of ours."""
    originals = {image.path.resolve() for image in images}
    for folder in folders:
        for png in (folder / image.png for image in images):
            if png.resolve() in originals:
                raise UserError(f"--save_path: {png} would overwrite an original; choose another folder")
            if png.exists() and not is_reconstruction(png):
                raise UserError(
                    f"--save_path: {png} may be an original, it was not written by eval.py;"
                    " choose another folder, or move it away"
                )
