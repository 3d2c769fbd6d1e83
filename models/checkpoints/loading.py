"""Checkpoint to model: which model a file holds, and of what size, is read off its tensors.

Released checkpoints say nothing about themselves beyond names and shapes; they may carry a leading `module.` after
multi-GPU training, CompressAI's names from before 1.2.7, and entropy tables empty, filled or absent
(models/checkpoints/weights.py). Files written by this project record their constructor's arguments.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from models import build_model
from models.base import SliceCompressionModel
from models.checkpoints.integers import from_integers
from models.checkpoints.reading import CheckpointError, few, read_content
from models.checkpoints.weights import CODECS, StateDict, find_weights, recorded_model
from models.layers.entropy_models import CORRECTED
from utils.entropy_coding.frequencies import unpack_rows

FITTED = f"gaussian_conditional.{CORRECTED}"  # where tables were fitted
TABLES = re.compile(
    rf"(entropy_bottleneck|gaussian_conditional)\.(_offset|_quantized_cdf|_cdf_length|scale_table|{CORRECTED})$"
)
LAMBDA_IN_NAME = re.compile(r"(?:^|[_-]|lambda|lmbda)(\d+\.\d+)(?!\d)")


def load_model(path: str | Path, device: str | torch.device = "cpu") -> SliceCompressionModel:
    """The model that a checkpoint holds, in eval mode with entropy tables ready.

    Raises CheckpointError, naming file and cause, for a file that is no checkpoint, of no known model, whose tensors
    are not exactly those of its model, or hold a number that is not finite.
    """
    try:
        content = read_content(path)
        model = model_of(content)
        if not model.variable_rate:
            model.trained_for = trained_for(Path(path).name, content.get("flags") or {})
        return model.to(device).eval()
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def model_of(content: dict[Any, Any]) -> SliceCompressionModel:
    """The model of what `read_content` read. Raises ValueError, saying why there is none."""
    weights = find_weights(content)
    try:
        integers = content.get("integers", {}) if recorded_model(content) else {}
        weights |= {name: from_integers(parts) for name, parts in integers.items()}
    except (KeyError, RuntimeError, AttributeError, TypeError) as error:
        raise ValueError(f"its integer weights are damaged ({error}); fetch it again") from error
    weights = {n: t.float() if t.is_floating_point() else t for n, t in weights.items()}
    name, config = identify(content, weights)
    try:
        model = build_model(name, **config)
    except (ValueError, TypeError, KeyError, RuntimeError, ZeroDivisionError) as error:
        raise ValueError(f"no model that this program knows ({error})") from error
    problems = differences(model, weights)
    if problems:
        raise ValueError(f"does not hold the tensors of {name}: {problems}")
    broken = not_finite(weights)
    if broken:
        raise ValueError(f"holds numbers that are not finite (NaN or Inf) in {broken}; use an earlier checkpoint")
    try:
        model.load_state_dict(with_whole_tables(weights), strict=False)
        model.update()
        model.gaussian_conditional.tables()
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"its entropy tables are damaged ({str(error).splitlines()[0]}); fetch it again") from error
    return model


def identify(content: dict[Any, Any], weights: StateDict) -> tuple[str, dict[str, Any]]:
    """(name, constructor arguments), as recorded or as the tensors say. Raises ValueError where they say nothing."""
    recorded = recorded_model(content)
    if recorded:
        return recorded["name"], recorded["config"]
    if not weights:
        keys = few([str(key) for key in content]) or "nothing"
        raise ValueError(f"no model that this program knows: no tensors in it, only {keys}; save model.state_dict()")
    try:
        return detect(weights)
    except (ValueError, KeyError, IndexError) as error:
        missing = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
        shapes = few([f"{name} {tuple(tensor.shape)}" for name, tensor in weights.items()])
        raise ValueError(f"no model that this program knows: {missing}; its tensors are {shapes}") from error


def trained_for(name: str, flags: dict[str, Any]) -> tuple[str, float] | None:
    """Metric and lambda of a model of one rate: as train.py recorded them, or as the checkpoint's name says.

    The authors' names end in lambda (dcae_0.0130.pth.tar): 0.0018 to 0.05 for MSE, 2.4 to 60.5 for MS-SSIM. None where
    neither says it.
    """
    if flags.get("lambda"):
        return flags.get("type") or "mse", float(flags["lambda"])
    found = [value for number in LAMBDA_IN_NAME.findall(name) if (value := float(number)) > 0]
    return ("mse" if found[-1] < 1 else "ms-ssim", found[-1]) if found else None


def with_whole_tables(weights: StateDict) -> StateDict:
    """The weights, entropy tables as (rows, longest) where exported checkpoints leave out what pads the rows.

    Raises ValueError where a table's lengths do not fit.
    """
    whole = dict(weights)
    for name, lengths in weights.items():
        cdf = name.replace("_cdf_length", "_quantized_cdf")
        if cdf != name and cdf in weights and weights[cdf].dim() == 1 and weights[cdf].numel():
            whole[cdf] = torch.from_numpy(unpack_rows(weights[cdf].numpy(), lengths.numpy()))
    return whole


def not_finite(weights: StateDict) -> str:
    """The names of the tensors that hold NaN or Inf, in words; empty where there are none."""
    floating = {n: t for n, t in weights.items() if t.is_floating_point() and t.numel()}
    return few([n for n, t in floating.items() if not torch.stack(torch.aminmax(t)).isfinite().all()])


def differences(model: SliceCompressionModel, weights: StateDict) -> str:
    """What is missing, left over or of another shape, in words; empty where all fits. Tables may be absent."""
    own = model.state_dict()
    missing = [n for n in own if n not in weights and not TABLES.search(n)]
    surplus = [n for n in weights if n not in own and n != FITTED]
    shapes = [
        f"{n} is {tuple(weights[n].shape)} instead of {tuple(own[n].shape)}"
        for n in own
        if n in weights and not TABLES.search(n) and weights[n].shape != own[n].shape
    ]
    parts = (("missing", missing), ("not expected", surplus), ("of another shape", shapes))
    return "; ".join(f"{what}: {few(names)}" for what, names in parts if names)


def detect(weights: StateDict) -> tuple[str, dict[str, Any]]:
    """(name, constructor arguments) from names and shapes. Raises ValueError or KeyError where they fit no model."""
    if "h_z_s1.0.weight" in weights:
        return "dcae", _detect_dcae(weights)
    if "h_mean_s.0.conv.weight" in weights:
        invertible = "inv.operations.0.weight" in weights
        return ("icwem", _detect_icwem(weights)) if invertible else ("tcm-large", _detect_tcm(weights))
    if any(CODECS in name for name in weights):
        raise ValueError(
            "it has the names that CompressAI gives to its own DCAE or TCM, whose layers order channels differently; "
            "use the checkpoint that the paper's authors released"
        )
    raise ValueError(
        "its tensors are neither DCAE's nor TCM's nor ICWEM's, which have h_z_s1.0.weight or h_mean_s.0.conv.weight"
    )


def _count(weights: StateDict, pattern: str) -> int:
    """How many different numbers stand where `pattern` has its group."""
    return len({match[1] for match in (re.match(pattern, name) for name in weights) if match})


def _heads(weights: StateDict, prefix: str) -> tuple[int, int]:
    """(head width, window side) of the window attention at `prefix`."""
    heads, span, _ = weights[f"{prefix}.relative_position_params"].shape
    return weights[f"{prefix}.linear.weight"].shape[0] // heads, (span + 1) // 2


def _entropy_sizes(weights: StateDict) -> dict[str, Any]:
    count = _count(weights, r"cc_mean_transforms\.(\d+)\.")
    sizes = [weights[f"cc_mean_transforms.{i}.4.weight"].shape[0] for i in range(count)]
    slices = count if len(set(sizes)) == 1 else sizes
    first, second = (weights[f"cc_mean_transforms.0.{layer}.weight"].shape[0] for layer in (0, 2))
    return {"slices": slices, "hidden": [first, second], "variable_rate": "gain.log_gain" in weights}


def _detect_dcae(weights: StateDict) -> dict[str, Any]:
    stages = [1, 3, 5]
    channels = [weights[f"g_a.{i}.conv.weight"].shape[0] for i in stages]
    depths = [_count(weights, rf"g_a\.{i}\.layers\.(\d+)\.") for i in stages]
    heads = [_heads(weights, f"g_a.{i}.layers.0.msa") if d else None for i, d in zip(stages, depths)]
    config = {
        "channels": channels,
        "depths": depths,
        "head_dims": [h[0] if h else default for h, default in zip(heads, (8, 16, 32))],
        "window": next((h[1] for h in heads if h), 8),
        "N": weights["entropy_bottleneck.quantiles"].shape[0],
        "M": weights["g_a.6.weight"].shape[0],
        **_entropy_sizes(weights),
    }
    config["hyper_head_dim"], config["hyper_window"] = _heads(weights, "h_a.1.layers.0.msa")
    features = weights["h_z_s1.2.conv.weight"].shape[1]
    answers = weights["cc_mean_transforms.0.0.weight"].shape[1] - 2 * features  # of a support of both and no more
    widths = {"feature_channels": features} | ({"answer_channels": answers} if "dt" in weights else {})
    other = {key: width for key, width in widths.items() if width != config["M"]}
    if "bypass_a.weight" in weights:
        other["bypass"] = weights["bypass_a.weight"].shape[0]
    return {**config, **other, **_detect_dictionary(weights)}


def _detect_dictionary(weights: StateDict) -> dict[str, int]:
    if "dt" not in weights:
        return {"dictionary_entries": 0}
    entries, width = weights["dt"].shape
    heads = weights["dt_cross_attention.0.scale"].shape[0]
    return {
        "dictionary_entries": entries,
        "dictionary_heads": heads,
        "dictionary_head_dim": width // heads,
        "msfa": _count(weights, r"dt_cross_attention\.0\.msa\.dense\.conv_layers\.(\d+)\."),
    }


def _detect_tcm(weights: StateDict) -> dict[str, Any]:
    heads = [_heads(weights, f"g_a.{i}.trans_block.msa") for i in (1, 4, 7)]
    hyper_head_dim, hyper_window = _heads(weights, "h_a.1.trans_block.msa")
    attention = "atten_mean.0.0.non_local_block.block_1.msa"
    return {
        "N": weights["g_a.0.conv1.weight"].shape[0] // 2,
        "M": weights["g_a.9.weight"].shape[0],
        "hyper_channels": weights["entropy_bottleneck.quantiles"].shape[0],
        "head_dims": [h for h, _ in heads],
        "window": heads[0][1],
        "hyper_head_dim": hyper_head_dim,
        "hyper_window": hyper_window,
        "attention_channels": weights[f"{attention}.linear.weight"].shape[0],
        "attention_head_dim": _heads(weights, attention)[0],
        **_entropy_sizes(weights),
    }


def _detect_icwem(weights: StateDict) -> dict[str, Any]:
    enhancement = {
        "enhancement_width": weights["enh.forw_enh.layers.1.weight"].shape[0],
        "growth": weights["enh.forw_enh.layers.0.conv1.weight"].shape[0],
    }
    return enhancement | _detect_tcm(weights)
