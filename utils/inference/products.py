"""Products of maps and constant weights, in the way that is fastest on this processor.

torch's library for them, MKL, reaches nearly all of some processors' speed and less than half of others'. So there are

    torch    torch.nn.functional.linear, torch.bmm: float32 and float64
    onednn   oneDNN with weights that are packed once, as Inductor's freezing does: float32
    numpy    OpenBLAS, which numpy brings: float32 and float64

A measurement of about a second decides for each kind of product, type and number of threads
(utils/inference/choice.py); `--products` or DCAE_PRODUCTS fix the choice. With gradients, under autocast, on GPUs, in
other types and while compiling, everything is torch's. Only the order of sums differs: portable files are
alike, and float32 files need the encoder's choice in the decoder.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from itertools import product
from pathlib import Path
from weakref import ref

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.inference.choice import Choice
from utils.inference.threads import in_threads

WAYS = ("torch", "onednn", "numpy")
DTYPES = (torch.float32, torch.float64)
LEAST_PRODUCTS = 1 << 24  # multiplications, half a millisecond: below, to call oneDNN or wake threads takes longer
ROUNDS = 5  # of a measurement, after one that packs weights and wakes threads
LINEAR_SIZES = ((512, 640, 640), (1024, 256, 768), (4096, 96, 192))  # rows, in, out: alike to DCAE's at 768x512
BATCHED_SIZES = ((36, 96, 256, 128), (36, 96, 128, 256))  # positions in tiles, rows, in, out

Way = Callable[..., Tensor]
_packed: dict[int, tuple] = {}  # id of a weight: reference to it, its state, what was packed


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., in) times a lasting weight (out, in) or (out, in, 1, 1), plus bias (out,) -> (..., out)."""
    if x.numel() * len(weight) < LEAST_PRODUCTS or not _applies(x, weight):
        return _linear_torch(x, weight, bias)
    return LINEAR[choice("linear", x.dtype)](x, weight, bias)


def batched(x: Tensor, weights: Tensor, constant: bool = False) -> Tensor:
    """x (n, rows, in) times weights (n, in, out) -> (n, rows, out).

    constant: whether the tensor `weights` will be multiplied by again, so that packing it pays.
    """
    if x.numel() * weights.shape[-1] < LEAST_PRODUCTS or not _applies(x, weights):
        return torch.bmm(x, weights)
    return BATCHED[choice("batched" if constant else "batched once", x.dtype)](x, weights)


def prepare(*dtypes: torch.dtype) -> None:
    """Choose now what would be chosen at the first product, so that no measured time includes it."""
    for kind, dtype in product(KINDS, dtypes):
        choice(kind, dtype)


def available(kind: str, dtype: torch.dtype) -> list[str]:
    """The ways that this machine has, torch's first."""
    onednn = dtype is torch.float32 and kind != "batched once" and _has_onednn()
    numpy = dtype in DTYPES and _single_threaded_openblas()
    return ["torch", *["onednn"] * onednn, *["numpy"] * numpy]


def another_way(dtype: torch.dtype = torch.float64) -> str:
    """A way that sums products up in another order than they are now, if there is one; float64: of portable files."""
    others = [way for way in available("linear", dtype) if way != choice("linear", dtype)]
    return (others or ["torch"])[0]


def bytes_to_pack(*models: nn.Module) -> int:
    """Memory that packed weights of these models' layers will still take."""
    if choice("linear", torch.float32) != "onednn":
        return 0
    weights = [layer.weight for model in models for layer in model.modules() if _is_packed(layer)]
    memory = {weight.untyped_storage().data_ptr() for weight in weights}
    packed = [weight for kept in _packed.values() if (weight := kept[0]()) is not None]
    done = sum(weight.nbytes for weight in packed if weight.untyped_storage().data_ptr() in memory)
    return max(0, sum(weight.nbytes for weight in weights) - done)


def _is_packed(layer: nn.Module) -> bool:
    pointwise = isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.groups == 1
    return (pointwise or isinstance(layer, nn.Linear)) and layer.weight.dtype is torch.float32


# ---- the ways ------------------------------------------------------------------------------------------------------


def _applies(x: Tensor, weight: Tensor) -> bool:
    if torch.is_grad_enabled() or not x.is_cpu or x.dtype not in DTYPES or x.dtype is not weight.dtype:
        return False
    if torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
        return False
    return type(x) in (Tensor, nn.Parameter)  # and no fake


def _linear_torch(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x, weight if weight.dim() == 2 else weight.flatten(1), bias)


def _linear_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    (packed,) = _pack(weight, lambda: [weight.flatten(1)])
    return _onednn(x, packed, bias)


