"""Turn a local copy of OpenImages into the papers' training set: 300,000 images whose short side is at least 256.

    python scripts/prepare_openimages.py --data openimages/train --save_path openimages300k
    python scripts/prepare_openimages.py --data openimages/train --save_path same --list openimages300k/images.sha256

Images are taken in the order of the SHA-256 of their names: it looks random, and is the same wherever the copy lies and
however it is divided into folders. Each is decoded once; unreadable and small ones are counted and left out.
--save_path gets train/ with links to the images (files of their own with --copy), test/ with those that come next in
the order, to validate on, and images.sha256, a list that `sha256sum --check` understands. With --list the very images
of such a list are taken, found by name and compared by hash.

What has been looked at is noted in checked.tsv: stop the program and start it again at any time. docs/training.md says
how to get the images.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import project_root  # noqa: F401
from tqdm import tqdm

from utils.cli import UserError, run_program
from utils.data.images import read_image
from utils.data.listing import Listing, closing_line, list_images
from utils.data.split import name_hash
from utils.files import atomic_write, require_writable

LIST, JOURNAL = "images.sha256", "checked.tsv"
IMAGES, VALIDATION, SMALLEST = 300_000, 24, 256
UNREADABLE = "unreadable"
BLOCK = 32  # images that a process looks at before the next are handed out


@dataclass(frozen=True)
class Checked:
    """What was found out about a file: its bytes, its short side in pixels (0 if it is unreadable), its SHA-256."""

    name: str
    size: int
    short: int
    digest: str


def main(argv: Sequence[str]) -> None:
    args = parse_arguments(argv)
    require_writable(args.save_path / LIST, "--save_path")
    found = list_images(args.data, recursive=True)
    paths = by_name(found, args.data)
    chosen = listed(args, paths) if args.list else selected(args, paths, found)
    refuse_others(args.save_path, chosen)
    bar = tqdm(chosen, desc="placing images", unit="image", disable=None)
    placed = sum(place(paths[Path(name).name], args.save_path / name, args.copy) for name in bar)
    with atomic_write(args.save_path / LIST) as file:
        file.write(os.fsencode("".join(f"{digest}  {name}\n" for name, digest in sorted(chosen.items()))))
    failed = len(found.left_out.pop(UNREADABLE, ()))
    closing = closing_line(placed, len(chosen) - placed, failed, found.left_out)
    print(f"{args.save_path / LIST}: {len(chosen)} images; of {args.data} {closing}")


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The flags. Raises UserError for numbers that make no sense and for flags that a list overrules."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the images, at any depth")
    parser.add_argument("--save_path", type=Path, required=True, help="folder of the training set")
    parser.add_argument("--images", type=int, help=f"to train on (default: {IMAGES})")
    parser.add_argument("--validation", type=int, help=f"to validate on (default: {VALIDATION})")
    parser.add_argument("--smallest", type=int, help=f"short side in pixels (default: {SMALLEST})")
    parser.add_argument("--list", type=Path, help="take the images of this list instead")
    parser.add_argument("--copy", action="store_true", help="copy the images instead of linking to them")
    parser.add_argument("-n", "--num-workers", type=int, default=os.cpu_count(), help="processes (default: all cores)")
    parser.add_argument("--debug", action="store_true", help="show where an error happened")
    args = parser.parse_args(argv)
    for flag, default, least in (("images", IMAGES, 1), ("validation", VALIDATION, 0), ("smallest", SMALLEST, 1)):
        value = getattr(args, flag)
        if args.list and value is not None:
            raise UserError(f"--{flag}: --list says which images are taken; leave out one of them")
        if value is not None and value < least:
            raise UserError(f"--{flag} {value}: give {least} or more")
        setattr(args, flag, default if value is None else value)
    if args.save_path.resolve().is_relative_to(args.data.resolve()):
        raise UserError(f"--save_path {args.save_path}: lies in --data; choose a folder beside it")
    if args.num_workers < 1:
        raise UserError(f"--num-workers {args.num_workers}: give 1 or more")
    return args


def by_name(found: Listing, folder: Path) -> dict[str, Path]:
    """File name -> path. OpenImages' names are unique: what lies in two folders is the same image, and taken once.

    A name of several lines is left out: no list of lines could hold it.
    """
    paths: dict[str, Path] = {}
    for path in found.paths:
        if "\n" in path.name:
            found.leave_out("with a line break in the name", Path(path.name))
        elif path.name in paths:
            found.leave_out("of a name that came before", path.relative_to(folder))
        else:
            paths[path.name] = path
    return paths


# ---- which images --------------------------------------------------------------------------------------------------


def selected(args: argparse.Namespace, paths: dict[str, Path], found: Listing) -> dict[str, str]:
    """Name below --save_path -> hash of the first good images; the others that were looked at are among those left out.

    Raises UserError where there are too few.
    """
    wanted, good, small = args.images + args.validation, [], f"smaller than {args.smallest} pixels"
    with tqdm(total=wanted, desc="looking at images", unit="image", disable=None) as bar:
        for one in look_at_all(sorted(paths, key=name_hash), paths, args):
            if one.short < args.smallest:
                found.leave_out(small if one.short else UNREADABLE, paths[one.name].relative_to(args.data))
                continue
            good.append(one)
            bar.update()
            if len(good) == wanted:
                break
    unreadable, small = (len(found.left_out.get(reason, ())) for reason in (UNREADABLE, small))
    print(f"{len(good)} good images; left out: {unreadable} unreadable, {small} smaller than {args.smallest} pixels")
    if len(good) < wanted:
        raise UserError(f"--images {args.images} and {args.validation} to validate on: there are only {len(good)} good")
    return {f"{'train' if i < args.images else 'test'}/{one.name}": one.digest for i, one in enumerate(good)}


def listed(args: argparse.Namespace, paths: dict[str, Path]) -> dict[str, str]:
    """Name below --save_path -> hash as the list says. Raises UserError where an image is missing or another one."""
    chosen = read_list(args.list)
    missing = [name for name in chosen if Path(name).name not in paths]
    names = {Path(name).name: name for name in chosen if Path(name).name in paths}
    looked = tqdm(look_at_all(list(names), paths, args), "comparing", len(names), unit="image", disable=None)
    other = [names[one.name] for one in looked if one.digest != chosen[names[one.name]]]
    for what, group in (("missing", missing), ("other than listed", other)):
        if group:
            raise UserError(f"--list {args.list}: {len(group)} of its images are {what} in {args.data}, as {group[0]}")
    return chosen


def read_list(path: Path) -> dict[str, str]:
    """Name -> hash. Raises UserError where the file is no such list."""
    try:
        rows = [line.split("  ", 1) for line in os.fsdecode(path.read_bytes()).removesuffix("\n").split("\n")]
    except OSError as error:
        raise UserError(f"--list {path}: cannot be read ({error})") from error
    wrong = [
        row for row in rows if len(row) != 2 or len(row[0]) != 64 or row[1].split("/")[:-1] not in (["train"], ["test"])
    ]
    if wrong or not rows:
        raise UserError(f"--list {path}: not a list that this program wrote")
    return {name: digest for digest, name in rows}


# ---- looking at images ---------------------------------------------------------------------------------------------


def look_at_all(names: Sequence[str], paths: dict[str, Path], args: argparse.Namespace) -> Iterator[Checked]:
    """What is to be known about each image, in order, from an earlier run or by looking at it in several processes."""
    journal = args.save_path / JOURNAL
    known = read_journal(journal)
    rest = iter(names)
    processes = ProcessPoolExecutor(args.num_workers, multiprocessing.get_context("fork"), ignore_ctrl_c)
    with processes, journal.open("ab") as notes:
        while block := list(islice(rest, BLOCK * args.num_workers)):
            fresh = [paths[n] for n in block if n not in known or known[n].size != paths[n].stat().st_size]
            for one in processes.map(look_at, fresh, chunksize=BLOCK // 4):
                known[one.name] = one
                notes.write(os.fsencode(f"{one.size}\t{one.short}\t{one.digest}\t{one.name}\n"))
            notes.flush()
            yield from (known[name] for name in block)


def look_at(path: Path) -> Checked:
    """Decode one image file and hash its bytes. Raises UserError where the bytes themselves cannot be had.

    That may be a failure of the moment: were it noted as an unreadable image, the set would be another one.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({error.strerror}); make it readable, and start again") from error
    try:
        short = min(read_image(path)[0].shape[:2])
    except UserError:
        short = 0
    return Checked(path.name, len(data), short, hashlib.sha256(data).hexdigest())


