"""Rate-distortion plots: the paper's Figures 4, 5, 6 and 13 to 16, and any other set of curves.

    python scripts/plot_rd.py --figure 4 --output figure4.pdf
    python scripts/plot_rd.py --figure 4 Ours=out/results.json --output figure4.png   # with a curve of your own
    python scripts/plot_rd.py --figure codecs kodak/dcae-medium-2 --output codecs.png  # among codecs in daily use
    python scripts/plot_rd.py kodak/vtm kodak/dcae out/results.json --metric ms-ssim --output rd.svg
    python scripts/plot_rd.py --list

A curve is a name in results/ ("kodak/vtm"), or a results.json of eval.py, of bench_codecs.py or of CompressAI;
"Ours=out/results.json" names it in the legend. A figure has the curves of which points were published, less than the
paper shows: --list names them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import project_root  # noqa: F401

from utils.cli import UserError, run_program
from utils.figures.plots import check_format, plot_curves, save_figure
from utils.figures.rd_curves import METRICS, SETS, describe_curves, load_curve, metrics_of
from utils.files import require_writable


@dataclass(frozen=True)
class Preset:
    """A figure: curves of results/`data` in order of the legend, and the range of its rate axis."""

    data: str
    curves: tuple[str, ...]
    limits: tuple[float, float]
    metric: str = "psnr"

    @property
    def title(self) -> str:
        return SETS[self.data]

    @property
    def names(self) -> list[str]:
        return [f"{self.data}/{name}" for name in self.curves]


LEARNED = ("dcae", "mlic++", "cca", "tcm-large")
MORE = ("dcae", "hpcm-large", "hpcm-base", *LEARNED[1:], "tcm-middle", "tcm-small")  # HPCM is later than the paper
MEASURED = ("avif-best", "avif", "jpegxl", "webp", "jpeg2000", "jpeg-444", "jpeg-420")  # by bench_codecs.py
FIGURES = {
    "4": Preset("kodak", (*LEARNED, "elic", "vtm"), (0.08, 0.95)),
    "5": Preset("clic", (*LEARNED, "vtm-12.1"), (0.06, 0.68)),
    "6": Preset("tecnick", LEARNED, (0.06, 0.64)),
    "13": Preset(
        "kodak",
        (*MORE, "elic", "cheng2020-attn", "mbt2018", "bmshj2018-hyperprior", "vtm", "hm"),
        (0.08, 0.95),
    ),
    "14": Preset("clic", (*MORE, "vtm-12.1"), (0.06, 0.68)),
    "15": Preset("tecnick", MORE, (0.06, 0.64)),
    "16": Preset(
        "kodak",
        ("dcae-ms-ssim", "cheng2020-attn", "mbt2018", "bmshj2018-hyperprior", "vtm", "hm", "bpg-444"),
        (0.08, 0.75),
        "ms-ssim",
    ),
    "codecs": Preset(
        "kodak", ("dcae", "tcm-large", "vtm", "bpg-444", *(f"measured/{name}" for name in MEASURED)), (0, 2.0)
    ),
}


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("curves", nargs="*", metavar="CURVE", help="name in results/ or JSON file, or NAME=either")
    add("--figure", choices=FIGURES, help="of the paper, or codecs; curves that are named as well come on top")
    add("--metric", choices=METRICS, help="default: the figure's, or psnr; curves of a figure without it are left out")
    add("--output", type=Path, metavar="FILE", help=".png, .svg or .pdf")
    add("--bpp", nargs=2, type=float, metavar=("LOW", "HIGH"), help="range of the rate axis")
    add("--title", help="default: the figure's, or none")
    add("--list", action="store_true", help="show figures and the curves in results/, and leave")
    add("--debug", action="store_true", help="show where an error happened")
    args = parser.parse_args(argv)
    if not args.list:
        check_arguments(args)
    return args


def check_arguments(args: argparse.Namespace) -> None:
    """Raise UserError for what cannot be drawn."""
    if not (args.curves or args.figure):
        raise UserError("name curves or a --figure; --list shows both")
    if args.output is None:
        raise UserError("--output is missing; name a .png, .svg or .pdf file")
    check_format(args.output)
    if args.bpp and not args.bpp[0] < args.bpp[1]:
        raise UserError(f"--bpp {args.bpp[0]:g} {args.bpp[1]:g}: the second has to be larger")
    require_writable(args.output, "--output")


def describe_figures() -> str:
    """A line a figure: its metric and curves."""
    return "\n".join(
        f"figure {name:6}  {METRICS[preset.metric]} {preset.data}: {' '.join(preset.curves)}"
        for name, preset in FIGURES.items()
    )


def main(argv: Sequence[str]) -> None:
    args = parse_arguments(argv)
    if args.list:
        print(describe_figures(), describe_curves(), sep="\n\n")
        return
    preset = FIGURES.get(args.figure)
    metric = args.metric or (preset.metric if preset else "psnr")
    published = [name for name in preset.names if metric in metrics_of(name)] if preset else []
    curves = [load_curve(reference, metric) for reference in (*args.curves, *published)]
    for note in (note for curve in curves for note in curve.notes):
        print(f"warning: {note}", file=sys.stderr)
    title = args.title if args.title is not None else preset.title if preset else ""
    limits = tuple(args.bpp) if args.bpp else preset.limits if preset else None
    save_figure(plot_curves(curves, title, limits), args.output)
    print(f"{args.output}: {', '.join(curve.name for curve in curves)}")


if __name__ == "__main__":
    run_program(main)
