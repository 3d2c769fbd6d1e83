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

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from utils.cli import UserError
from utils.files import atomic_write
from utils.metrics import psnr_of_mse

LOG_NAME, TENSORBOARD_NAME = "log.jsonl", "tensorboard"


class Interval:
    """Means over the steps since the last line of the log."""

    def __init__(self) -> None:
        self.begin, self.worked = time.perf_counter(), time.process_time()
        self.sums: dict[str, Any] = {}
        self.steps = self.finite = self.images = 0
        self.waited = 0.0

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
        self.first, self.file, self.board = first, None, None
        on_terminal = sys.stderr.isatty()
        self.bar = tqdm(total=total, initial=step, unit="step", disable=not (first and on_terminal), smoothing=0.05)
        if folder and first:
            forget_after(folder / LOG_NAME, step, validated)
            self.file = (folder / LOG_NAME).open("a", buffering=1)
            self.board = open_board(folder / TENSORBOARD_NAME, step) if tensorboard else None

    def event(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Write one event to the file and its scalars to TensorBoard."""
        if self.file:
            self.file.write(json.dumps({"event": kind, "step": step, **values}) + "\n")
        if self.board:
            for name, value in values.items():
                self._to_board(f"{kind}/{name}", value, step)

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
        if self.board:
            self.board.add_image(name, pixels, step, dataformats="HWC")

    def interval(self, text: str) -> None:
        """The line an interval: beside the bar on a terminal, on a line of its own elsewhere."""
        if self.bar.disable:
            self.say(text)
        else:
            self.bar.set_postfix_str(text.partition("  ")[2])

    def say(self, text: str) -> None:
        """A line on stderr, from the first process, above the bar if there is one."""
        if self.first:
            tqdm.write(text, file=sys.stderr)
            sys.stderr.flush()

    def close(self) -> None:
        """Close the bar and the files."""
        self.bar.close()
        for part in (self.file, self.board):
            if part:
                part.close()


def forget_after(path: Path, step: int, validated: int) -> None:
    """Remove from a log what comes after `step`, and after the validation at step `validated`: it is done again."""
    if not path.exists():
        return
    lines = path.read_text().splitlines()
    kept = [line for line in lines if _step_of(line) <= (validated if '"event": "validation"' in line else step)]
    if len(kept) < len(lines):
        with atomic_write(path) as file:
            file.write("".join(f"{line}\n" for line in kept).encode())


def _step_of(line: str) -> float:
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
    return SummaryWriter(folder, purge_step=step + 1)


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
