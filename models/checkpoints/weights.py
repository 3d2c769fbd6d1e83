"""Where in a checkpoint the weights are, and under which names the models know them.

People's programs wrap a model (`module.`, `_orig_mod.`, `model.`, `net.`), keep its weights under a key of their own,
beside averaged ones, and CompressAI renamed the prior's parameters in 1.2.7.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from models.checkpoints.reading import module_state

StateDict = dict[str, Tensor]
DEPTH = 4  # of dictionaries in dictionaries
KEYS = ("state_dict", "model_state_dict", "model", "net", "params", "weights", "generator")  # in this order, if several
AVERAGED = re.compile(r"(^|[._])ema([._]|$)|averaged|swa_model")  # weights to use before those that are trained
WRAPPERS = re.compile(r"(^|(?<=\.))(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
COUNTERS = re.compile(r"(^|\.)total_(ops|params)$")  # what thop leaves in a model that it has measured
CODECS = "latent_codec."  # what CompressAI puts before the names of all that is not a transform
ANCHOR = "entropy_bottleneck.quantiles"  # every model has it, and some once more, deeper
OLD_PRIOR = re.compile(r"entropy_bottleneck\._(matrix|bias|factor)(\d)$")
NEW_PRIOR = {"matrix": "matrices", "bias": "biases", "factor": "factors"}


def find_weights(content: dict[Any, Any]) -> StateDict:
    """The weights that a checkpoint holds, under published names; the averaged ones where there are both.

    The first dictionary of tensors among those that hold a model's prior, else the first of all, else empty. A
    checkpoint that says which model it is (written by this project) has them under "state_dict".
    """
    if recorded_model(content):
        weights = content.get("state_dict")
        return published_names(weights if isinstance(weights, dict) else {})
    found = sorted(_state_dicts(content), key=lambda item: _rank(item[0]))
    named = [published_names(weights) for _, weights in found]
    return next((weights for weights in named if ANCHOR in weights), named[0] if named else {})


def recorded_model(content: dict[Any, Any]) -> dict[str, Any] | None:
    """{"name", "config"} where the checkpoint records them."""
    model = content.get("model")
    own = isinstance(model, dict) and isinstance(model.get("name"), str) and isinstance(model.get("config"), dict)
    return model if own else None


def _state_dicts(content: dict[Any, Any], keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], StateDict]]:
    """All dictionaries of named tensors in dictionaries of dictionaries, with the keys that lead there."""
    content = module_state(content) or content
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if tensors:
        yield keys, tensors
    for key, value in content.items() if len(keys) < DEPTH else ():
        if isinstance(value, dict):
            yield from _state_dicts(value, (*keys, str(key)))


def _rank(keys: tuple[str, ...]) -> tuple:
    averaged = any(AVERAGED.search(key) for key in keys)
    return not averaged, min((KEYS.index(key) for key in keys if key in KEYS), default=len(KEYS)), len(keys)


def published_names(weights: dict[str, Any]) -> StateDict:
    """Tensors under the names of CompressAI 1.2.7 and later, without the names of what the model is wrapped in.

    What is no tensor is left out, and what stands beside the wrapped model: a loss with buffers, a discriminator.
    """
    tensors = {WRAPPERS.sub("", str(name)): value for name, value in weights.items() if isinstance(value, Tensor)}
    prefix = _prefix(tensors)
    return {
        OLD_PRIOR.sub(lambda m: f"entropy_bottleneck.{NEW_PRIOR[m[1]]}.{m[2]}", name.removeprefix(prefix)): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix) and not COUNTERS.search(name)
    }


def _prefix(tensors: StateDict) -> str:
    """What stands before every name of the model: of several models, before the averaged one's."""
    ends = (name.removesuffix(ANCHOR) for name in tensors if name.endswith(ANCHOR))
    before = sorted({end.split(CODECS)[0] for end in ends}, key=len)
    outer = [p for p in before if not any(p != other and p.startswith(other) for other in before)]
    return min(outer, key=lambda p: not AVERAGED.search(p), default="")
