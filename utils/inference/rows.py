"""Maps computed a few rows at a time: bounded memory, and temporaries that stay in the processor's cache.

A layer's input and output are whole maps, channels last; everything between them (queries and keys, the hidden widths
of feed-forward networks) exists for one stripe of rows only. A convolution inside a stripe reads `halo` rows above and
below it. Nothing is recomputed but those rows, and nothing but the order of sums changes.

    by_rows(function, x, halo=1)      # function(x), stripe after stripe
    with stripes_of(2**20): ...       # choose the size; None for whole maps

While gradients are recorded everything is whole. Tokens are (B, H, W, C), contiguous; maps (B, C, H, W) are seen
through `to_map`, as channels-last tensors, so that going back and forth copies nothing. `Striped` is what all faster
classes are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.convolution import ExactConvolution
from utils.inference import products, winograd
from utils.inference.memory import DEFAULT_STRIPE
from utils.inference.written import is_as_written, own_methods

STRIPES_OF_TILES = 4  # how many stripes a transformed one counts for: its products are large only then
_stripe: ContextVar[int | None] = ContextVar("stripe", default=DEFAULT_STRIPE)

Border = tuple[int, int]  # how many of the halo's rows above and below lie outside of the map
Residual = tuple[Callable[..., Tensor], Tensor]  # join(base, branch, out=None), and the base


@contextmanager
def stripes_of(size: int | None) -> Iterator[None]:
    """Cut maps into stripes of about `size` bytes of input inside the block; None for no stripes."""
    token = _stripe.set(size)
    try:
        yield
    finally:
        _stripe.reset(token)


def tokens_of(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H, W, C), contiguous; of a channels-last map without a copy."""
    return x.permute(0, 2, 3, 1).contiguous()


