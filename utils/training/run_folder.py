"""A run owns its folder: two that write the same checkpoints and log would spoil both."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from utils.cli import UserError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

LOCK_NAME = ".lock"


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Within the block the folder is this process's. Raises UserError, naming the process that has it.

    The system drops the lock when the process ends, however it ends: the file alone, with a number in it, locks
    nothing. It is of the kind that forked workers do not inherit, so that none of them holds it after a kill.
    """
    path = folder / LOCK_NAME
    file = locked(path)
    try:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
    except OSError:  # a full disk: the lock holds without the number
        pass
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()


def locked(path: Path) -> TextIO:
    """The lock file, open and locked where the file system can do that."""
    while True:
        file = path.open("a+")
        try:
            if fcntl:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise refusal(file, path.parent) from error
            print(f"note: {path.parent} cannot be locked ({error.strerror}): let no second run use it", file=sys.stderr)
        if same_file(file, path):
            return file
        file.close()  # its owner ended between the two lines and took the file along


def same_file(file: TextIO, path: Path) -> bool:
    """Whether the open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def refusal(file: TextIO, folder: Path) -> UserError:
    """Who has the folder, and the way out."""
    file.seek(0)
    owner = file.read().strip() or "another process"
    file.close()
    return UserError(f"--save_path {folder}: {owner} is training there; wait for it, stop it or choose another folder")
