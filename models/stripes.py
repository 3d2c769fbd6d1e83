"""Maps computed a few rows at a time: bounded memory, and temporaries that stay in the processor's cache.

A layer's input and output are whole maps, channels last; everything between them (queries and keys, the hidden widths
of feed-forward networks) exists for one stripe of rows only. A convolution inside a stripe reads `halo` rows above and
below it. Nothing is recomputed but those rows, and nothing but the order of sums changes.

    by_rows(function, x, halo=1)      # function(x), stripe after stripe
    with stripes_of(2**20): ...       # choose the size; None for whole maps

While gradients are recorded everything is whole. Tokens are (B, H, W, C), contiguous; maps (B, C, H, W) are seen
through `to_map`, as channels-last tensors, so that going back and forth copies nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import winograd

DEFAULT_STRIPE = 4 << 20  # bytes of the input map in a stripe: with its temporaries about what a core's cache holds
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


def to_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H, W, C)."""
    return x.permute(0, 2, 3, 1)


def to_map(x: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, C, H, W)."""
    return x.permute(0, 3, 1, 2)


def channels_last(x: Tensor) -> Tensor:
    """The map (B, C, H, W) with its channels side by side in memory."""
    return to_map(to_tokens(x).contiguous())


def cut(x: Tensor, rows: int, unit: int = 1, times: int = 1) -> list[tuple[int, int]]:
    """First and last row (exclusive) of stripes of `rows` rows, each a multiple of `unit` rows; x is what they read.

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
            out = _put(out, result, height, top, bottom)
        if overwritten:
            edge.copy_(done)
    return out


def inside(x: Tensor, halo: int, border: Border) -> Tensor:
    """The stripe without the rows around it, of which the map lacks `border`."""
    return x[:, halo - border[0] : x.shape[1] - (halo - border[1])]


def own(x: Tensor) -> Tensor | None:
    """x as `out` of `by_rows` for a tensor that nobody else needs; None where autograd does."""
    return None if torch.is_grad_enabled() else x


def convolve(layer: nn.Conv2d, rows: Tensor, border: Border, kernels: Tensor | None = None) -> Tensor:
    """A convolution of tokens (B, r, W, C) whose zero padding above and below is `border` rows instead of its own.

    kernels: the layer's, transformed, where they are already.
    """
    if hasattr(layer, "convolve"):  # models.portable has its own
        return layer.convolve(rows, border, kernels)
    if kernels is None and winograd.pays(rows, layer):
        kernels = winograd.transform_kernels(layer.weight)
    if kernels is not None:
        return winograd.Tiles(rows, border).convolve(kernels, layer.bias)
    x = to_map(rows)
    if border[0] != border[1]:
        x, border = F.pad(x, (0, 0, *border)), (0, 0)
    if layer.stride[0] > 1:  # channels last, oneDNN's strided convolutions have rounding errors several times as large
        x = x.contiguous()
    padding = (border[0], layer.padding[1])
    return to_tokens(F.conv2d(x, layer.weight, layer.bias, layer.stride, padding, groups=layer.groups)).contiguous()


def pointwise(layer: nn.Conv2d, rows: Tensor) -> Tensor:
    """A 1x1 convolution of tokens (B, r, W, C)."""
    if hasattr(layer, "convolve"):
        return layer.convolve(rows, (0, 0))
    return F.linear(rows, layer.weight.flatten(1), layer.bias)


def reads_pixels(layer: nn.Module) -> bool:
    """Whether a layer's input is an image, whose 8 bits bfloat16 would round: that costs 0.2 % of the rate."""
    return getattr(layer, "in_channels", None) == 3


def convolution(layer: nn.Conv2d, x: Tensor, finish: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """`finish`(layer(x)) of a map (B, C, H, W) of any stride, in stripes of its output; out of autocast, of pixels."""
    if reads_pixels(layer) and torch.is_autocast_enabled(x.device.type):
        with torch.autocast(x.device.type, enabled=False):
            return convolution(layer, x, finish)
    kernel, stride, padding = layer.kernel_size[0], layer.stride[0], layer.padding[0]
    tokens, height = to_tokens(x), x.shape[2]
    out, rows = None, (height + 2 * padding - kernel) // stride + 1
    kernels = winograd.transform_kernels(layer.weight) if winograd.pays(x, layer) else None
    for top, bottom in cut(tokens, rows, *(() if kernels is None else (winograd.RESULT, STRIPES_OF_TILES))):
        first, last = top * stride - padding, (bottom - 1) * stride - padding + kernel
        border = max(0, -first), max(0, last - height)
        result = convolve(layer, tokens[:, max(0, first) : min(last, height)].contiguous(), border, kernels)
        result = (finish(result) if finish else result).to(x.dtype)
        out = _put(out, result, rows, top, bottom)
    return to_map(out)


def convolutions(layers: Sequence[nn.Conv2d], x: Tensor) -> list[Tensor]:
    """What 3x3 convolutions make of one map (B, C, H, W), which is transformed once for all of them.

    A layer may read more channels than these, its first ones: `of_last_channels` gives what has to be added. For
    layers and maps for which `winograd.pays`.
    """
    tokens, height, channels = to_tokens(x), x.shape[2], x.shape[1]
    outs: list[Tensor | None] = [None] * len(layers)
    kernels = [winograd.transform_kernels(layer.weight[:, :channels]) for layer in layers]
    for top, bottom in cut(tokens, height, winograd.RESULT, STRIPES_OF_TILES):
        first, last = max(0, top - 1), min(height, bottom + 1)
        tiles = winograd.Tiles(tokens[:, first:last], (1 - (top - first), 1 - (last - bottom)))
        for j, layer in enumerate(layers):
            outs[j] = _put(outs[j], tiles.convolve(kernels[j], layer.bias), height, top, bottom)
    return [to_map(out) for out in outs]


def of_last_channels(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """What a 3x3 convolution, without its bias, makes of the last channels of its input, which are x (B, C, H, W)."""
    kernels = winograd.transform_kernels(layer.weight[:, -x.shape[1] :])
    return to_map(winograd.Tiles(to_tokens(x), (1, 1)).convolve(kernels))


def deconvolution(layer: nn.ConvTranspose2d, x: Tensor) -> Tensor:
    """layer(x) for a transposed convolution of a map (B, C, H, W) that multiplies its size by its stride."""
    stride, halo = layer.stride[0], layer.kernel_size[0] // 2  # more rows than it reads, on the safe side
    tokens, height, out = to_tokens(x), x.shape[2], None
    for top, bottom in cut(tokens, height):
        first, last = max(0, top - halo), min(height, bottom + halo)
        rows = tokens[:, first:last].contiguous()
        result = to_tokens(layer(to_map(rows))).to(x.dtype)
        top, bottom, first = top * stride, bottom * stride, first * stride
        out = _put(out, result[:, top - first : bottom - first], height * stride, top, bottom)
    return to_map(out)


def _put(out: Tensor | None, result: Tensor, rows: int, top: int, bottom: int) -> Tensor:
    """`result` as rows top..bottom of `out`, which is made when it is not there and result is not all of it."""
    if out is None and bottom - top == rows:
        return result
    if out is None:
        out = result.new_empty(len(result), rows, *result.shape[2:])
    out[:, top:bottom] = result
    return out
