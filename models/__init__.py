"""Learned image compression models: names, constructors, loading.

model = build_model("dcae")                      # the paper's full-size model, fresh weights
model = build_model("dcae", msfa=0)              # any size is an argument
model = load_model("dcae_0.0130.pth.tar")        # model and size are found out from the file
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from models.base import SliceCompressionModel
    from models.dcae import DCAE
    from models.icwem import ICWEM
    from models.tcm import TCM

STRIDE_Y, STRIDE_Z = 16, 64  # pixels a latent position covers, in y and in z

__all__ = ["DCAE", "ICWEM", "MODELS", "TCM", "build_model", "default_config", "load_model"]

_HOMES = {
    "DCAE": "models.dcae",
    "TCM": "models.tcm",
    "ICWEM": "models.icwem",
    "ELIC": "models.elic",
    "GlobalTokenModel": "models.global_tokens",
    "TCMDictionary": "models.plug_and_play",
    "ELICDictionary": "models.plug_and_play",
}


def __getattr__(name: str) -> Any:
    """Import a model when it is first asked for: TCM and ICWEM need CompressAI's layers, which take seconds to load."""
    if name not in _HOMES:
        raise AttributeError(f"module 'models' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def _construct(class_name: str, **options: Any) -> SliceCompressionModel:
    return __getattr__(class_name)(**options)


MODELS = {
    "dcae": partial(_construct, "DCAE"),
    "dcae-ablation": partial(_construct, "DCAE", depths=(0, 0, 4)),
    "tcm-small": partial(_construct, "TCM", N=64),
    "tcm-middle": partial(_construct, "TCM", N=96),
    "tcm-large": partial(_construct, "TCM", N=128),
    "icwem": partial(_construct, "ICWEM"),
    "elic": partial(_construct, "ELIC"),
    # the paper's Table 6: its entropy model under other autoencoders, and added to ELIC's
    "tcm-dictionary": partial(_construct, "TCMDictionary"),
    "elic-dictionary": partial(_construct, "ELICDictionary"),
    "elic-plus-dictionary": partial(_construct, "ELIC", dictionary_entries=128),
}

# The paper's Tables 2 to 5, with the autoencoder of "dcae-ablation", which has 128 entries and m = 3.
ABLATIONS = {
    "baseline": {"dictionary_entries": 0},
    "entries-64": {"dictionary_entries": 64, "msfa": 0},
    "entries-128": {"msfa": 0},
    "entries-192": {"dictionary_entries": 192, "msfa": 0},
    "entries-256": {"dictionary_entries": 256, "msfa": 0},
    "msfa-1": {"msfa": 1},
    "msfa-2": {"msfa": 2},
    "msfa-4": {"msfa": 4},
}
MODELS |= {
    f"dcae-ablation-{name}": partial(_construct, "DCAE", depths=(0, 0, 4), **options)
    for name, options in ABLATIONS.items()
}
MODELS["dcae-ablation-global-tokens"] = partial(_construct, "GlobalTokenModel", depths=(0, 0, 4))


def build_model(name: str, **options: Any) -> SliceCompressionModel:
    """A freshly initialised model; `options` are arguments of its class.

    Raises ValueError for a name that is not in MODELS, TypeError for an option that the model does not have.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; there are {', '.join(MODELS)}")
    return MODELS[name](**options)


def default_config(name: str) -> dict[str, Any]:
    """The constructor's arguments that the named model stands for, as `model.config` records them."""
    from models.configuration import defaults_of

    constructor = MODELS[name]
    values = defaults_of(__getattr__(constructor.args[0])) | constructor.keywords
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def load_model(path: str | Path, device: str | torch.device = "cpu") -> SliceCompressionModel:
    """The model that a checkpoint holds, in eval mode with entropy tables ready.

    Raises CheckpointError (models/checkpoints/reading.py), naming file and cause, for a file that is no checkpoint, of
    no known model, or whose tensors are not exactly those of its model.
    """
    from models.checkpoints import loading  # here, as CompressAI takes seconds to load

    return loading.load_model(path, device)
