"""Start a DCAE from a narrower one that is trained already: `train.py --grow narrow.pt`.

"Net2Net: Accelerating Learning via Knowledge Transfer" (Chen, Goodfellow and Shlens, ICLR 2016, arXiv:1511.05641): a
wider network starts as the function that a narrower one has learned. The old channels come first in every layer and
read nothing of the new ones, so that they go on as they were; new channels read everything, with fresh weights, and
residual branches leave them alone. What the old channels know of the new ones, training adds.

    [ old -> old: as trained    new -> old: 0     ]
    [ old -> new: fresh         new -> new: fresh ]

The latent grows by slices at its end, so that the entropy model of the old ones stays. What is new in it starts as the
linear transform of the image that tells most of what the old ones leave over (`fit_bypass`): latents with fresh
weights would be rounded to zero, and nothing would ever learn from them. Norms over channels are the one thing that
changes with the width: their factors and offsets are fitted to what the old ones gave.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import STRIDE_Y
from models.layers.attention import ConvolutionalGLU, SwinStage, WindowAttention
from models.layers.convolution import ResidualBottleneck
from models.layers.gain import QUALITY_MAX, GainUnit, between_levels, lambda_of_quality
from utils.cli import UserError
from utils.training.pca_start import latent_step, principal_components, silence_bypass, step_size

if TYPE_CHECKING:
    from models.base import SliceCompressionModel
    from models.dcae import DCAE

JOINED = {(WindowAttention, "embedding_layer"): 3, (ConvolutionalGLU, "fc1"): 2}  # layers with several outputs in one
ENDS = {ResidualBottleneck: "conv3", SwinStage: "conv", WindowAttention: "linear", ConvolutionalGLU: "fc2"}
MAY_GROW = (
    "channels",
    "N",
    "M",
    "bypass",
    "slices",
    "hidden",
    "feature_channels",
    "answer_channels",
    "lambda_range",
    "variable_rate",
)
FOR_NORMS, FOR_BYPASS = 8, 96  # crops that are looked at
MIDDLE = 50.5  # quality
EXPECTED = 0.5  # the scale that the entropy model expects of new latents at first, with mean 0


@torch.no_grad()
def grow(model: DCAE, source: SliceCompressionModel, images: Tensor, weight: float | None = None) -> None:
    """Give `model` the weights of a narrower `source`; the rest is fitted on images (B, 3, H, W) in [0, 1].

    weight: lambda that a model of one rate is to be trained for. Raises UserError, naming the argument, where the
    source cannot be a part of the model.
    """
    check_growth(model, source)
    sources = dict(source.named_modules())
    for name, module in model.named_modules():
        if name in sources and not isinstance(module, GainUnit):
            parent_name, _, key = name.rpartition(".")
            parent = type(model.get_submodule(parent_name))
            take_over(module, sources[name], JOINED.get((parent, key), 1), ENDS.get(parent) == key)
    if model.variable_rate:
        spread_gains(model, source)
    fit_norms(model, source, images[:FOR_NORMS])
    if model.bypass and not source.bypass:
        fit_bypass(model, images, weight)


def check_growth(model: SliceCompressionModel, source: SliceCompressionModel) -> None:
    """Raise UserError for what must not differ, or not become smaller."""
    from models.dcae import DCAE  # here, as CompressAI takes seconds to load

    if type(model) is not DCAE or type(source) is not DCAE:
        raise UserError(f"--grow: from {source.model_name} to {model.model_name}; both have to be dcae")
    if model.slice_sizes[: source.slices] != source.slice_sizes:
        raise UserError(f"--grow: slices={model.slice_sizes} do not begin with the file's, {source.slice_sizes}")
    new, bypass = model.M - source.M, model.bypass
    if bypass < new and not source.bypass:
        wanted = f"--model-option bypass={new}"
        raise UserError(f"--grow: fresh latents would stay zero; let them start as a linear transform, {wanted}")
    if source.bypass and bypass != source.bypass:
        raise UserError(
            f"--grow: the file has a bypass of {source.bypass} latents, which cannot grow; leave out its size"
        )
    if bypass and not source.bypass and model.M - bypass not in model.channels_before:
        raise UserError(
            f"--grow: no slice begins with the {bypass} latents of the bypass; the slices are {model.slice_sizes}"
        )
    if (model.features, model.answers) != (source.features, source.answers):
        wanted = f"feature_channels={source.features} answer_channels={source.answers}"
        raise UserError(f"--grow: the networks of the slices read other widths; add --model-option {wanted}")
    now, before = ({key: str(value).strip("()[]") for key, value in m.config.items()} for m in (model, source))
    other = [key for key in before if key not in MAY_GROW and now[key] != before[key]]
    if other:
        raise UserError(f"--grow: {', '.join(other)} must be as in the file; leave them out")
    if model.variable_rate != source.variable_rate:
        raise UserError("--grow: one of file and model is of variable rate; both have to be, or neither")
    shapes = {name: tensor.shape for name, tensor in model.named_parameters()}
    for name, tensor in source.named_parameters():
        if any(now < before for now, before in zip(shapes[name], tensor.shape)):
            sizes = f"{tuple(tensor.shape)} in the file, {tuple(shapes[name])} here"
            raise UserError(f"--grow: {name} would shrink, {sizes}; choose larger sizes")


def take_over(module: nn.Module, source: nn.Module, joined: int, end: bool) -> None:
    """Copy a module's own parameters. joined: outputs side by side in it; end: whether it ends a residual branch."""
    for name, old in source.named_parameters(recurse=False):
        new = getattr(module, name)
        outputs = 1 if isinstance(module, nn.ConvTranspose2d) and name == "weight" else 0
        size, width = old.shape[outputs] // joined, new.shape[outputs] // joined
        places = (torch.arange(joined)[:, None] * width + torch.arange(size)).flatten()
        block = torch.zeros_like(new.index_select(outputs, places))  # new -> old
        block[tuple(map(slice, old.shape))] = old
        if end:
            new.zero_()
        new.index_copy_(outputs, places, block)


