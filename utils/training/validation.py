"""Validation while training: whole images, through the code of eval.py, shared among the processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from models.layers.dictionary import DictionaryCrossAttention
from models.layers.gain import lambda_of_quality
from utils.evaluation.attention import watching
from utils.evaluation.evaluation import Record, average, evaluate_images, mean
from utils.metrics import MS_SSIM_SMALLEST
from utils.training.distributed import Processes, any_of, gathered
from utils.training.losses import balance, rate_distortion

if TYPE_CHECKING:
    from models.base import SliceCompressionModel

TOO_SMALL = f"smaller than {MS_SSIM_SMALLEST} pixels, so without MS-SSIM"
BEST_NEEDS = "these weights cannot become the best; see to the validation images"
NAMED = 3  # images left out that are named
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
    be read, a reconstruction that is not finite) are left out, counted as "left_out" and named with the reason in
    "left_out_why". Where not one gives a number, "loss" is None. Returns None where `stopping` became true on the way.
    """
    from utils.codec.codec import Codec  # here, as CompressAI takes seconds to load

    by_quality: dict[str, dict[str, Any]] = {}
    codec = Codec(model, "fp32")
    left_out: dict[str, str] = {}
    for quality, weight in lambdas.items():
        records: list[Record] = []
        failures: list[tuple[str, str]] = []
        for path in paths[processes.rank :: processes.count]:
            if stopping():
                break
            with dictionary_use(codec.quick) as use:
                done = evaluate_images(
                    codec, [path], quality=quality, keep=keep,
                    failed=lambda p, e, to=failures: to.append((str(p), reason_of(e, p))),
                    criterion=lambda out, x, weight=weight: loss_of(out, x, weight, metric, model.slice_sizes),
                )  # fmt: skip
            records += [{**record, "dictionary": use()} for record in done]
        failures += [(record["name"], TOO_SMALL) for record in records if record["loss"] is None]
        failures = gathered(processes, failures)
        records = [record for record in gathered(processes, records) if record["loss"] is not None]
        if any_of(processes, stopping(), device):
            return None
        left_out |= dict(failures)
        by_quality[str(quality)] = {**summary(records), "left_out": len(failures)}
    if len(by_quality) == 1:
        return {**next(iter(by_quality.values())), "left_out_why": left_out}
    if any(values["loss"] is None for values in by_quality.values()):
        return {"loss": None, "quality": by_quality, "left_out_why": left_out}
    span = model.lambda_range
    losses = [balance(weight, span) * by_quality[str(quality)]["loss"] for quality, weight in lambdas.items()]
    return {"loss": mean(losses), "quality": by_quality, "left_out_why": left_out}


def reason_of(error: Exception, path: Path) -> str:
    """Why an image has no number, in one line without its name."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.removeprefix(f"{path}: ")


def describe_left_out(left_out: dict[str, str], images: int) -> str:
    """How many of the validation images, and the first of them with the reasons."""
    named = [f"{name} ({reason})" for name, reason in left_out.items()]
    more = f" and {len(named) - NAMED} more" if len(named) > NAMED else ""
    return f"{len(named)} of {images} images: {', '.join(named[:NAMED])}{more}"


def loss_of(out: dict[str, Any], x: Tensor, weight: float, metric: str, slice_sizes: list[int]) -> float | None:
    """The training loss of one image (1, 3, H, W), without noise; None where it is not defined."""
    if metric == "ms-ssim" and min(x.shape[-2:]) < MS_SSIM_SMALLEST:
        return None
    return float(rate_distortion(out, x, torch.full((1,), weight, device=x.device), metric, slice_sizes)["loss"])


def summary(records: list[Record]) -> dict[str, Any]:
    """Means of what is worth logging; of no records at all a loss that is None."""
    if not records:
        return {"loss": None, "images": 0}
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
    paid: dict[DictionaryCrossAttention, list[Tensor]] = {}  # mean attention to each entry, by stripe of rows

    def share(means: list[Tensor]) -> float:
        use = torch.stack(means).mean(0)  # (entries,); stripes are about equally high
        entropy = -(use * use.clamp(min=1e-12).log()).sum()
        return math.exp(float(entropy)) / len(use)

    with ExitStack() as stack:
        for layer in (module for module in model.modules() if isinstance(module, DictionaryCrossAttention)):
            means = paid.setdefault(layer, [])
            stack.enter_context(watching(layer, lambda weights, to=means: to.append(weights.mean((0, 1, 2, 3)))))
        yield lambda: [share(means) for means in paid.values()]


def format_validation(values: dict[str, Any]) -> Iterable[str]:
    """Lines for a person: one, or one a quality."""
    for quality, entry in values.get("quality", {"None": values}).items():
        label = "" if quality == "None" else f"quality {float(quality):g}: "
        if entry["loss"] is None:
            yield f"  {label}not one image gives a number, so {BEST_NEEDS}"
            continue
        ms_ssim = f"  ms-ssim {entry['ms_ssim']:.5f}" if entry["ms_ssim"] is not None else ""
        yield f"  {label}loss {entry['loss']:.4f}  bpp {entry['bpp']:.4f}  psnr {entry['psnr']:.3f}{ms_ssim}"
