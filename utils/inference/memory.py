"""How a trained model computes: in which precision, and in how much memory.

    peak = what is held before (weights, libraries, transformed kernels) + maps, a number of bytes a pixel + temporaries

The last part grows with the stripe (models/stripes.py), so that a limit decides about it. `bounded` cuts
each image as it needs. Files do not depend on any of it: the path of the entropy coder keeps its own arithmetic, and
stripes only change the order of sums.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from models.layers.winograd import warm_up, workspace
from models.stripes import DEFAULT_STRIPE, stripes_of
from utils.cli import UserError

TEMPORARIES = 60  # bytes for each byte of a stripe's input; measured: 10 to 56
LEAST_STRIPE = 128 << 10  # with smaller ones most rows are some stripe's border
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # of <malloc.h>
LARGEST_KEPT = 1 << 30  # bytes of a map; more than this at the top of the heap goes back to the system
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


def memory_size(text: str) -> int:
    """Bytes of "8G", "900M" or a plain number, for argparse."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no amount of memory; write 8G, 900M or a number of bytes")
    return int(float(match[1]) * UNITS[match[2].upper()])


def add_inference_flags(parser: argparse.ArgumentParser) -> None:
    """--max-memory, --precision and --compile."""
    add = parser.add_argument
    add("--max-memory", type=memory_size, metavar="SIZE", help="8G, 900M: large images are cut into thinner stripes")
    add("--precision", choices=PRECISIONS, default="fp32", help="of analysis and synthesis; files decode in either")
    add("--compile", action="store_true", help="analysis and synthesis for each size of image: minutes, kept on disk")


def apply_inference_flags(model: nn.Module, args: argparse.Namespace) -> None:
    """Let the model compute as the flags say. Raises UserError where it cannot."""
    if args.max_memory is not None and model.bytes_a_pixel is None:
        raise UserError(f"--max-memory: {model.model_name} holds whole maps and cannot keep a limit; leave it out")
    if args.compile and args.max_memory is not None:
        raise UserError("--compile holds whole maps and cannot keep --max-memory; leave one of them out")
    model.max_memory, model.precision = args.max_memory, PRECISIONS[args.precision]
    if args.compile:
        from utils.inference.compiled import CompiledTransforms, cache_folder, check_ready

        if next(model.parameters()).device.type != "cpu":
            raise UserError("--compile is for the CPU; leave it or the GPU's flag out")
        check_ready(cache_folder())
        model.compiled = CompiledTransforms(cache_folder())


def compile_ahead(model: nn.Module, height: int, width: int, *transforms: str) -> None:
    """With --compile, make what an image of this size needs before the clock of its own time starts."""
    if getattr(model, "compiled", None) is not None:
        model.compiled.prepare(model, height, width, transforms)


@contextmanager
def bounded(model: nn.Module, height: int, width: int, arithmetic: str = "fp32") -> Iterator[None]:
    """Inside the block, an image of this size is coded within `model.max_memory`, if the model has that."""
    limit = getattr(model, "max_memory", None)
    if limit is None:
        yield
        return
    path, device = model.entropy_path(arithmetic), next(model.parameters()).device
    model.narrow()  # as this path and the loops, it is held from now on
    if device.type == "cpu":
        warm_up()
        give_back_memory()
    held_before = held(device) + (workspace(path) if device.type == "cpu" else 0)
    multiple = model.size_multiple
    pixels = -(-height // multiple) * -(-width // multiple) * multiple**2
    with stripes_of(stripe_within(limit, held_before, pixels * model.bytes_a_pixel)):
        yield


def stripe_within(limit: int, held_before: int, maps: int) -> int:
    """The stripe (bytes of its input) for a limit. Raises UserError where even the smallest takes more."""
    least = held_before + maps + LEAST_STRIPE * TEMPORARIES
    if least > limit:
        raise UserError(f"--max-memory {_mib(limit)}: this image takes {_mib(least)}; give as much, or a smaller image")
    return min(DEFAULT_STRIPE, (limit - held_before - maps) // TEMPORARIES)


def keep_memory() -> None:
    """Let this process keep freed memory for its next maps; not for programs under a limit, which `held` counts it in.

    The allocator of the C library (glibc; others are left as they are) would give each large map back to the system
    and get it anew, page after page, which takes as long as a matrix product on it.
    """
    mallopt = _of_allocator("mallopt")
    if mallopt is None:
        return
    if not mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT):  # older versions take 32 MiB at most
        mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, LARGEST_KEPT)


def give_back_memory() -> None:
    """Give the freed memory that was kept back to the system, so that `held` is what is in use."""
    trim = _of_allocator("malloc_trim")
    if trim is not None:
        trim(0)


def _of_allocator(name: str) -> Callable[..., int] | None:
    """A function of glibc's allocator; None where the C library is another one."""
    try:
        return getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):
        return None


def held(device: torch.device) -> int:
    """Bytes that are in use now: of the process, or of the GPU."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:  # not Linux
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return pages * mmap.PAGESIZE


def _mib(size: int) -> str:
    return f"{-(-size // 2**20)}M"
