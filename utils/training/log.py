"""The log of a training run: JSON lines, TensorBoard, and a line or a bar for the person who waits.

log.jsonl holds one object a line, told apart by "event":

    start         step, and the settings in force
    train         means over the steps since the last line: loss, distortion (MSE or 1 - MS-SSIM, as --type says), mse,
                  bpp_y, bpp_z, bpp_slices, psnr (dB, of the mean MSE), aux, gradient_norm, bound (share of scales at
                  the lower bound), rate (learning rate), images_per_s, waiting (share of the time in which the step
                  waited for data), processor_s (of this process, since the last line), gpu_gib, not_finite and
                  passed_over (totals of skipped steps and undecodable images)
    validation    loss, bpp, psnr, ... of whole images, see utils/training/validation.py
    checkpoint    file, seconds
"""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from utils.cli import UserError
from utils.files import atomic_write
from utils.metrics import psnr_of_mse
from utils.text import printable, to_json

LOG_NAME, TENSORBOARD_NAME = "log.jsonl", "tensorboard"


class Interval:
    """Means over the steps since the last line of the log."""

    def __init__(self) -> None:
        self.begin, self.worked = time.perf_counter(), time.process_time()
        self.sums: dict[str, Any] = {}
        self.steps = self.finite = self.images = 0
        self.waited = 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within the block, as while validating, time does not count."""
        begin, worked = time.perf_counter(), time.process_time()
        yield
        self.begin += time.perf_counter() - begin
        self.worked += time.process_time() - worked

    def add(self, values: dict[str, Any], images: int, waited: float, finite: bool) -> None:
        """One step: its scalars and lists of scalars, images of all processes, seconds spent waiting for data."""
        self.steps, self.images, self.waited = self.steps + 1, self.images + images, self.waited + waited
        if finite:
            self.finite += 1
            for name, value in values.items():
                self.sums[name] = _plus(self.sums.get(name), value)

    def summary(self) -> dict[str, Any]:
        """The means, the PSNR that follows from the mean MSE, images a second and the share of time waited."""
        means = {name: _times(value, 1 / self.finite) for name, value in self.sums.items()}
        if means:
            means["psnr"] = psnr_of_mse(means["mse"])
        seconds = time.perf_counter() - self.begin
        speed = {"images_per_s": self.images / seconds, "waiting": self.waited / seconds}
        return {**means, **speed, "processor_s": time.process_time() - self.worked}


def _plus(a: Any, b: Any) -> Any:
    if a is None:
        return b
    return [x + y for x, y in zip(a, b)] if isinstance(b, list) else a + b


def _times(a: Any, factor: float) -> Any:
    return [x * factor for x in a] if isinstance(a, list) else a * factor


class TrainLog:
    """Where a run's events go. On processes other than the first, and without a folder, files are not written."""

    def __init__(
        self, folder: Path | None, first: bool, step: int, total: int, tensorboard: bool, validated: int
    ) -> None:
        self.first, self.file, self.board, self.told = first, None, None, set()
        self.undecoded = self.unvalidated = 0  # samples so far, images of the last validation; told at the end
        on_terminal = sys.stderr.isatty()
        self.bar = tqdm(total=total, initial=step, unit="step", disable=not (first and on_terminal), smoothing=0.05)
        if folder and first:
            self.file = self._opened(LOG_NAME, lambda: LineFile(folder / LOG_NAME, step, validated))
            if tensorboard:
                self.board = self._opened(TENSORBOARD_NAME, lambda: open_board(folder / TENSORBOARD_NAME, step))

    def event(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Write one event to the file and its scalars to TensorBoard."""
        line = to_json({"event": kind, "step": step, **values}, indent=None)
        self._keep("file", LOG_NAME, lambda: self.file.write(line))
        self._keep("board", TENSORBOARD_NAME, lambda: self._to_board(kind, values, step))

    def _opened(self, name: str, open_it: Callable[[], Any]) -> Any:
        try:
            return open_it()
        except OSError as error:
            self._stopped(name, error)

    def _keep(self, part: str, name: str, write: Callable[[], None]) -> None:
        """Write to a log that is kept; where that cannot be done, as on a full disk, the run goes on without it."""
        if getattr(self, part) is None:
            return
        try:
            write()
        except OSError as error:
            setattr(self, part, None)
            self._stopped(name, error)

    def _stopped(self, name: str, error: OSError) -> None:
        self.say(f"note: {name} cannot be written ({error.strerror or error}) and ends here; the run goes on")

    def _to_board(self, name: str, value: Any, step: int) -> None:
        if isinstance(value, list) and all(isinstance(v, int | float) for v in value):
            for i, part in enumerate(value):
                self.board.add_scalar(f"{name}/{i}", part, step)
        elif isinstance(value, dict):
            for key, part in value.items():
                self._to_board(f"{name}/{key}", part, step)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            self.board.add_scalar(name, value, step)

    def image(self, name: str, pixels, step: int) -> None:
        """An image uint8 (H, W, 3) for TensorBoard."""
        name = printable(name)
        self._keep("board", TENSORBOARD_NAME, lambda: self.board.add_image(name, pixels, step, dataformats="HWC"))

    def advance(self) -> None:
        """One step more on the bar."""
        self._show(self.bar.update)

    def interval(self, text: str) -> None:
        """The line an interval: beside the bar on a terminal, on a line of its own elsewhere."""
        if self.bar.disable:
            self.say(text)
        else:
            self._show(lambda: self.bar.set_postfix_str(text.partition("  ")[2]))

    def say(self, text: str) -> None:
        """A line on stderr, from the first process, above the bar if there is one."""
        if self.first:
            self._show(lambda: print_line(text))

    def say_once(self, text: str) -> None:
        """The same, unless it has been said."""
        if text not in self.told:
            self.told.add(text)
            self.say(text)

    def _show(self, action: Callable[[], Any]) -> None:
        """Do something on the screen; that nobody listens any more, a terminal that was closed, ends no run."""
        with suppress(OSError):
            action()

    def close(self) -> None:
        """Close the bar and the files."""
        self._show(self.bar.close)
        self._keep("file", LOG_NAME, lambda: self.file.close())
        self._keep("board", TENSORBOARD_NAME, lambda: self.board.flush())  # which tells what its thread has met
        self._keep("board", TENSORBOARD_NAME, lambda: self.board.close())


def print_line(text: str) -> None:
    """A line on stderr, above a bar."""
    tqdm.write(text, file=sys.stderr)
    sys.stderr.flush()


class LineFile:
    """A file of lines that is complete after each, and holds no half of one that found no room."""

    def __init__(self, path: Path, step: int, validated: int) -> None:
        forget_after(path, step, validated)
        self.file = path.open("ab", buffering=0)

    def write(self, line: str) -> None:
        """One line more. Raises OSError, and leaves the file as it was, where it does not fit."""
        data, size = f"{line}\n".encode(), os.fstat(self.file.fileno()).st_size
        try:
            if self.file.write(data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            os.ftruncate(self.file.fileno(), size)
            raise

    def close(self) -> None:
        self.file.close()


def forget_after(path: Path, step: int, validated: int) -> None:
    """Remove from a log what comes after `step`, and after the validation at step `validated`: it is done again."""
    if not path.exists():
        return
    lines = path.read_bytes().splitlines()
    kept = [line for line in lines if _step_of(line) <= (validated if b'"event": "validation"' in line else step)]
    if len(kept) < len(lines):
        with atomic_write(path) as file:
            file.write(b"".join(line + b"\n" for line in kept))


def _step_of(line: bytes) -> float:
    """The step of a line; a line that was cut off in the middle goes, too."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")


