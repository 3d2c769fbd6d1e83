"""What benchmarks share: clocks, runs in turn, peak memory, an image of any size."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

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


def reset_peak() -> None:
    """Let Linux forget the peak memory of this process."""
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """Peak memory of this process in bytes since then."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])
