"""Checkpoint files: read with care, written whole."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from utils.cli import UserError
from utils.files import atomic_write

DEFAULT_CHECKPOINT = Path(__file__).parents[2] / "assets" / "dcae-small.pt"  # what programs use if none is named


def read_checkpoint(path: str | Path, device: str = "cpu") -> dict[str, Any]:
    """The dictionary that torch.save wrote, read with `weights_only=True`: no code in the file is run.

    Raises UserError, naming the file, where it is missing, truncated or no checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: there is no such checkpoint file")
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: not a checkpoint, or one that holds more than tensors and plain values") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: damaged or truncated checkpoint; fetch or copy it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, not a checkpoint")
    return content


def save_checkpoint(path: str | Path, content: dict[str, Any]) -> None:
    """Write `content` with torch.save to a temporary file and rename it: `path` is always complete.

    It is on the disk before it is renamed, so that not even a power failure leaves half of it. Raises UserError,
    naming the file, where there is no room or it may not be written.
    """
    try:
        with atomic_write(path) as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        raise UserError(
            f"{path}: cannot be written ({str(error).splitlines()[0]}); make room or choose another place"
        ) from error


def remove_unfinished(folder: Path) -> None:
    """Remove what a program that was killed while it wrote a checkpoint has left in the folder."""
    for path in folder.glob(".*.pt.*.tmp"):
        path.unlink(missing_ok=True)
