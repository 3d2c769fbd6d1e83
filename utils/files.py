"""Files that are either complete or not there."""

from __future__ import annotations

import atexit
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from utils.cli import UserError


@contextmanager
def atomic_write(path: str | Path, replace: bool = True) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path` for binary writing; rename it to `path` if the block succeeds.

    Whatever was at `path` stays untouched until the new content is complete, and a failed block leaves
    no temporary file behind. Folders above `path` are created. Raises OSError like `open`; without `replace`
    FileExistsError where there is a file at `path` by then, which stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    short = path.name if len(os.fsencode(path.name)) < 200 else "long"  # 255 bytes are what a name may have
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{short}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        os.chmod(temporary, 0o666 & ~UMASK)
        (os.replace if replace else _rename_to_free)(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _rename_to_free(temporary: str, path: Path) -> None:
    """Rename a file unless there is one of that name: of two programs at the same moment, one gets it."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError as error:  # no hard links there, as on many USB sticks
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
        os.replace(temporary, path)
    else:
        os.unlink(temporary)


def from_pipe(path: Path) -> Path:
    """The content of a pipe, such as /dev/stdin, as a file of its name that is removed at the end of the program.

    Any other path as it is. What is written to the pipe is read to its end.
    """
    if not path.is_fifo():
        return path
    folder = tempfile.TemporaryDirectory(prefix="piped-")
    atexit.register(folder.cleanup)
    copy = Path(folder.name) / path.name
    with path.open("rb") as pipe, copy.open("wb") as file:
        shutil.copyfileobj(pipe, file)
    return copy


def require_writable(path: str | Path, flag: str) -> None:
    """Raise UserError, naming `flag`, unless a file can be created at `path`; asked before long work starts."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{flag}: {path} is a folder; name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise UserError(f"{flag}: cannot write to {path.parent} ({error.strerror}); choose another place") from error


def cache_folder() -> Path:
    """Where the programs keep what can be made again: `dcae` in XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "dcae"


def _read_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


UMASK = _read_umask()  # once: while it is read it is 0 for all threads
