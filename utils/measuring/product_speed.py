"""How fast this machine multiplies: each way of utils/inference/products.py, and the most that any way reaches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from utils.inference.products import BATCHED, LINEAR, available, choice
from utils.measuring.runs import in_turn

LINEAR_SIZES = (  # rows, in, out of the full-size DCAE at 768x512
    (98304, 96, 96), (24576, 144, 432), (24576, 144, 144), (6144, 256, 768), (6144, 768, 256), (1536, 320, 640),
    (1536, 640, 640), (1536, 640, 2560), (384, 640, 640),
)  # fmt: skip
BATCHED_SIZES = ((36, 96, 640, 224), (36, 384, 256, 256))  # positions in tiles, rows, in, out
CONVOLUTION = (256, 64, 96)  # channels and sides of the map of a 3x3 convolution, the libraries' showpiece
TYPES = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.bfloat16}
GIGA = 1e9


@torch.no_grad()
def product_speed(runs: int, clock: str) -> list[dict[str, Any]]:
    """Rows for a table: kind, size, type; GFLOP/s of every way, None where it has none; and which way was chosen.

    Medians of `runs` in turn. The last rows are a 1x1 and a 3x3 convolution by oneDNN.
    """
    rows = []
    for kind, functions, sizes in (("linear", LINEAR, LINEAR_SIZES), ("batched", BATCHED, BATCHED_SIZES)):
        for name in ("fp32", "fp64"):
            ways = available(kind, TYPES[name])
            for size in sizes:
                speeds = _speeds({way: functions[way] for way in ways}, operands(size, TYPES[name]), size, runs, clock)
                row = {"what": f"{kind} {'x'.join(map(str, size))}", "type": name}
                row |= {way: speeds.get(way) for way in functions}
                rows.append(row | {"chosen": choice(kind, TYPES[name])})
    return [*rows, *_convolutions(runs, clock)]


@torch.no_grad()
def peak_speed(runs: int = 5, clock: str = "wall") -> dict[str, float]:
    """The largest rates found, GFLOP/s in fp32, fp64 and bf16, with torch's number of threads."""
    peaks, size = {}, (1536, 640, 640)
    for name, dtype in TYPES.items():
        ways = {way: LINEAR[way] for way in available("linear", dtype)}
        peaks[name] = max(_speeds(ways, operands(size, dtype), size, runs, clock).values())
        if dtype is not torch.float64:
            peaks[name] = max(peaks[name], _convolution_speed(3, dtype, runs, clock))
    return peaks


def operands(size: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    """Random x, weight and bias for (rows, in, out); x and weights for (n, rows, in, out)."""
    *batch, rows, inner, outer = size
    x = torch.randn(*batch, rows, inner).to(dtype)
    if batch:
        return [x, torch.randn(*batch, inner, outer).to(dtype)]
    return [x, torch.randn(outer, inner).to(dtype), torch.randn(outer).to(dtype)]


def _speeds(
    ways: dict[str, Callable], arguments: list[Tensor], size: tuple[int, ...], runs: int, clock: str
) -> dict[str, float]:
    functions = {name: lambda way=way: way(*arguments) for name, way in ways.items()}
    operations = 2 * torch.Size(size).numel()
    return {name: operations / GIGA / seconds for name, seconds in in_turn(functions, runs, clock).items()}


def _convolutions(runs: int, clock: str) -> list[dict[str, Any]]:
    channels, height, width = CONVOLUTION
    what = f"convolution of {channels}x{height}x{width} to {channels}"
    rows = []
    for kernel in (1, 3):
        speed = _convolution_speed(kernel, torch.float32, runs, clock)
        row = {"what": f"{kernel}x{kernel} {what}", "type": "fp32", **dict.fromkeys(LINEAR)}
        rows.append(row | {"onednn": speed, "chosen": "onednn"})
    return rows


def _convolution_speed(kernel: int, dtype: torch.dtype, runs: int, clock: str) -> float:
    """GFLOP/s of torch's own convolution, channels last, which oneDNN computes."""
    channels, height, width = CONVOLUTION
    like = {"dtype": dtype, "memory_format": torch.channels_last}
    layer = torch.nn.Conv2d(channels, channels, kernel, padding=kernel // 2).to(**like)
    x = torch.randn(1, channels, height, width).to(**like)
    return _speeds({"": layer}, [x], (height * width, channels, channels, kernel**2), runs, clock)[""]
