"""The files of a folder: one walk for training, coding, evaluation and preparation, which tells what it leaves out.

Linked folders are entered once, after the folders that are really there, so that a loop ends and a link changes the
name of no file. Hidden files and folders, pipes, sockets, devices and broken links are left out.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from utils.cli import UserError
from utils.data.formats import NOT_READ, SUFFIXES
from utils.text import one_line

LeftOut = dict[str, list[str]]  # reason -> names below the folder that was listed, as they can be printed

HIDDEN = "hidden"
BROKEN = "a link to nothing"
SPECIAL = "neither a file nor a folder"
LISTED = "linked to a folder that is listed already"
UNOPENED = "that cannot be opened"
FOLDER = "a folder (--recursive looks into it)"
SHOWN = 3  # names that are told of a reason


@dataclass
class Listing:
    """Files in sorted order, and what was left out, by reason."""

    paths: list[Path] = field(default_factory=list)
    left_out: LeftOut = field(default_factory=dict)

    def leave_out(self, reason: str, name: Path) -> None:
        self.left_out.setdefault(reason, []).append(one_line(str(name)))


def find_images(path: str | Path, recursive: bool = False) -> list[Path]:
    """The paths of `list_images`; what is left out is said on stderr."""
    found = list_images(path, recursive)
    if found.left_out:
        print(f"note: {path}: {left_out_line(found.left_out)}", file=sys.stderr)
    return found.paths


def list_images(path: str | Path, recursive: bool = False) -> Listing:
    """The image files of a folder, by suffix in any case, or the one file that `path` names, whatever its suffix.

    Files of image formats that are not read are among those left out. Raises UserError if there is no image.
    """
    found = list_files(path, SUFFIXES, recursive, NOT_READ)
    if not found.paths:
        hint = "" if recursive else " (--recursive looks into the folders below it)"
        left = f"; {left_out_line(found.left_out)}" if found.left_out else ""
        raise UserError(f"{path}: no images in this folder{hint}{left}; known are {' '.join(SUFFIXES)}")
    return found


def list_files(
    path: str | Path, suffixes: Sequence[str], recursive: bool = False, not_read: Mapping[str, str] | None = None
) -> Listing:
    """The files of a folder that end in one of `suffixes` (small letters), or the one file that `path` names.

    not_read: suffix -> reason of files that are worth telling about. Raises UserError where `path` is no file or
    folder, or cannot be opened.
    """
    path = Path(path)
    if path.is_dir():
        return _Walk(path, tuple(suffixes), not_read or {}, recursive).listing()
    if not path.exists():
        raise UserError(f"{path}: there is no such file or folder")
    if not path.is_file():
        raise UserError(f"{path}: is {SPECIAL}; name a file or a folder")
    return Listing([path])


class _Walk:
    """A walk through a folder; `folders` and `links` are still to be entered."""

    def __init__(self, root: Path, suffixes: tuple[str, ...], not_read: Mapping[str, str], recursive: bool) -> None:
        self.root, self.suffixes, self.not_read, self.recursive = root, suffixes, not_read, recursive
        self.found, self.entered = Listing(), set()
        self.folders, self.links = [root], []

    def listing(self) -> Listing:
        while self.folders or self.links:
            linked = not self.folders
            self.enter(self.links.pop(0) if linked else self.folders.pop(0))
        self.found.paths.sort()
        return self.found

    def enter(self, folder: Path) -> None:
        """Sort what lies in a folder, unless that was done under another name."""
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in self.entered:
                self.found.leave_out(LISTED, folder.relative_to(self.root))
                return
            self.entered.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                inside = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            if folder == self.root:
                raise UserError(f"{folder}: cannot be opened ({error.strerror})") from error
            self.found.leave_out(UNOPENED, folder.relative_to(self.root))
            return
        for entry in inside:
            self.sort(entry, folder / entry.name)

    def sort(self, entry: os.DirEntry[str], path: Path) -> None:
        """List a file, remember a folder, or say why not."""
        name, suffix = path.relative_to(self.root), path.suffix.lower()
        try:
            is_folder, is_file, broken = entry.is_dir(), entry.is_file(), not path.exists()
        except OSError:  # a link in a circle, or into a folder that may not be entered
            self.found.leave_out(UNOPENED, name)
            return
        if entry.name.startswith("."):
            if is_folder and self.recursive or path.suffix.lower() in self.suffixes:
                self.found.leave_out(HIDDEN, name)
        elif is_folder:
            self.folder(entry, path)
        elif is_file and suffix in self.suffixes:
            self.found.paths.append(path)
        elif is_file and suffix in self.not_read:
            self.found.leave_out(self.not_read[suffix], name)
        elif not is_file and (suffix in self.suffixes or broken):
            self.found.leave_out(BROKEN if broken else SPECIAL, name)

    def folder(self, entry: os.DirEntry[str], path: Path) -> None:
        if not self.recursive:
            self.found.leave_out(FOLDER, path.relative_to(self.root))
        elif entry.is_symlink():
            self.links.append(path)
        else:
            self.folders.append(path)


def left_out_line(left_out: LeftOut) -> str:
    """ "5 left out: 3 hidden (._a.png, ._b.png, ...), 2 a link to nothing (c.png, d.png)"."""
    parts = (f"{len(names)} {reason} ({first_of(names)})" for reason, names in sorted(left_out.items()))
    return f"{sum(map(len, left_out.values()))} left out: {', '.join(parts)}" if left_out else "none left out"


def merged(one: LeftOut, other: LeftOut) -> LeftOut:
    """What two listings have left out."""
    return {reason: one.get(reason, []) + other.get(reason, []) for reason in {**one, **other}}


def first_of(names: Sequence[str]) -> str:
    """The first names, and dots where there are more."""
    return ", ".join([*names[:SHOWN], *(["..."] if len(names) > SHOWN else [])])


def closing_line(done: int, kept: int, failed: int, left_out: LeftOut) -> str:
    """What became of the files of a run."""
    return f"{done} done, {kept} kept, {failed} failed, {left_out_line(left_out)}"
