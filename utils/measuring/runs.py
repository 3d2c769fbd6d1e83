"""What benchmarks share: clocks, runs in turn, fresh processes, peak memory, an image of any size."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from utils.cli import UserError
from utils.files import atomic_write
from utils.inference.memory import give_back_memory

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def in_turn(ways: dict[str, Callable[[], Any]], runs: int, clock_name: str, warm_up: bool = True) -> dict[str, float]:
    """Median seconds of each, run one after the other, so that what disturbs the machine disturbs all."""
    clock, seconds = CLOCKS[clock_name], {name: [] for name in ways}
    for run in range(runs + warm_up):
        for name, function in ways.items():
            start = clock()
            function()
            if run >= warm_up:
                seconds[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def image(megapixels: float) -> torch.Tensor:
    """A smooth image (1, 3, H, W), 3:2, with sides that are multiples of 128."""
    side = 128 * max(1, round((megapixels * 1e6 / 6) ** 0.5 / 128))
    coarse = torch.rand(1, 3, side // 16, 3 * side // 32)
    return torch.nn.functional.interpolate(coarse, (2 * side, 3 * side), mode="bicubic").clamp(0, 1)


def in_new_process(script: str, flags: Sequence[str], what: str) -> Any:
    """The JSON that a script prints, run in a process of its own. Raises UserError: `what`, and what it said last."""
    done = subprocess.run([sys.executable, "-W", "ignore", script, *flags], capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"]
        raise UserError(f"{what}: {lines[-1].removeprefix('error: ')}")
    return json.loads(done.stdout)


def record_part(output: Path, name: str, part: dict[str, Any]) -> None:
    """Put one part into a JSON file, whose other parts stay: they may have been measured another day."""
    content = json.loads(output.read_text()) if output.exists() else {}
    with atomic_write(output) as file:
        file.write((json.dumps(content | {name: part}, indent=1) + "\n").encode())


def reset_peak() -> None:
    """Let Linux forget the peak memory of this process, and freed memory that was kept."""
    give_back_memory()
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """Peak memory of this process in bytes since then."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])
