"""How many multiplications a model needs and how many weights it has, counted on shapes alone: nothing is computed.

Two counts of multiply-accumulate operations (MACs), of the same operations on the same shapes:

    exact   what torch.utils.flop_counter counts, halved: convolutions, linear layers and the products of attention
    thop    what the library thop counts, which the papers' tables are made with (there called FLOPs). It differs:
            transposed convolutions are counted at their output's size, as if there were a product for each tap and
            output position, stride^2 times too many; layer norms are counted, with 4 operations a value; the products
            of attention (queries with keys, weights with values) are not seen at all, nor are those of generalised
            divisive normalisation (GDN), because neither is a layer that thop knows

thop counts modules as they are called; here its rules are applied to the operations that a forward pass consists of, so
that a model may compute its layers as it likes. Of the parameters, too, thop sees those of layers that it knows: no
dictionary, relative positions, GDN or factorized prior. Counted so, DCAE and TCM have the numbers of Table 1 of the
paper of models/dcae.py: 252 and 305, 307 and 441 GMACs, 119.2 and 75.9 million parameters. (Its ELIC is another one.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models.base import SliceCompressionModel
from models.coders import EstimatingCoder
from models.layers.winograd import direct
from models.stripes import stripes_of

aten = torch.ops.aten
PARTS = ("g_a", "h_a", "entropy model", "g_s")
ATTENTION = (aten.bmm, aten.baddbmm)  # products of two computed tensors; products with weights are mm and addmm
LAYERS_OF_THOP = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.LayerNorm)
NORM = 4  # operations a value that thop counts for a layer norm


@dataclass(frozen=True)
class Macs:
    """exact; of these, attention and gdn, which thop does not see; transposed, norms: what thop adds."""

    exact: int = 0
    attention: int = 0
    gdn: int = 0
    transposed: int = 0
    norms: int = 0

    @property
    def thop(self) -> int:
        """thop's count."""
        return self.exact - self.attention - self.gdn + self.transposed + self.norms

    def __add__(self, other: Macs) -> Macs:
        return Macs(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


def count(model: nn.Module, function: Callable[[], Any]) -> tuple[Any, Macs]:
    """What `function` returns, and what its use of `model` takes to compute."""
    surplus = {aten.convolution: _surplus_of_transposed, aten.native_layer_norm: _norm}
    exact, added = FlopCounterMode(display=False), FlopCounterMode(display=False, custom_mapping=surplus)
    with (
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
        stripes_of(None),
        direct(),
        _products_of_gdn(model) as gdn,
        exact,
        added,
    ):
        result = function()
    flops, extra = exact.get_flop_counts()["Global"], added.get_flop_counts()["Global"]
    attention = sum(flops.get(op, 0) for op in ATTENTION)
    transposed, norms = (extra.get(op, 0) // 2 for op in surplus)
    return result, Macs(exact.get_total_flops() // 2, attention // 2, sum(gdn), transposed, norms)


def _surplus_of_transposed(
    x: tuple, weight: tuple, bias, stride, padding, dilation, transposed: bool, *rest: Any, out_shape: tuple, **_: Any
) -> int:
    """Twice the MACs that thop counts beyond those there are."""
    if not transposed:
        return 0
    taps, groups = prod(weight[2:]), rest[-1]
    return 2 * (x[1] // groups) * taps * (prod(out_shape) - out_shape[1] * prod(x[2:]) * x[0])


def _norm(x: tuple, *_: Any, **__: Any) -> int:
    return 2 * NORM * prod(x)


@contextmanager
def _products_of_gdn(model: nn.Module) -> Iterator[list[int]]:
    """The list grows by the MACs of each GDN that runs: channels x channels at each position."""
    found: list[int] = []

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        found.append(out.shape[1] * out.numel())

    hooks = [part.register_forward_hook(hook) for part in model.modules() if type(part).__name__ == "GDN"]
    try:
        yield found
    finally:
        for handle in hooks:
            handle.remove()


def count_parts(model: SliceCompressionModel, height: int, width: int) -> dict[str, Macs]:
    """MACs of g_a, h_a, the entropy model (hyper-synthesis and slices) and g_s for one image.

    Its sides are padded as the model pads them. Nothing is computed: tensors are shapes.
    """
    height, width = (-(-side // model.size_multiple) * model.size_multiple for side in (height, width))
    with FakeTensorMode(allow_non_fake_inputs=True):
        x, coder = torch.empty(1, 3, height, width), EstimatingCoder(model.gaussian_conditional)
        y, of_analysis = count(model, lambda: model.analysis(x))
        (z_hat, _), of_hyper = count(model, lambda: model.estimate_hyper(y))
        y_hat, of_slices = count(model, lambda: model.code_slices(z_hat, y, coder))
        of_synthesis = count(model, lambda: model.synthesis(y_hat))[1]
    return dict(zip(PARTS, (of_analysis, of_hyper, of_slices, of_synthesis)))


def encoder_and_decoder(parts: dict[str, Macs]) -> tuple[Macs, Macs]:
    """Both run the entropy model, since the encoder needs the distributions that the decoder will have."""
    return parts["g_a"] + parts["h_a"] + parts["entropy model"], parts["entropy model"] + parts["g_s"]


def parameters_of(model: nn.Module) -> int:
    """Learned values."""
    return sum(p.numel() for p in model.parameters())


def parameters_that_thop_sees(model: nn.Module) -> int:
    """Learned values of convolutions, linear layers and layer norms."""
    layers = [module for module in model.modules() if isinstance(module, LAYERS_OF_THOP)]
    return sum(p.numel() for layer in layers for p in layer.parameters(recurse=False))
