"""How far scales differ between ways of computing them, in float32 and in float64, and how often files would be lost.

    python scripts/measure_portability.py --data kodak --checkpoint FILE
    python scripts/measure_portability.py --data kodak --model dcae      # weights of utils/measuring/fill_weights.py

The entropy path runs on the same symbols with 1 and 2 threads, with oneDNN and without, with fused and with explicit
attention. Printed are the relative differences of the scales that lie inside the table, how many symbols got another
level, and how many that predicts: a level is 12.3 % wide, so a difference d crosses an edge with probability d / 0.123.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import project_root  # noqa: F401
import torch
from torch import Tensor

from models import MODELS, build_model
from models.base import SliceCompressionModel
from utils.cli import run_program
from utils.codec.checkpoint import load_model
from utils.data.images import read_image, to_tensor
from utils.data.listing import find_images
from utils.data.padding import pad_centred
from utils.inference.engine import Engine
from utils.measuring.environments import environment
from utils.measuring.fill_weights import fill_
from utils.tables import format_table

LEVEL_WIDTH = 0.123  # relative distance of two levels of the scale table
ENVIRONMENTS = ((2, True, False), (1, True, False), (2, False, False), (2, True, True), (1, False, True))


class ReplayingCoder:
    """Keeps the scales; the first pass records its symbols, later ones replay them."""

    def __init__(self, symbols: list[Tensor]) -> None:
        self.symbols, self.recording, self.scales = symbols, not symbols, []

    def __call__(self, y: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        """y, mu, sigma -> y_hat of the symbols that were recorded, all (B, C, h, w)."""
        self.scales.append(scale.double().numpy().ravel())
        if self.recording:
            self.symbols.append(torch.round(y - mean))
        return self.symbols[len(self.scales) - 1] + mean


@torch.no_grad()
def scales_of(model: SliceCompressionModel, x: Tensor, arithmetic: str) -> list[np.ndarray]:
    """For each environment the scales (n,) of the symbols of one image (1, 3, H, W) in [0, 1]."""
    path, y = Engine(model).path(arithmetic), model.analysis(pad_centred(x, model.size_multiple))
    z, medians = model.h_a(y), model.entropy_bottleneck.medians()
    z_hat = torch.round(z - medians).to(path.dtype) + medians.to(path.dtype)
    symbols: list[Tensor] = []
    results = []
    for chosen in ENVIRONMENTS:
        with environment(*chosen):
            coder = ReplayingCoder(symbols)
            path.code_slices(z_hat, y.to(path.dtype), coder)
        results.append(np.concatenate(coder.scales))
    return results


def compare(model: SliceCompressionModel, images: Sequence[Tensor], arithmetic: str) -> tuple[str, ...]:
    """A row of the table, over images (1, 3, H, W) in [0, 1]."""
    table = model.gaussian_conditional.scale_table[:-1].double().numpy()
    differences, wrong, pairs = [], 0, 0
    for x in images:
        first, *others = scales_of(model, x, arithmetic)
        inside = (first > table[0]) & (first < table[-1])
        for other in others:
            differences.append(np.abs(other - first)[inside] / first[inside])
            wrong += int((np.searchsorted(table, first) != np.searchsorted(table, other)).sum())
            pairs += 1
    d = np.concatenate(differences)
    predicted = d.sum() / LEVEL_WIDTH / pairs
    megapixels = np.mean([x.shape[-1] * x.shape[-2] for x in images]) / 1e6
    numbers = (d.max(), np.median(d), d.mean(), np.quantile(d, 0.999))
    counts = (f"{wrong / pairs:.2g}", f"{predicted:.2g}", f"{predicted / megapixels:.2g}")
    return (arithmetic, *(f"{n:.1e}" for n in numbers), *counts)


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--model", choices=MODELS, default="dcae", help="without --checkpoint: reproducible weights")
    args = parser.parse_args(argv)
    if args.checkpoint:
        model = load_model(args.checkpoint)
    else:
        model = build_model(args.model).eval()
        fill_(model.state_dict())
        model.update(force=True)
    images = [to_tensor(read_image(path)[0]) for path in find_images(args.data)]
    header = ("", "max", "median", "mean", "99.9 %", "wrong/image", "predicted/image", "predicted/megapixel")
    print(format_table(header, [compare(model, images, arithmetic) for arithmetic in ("fp32", "fp64")]))


if __name__ == "__main__":
    run_program(main)