def open_board(folder: Path, step: int):
    """A TensorBoard writer that hides what an earlier part of the run wrote after `step`."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError("TensorBoard is not installed; pip install tensorboard, or give --no-tensorboard") from error
    threading.excepthook = leave_to_main
    return SummaryWriter(folder, purge_step=step + 1)


def leave_to_main(args: threading.ExceptHookArgs) -> None:
    """Of an error in TensorBoard's thread say nothing there: its next call from the main thread raises it."""
    if isinstance(args.exc_value, OSError) and type(args.thread).__module__.startswith("tensorboard."):
        return
    threading.__excepthook__(args)


def gpu_memory(device: torch.device) -> float | None:
    """The most memory that tensors took on the GPU so far, in GiB; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None


def format_line(step: int, total: int, values: dict[str, Any]) -> str:
    """The line an interval on stderr."""
    names = {
        "loss": ".4f", "bpp_y": ".4f", "bpp_z": ".4f", "psnr": ".2f", "distortion": ".3e", "aux": ".1f",
        "gradient_norm": ".3g", "bound": ".3f", "rate": ".2e", "images_per_s": ".1f", "waiting": ".1%",
        "not_finite": "d", "passed_over": "d",
    }  # fmt: skip
    shown = [f"{name} {values[name]:{form}}" for name, form in names.items() if values.get(name) is not None]
    return f"step {step}/{total}  " + "  ".join(shown)
