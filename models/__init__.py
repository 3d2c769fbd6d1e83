"""Learned image compression models: names, construction, loading.

model = build_model("dcae")                      # the paper's full-size model, fresh weights
model = build_model("dcae", msfa=0)              # any size is an argument
model = load_model("dcae_0.0130.pth.tar")        # model and size are found out from the file
"""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from models.base import SliceCompressionModel

STRIDE_Y, STRIDE_Z = 16, 64  # pixels a latent position covers, in y and in z

# Each model's file and class, and which of its constructor's arguments the name stands for. They are imported when they
# are built, as CompressAI takes seconds to load.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "dcae": ("dcae.DCAE", {}),
    "dcae-ablation": ("dcae.DCAE", {"depths": (0, 0, 4)}),
    "tcm-small": ("tcm.TCM", {"N": 64}),
    "tcm-middle": ("tcm.TCM", {"N": 96}),
    "tcm-large": ("tcm.TCM", {"N": 128}),
    "icwem": ("icwem.ICWEM", {}),
    "elic": ("elic.ELIC", {}),
    # the paper's Table 6: its entropy model under other autoencoders, and added to ELIC's
    "tcm-dictionary": ("plug_and_play.TCMDictionary", {}),
    "elic-dictionary": ("plug_and_play.ELICDictionary", {}),
    "elic-plus-dictionary": ("elic.ELIC", {"dictionary_entries": 128}),
}

# The paper's Tables 2 to 5, with the autoencoder of "dcae-ablation", which has 128 entries and m = 3.
ABLATIONS = {
    "baseline": {"dictionary_entries": 0},
    **{f"entries-{entries}": {"dictionary_entries": entries, "msfa": 0} for entries in (64, 128, 192, 256)},
    **{f"msfa-{m}": {"msfa": m} for m in (1, 2, 4)},
}
MODELS |= {f"dcae-ablation-{name}": ("dcae.DCAE", {"depths": (0, 0, 4), **o}) for name, o in ABLATIONS.items()}
MODELS["dcae-ablation-global-tokens"] = ("global_tokens.GlobalTokenModel", {"depths": (0, 0, 4)})


def build_model(name: str, **options: Any) -> SliceCompressionModel:
    """A freshly initialised model; `options` are arguments of its class, and all of them become `model.config`.

    Raises ValueError for a name that is not in MODELS, TypeError for an option that the model does not have.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; there are {', '.join(MODELS)}")
    model = class_of(name)(**MODELS[name][1] | options)
    model.config = default_config(name) | as_lists(options)
    return model


def class_of(name: str) -> type[SliceCompressionModel]:
    """The class of the named model."""
    file, kind = MODELS[name][0].split(".")
    return getattr(import_module(f"models.{file}"), kind)


def default_config(name: str) -> dict[str, Any]:
    """The constructor's arguments that the named model stands for, as `model.config` records them.

    `**` in a signature stands for the arguments of the class above.
    """
    model, found = class_of(name), {}
    for constructor in (vars(kind)["__init__"] for kind in model.__mro__ if "__init__" in vars(kind)):
        parameters = inspect.signature(constructor).parameters.values()
        found |= {p.name: p.default for p in parameters if p.default is not p.empty and p.name not in found}
        if all(p.kind is not p.VAR_KEYWORD for p in parameters):
            break
    return as_lists({k: v for k, v in found.items() if k not in model.fixed} | MODELS[name][1])


def as_lists(options: dict[str, Any]) -> dict[str, Any]:
    """The options as JSON would have them, with lists for tuples."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}


def load_model(path: str | Path, device: str | torch.device = "cpu") -> SliceCompressionModel:
    """The model that a checkpoint holds, in eval mode with entropy tables ready.

    Raises CheckpointError, naming file and cause, for a file that is no checkpoint or whose tensors fit no model.
    """
    return import_module("models.checkpoints.loading").load_model(path, device)  # it loads CompressAI
