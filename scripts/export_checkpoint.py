"""Strip a training checkpoint to what a codec needs: weights in few bytes, with entropy tables filled.

    python scripts/export_checkpoint.py --checkpoint runs/dcae-mse-0.013/best.pt --output model.pt --precision fp16
    python scripts/export_checkpoint.py --checkpoint runs/dcae-mse-0.013/best.pt --output model.safetensors
    python scripts/export_checkpoint.py --checkpoint early.pt late.pt --shares 0.3 0.7 --output model.pt    # their mean

Averaged weights are taken where the run kept them; of several checkpoints, states of one run, the mean. The tables are
those of the weights as they are written; --fit-tables FOLDER counts symbols of its images (a hundred photographs, none
of those that the model is judged on) and fits the tables of y to them, for files 2 to 3 % smaller
(utils/training/fitted_tables.py). With --precision int8 the weights of layers are integers with scales
(models/checkpoints/integers.py): of 10 bits in analysis and synthesis, of 8 elsewhere; all else is fp16. Lambda and
metric of a model of one rate are kept, for searches. A name that ends in .safetensors gets that format: the tensors,
and as metadata the model's name, its constructor's arguments, lambda and metric.
"""

from __future__ import annotations

import argparse
import math
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import project_root  # noqa: F401
import torch
from tqdm import tqdm

from models.checkpoints.integers import Integers, from_integers, to_integers
from models.checkpoints.weights import recorded_model
from utils.cli import UserError, run_program, tell
from utils.codec.checkpoint import load_model, read_checkpoint, save_checkpoint, save_safetensors
from utils.data.images import read_image, to_tensor
from utils.data.listing import find_images
from utils.entropy_coding.frequencies import pack_rows
from utils.files import require_writable

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "int8": torch.float16}
SMALLEST = 1024  # parameters of a weight that is worth integers
FITTED_AT = (1, 20, 40, 60, 80, 100)  # qualities at which symbols are counted
FITTED_SIDE = 512  # pixels


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, nargs="+", required=True, metavar="FILE", help="written by train.py")
    parser.add_argument("--shares", type=float, nargs="+", metavar="S", help="of each in their mean (default: equal)")
    parser.add_argument("--output", type=Path, required=True, help="FILE.pt or FILE.safetensors")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp16")
    parser.add_argument("--fit-tables", type=Path, metavar="DIR", help="fit entropy tables to these images' symbols")
    parser.add_argument("--debug", action="store_true", help="show where an error happened")
    args = parser.parse_args(argv)
    require_writable(args.output, "--output")
    shares = args.shares or [1 / len(args.checkpoint)] * len(args.checkpoint)
    if len(shares) != len(args.checkpoint) or not math.isclose(sum(shares), 1):
        raise UserError(f"--shares {shlex.join(map(str, shares))}: give one for each --checkpoint, 1 in sum")
    if args.output.exists() and any(map(args.output.samefile, filter(Path.exists, args.checkpoint))):
        raise UserError(
            f"--output {args.output}: is a --checkpoint itself, and its training state would go; name another"
        )
    to_fit = find_images(args.fit_tables) if args.fit_tables else []
    from models.checkpoints.loading import not_finite  # here, as CompressAI takes seconds to load
    from utils.codec.codec import fingerprint

    model, kept = mean_model(args.checkpoint, shares)
    precision = PRECISIONS[args.precision]
    integers = integer_weights(model) if args.precision == "int8" else {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(from_integers(integers[name]) if name in integers else parameter.to(precision))
    broken = not_finite(dict(model.named_parameters()))
    if broken:
        raise UserError(
            f"--precision {args.precision}: gives numbers that are not finite in {broken}; try fp32, or other --shares"
        )
    model.update(force=True)
    if to_fit:
        fit_to(model, to_fit)
    learned = {name for name, _ in model.named_parameters()}
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name not in integers}
    weights = {n: t.to(precision) if n in learned else t for n, t in tensors.items()}
    without_padding(weights)
    content = {"format": 1, **kept, "state_dict": weights} | ({"integers": integers} if integers else {})
    if args.output.suffix == ".safetensors":
        save_safetensors(args.output, content)
    else:
        save_checkpoint(args.output, content, deflated=True)
    print(f"{args.output}: {args.output.stat().st_size / 1e6:.1f} MB, model {fingerprint(model).hex()}")


