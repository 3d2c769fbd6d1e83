"""Small models of every kind for fast tests, with weights that make the latents and scales vary."""

from __future__ import annotations

import copy
from functools import cache

import torch

from models import build_model
from models.base import SliceCompressionModel
from models.layers.gain import GainUnit
from utils.measuring.fill_weights import fill_

_ENTROPY = {"M": 40, "slices": 5, "hidden": (12, 10)}
_DCAE = {"channels": (8, 16, 16), "depths": (1, 2, 2), "head_dims": (4, 8, 8), "N": 16, "hyper_head_dim": 8, **_ENTROPY}
_PLAIN = dict(_DCAE)
_DCAE |= {"dictionary_entries": 12, "dictionary_heads": 2, "dictionary_head_dim": 8, "msfa": 2}
_TCM = {"N": 8, "hyper_channels": 16, "head_dims": (4, 4, 8), "hyper_head_dim": 4, **_ENTROPY}
_TCM |= {"attention_channels": 16, "attention_head_dim": 8}
_SMALL = {"M": 24, "slices": 3, "hidden": (8, 6), "hyper_head_dim": 4, "dictionary_heads": 2, "dictionary_head_dim": 4}
_PLUG = {"N": 8, "hyper_channels": 8, "dictionary_entries": 6, "msfa": 1, **_SMALL}
_ELIC = {"N": 8, "M": 24, "groups": (4, 8, 12), "hidden": (8, 6), "dictionary_heads": 2, "dictionary_head_dim": 4}
_TINY = {"channels": (8, 8, 8), "depths": (0, 0, 1), "head_dims": (8, 16, 4), "N": 8, **_SMALL}
TOYS = {
    "dcae": ("dcae", _DCAE),
    "dcae-no-dictionary": ("dcae", {**_PLAIN, "dictionary_entries": 0}),
    "dcae-no-msfa": ("dcae", {**_DCAE, "msfa": 0}),
    "dcae-variable-rate": ("dcae", {**_DCAE, "variable_rate": True}),
    "dcae-bypass": ("dcae", {**_TINY, "dictionary_entries": 6, "msfa": 1, "bypass": 8, "variable_rate": True}),
    "tcm": ("tcm-small", _TCM),
    "icwem": ("icwem", {"enhancement_width": 8, "growth": 4, **_TCM}),
    "tcm-dictionary": ("tcm-dictionary", {**_PLUG, "head_dims": (4, 4, 4)}),
    "elic": ("elic", _ELIC),
    "elic-dictionary": ("elic-dictionary", _PLUG),
    "elic-plus-dictionary": ("elic-plus-dictionary", {**_ELIC, "dictionary_entries": 6, "msfa": 1}),
    "global-tokens": ("dcae-ablation-global-tokens", {**_TINY, "tokens": 3}),
}
WRITERS = {**TOYS, "icwem": ("icwem", _TCM)}  # of the files in tests/portable


def toy_model(kind: str, salt: str = "") -> SliceCompressionModel:
    """The toy of this kind in eval mode, tables ready, for its caller alone; another salt gives other weights."""
    return _copy_of(kind, salt, False)


def graded_model() -> SliceCompressionModel:
    """A variable-rate toy with the gains of a fresh model, finer by e^2: its rates grow with quality."""
    model = toy_model("dcae-variable-rate")
    fresh = GainUnit(model.M)
    with torch.no_grad():
        model.gain.log_gain.copy_(fresh.log_gain + 2)
        model.gain.log_inverse_gain.copy_(fresh.log_inverse_gain - 2)
    return model


def writer(kind: str) -> SliceCompressionModel:
    """The toy that wrote tests/portable/KIND.bin."""
    return _copy_of(kind, "", True)


def _copy_of(*which: str | bool) -> SliceCompressionModel:
    with torch.inference_mode(False):  # a model has gradients wherever it is asked for
        return copy.deepcopy(_filled(*which))


@cache
def _filled(kind: str, salt: str, of_the_past: bool) -> SliceCompressionModel:
    name, options = (WRITERS if of_the_past else TOYS)[kind]
    model = build_model(name, **options)
    fill_(model.state_dict(), salt)
    if getattr(model, "bypass", 0):
        model.bypass_s.weight.data *= 0.1  # otherwise hardly a pixel is within 0..1
    model.update(force=True)
    return model.eval()


def toy_image(height: int, width: int, batch: int = 1, seed: int = 0) -> torch.Tensor:
    """(batch, 3, height, width) in [0, 1]: smooth colours with some noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 3, height // 16 + 2, width // 16 + 2, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return (smooth + 0.05 * torch.randn(smooth.shape, generator=generator)).clamp(0, 1)


def toy_hyper(model: SliceCompressionModel, side: int) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """A z_hat of side x side positions, as `code_slices` takes it: with global tokens where the model has them."""
    z_hat = torch.randn(1, model.hyper_channels, side, side)
    return (z_hat, torch.randn(1, model.hyper_channels, model.tokens, 1)) if hasattr(model, "tokens") else z_hat
