"""Searching large images in overlapping windows of the latent, in bounded memory.

A window is a core, whose elements move, and a margin around it, which shows what they do to their neighbours and which
holds the cores that are done already. J of the window falls, and with it J of the image; what is decoded is the whole
latent, so that there are no seams. A search holds what the backward pass needs: 1.6 kB a pixel in dcae-small.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

import torch
from torch import Tensor

from models.base import STRIDE_Y, STRIDE_Z
from utils.cli import UserError
from utils.codec.search import Problem, Refined, refine
from utils.codec.trade_off import TradeOff
from utils.metrics import MS_SSIM_SMALLEST

LARGEST_WINDOW = 1280  # pixels of a side with its margins; larger images are cut even where memory is not limited
LEAST_MARGIN = 128  # pixels; y's of one attention window
LIBRARIES = 700 << 20  # bytes of torch, CompressAI and the rest, and of compiled loops
COPIES = 5  # of the weights: read, in float32, packed, and in float64, which is two
SLACK = 1.5  # peak of a backward pass over what its forward pass kept
Window = tuple[slice, slice, tuple[slice, slice]]  # rows and columns of y; those that move, counted from its first


def refine_image(
    problem: Problem,
    y: Tensor,
    steps: int,
    side: int,
    progress: Callable[[int, int], None] | None = None,
) -> Refined:
    """As `refine`, in windows of at most `side` pixels a side.

    progress: called after each step with how many are done, and of how many.
    """
    windows = [(rows, columns, core) for row in cut(problem, side) for rows, columns, core in row]
    done = count(1)
    step = (lambda: progress(next(done), steps * len(windows))) if progress else None
    if len(windows) == 1:
        return refine(problem, y, steps, progress=step)
    parts, y = [], y.clone()
    for number, (rows, columns, core) in enumerate(windows):
        part = window_of(problem, rows, columns, core)
        if part.trade_off.metric == "ms-ssim" and min(part.x[(..., *part.inside)].shape[-2:]) < MS_SSIM_SMALLEST:
            continue
        parts.append(refine(part, y[..., rows, columns], steps, number, step))
        y[..., rows, columns] = parts[-1].y
    return Refined(y, sum(part.before for part in parts), sum(part.after for part in parts))


def middle(problem: Problem, y: Tensor, side: int) -> tuple[Problem, Tensor]:
    """The problem of the window in the middle, and its part of y (1, M, h, w); the whole of an image that fits."""
    windows = cut(problem, side)
    row = windows[len(windows) // 2]
    rows, columns, core = row[len(row) // 2]
    return window_of(problem, rows, columns, core), y[..., rows, columns]


def margin(multiple: int) -> int:
    """Pixels around a core: at least LEAST_MARGIN, and whole attention windows."""
    return -(-LEAST_MARGIN // multiple) * multiple


def cores(length: int, multiple: int, side: int) -> list[tuple[int, int]]:
    """First and last pixel (exclusive) of the cores along a side of the image: about equally long, in multiples."""
    if length <= side:
        return [(0, length)]
    longest = max(multiple, (side - 2 * margin(multiple)) // multiple * multiple)
    units = length // multiple
    number = -(-length // longest)
    edges = [units * i // number * multiple for i in range(number + 1)]
    return list(zip(edges, edges[1:]))


def cut(problem: Problem, side: int) -> list[list[Window]]:
    """The windows of each row of windows."""
    multiple = problem.model.size_multiple
    parts = [
        [around(*core, margin(multiple), length) for core in cores(length, multiple, side)]
        for length in problem.x.shape[-2:]
    ]
    return [[(rows, columns, (moving, across)) for columns, across in parts[1]] for rows, moving in parts[0]]


def around(first: int, last: int, border: int, length: int) -> tuple[slice, slice]:
    """A core (in pixels) with its margin, in positions of y; and the core inside of it."""
    start, end = max(0, first - border), min(length, last + border)
    window = slice(start // STRIDE_Y, end // STRIDE_Y)
    return window, slice((first - start) // STRIDE_Y, (last - start) // STRIDE_Y)


def window_of(problem: Problem, rows: slice, columns: slice, core: tuple[slice, slice]) -> Problem:
    """The part of a problem that a window of y sees."""
    pixels = tuple(slice(s.start * STRIDE_Y, s.stop * STRIDE_Y) for s in (rows, columns))
    inside = tuple(
        slice(max(0, whole.start - part.start), min(part.stop, whole.stop) - part.start)
        for whole, part in zip(problem.inside, pixels)
    )
    x = problem.x[(..., *pixels)]
    return replace(problem, z_hat=hyper_window(problem.z_hat, rows, columns), x=x, inside=inside, movable=core)


def hyper_window(z_hat: Any, rows: slice, columns: slice) -> Any:
    """z_hat of a window of y; what a model sends beside the map z belongs to the whole image."""
    if isinstance(z_hat, tuple):
        return hyper_window(z_hat[0], rows, columns), *z_hat[1:]
    each = STRIDE_Z // STRIDE_Y
    return z_hat[..., rows.start // each : rows.stop // each, columns.start // each : columns.stop // each]


def window_side(problem: Problem, y: Tensor, limit: int | None) -> int:
    """The largest side of a window of y (1, M, h, w), in pixels, for `limit` bytes of the process, or of the GPU.

    Raises UserError where not even the smallest window's search stays within them.
    """
    if limit is None:
        return LARGEST_WINDOW
    multiple, each = problem.model.size_multiple, bytes_a_pixel(problem, y)
    free = limit - before_the_search(problem, y)
    side = min(LARGEST_WINDOW, int((max(0, free) / each) ** 0.5) // multiple * multiple)
    least = min(max(problem.x.shape[-2:]), multiple + 2 * margin(multiple))
    if side < least:
        needed = limit - free + int(least**2 * each)
        raise UserError(
            f"--max-memory {limit >> 20}M: a search needs {needed >> 20}M here; give as much, or leave --effort out"
        )
    return side


def before_the_search(problem: Problem, y: Tensor) -> int:
    """Bytes that a process holds when a search of y (1, M, h, w) begins.

    Not what it happens to hold, since that depends on the images before, and the bytes of a file would with it.
    """
    weights = sum(p.numel() * p.element_size() for p in problem.model.parameters())
    libraries = LIBRARIES if y.device.type == "cpu" else 0
    return libraries + COPIES * weights + 4 * (y.numel() * y.element_size() + problem.x.numel() * 4)


def bytes_a_pixel(problem: Problem, y: Tensor) -> float:
    """Bytes that a search holds for each pixel of its window, measured on the smallest window of y (1, M, h, w)."""
    each = problem.model.size_multiple // STRIDE_Y
    rows, columns = slice(0, each), slice(0, each)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    part = window_of(problem, rows, columns, (rows, columns))
    part = replace(part, trade_off=TradeOff(part.trade_off.weight), inside=(slice(None), slice(None)))
    weights = {p.untyped_storage().data_ptr() for p in part.model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        part.evaluate(y[..., rows, columns])
    total = sum(size for pointer, size in kept.items() if pointer not in weights)
    return SLACK * total / (each * STRIDE_Y) ** 2
