"""Validation while training: whole images, through the code of eval.py, shared among the processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.base import SliceCompressionModel
from models.layers.dictionary import DictionaryCrossAttention
from models.layers.gain import lambda_of_quality
from utils.evaluation.evaluation import Record, average, evaluate_images, mean
from utils.training.distributed import Processes, any_of, gathered
from utils.training.losses import WEIGHT_OF_METRIC, balance

QUALITIES = (1.0, 50.5, 100.0)  # the range's ends and its middle, for variable-rate models
SHOWN = ("bpp", "bpp_y", "bpp_z", "psnr", "ms_ssim", "ms_ssim_db", "mse_float", "ms_ssim_float")


def validate(
    model: SliceCompressionModel,
    paths: Sequence[Path],
    lambdas: dict[float | None, float],
    metric: str,
    processes: Processes,
    device: torch.device,
    stopping: Callable[[], bool],
    keep: Callable[[Path, np.ndarray], None] | None = None,
) -> dict[str, Any] | None:
    """Means over the images: loss, rates, PSNR and so on; with several qualities also one entry a quality.

    `lambdas` maps each quality to evaluate (None for models that have one) to its lambda; "loss" is then the mean over
    the qualities, balanced as in training. Images whose loss is not defined (MS-SSIM of a small one, pixels that cannot
    be read) are left out and counted. Returns None where `stopping` became true on the way, or where not one image
    worked.
    """
    by_quality: dict[str, dict[str, Any]] = {}
    for quality, weight in lambdas.items():
        records: list[Record] = []
        failures: list[str] = []
        for path in paths[processes.rank :: processes.count]:
            if stopping():
                break
            with dictionary_use(model) as use:
                done = evaluate_images(
                    model,
                    [path],
                    device=device,
                    quality=quality,
                    keep=keep,
                    failed=lambda p, e, to=failures: to.append(str(p)),
                )
            records += [{**r, "loss": loss_of(r, weight, metric), "dictionary": use()} for r in done]
        failed = len(gathered(processes, failures))
        records = [record for record in gathered(processes, records) if record["loss"] is not None]
        if any_of(processes, stopping(), device) or not records:
            return None
        by_quality[str(quality)] = {**summary(records), "left_out": failed}
    if len(by_quality) == 1:
        return next(iter(by_quality.values()))
    span = model.lambda_range
    losses = [balance(weight, span) * by_quality[str(quality)]["loss"] for quality, weight in lambdas.items()]
    return {"loss": mean(losses), "quality": by_quality}


def loss_of(record: Record, weight: float, metric: str) -> float | None:
    """The training loss of one image, without noise; None where it is not defined."""
    if metric == "mse":
        return weight * WEIGHT_OF_METRIC[metric] * record["mse_float"] + record["bpp"]
    similarity = record["ms_ssim_float"]
    return None if similarity is None else weight * (1 - similarity) + record["bpp"]


def summary(records: list[Record]) -> dict[str, Any]:
    """Means of what is worth logging."""
    means = average(records)
    use = [mean(values) for values in zip(*(record["dictionary"] for record in records))]
    result = {"loss": mean(record["loss"] for record in records), **{name: means[name] for name in SHOWN}}
    return {**result, "images": len(records), **({"dictionary_use": use} if use else {})}


def lambdas_to_validate(model: SliceCompressionModel, weight: float) -> dict[float | None, float]:
    """The qualities to validate, each with its lambda."""
    if not model.variable_rate:
        return {None: weight}
    return {quality: float(lambda_of_quality(quality, model.lambda_range)) for quality in QUALITIES}


@contextmanager
def dictionary_use(model: nn.Module) -> Iterator[Callable[[], list[float]]]:
    """Within the block, watch the dictionary attentions; the result gives for each slice the use of the dictionary:

    exp(entropy) of how much attention each entry gets over all places and heads, as a share of the entries: 1 where
    all are used alike, 1/entries where only one is. An empty list for models without a dictionary.
    """
    attentions = [module for module in model.modules() if isinstance(module, DictionaryCrossAttention)]
    shares: list[float] = []

    def watch(module: DictionaryCrossAttention, inputs: tuple[Tensor, Tensor], queries: Tensor) -> None:
        shares.append(use_of(module, queries, model.dt))

    hooks = [
        module.q_trans.register_forward_hook(lambda _, i, out, module=module: watch(module, i, out))
        for module in attentions
    ]
    try:
        yield lambda: shares
    finally:
        for hook in hooks:
            hook.remove()


def use_of(module: DictionaryCrossAttention, queries: Tensor, dictionary: Tensor) -> float:
    """The use of the dictionary's entries (see above) under queries (..., width)."""
    keys = module.k(module.dict_ln(dictionary)).unflatten(-1, (module.heads, -1))  # (entries, heads, head_dim)
    split = queries.flatten(0, -2).unflatten(-1, (module.heads, -1))  # (places, heads, head_dim)
    attention = torch.einsum("phd,nhd->hpn", split.float() * module.scale.view(1, -1, 1), keys.float())
    use = attention.softmax(-1).mean((0, 1))  # (entries,)
    entropy = -(use * use.clamp(min=1e-12).log()).sum()
    return math.exp(float(entropy)) / len(dictionary)


def format_validation(values: dict[str, Any]) -> Iterable[str]:
    """Lines for a person: one, or one a quality."""
    for quality, entry in values.get("quality", {"None": values}).items():
        label = "" if quality == "None" else f"quality {float(quality):g}: "
        ms_ssim = f"  ms-ssim {entry['ms_ssim']:.5f}" if entry["ms_ssim"] is not None else ""
        yield f"  {label}loss {entry['loss']:.4f}  bpp {entry['bpp']:.4f}  psnr {entry['psnr']:.3f}{ms_ssim}"
