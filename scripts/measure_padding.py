"""What padding costs: bytes of files whose sides are no multiples of 128, for each way of filling up the sides.

    python scripts/measure_padding.py --data photos [--checkpoint FILE] [--quality Q]

Crops of each image in sizes that need much and little padding are compressed; the sum of the bytes is printed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import project_root  # noqa: F401
import torch

from utils.cli import run_program
from utils.codec.codec import Codec
from utils.data.images import read_image, to_tensor
from utils.data.listing import find_images
from utils.evaluation.curve import Point, load_for
from utils.tables import format_table

SIZES = ((130, 130), (200, 312), (255, 383), (300, 500), (400, 450))
MODES = ("zero", "replicate", "reflect")


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of images, at least 400x500")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--quality", type=float, help="1..100, of variable-rate models (default: 50)")
    args = parser.parse_args(argv)
    model, quality = load_for(Point(args.checkpoint, args.quality, "", None), torch.device("cpu"))
    images = [to_tensor(read_image(p)[0]) for p in find_images(args.data)]
    rows, totals = [], dict.fromkeys(MODES, 0)
    for height, width in SIZES:
        crops = [x[..., :height, :width] for x in images]
        sizes = {mode: sum(code(model, x, mode, quality) for x in crops) for mode in MODES}
        totals = {mode: totals[mode] + sizes[mode] for mode in MODES}
        rows.append((f"{height}x{width}", *(str(sizes[mode]) for mode in MODES)))
    print(format_table(("size", *MODES), rows, ("total", *(str(totals[mode]) for mode in MODES))))


def code(model: torch.nn.Module, x: torch.Tensor, mode: str, quality: float | None) -> int:
    """Bytes of the file of one crop (1, 3, H, W) in [0, 1]."""
    return len(Codec(model, "fp32", mode).compress(x, quality))


if __name__ == "__main__":
    run_program(main)
