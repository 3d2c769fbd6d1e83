"""How far each part of a model is from what its machine can do.

GFLOP/s are two operations for each multiplication that the part's plain formulation has (utils/measuring/complexity.py,
the exact count), whichever way it is computed in. Winograd's convolutions need a quarter of them: a part that consists
of these can be beyond the peak, which is the rate of a large product or a 3x3 convolution (`peak_speed`).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from models.base import SliceCompressionModel
from utils.codec.codec import Codec
from utils.devices import precisions_here
from utils.measuring.complexity import count_parts
from utils.measuring.latency import Times, median, time_once
from utils.measuring.product_speed import GIGA, peak_speed
from utils.measuring.runs import CLOCKS

CODECS = {  # in which type: the codec, and the parts that work in it
    "fp32": ({"arithmetic": "fp32"}, ("g_a", "h_a", "entropy model", "g_s")),
    "bf16": ({"arithmetic": "fp32", "precision": "bf16"}, ("g_a", "g_s")),
    "fp64": ({"arithmetic": "fp64"}, ("entropy model",)),
}


def part_speed(
    model: SliceCompressionModel, x: Tensor, quality: float | None, runs: int, clock: str
) -> list[dict[str, Any]]:
    """Rows for a table: part, type; 10^9 multiplications, seconds, GFLOP/s, the peak in that type, and their ratio.

    Medians of `runs` in turn, after one to warm up, for image x (1, 3, H, W). The entropy model is hyper-synthesis and
    slices without entropy coding, as the encoder runs it. bf16 is left out on processors that have none.
    """
    with torch.inference_mode(False):  # whose tensors the counter cannot follow
        macs = count_parts(copy.deepcopy(model).requires_grad_(False), *x.shape[-2:])
    types = precisions_here(CODECS)
    codecs = {name: Codec(model, **CODECS[name][0]) for name in types}
    times = {name: [] for name in codecs}
    for _ in range(1 + runs):
        for name, codec in codecs.items():
            times[name].append(time_once(codec, x, quality, CLOCKS[clock], parts=True))
    peaks, rows = peak_speed(runs, clock), []
    for name in types:
        seconds = seconds_of_parts(median(times[name][1:]))
        rows += [_row(part, name, macs[part].exact, seconds[part], peaks[name]) for part in CODECS[name][1]]
    return rows


def seconds_of_parts(times: Times) -> dict[str, float]:
    """What `time_once` found, in the parts that multiplications are counted for."""
    encode, decode = times["encode"], times["decode"]
    slices = sum(value for part, value in encode.items() if part.startswith("slice "))
    milliseconds = {"g_a": encode["g_a"], "h_a": encode["h_a"], "g_s": decode["g_s"]}
    milliseconds["entropy model"] = encode["hyper-synthesis"] + slices
    return {part: value / 1000 for part, value in milliseconds.items()}


def _row(part: str, name: str, macs: int, seconds: float, peak: float) -> dict[str, Any]:
    speed = 2 * macs / GIGA / seconds
    row = {"what": part, "type": name, "GMAC": macs / GIGA, "seconds": seconds}
    return row | {"GFLOP/s": speed, "peak": peak, "of peak": speed / peak}
