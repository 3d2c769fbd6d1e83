"""How long a model takes for an image, and which of its parts for how long.

The protocol: one image, from its pixels on the device to the bytes of a file (encode) and back to pixels on the device
(decode), with the entropy path in float32 as in the papers. The first runs are not counted; a GPU has finished before
a clock is read; the median of the runs is reported. The parts are timed in runs of their own, because reading a clock
between them keeps a GPU waiting. Where other programs keep the processors busy, the time that this process had a
processor can be taken instead of the clock on the wall, if it has one thread.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from models import coders
from utils.codec.codec import Codec
from utils.entropy_coding import rans
from utils.evaluation.evaluation import synchronise
from utils.measuring.runs import peak

CODING = "entropy coding"
REST = "rest"  # padding, clamping, the symbols of z, the file's format
DIRECTIONS = ("encode", "decode")
Clock = Callable[[], float]  # seconds
Times = dict[str, dict[str, float]]  # direction -> part -> milliseconds


class Stopwatch:
    """Milliseconds by part. A part that runs inside another stops the other's clock."""

    def __init__(self, device: torch.device, clock: Clock = time.perf_counter) -> None:
        self.device, self.clock, self.milliseconds = device, clock, defaultdict(float)
        self.running: list[str] = []
        self.since = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time the block as `name`."""
        self._switch()
        self.running.append(name)
        try:
            yield
        finally:
            self._switch()
            self.running.pop()

    def _switch(self) -> None:
        synchronise(self.device)
        now = self.clock()
        if self.running:
            self.milliseconds[self.running[-1]] += 1000 * (now - self.since)
        self.since = now

    @contextmanager
    def watching(self, owner: Any, method: str, name: str | Callable[..., str]) -> Iterator[None]:
        """Time all calls of a method of an object, or of a class, as `name` or what `name` makes of the arguments."""
        original, own = getattr(owner, method), method in vars(owner)

        @wraps(original)
        def timed_method(*args: Any, **kwargs: Any) -> Any:
            with self.part(name if isinstance(name, str) else name(*args)):
                return original(*args, **kwargs)

        setattr(owner, method, timed_method)
        try:
            yield
        finally:
            if own:
                setattr(owner, method, original)
            else:
                delattr(owner, method)


@contextmanager
def by_part(codec: Codec, watch: Stopwatch) -> Iterator[None]:
    """The stopwatch knows the parts of a codec: g_a, h_a, hyper-synthesis, every slice, entropy coding, g_s.

    Entropy coding is all that happens once distributions are known: rounding, choosing tables, rANS.
    """
    of_transforms = {"analysis": "g_a", "synthesis": "g_s", "encode_hyper": "h_a"}
    of_path = {"hyper_synthesis": "hyper-synthesis", "slice_support": _slice, "code_slice": _slice}
    path = codec.path(codec.arithmetic)
    coding = [(coder, "__call__") for coder in (coders.EncodingCoder, coders.DecodingCoder)]
    coding += [(rans.Encoder, name) for name in ("put", "finish")] + [
        (rans.Decoder, "get"),
        (rans.Decoder, "check_end"),
    ]
    with ExitStack() as stack:
        for model, methods in ((codec.quick, of_transforms), (path, of_path)):
            for method, name in methods.items():
                stack.enter_context(watch.watching(model, method, name))
        for owner, method in coding:
            stack.enter_context(watch.watching(owner, method, CODING))
        yield


def _slice(number: int, *_: Any) -> str:
    return f"slice {number + 1}"


def time_once(codec: Codec, x: Tensor, quality: float | None, clock: Clock, parts: bool) -> Times:
    """Milliseconds of encoding and decoding image x (1, 3, H, W): as a whole ("rest"), or by part, which add up."""
    times, watch = {}, Stopwatch(x.device, clock)
    with by_part(codec, watch) if parts else nullcontext():
        with watch.part(REST):
            data = codec.compress(x, quality)
        times["encode"], watch.milliseconds = dict(watch.milliseconds), defaultdict(float)
        with watch.part(REST):
            codec.decompress(data)
        times["decode"] = dict(watch.milliseconds)
    return times


@torch.inference_mode()
def measure_latency(
    codec: Codec,
    x: Tensor,
    quality: float | None = None,
    runs: int = 3,
    warm_up: int = 1,
    clock: Clock = time.perf_counter,
) -> dict[str, Any]:
    """Medians in milliseconds: {"total", "encode", "decode", "coding": {direction: ...}, "parts": {direction: ...}}.

    x (1, 3, H, W) in [0, 1]; the codec's arithmetic should be "fp32", as the papers measure.
    """
    whole = median([time_once(codec, x, quality, clock, parts=False) for _ in range(warm_up + runs)][warm_up:])
    parts = median([time_once(codec, x, quality, clock, parts=True) for _ in range(runs)])
    both = {direction: whole[direction][REST] for direction in DIRECTIONS}
    coding = {direction: parts[direction][CODING] for direction in DIRECTIONS}
    return {"total": sum(both.values()), **both, "coding": coding, "parts": parts}


def median(runs: list[Times]) -> Times:
    """The median of each number."""
    return {
        direction: {part: statistics.median(run[direction][part] for run in runs) for part in runs[0][direction]}
        for direction in runs[0]
    }


def peak_memory(device: torch.device) -> float:
    """MiB that this process has had at most: of the GPU's memory, or of the main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "linux":  # where resource tells the peak of the process that started this one, if that is larger
        return peak() / 2**20
    import resource  # here, because not every system has it

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** (20 if sys.platform == "darwin" else 10)
