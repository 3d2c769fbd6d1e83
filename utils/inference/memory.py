"""Memory: a limit to keep, and freed memory that is kept for the next maps."""

from __future__ import annotations

import argparse
import ctypes
import mmap
import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from utils.cli import UserError
from utils.devices import lacks_bfloat16
from utils.files import cache_folder
from utils.inference import products

BYTES_A_PIXEL = 260  # for maps, measured with the full-size DCAE (250): two of g_a's first, or what predicts a slice
PUBLISHED_WIDTH = 96  # of its first maps; wider ones take more
DEFAULT_STRIPE = 4 << 20  # bytes of the input map in a stripe: with its temporaries about what a core's cache holds
TEMPORARIES = 60  # bytes for each byte of a stripe's input; measured: 10 to 56
LEAST_STRIPE = 128 << 10  # with smaller ones most rows are some stripe's border
PRECISIONS = ("fp32", "bf16")
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
    """--max-memory, --precision, --products and --compile."""
    add = parser.add_argument
    add("--max-memory", type=memory_size, metavar="SIZE", help="8G, 900M: thinner stripes of large images (dcae)")
    add("--precision", choices=PRECISIONS, default="fp32", help="of analysis and synthesis; files decode in either")
    add("--products", choices=("auto", *products.WAYS), help="library for matrix products (default: the fastest here)")
    add("--compile", action="store_true", help="analysis and synthesis for each size of image: minutes, kept on disk")


def engine_options(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """What the flags say, as arguments of Engine. Raises UserError where they cannot be followed."""
    products.choice.fix(args.products)
    if args.precision == "bf16" and device.type == "cpu" and lacks_bfloat16():
        _say_that_bfloat16_is_slow()
    options = {"precision": args.precision, "max_memory": args.max_memory}
    if not args.compile:
        return options
    if args.max_memory is not None:
        raise UserError("--compile holds whole maps and cannot keep --max-memory; leave one of them out")
    if device.type != "cpu":
        raise UserError("--compile is for the CPU; leave it or the GPU's flag out")
    from utils.inference.compiled import CompiledTransforms, check_ready

    check_ready(cache_folder())
    return options | {"compiled": CompiledTransforms(cache_folder())}


@cache
def _say_that_bfloat16_is_slow() -> None:
    """Once, however many models are evaluated."""
    print("note: this processor has no instructions for bfloat16: --precision fp32 is faster here", file=sys.stderr)


def stripe_within(limit: int, held_before: int, maps: int) -> int:
    """The stripe (bytes of its input) for a limit. Raises UserError where even the smallest takes more."""
    least = held_before + maps + LEAST_STRIPE * TEMPORARIES
    if least > limit:
        raise UserError(f"--max-memory {_mib(limit)}: this image takes {_mib(least)}; give as much, or a smaller image")
    return min(DEFAULT_STRIPE, (limit - held_before - maps) // TEMPORARIES)


def keep_memory() -> None:
    """Let this process keep freed memory for its next maps. Not for programs with a memory limit: `held` counts it.

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