def _onednn(x: Tensor, packed: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


def _linear_numpy(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out = x.new_empty(*x.shape[:-1], len(weight))
    rows, results = x.detach().reshape(-1, x.shape[-1]).numpy(), out.view(-1, len(weight)).numpy()
    matrix, bias = weight.detach().flatten(1).numpy().T, None if bias is None else bias.detach().numpy()
    threads = min(torch.get_num_threads(), len(rows))  # a part each: OpenBLAS packs the matrix for each part

    def multiply(first: int, last: int) -> None:
        part = slice(len(rows) * first // threads, len(rows) * last // threads)
        np.matmul(rows[part], matrix, out=results[part])
        if bias is not None:
            results[part] += bias

    in_threads(multiply, threads, x.numel() * len(weight))
    return out


def _batched_onednn(x: Tensor, weights: Tensor) -> Tensor:
    out = x.new_empty(*x.shape[:2], weights.shape[-1])
    for rows, packed, result in zip(x, _pack(weights, lambda: weights.transpose(1, 2)), out):
        result.copy_(_onednn(rows, packed))
    return out


def _batched_numpy(x: Tensor, weights: Tensor) -> Tensor:
    out = x.new_empty(*x.shape[:2], weights.shape[-1])
    arrays = [tensor.detach().numpy() for tensor in (x, weights, out)]

    def multiply(first: int, last: int) -> None:
        a, b, results = (array[first:last] for array in arrays)
        np.matmul(a, b, out=results)

    in_threads(multiply, len(x), x.numel() * weights.shape[-1])
    return out


LINEAR: dict[str, Way] = {"torch": _linear_torch, "onednn": _linear_onednn, "numpy": _linear_numpy}
BATCHED: dict[str, Way] = {"torch": torch.bmm, "onednn": _batched_onednn, "numpy": _batched_numpy}
KINDS = {
    "linear": (LINEAR, LINEAR_SIZES),
    "batched": (BATCHED, BATCHED_SIZES),
    "batched once": (BATCHED, BATCHED_SIZES),
}


@cache
def _has_onednn() -> bool:
    names = ("_linear_pointwise", "_reorder_linear_weight")
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in names)


@cache
def _single_threaded_openblas() -> bool:
    """Whether numpy multiplies by an OpenBLAS of its own; if so, it works in the thread that calls it from now on.

    Its own threads serve one caller at a time; those of `in_threads` serve all.
    """
    folders = (Path(np.__file__).parents[1] / "numpy.libs", Path(np.__file__).parent / ".dylibs")
    for library in (file for folder in folders for file in folder.glob("*openblas*")):
        for prefix, suffix in product(("scipy_openblas", "openblas"), ("64_", "")):
            with suppress(OSError, AttributeError):
                getattr(ctypes.CDLL(str(library)), f"{prefix}_set_num_threads{suffix}")(1)
                return True
    return False


# ---- packed weights ------------------------------------------------------------------------------------------------


def _pack(weight: Tensor, matrices: Callable[[], list[Tensor] | Tensor]) -> list[Tensor]:
    """Its matrices (out, in) as oneDNN reads them: made once, and anew when it has changed; dropped with it."""
    own, state = id(weight), _state(weight)
    kept = _packed.get(own)
    if kept is None or kept[0]() is not weight or kept[1] != state:
        packed = [torch.ops.mkldnn._reorder_linear_weight(m.detach().contiguous()) for m in matrices()]
        kept = _packed[own] = (ref(weight, lambda gone: _drop(own, gone)), state, packed)
    return kept[2]


def _state(weight: Tensor) -> tuple[int, ...]:
    """Differs once a weight has changed. Tensors of inference mode do not count changes: their bits are added up."""
    if weight.is_inference():
        return weight.data_ptr(), int(weight.view(torch.int32).sum())
    return weight.data_ptr(), weight._version


def _drop(own: int, gone: ref) -> None:
    if own in _packed and _packed[own][0] is gone:  # and not another weight that has its id now
        _packed.pop(own, None)


# ---- which way -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def measure(kind: str, dtype: torch.dtype, ways: list[str]) -> dict[str, float]:
    """Seconds of each way for the sizes of KINDS, added up; of runs in turn the quickest, which was disturbed least."""
    functions, sizes = KINDS[kind]
    seconds = [_quickest([functions[way] for way in ways], _operands(size, dtype)) for size in sizes]
    return {way: sum(times) for way, times in zip(ways, zip(*seconds))}


def _operands(size: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    *batch, rows, inner, outer = size
    x = torch.ones(*batch, rows, inner, dtype=dtype)
    if batch:
        return [x, torch.ones(*batch, inner, outer, dtype=dtype)]
    return [x, torch.ones(outer, inner, dtype=dtype), torch.ones(outer, dtype=dtype)]


def _quickest(functions: list[Way], operands: list[Tensor]) -> list[float]:
    rounds = [[_seconds(function, operands) for function in functions] for _ in range(ROUNDS + 1)]
    return [min(times) for times in zip(*rounds[1:])]


def _seconds(function: Way, operands: list[Tensor]) -> float:
    start = time.perf_counter()
    function(*operands)
    return time.perf_counter() - start


choice = Choice(WAYS, available, measure)