def to_map(x: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, C, H, W)."""
    return x.permute(0, 3, 1, 2)


def cut(x: Tensor, rows: int, unit: int = 1, times: int = 1) -> list[tuple[int, int]]:
    """First and last row (exclusive) of stripes of `rows` rows, in multiples of `unit`; they read x (B, H, W, C).

    Stripes are about equally high, and `times` as large as usual.
    """
    size = _stripe.get()
    if size is None or torch.is_grad_enabled() or not rows:
        return [(0, rows)] if rows else []
    bytes_a_row = max(1, x.numel() * x.element_size() // rows)
    largest = max(unit, times * size // bytes_a_row // unit * unit)
    units = -(-rows // unit)
    step = unit * -(-units // -(-rows // largest))
    return [(top, min(rows, top + step)) for top in range(0, rows, step)]


def by_rows(
    function: Callable[..., Tensor], x: Tensor, halo: int = 0, unit: int = 1, also: tuple[Tensor, ...] = (),
    out: Tensor | None = None, onto: Residual | None = None,
) -> Tensor:  # fmt: skip
    """`function` of tokens x (B, H, W, C) in stripes of a multiple of `unit` rows; returns (B, H, W, any width).

    It is called with a stripe, with `halo` rows around it as far as the map reaches, then with `border`, how many of
    these rows the map lacks above and below, then with the stripe's rows of each tensor in `also`. It returns the
    stripe's rows. `out` takes the result; it may be x, which is then overwritten, where no gradients are recorded.
    `onto` (join, base): the result is `join`(base, what the function returns), written to its place without a copy.
    """
    height, stripes, kept = x.shape[1], cut(x, x.shape[1], max(unit, halo)), None
    join, base = onto or (None, x)
    if len(stripes) == 1 and out is None:
        result = function(x, (halo, halo), *also)
        return join(base, result) if join else result
    if join and out is None:
        out = base.new_empty(base.shape)
    in_place = halo > 0 and len(stripes) > 1 and out is not None and out.data_ptr() == x.data_ptr()
    for top, bottom in stripes:
        above, below = min(halo, top), min(halo, height - bottom)
        edge = x[:, top - above : top]
        overwritten = in_place and above > 0  # the function is to read the rows above the stripe as they were
        if overwritten:
            done = edge.clone()
            edge.copy_(kept)
        kept = x[:, bottom - halo : bottom].clone() if in_place else None
        result = function(
            x[:, top - above : bottom + below], (halo - above, halo - below), *(other[:, top:bottom] for other in also)
        )
        if join:
            join(base[:, top:bottom], result, out=out[:, top:bottom])
        else:
            out = put(out, result, height, top, bottom)
        if overwritten:
            edge.copy_(done)
    return out


def inside(x: Tensor, halo: int, border: Border) -> Tensor:
    """A stripe (B, rows, W, C) without its `halo` above and below, of which the map lacks `border`: (B, r, W, C)."""
    return x[:, halo - border[0] : x.shape[1] - (halo - border[1])]


def own(x: Tensor) -> Tensor | None:
    """Tokens x (B, H, W, C), which nobody else needs, as `out` of `by_rows`; None while gradients are recorded."""
    return None if torch.is_grad_enabled() else x


def put(out: Tensor | None, result: Tensor, rows: int, top: int, bottom: int) -> Tensor:
    """Put `result` (B, bottom - top, W, C) into `out` (B, rows, W, C), which is made if needed, and return that."""
    if out is None and bottom - top == rows:
        return result
    if out is None:
        out = result.new_empty(len(result), rows, *result.shape[2:])
    out[:, top:bottom] = result
    return out


# ---- modules -----------------------------------------------------------------------------------------------------


class Striped(nn.Module):
    """What a faster class declares: the class that it replaces, and what it relies on in the parts of a module."""

    plain: type[nn.Module]
    written = ""  # digest of what it computes instead of, where that is of models/; see written.py
    parts: dict[str, Any] = {}  # parts whose work it does itself, and the classes that they must have
    others: tuple[str, ...] = ()  # parts that it calls, of any class

    @classmethod
    def fits(cls, module: nn.Module) -> bool:
        """Whether `module`, exactly of the plain class, can be computed this way: no hooks may hang on its parts."""
        return (
            not has_hooks(module)
            and (not cls.written or is_as_written(cls.written, *cls.replaced()))
            and all(is_known(part_of(module, name), kinds) for name, kinds in cls.parts.items())
        )

    @classmethod
    def replaced(cls) -> list[Callable]:
        """The functions of models/ that it computes instead of: of the plain class, and of its plain parts."""
        kinds = [kind for part in cls.parts.values() for kind in (part if isinstance(part, tuple) else (part,))]
        kinds = [kind for kind in kinds if kind.__module__.startswith("models.")]
        return [function for kind in (cls.plain, *kinds) for function in own_methods(kind)]

    def prepare(self) -> None:
        """Called once a module has this class: add what it needs beyond the plain one's attributes."""


def part_of(module: nn.Module, name: str) -> nn.Module | None:
    """A part by its name, which may have dots; None where a model is built without it."""
    return module.get_submodule(name) if "." in name else getattr(module, name)


def is_known(part: nn.Module | None, kinds: type | tuple[type, ...]) -> bool:
    """Whether a part is exactly of a plain class, or of a faster one, and has no hooks."""
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    quick = any(issubclass(kind, Striped) and isinstance(part, kind) for kind in kinds)
    return (quick or type(part) in kinds) and (part is None or not has_hooks(part))