def spread_gains(model: SliceCompressionModel, source: SliceCompressionModel) -> None:
    """Gains of the old channels at the trade-offs of the model's levels, along the last slope beyond the old range."""
    for name in ("log_gain", "log_inverse_gain"):
        new, old = getattr(model.gain, name), getattr(source.gain, name)
        lambdas = lambda_of_quality(torch.linspace(1, 100, len(new)), model.lambda_range)
        low, high = source.lambda_range
        position = (lambdas / low).log() / math.log(high / low) * (len(old) - 1)
        new[:, : old.shape[1]] = between_levels(old, position)


def fit_norms(model: DCAE, source: DCAE, images: Tensor) -> None:
    """Fit factor and offset of each wider norm, one after the other, to what the source's gave for each channel."""
    norms = {name: m for name, m in source.named_modules() if isinstance(m, nn.LayerNorm)}
    norms = [name for name, m in norms.items() if model.get_submodule(name).weight.shape != m.weight.shape]
    wanted = outputs_of(source, norms, images) if norms else {}
    for name in norms:
        norm, old = model.get_submodule(name), wanted[name]
        width = old.shape[-1]
        got = outputs_of(model, [name], images)[name][..., :width].flatten(0, -2)
        old = old.flatten(0, -2)
        slope = (got - got.mean(0)).mul(old - old.mean(0)).mean(0) / got.var(0, correction=0).clamp_min(1e-12)
        norm.weight[:width] *= slope
        norm.bias[:width] = (norm.bias[:width] - got.mean(0)) * slope + old.mean(0)


def outputs_of(model: DCAE, names: list[str], images: Tensor) -> dict[str, Tensor]:
    """What these modules give for images (B, 3, H, W), at quality MIDDLE."""
    outputs: dict[str, Tensor] = {}
    hooks = [
        model.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: outputs.__setitem__(name, output)
        )
        for name in names
    ]
    with evaluating(model):
        model(images, MIDDLE if model.variable_rate else None)
    for hook in hooks:
        hook.remove()
    return outputs


def fit_bypass(model: DCAE, images: Tensor, weight: float | None) -> None:
    """Let the bypass have its latents for itself, and tell in them most of what the others leave over.

    With x the blocks of 16x16 pixels, and r what is left of them at the top quality, W = cov(r, x) (cov(x) + n)^-1 is
    the best guess of r, n the noise of rounding; of its values W x the first principal components V are coded:
    V^T W x are the latents, V leads back (reduced-rank regression).
    """
    empty_bypass(model)
    with evaluating(model):
        quality = QUALITY_MAX if model.variable_rate else None
        rest = torch.cat([image - model(image, quality)["x_hat"] for image in images.split(1)])
    noise = step_size(model.lambda_range[1] if weight is None else weight) ** 2 / 12
    x, r = blocks_of(images), blocks_of(rest)
    x -= x.mean(0)
    guess = torch.linalg.solve(x.T @ x / len(x) + noise * torch.eye(x.shape[1], dtype=x.dtype), x.T @ r / len(x))
    components = principal_components((x @ guess).T[None], model.bypass).T
    analysis = (guess @ components).T.unflatten(1, (3, -1))
    analysis = (analysis - analysis.mean(2, keepdim=True)).flatten(1)  # flat blocks are no detail
    step = latent_step(model, weight)
    model.bypass_a.weight.copy_(analysis[:, :, None, None] / step)
    model.bypass_s.weight.copy_(components[:, :, None, None] * step)


def empty_bypass(model: DCAE) -> None:
    """Take its latents from the other layers, and let it and its gains start anew: the latents are zero."""
    first = model.M - model.bypass
    silence_bypass(model)
    last, back = model.g_a[-1], model.g_s[0]
    for weight in (last.weight[first:], last.bias[first:], back.weight[first:], model.h_a[0].conv.weight[:, first:]):
        nn.init.zeros_(weight)
    if model.variable_rate:
        fresh = GainUnit(model.M, model.lambda_range)
        for name in ("log_gain", "log_inverse_gain"):
            getattr(model.gain, name)[:, first:] = getattr(fresh, name)[:, first:]
    expect_little(model, model.channels_before.index(first))


def blocks_of(images: Tensor) -> Tensor:
    """(B, 3, 16h, 16w) -> (B * h * w, 768) in float64."""
    return F.pixel_unshuffle(images, STRIDE_Y).permute(0, 2, 3, 1).flatten(0, 2).double()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode inside the block, and as it was after it."""
    training = model.training
    model.eval()
    yield
    model.train(training)


def expect_little(model: DCAE, old: int) -> None:
    """Let the networks of the new slices, from slice `old` on, say the same everywhere: mean 0, scale EXPECTED."""
    for networks, value in (
        (model.cc_mean_transforms, 0.0), (model.cc_scale_transforms, EXPECTED), (model.lrp_transforms, 0.0)
    ):  # fmt: skip
        for network in networks[old:]:
            nn.init.zeros_(network[-1].weight)
            nn.init.constant_(network[-1].bias, value)
