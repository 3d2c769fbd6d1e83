"""How close files come to a wanted size, rate or PSNR (compress_and_decompress.py --target-*), and in how many trials.

    python scripts/measure_targets.py --data assets/samples
    python scripts/measure_targets.py --data kodak --checkpoint runs/small/best.pt --quality 10 50 90 --json

What is asked for is within each image's reach: what the model gives at the qualities of --quality.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import project_root  # noqa: F401
import torch
from tqdm import tqdm

from utils.cli import UserError, run_program
from utils.codec.checkpoint import DEFAULT_CHECKPOINT, load_model
from utils.codec.codec import Codec
from utils.codec.flags import require_quality
from utils.codec.targets import KINDS, Target, compress_to_target
from utils.data.images import read_image, to_tensor
from utils.data.listing import find_images
from utils.metrics import bpp, psnr, quantise_8_bit
from utils.tables import format_table
from utils.text import printable, to_json

UNITS = {"bpp": "bpp", "size": "bytes", "psnr": "dB"}


@dataclass(frozen=True)
class SearchOutcome:
    """One search: what was asked and reached (bpp, bytes or dB), the quality found, and the trials it took."""

    image: str
    kind: str
    asked: float
    reached: float
    quality: float
    trials: int

    @property
    def off_percent(self) -> float:
        return 100 * abs(self.reached / self.asked - 1)


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="DIR", help="folder of images, or one image")
    add("--checkpoint", type=Path, default=DEFAULT_CHECKPOINT, metavar="FILE", help="default: the one in assets")
    add("--quality", nargs="+", type=float, default=[15, 45, 80], metavar="Q", help="default: 15 45 80")
    add("--arithmetic", choices=("fp64", "fp32"), default="fp64", help="default: fp64, as in portable files")
    add("--json", action="store_true", help="print every search as JSON instead of the tables")
    add("--debug", action="store_true", help="show where an error happened")
    args = parser.parse_args(argv)
    for quality in args.quality:
        require_quality(quality)
    return args


def targets_at(codec: Codec, x: torch.Tensor, quality: float) -> list[Target]:
    """A target of each kind: what image x (1, 3, H, W) in [0, 1] comes to at a quality."""
    data = codec.compress(x, quality)
    decibels = psnr(quantise_8_bit(codec.decompress(data)), x)
    return [Target("bpp", bpp(8 * len(data), *x.shape[-2:])), Target("size", len(data)), Target("psnr", decibels)]


def measure_image(codec: Codec, path: Path, args: argparse.Namespace) -> list[SearchOutcome]:
    """Every target of one image."""
    x = to_tensor(read_image(path)[0])
    outcomes = []
    for target in (target for quality in args.quality for target in targets_at(codec, x, quality)):
        trial = compress_to_target(codec, x, target)
        found = target.kind, target.value, trial.reached, trial.quality, trial.trials
        outcomes.append(SearchOutcome(printable(path.name), *found))
    return outcomes


def format_outcomes(outcomes: Sequence[SearchOutcome]) -> str:
    """A row a search."""
    header = ("image", "unit", "asked", "reached", "off %", "quality", "trials")
    rows = [
        (
            o.image,
            UNITS[o.kind],
            *(f"{value:.6g}" for value in (o.asked, o.reached, round(o.off_percent, 3), o.quality, o.trials)),
        )
        for o in outcomes
    ]
    return format_table(header, rows)


def format_spread(outcomes: Sequence[SearchOutcome]) -> str:
    """A row a kind of target: |reached - asked| in percent and in its unit, sizes that were exceeded, and trials."""
    rows = []
    for kind in KINDS:
        group = [outcome for outcome in outcomes if outcome.kind == kind]
        percent, trials = [o.off_percent for o in group], [o.trials for o in group]
        largest = max(abs(o.reached - o.asked) for o in group)
        above = sum(o.reached > o.asked for o in group)
        spread = [f"{value:.3f}" for value in (statistics.median(percent), max(percent))]
        tried = f"{statistics.mean(trials):.1f}", str(max(trials))
        rows.append((kind, str(len(group)), *spread, f"{largest:.4g} {UNITS[kind]}", str(above), *tried))
    header = ("target", "searches", "median off %", "largest off %", "in its unit", "above", "mean trials", "most")
    return format_table(header, rows)


def main(argv: Sequence[str]) -> None:
    args = parse_arguments(argv)
    if not args.checkpoint.is_file():
        raise UserError(f"--checkpoint {args.checkpoint}: there is no such file")
    model = load_model(args.checkpoint)
    if not model.variable_rate:
        raise UserError(f"--checkpoint {args.checkpoint}: has one quality only; name a variable-rate model")
    codec = Codec(model, args.arithmetic)
    images = tqdm(find_images(args.data), unit="image", disable=None)
    outcomes = [outcome for path in images for outcome in measure_image(codec, path, args)]
    if args.json:
        print(to_json([asdict(outcome) for outcome in outcomes]))
    else:
        print(format_outcomes(outcomes), format_spread(outcomes), sep="\n\n")


if __name__ == "__main__":
    run_program(main)
