"""Checkpoint files for programs: what is wrong with one is a UserError, and one is written whole."""

from __future__ import annotations

import io
import json
import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch

import models
from models.checkpoints.reading import PART, CheckpointError, read_content
from utils.cli import UserError
from utils.files import atomic_write

if TYPE_CHECKING:
    from models.base import SliceCompressionModel

DEFAULT_CHECKPOINT = Path(__file__).parents[2] / "assets" / "dcae-medium-2.pt"  # what programs use if none is named
OF_A_RUN = re.compile(r"(latest|best|step_\d+)\.pt")  # what train.py writes


def load_model(path: str | Path, device: str | torch.device = "cpu") -> SliceCompressionModel:
    """models.load_model, with what is wrong as a UserError."""
    with explained(path):
        return models.load_model(path, device)


def read_checkpoint(path: str | Path) -> dict[Any, Any]:
    """The dictionary that a checkpoint file holds, on the CPU; no code in the file is run.

    Raises UserError, naming the file, where it is missing, truncated or no checkpoint.
    """
    with explained(path):
        return read_content(path)


@contextmanager
def explained(path: str | Path) -> Iterator[None]:
    """Turn a CheckpointError into a UserError; where a run has other checkpoints, name them."""
    try:
        yield
    except CheckpointError as error:
        others = other_checkpoints(Path(path))
        raise UserError(f"{error}; beside it are {', '.join(map(str, others))}" if others else str(error)) from error


def other_checkpoints(path: Path) -> list[Path]:
    """The other checkpoints of the run that wrote this one, the newest first."""
    if not OF_A_RUN.fullmatch(path.name) or not path.is_file():
        return []
    return [other for other in checkpoints_of_run(path.parent) if other.name != path.name]


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint that the run in this folder goes on with: latest.pt, or the newest of the others it has left."""
    latest = folder / "latest.pt"
    return latest if latest.exists() else next(iter(checkpoints_of_run(folder)), None)


def checkpoints_of_run(folder: Path) -> list[Path]:
    """All that train.py has written into this folder, the newest first."""
    found = [path for path in folder.glob("*.pt") if OF_A_RUN.fullmatch(path.name)]
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)


def save_checkpoint(path: str | Path, content: dict[str, Any], deflated: bool = False) -> None:
    """Write `content` with torch.save to a temporary file and rename it: `path` is always complete.

    It is on the disk before it is renamed, so that not even a power failure leaves half of it. `deflated`: smaller and
    slower to write; torch.load reads either. Raises UserError, naming the file, where there is no room or it may not
    be written.
    """
    try:
        with atomic_write(path) as file:
            if deflated:
                save_deflated(content, file)
            else:
                torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # as which torch reports that not all of it was written
        reason = getattr(error, "strerror", None) or "not all of it found room"
        raise UserError(f"{path}: cannot be written ({reason}); make room or choose another place") from error


def save_deflated(content: dict[str, Any], file: BinaryIO) -> None:
    """torch.save with the members of its zip archive compressed: of integers with scales (models/checkpoints/) a tenth
    goes, as small ones are more frequent than large ones."""
    plain = io.BytesIO()
    torch.save(content, plain)
    with zipfile.ZipFile(plain) as archive, zipfile.ZipFile(file, "w") as smaller:
        for member in archive.infolist():
            smaller.writestr(member, archive.read(member), zipfile.ZIP_DEFLATED, compresslevel=9)


def save_safetensors(path: str | Path, content: dict[str, Any]) -> None:
    """Write the "state_dict" of `content` as a safetensors file whose metadata is its "model" and "flags" as JSON.

    The parts of "integers" are tensors of their own. Raises UserError, naming the file, where it cannot be written.
    """
    from safetensors.torch import save

    parts = {f"{name}{PART}{part}": t for name, i in content.get("integers", {}).items() for part, t in i.items()}
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in {**content["state_dict"], **parts}.items()}
    metadata = {"format": "pt"} | {key: json.dumps(content[key]) for key in ("model", "flags") if key in content}
    try:
        with atomic_write(path) as file:
            file.write(save(tensors, metadata))
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); make room or choose another place") from error


def remove_unfinished(folder: Path) -> None:
    """Remove what a program that was killed while it wrote a checkpoint has left in the folder."""
    for path in folder.glob(".*.pt.*.tmp"):
        path.unlink(missing_ok=True)