def ignore_ctrl_c() -> None:
    """Ctrl-C reaches every process; the parent alone answers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def read_journal(path: Path) -> dict[str, Checked]:
    """Name -> what an earlier run found out. A line that was cut off is removed, for the next to start afresh."""
    if not path.exists():
        return {}
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(path, len(whole))
    rows = (line.split("\t", 3) for line in os.fsdecode(whole).split("\n")[:-1])
    return {name: Checked(name, int(size), int(short), digest) for size, short, digest, name in rows}


# ---- the training set ----------------------------------------------------------------------------------------------


def refuse_others(folder: Path, chosen: dict[str, str]) -> None:
    """Raise UserError where train/ or test/ hold something else: the set would not be what its list says."""
    for part in ("train", "test"):
        for path in (folder / part).glob("*"):
            if f"{part}/{path.name}" not in chosen:
                raise UserError(f"--save_path {folder}: holds {part}/{path.name} of another set; choose another folder")


def place(source: Path, target: Path, copy: bool) -> bool:
    """Make `target` a link to the image, or a copy of it; False where it is there already, from an earlier run.

    A link that is there is no copy, and is replaced by one.
    """
    if target.exists() and not (copy and target.is_symlink()):
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        if not copy:
            target.unlink(missing_ok=True)  # a link whose image has moved
            target.symlink_to(source.resolve())
            return True
        with source.open("rb") as original, atomic_write(target) as file:
            shutil.copyfileobj(original, file)
        return True
    except OSError as error:
        raise UserError(f"{target}: cannot be made ({error.strerror}); try --copy or make room") from error


if __name__ == "__main__":
    run_program(main)