def fit_to(model: torch.nn.Module, paths: Sequence[Path]) -> None:
    """Fit the model's tables of y to the symbols of images: of each the middle, at two of the model's qualities.

    Images that cannot be read are left out, named and counted. Raises UserError where none is left.
    """
    from utils.training.fitted_tables import coded_slices, fit_tables  # here, as CompressAI takes seconds to load

    left_out = []

    def readable() -> Iterator[torch.Tensor]:
        for path in tqdm(paths, "tables", unit="image", disable=None):
            try:
                yield middle(to_tensor(read_image(path)[0]))
            except UserError as error:
                left_out.append(path)
                tell(f"left out: {error}")

    slices = coded_slices(model.eval(), readable(), FITTED_AT if model.variable_rate else [None])
    if not slices:
        raise UserError("--fit-tables: none of its images can be read; name a folder of photographs")
    fit_tables(model, slices)
    tell(f"tables fitted to {len(paths) - len(left_out)} images, {len(left_out)} left out")


def middle(image: torch.Tensor) -> torch.Tensor:
    """The middle of an image (1, 3, H, W), at most FITTED_SIDE pixels a side."""
    height, width = image.shape[-2:]
    top, left = max(0, height - FITTED_SIDE) // 2, max(0, width - FITTED_SIDE) // 2
    return image[..., top : top + FITTED_SIDE, left : left + FITTED_SIDE]


def mean_model(paths: Sequence[Path], shares: Sequence[float]) -> tuple[torch.nn.Module, dict[str, Any]]:
    """A model with the mean of the weights of checkpoints, and what they all record of it, as `record_of` gives it.

    Raises UserError, naming the file, where one is not of train.py, or not of the first one's model, lambda or metric.
    """
    records = [record_of(path) for path in paths]
    for path, record in zip(paths, records):
        if record != records[0]:
            raise UserError(f"--checkpoint {path}: of another model or lambda than {paths[0]}, so they have no mean")
    models = [load_model(path) for path in paths]
    weights = [dict(model.named_parameters()) for model in models]
    with torch.no_grad():
        for name, parameter in weights[0].items():
            parameter.copy_(sum(share * each[name] for share, each in zip(shares, weights)))
    return models[0], records[0]


def record_of(path: Path) -> dict[str, Any]:
    """What an export keeps of a checkpoint beside its weights: "model" and, for one rate, "flags" with lambda and type.

    Raises UserError where train.py has not written it.
    """
    content = read_checkpoint(path)
    model, flags = recorded_model(content), content.get("flags") or {}
    if not model:
        raise UserError(f"--checkpoint {path}: not written by train.py, so there is nothing to strip")
    one_rate = {"flags": {name: flags[name] for name in ("type", "lambda")}} if flags.get("lambda") else {}
    return {"model": model, **one_rate}


def integer_weights(model: torch.nn.Module) -> dict[str, Integers]:
    """The weights of large layers as integers, under their names."""
    transforms = tuple(f"{name}." for name in model.transform_names)
    layers = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.ConvTranspose2d)
    weights = {f"{n}.weight": m.weight.detach() for n, m in model.named_modules() if isinstance(m, layers)}
    return {
        name: to_integers(weight, 10 if name.startswith(transforms) else 8)
        for name, weight in weights.items()
        if weight.numel() >= SMALLEST
    }


def without_padding(weights: dict[str, torch.Tensor]) -> None:
    """Replace tables (rows, longest) by their rows one after the other, (n,): most of the Gaussian's is padding."""
    for name in [name for name in weights if name.endswith("._quantized_cdf")]:
        lengths = weights[name.replace("_quantized_cdf", "_cdf_length")]
        weights[name] = torch.from_numpy(pack_rows(weights[name].numpy(), lengths.numpy()))


if __name__ == "__main__":
    run_program(main)