def has_hooks(module: nn.Module) -> bool:
    """Whether something is called before or after this module's forward pass, or instead of it."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def keeps_size(layer: nn.Module, kernel: int) -> bool:
    """Whether a layer is a convolution of kernel x kernel that gives maps as large as its input."""
    sizes = ("kernel_size", kernel), ("stride", 1), ("padding", kernel // 2)
    return all(getattr(layer, name, None) == (size, size) for name, size in sizes)


class ProductLinear(Striped, nn.Linear):
    """A linear layer, in the way that is fastest on this processor (utils/inference/products.py)."""

    plain = nn.Linear

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        return products.linear(x, self.weight, self.bias)


class StripedLayer(Striped):
    """A convolution that can be asked for a few rows."""

    def convolve(self, rows: Tensor, border: Border, kernels: Tensor | None = None) -> Tensor:
        """Tokens (B, r, W, in) with `border` rows of zeros above and below instead of its own -> (B, rows, W, out).

        kernels: the layer's, transformed, where they are already.
        """
        if kernels is None and winograd.pays(rows, self):
            kernels = winograd.transform_kernels(self.weight)
        if kernels is not None:
            return winograd.Tiles(rows, border).convolve(kernels, self.bias)
        if (*self.kernel_size, *self.stride, *self.padding, self.groups) == (1, 1, 1, 1, 0, 0, 1):
            return products.linear(rows, self.weight, self.bias)
        x = to_map(rows)
        if border[0] != border[1]:
            x, border = F.pad(x, (0, 0, *border)), (0, 0)
        if self.stride[0] > 1:  # channels last, oneDNN's strided ones have rounding errors several times as large
            x = x.contiguous()
        padding = (border[0], self.padding[1])
        return tokens_of(F.conv2d(x, self.weight, self.bias, self.stride, padding, groups=self.groups))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H / stride, W / stride), in stripes of the result."""
        kernel, stride, padding = self.kernel_size[0], self.stride[0], self.padding[0]
        tokens, height = tokens_of(x), x.shape[2]
        out, rows = None, (height + 2 * padding - kernel) // stride + 1
        kernels = winograd.transform_kernels(self.weight) if winograd.pays(x, self) else None
        for top, bottom in cut(tokens, rows, *(() if kernels is None else (winograd.RESULT, STRIPES_OF_TILES))):
            first, last = top * stride - padding, (bottom - 1) * stride - padding + kernel
            border = max(0, -first), max(0, last - height)
            result = self.convolve(tokens[:, max(0, first) : min(last, height)].contiguous(), border, kernels)
            out = put(out, result.to(x.dtype), rows, top, bottom)
        return to_map(out)


class StripedConvolution(StripedLayer, nn.Conv2d):
    """Zero-padded convolutions of any stride."""

    plain = nn.Conv2d

    @classmethod
    def fits(cls, module: nn.Conv2d) -> bool:
        """Where rows and columns are treated alike and the padding is of zeros."""
        alike = not isinstance(module.padding, str) and len({*module.stride}) == len({*module.padding}) == 1
        return super().fits(module) and alike and module.dilation == (1, 1) and module.padding_mode == "zeros"

    @property
    def tiled(self) -> bool:
        """Whether its kernels can be transformed (utils/inference/winograd.py)."""
        dense = self.stride == (1, 1) and self.groups == 1
        return dense and self.kernel_size == (winograd.KERNEL,) * 2 and self.padding == (1, 1)


class StripedExactConvolution(StripedConvolution):
    """The same in full precision, under autocast, too."""

    plain = ExactConvolution
    written = "f1fb3c8f"

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H / stride, W / stride) in the type of the weights."""
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.to(self.weight.dtype))


class StripedDeconvolution(Striped, nn.ConvTranspose2d):
    """Transposed convolutions that multiply the size by their stride."""

    plain = nn.ConvTranspose2d

    @classmethod
    def fits(cls, module: nn.ConvTranspose2d) -> bool:
        """Where the result is `stride` times as large."""
        (stride, across), (kernel, wide) = module.stride, module.kernel_size
        enlarging = kernel % 2 == 1 and module.padding == (kernel // 2,) * 2
        enlarging = enlarging and module.output_padding == (stride - 1,) * 2
        return super().fits(module) and enlarging and (stride, kernel) == (across, wide) and module.dilation == (1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H * stride, W * stride)."""
        stride, halo = self.stride[0], self.kernel_size[0] // 2  # more rows than it reads, on the safe side
        tokens, height, out = tokens_of(x), x.shape[2], None
        for top, bottom in cut(tokens, height):
            first, last = max(0, top - halo), min(height, bottom + halo)
            rows = super().forward(to_map(tokens[:, first:last].contiguous()))
            result = tokens_of(rows).to(x.dtype)
            top, bottom, first = top * stride, bottom * stride, first * stride
            out = put(out, result[:, top - first : bottom - first], height * stride, top, bottom)
        return to_map(out)
