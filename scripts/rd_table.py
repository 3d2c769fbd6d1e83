"""What a model saves against other codecs, as a Markdown table: BD-rates, rate at one quality, and seconds.

    python scripts/rd_table.py kodak/dcae-medium-2 --output results/kodak/dcae-medium-2.md
    python scripts/rd_table.py Ours=out/results.json --against kodak/vtm kodak/measured/avif --at 34

A curve is a name in results/ ("kodak/vtm"), or a results.json of eval.py, of bench_codecs.py or of CompressAI. BD-rates
are the model's, with the other codec as anchor, by Akima interpolation: negative where the model needs fewer bits. They
compare the mean curves; "by image" is the mean of the BD-rates of the single images, where both files have those.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import project_root  # noqa: F401

from utils.cli import run_program
from utils.figures.bd_rate import Comparison, compare, mean_over_images
from utils.figures.rd_curves import METRICS, Curve, image_curves, load_curve, mean_seconds, metrics_of
from utils.files import atomic_write, require_writable
from utils.tables import format_markdown, format_number

MEASURED = ("jpeg-420", "jpeg-444", "webp", "jpeg2000", "jpeg2000-db", "jpegxl", "avif", "avif-best")
SEARCHED = [f"effort/dcae-medium-2/kodak-effort-{effort}" for effort in (0, 3, 9)]
BEFORE = ("kodak/dcae-medium", "effort/dcae-medium/kodak-effort-3", "kodak/dcae-small")  # the defaults before
PUBLISHED = ("kodak/bpg-444", "kodak/vtm", "kodak/dcae")
AGAINST = (*SEARCHED, *BEFORE, *(f"kodak/measured/{name}" for name in MEASURED), *PUBLISHED)
TIMES = ("encoding_time", "decoding_time")


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("curve", metavar="CURVE", help="the model: name in results/ or JSON file, or NAME=either")
    add("--against", nargs="+", default=AGAINST, metavar="CURVE", help="default: codecs and models measured on Kodak")
    add("--at", type=float, default=32, metavar="DB", help="PSNR at which rates are compared (default: 32)")
    add("--output", type=Path, metavar="FILE", help="write the table there as well, with the sources of its numbers")
    add("--debug", action="store_true", help="show where an error happened")
    args = parser.parse_args(argv)
    if args.output:
        require_writable(args.output, "--output")
    return args


def rate_at(curve: Curve, quality: float) -> float | None:
    """Bits per pixel at a quality in dB, between points linear in log rate; None outside of the curve."""
    if not curve.bpp or not curve.quality[0] <= quality <= curve.quality[-1]:
        return None
    return math.exp(np.interp(quality, curve.quality, np.log(curve.bpp)))


def deltas(model: str, other: str) -> list[Comparison | None]:
    """The model against another codec, in PSNR and in MS-SSIM; None where one of them was not measured."""
    measured = set(metrics_of(model)) & set(metrics_of(other))
    return [
        compare(load_curve(other, metric), load_curve(model, metric)) if metric in measured and model != other else None
        for metric in METRICS
    ]


def row(model: str, other: str, at: float) -> list[str]:
    """A line of the table; warnings go to stderr."""
    psnr, ms_ssim = deltas(model, other)
    for warning in (warning for delta in (psnr, ms_ssim) if delta for warning in delta.warnings):
        print(f"warning: {warning}", file=sys.stderr)
    common = psnr and psnr.common_quality
    return [
        load_curve(other).name,
        *(percent(delta.rate_percent if delta else None) for delta in (psnr, ms_ssim)),
        by_image(mean_over_images(image_curves(other), image_curves(model)) if model != other else None),
        f"{common[0]:.1f} to {common[1]:.1f}" if common else "",
        format_number(rate_at(load_curve(other), at), 3),
        *(significant(mean_seconds(other, time)) for time in TIMES),
    ]


def by_image(mean: tuple[float, int, int] | None) -> str:
    """The mean over images, and of how many where that is not all."""
    if mean is None:
        return ""
    value, known, unknown = mean
    return percent(value) + (f" ({known} of {known + unknown})" if unknown else "")


def percent(value: float | None) -> str:
    return "" if value is None else f"{value:+.1f}"


def significant(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:#.2g}".rstrip(".")


def main(argv: Sequence[str]) -> None:
    args = parse_arguments(argv)
    name, others = load_curve(args.curve).name, [other for other in args.against if other != args.curve]
    header = [
        "codec",
        "BD-rate %, PSNR",
        "BD-rate %, MS-SSIM",
        "by image, PSNR",
        "common dB",
        f"bpp at {args.at:g} dB",
        "encode s",
        "decode s",
    ]
    table = format_markdown(header, [row(args.curve, other, args.at) for other in (args.curve, *others)])
    text = f"{name} against other codecs; negative: {name} needs fewer bits\n\n{table}\n"
    print(text, end="")
    if args.output:
        curves = [load_curve(other) for other in (args.curve, *others)]
        sources = "\n".join(f"- {curve.name}: {curve.source}" for curve in curves)
        with atomic_write(args.output) as file:
            file.write(f"{text}\nSources:\n\n{sources}\n".encode())


if __name__ == "__main__":
    run_program(main)
