"""Strip a training checkpoint to what a codec needs: weights in fp32 or fp16, with entropy tables filled.

    python scripts/export_checkpoint.py --checkpoint runs/dcae-mse-0.013/best.pt --output model.pt --precision fp16

Averaged weights are taken where the run kept them. The tables are those of the weights as they are written.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import project_root  # noqa: F401
import torch

from models import load_model
from utils.cli import UserError, run_program
from utils.codec.checkpoint import read_checkpoint, save_checkpoint
from utils.entropy_coding.frequencies import pack_rows
from utils.files import require_writable

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16}


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True, help="written by train.py")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--precision", choices=PRECISIONS, default="fp16")
    parser.add_argument("--debug", action="store_true", help="show where an error happened")
    args = parser.parse_args(argv)
    require_writable(args.output, "--output")
    from utils.codec.codec import fingerprint  # here, as CompressAI takes seconds to load

    model, precision = load_model(args.checkpoint), PRECISIONS[args.precision]
    record = read_checkpoint(args.checkpoint).get("model")
    if not record:
        raise UserError(f"--checkpoint {args.checkpoint}: not written by train.py, so there is nothing to strip")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(precision))
    model.update(force=True)
    learned = {name for name, _ in model.named_parameters()}
    weights = {n: t.to(precision) if n in learned else t for n, t in model.state_dict().items()}
    without_padding(weights)
    save_checkpoint(args.output, {"format": 1, "model": record, "state_dict": weights})
    print(f"{args.output}: {args.output.stat().st_size / 1e6:.1f} MB, model {fingerprint(model).hex()}")


def without_padding(weights: dict[str, torch.Tensor]) -> None:
    """Table rows one after the other: most of the Gaussian table is padding up to its widest row."""
    for name in [name for name in weights if name.endswith("._quantized_cdf")]:
        lengths = weights[name.replace("_quantized_cdf", "_cdf_length")]
        weights[name] = torch.from_numpy(pack_rows(weights[name].numpy(), lengths.numpy()))


if __name__ == "__main__":
    run_program(main)
