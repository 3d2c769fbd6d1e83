"""BD-rate and BD-PSNR of curves against an anchor.

    python scripts/bd_rate.py --anchor kodak/vtm kodak/dcae kodak/tcm-large kodak/cca  # Table 1
    python scripts/bd_rate.py --anchor kodak/vtm out/results.json --method akima cubic pchip
    python scripts/bd_rate.py --list

A curve is a name in results/ ("kodak/vtm"), or a results.json of eval.py, of bench_codecs.py or of CompressAI;
"Ours=out/results.json" names it in the table. The choice of anchor, of its points and of the interpolation moves
results by more than a percent: the table says which were used. Warnings are on stderr.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace

import project_root  # noqa: F401

from utils.cli import UserError, run_program
from utils.figures.bd_rate import METHODS, Comparison, Interval, compare
from utils.figures.rd_curves import METRICS, Curve, describe_curves, load_curve
from utils.tables import format_number, format_table
from utils.text import to_json


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("curves", nargs="*", metavar="CURVE", help="name in results/ or JSON file, or NAME=either")
    add("--anchor", metavar="CURVE", help="what the curves are compared with, such as kodak/vtm")
    add("--metric", choices=METRICS, default="psnr", help="default: psnr; MS-SSIM is compared in dB")
    add("--method", nargs="+", choices=METHODS, default=["akima"], help="of interpolation (default: akima)")
    add("--bpp", nargs=2, type=float, metavar=("LOW", "HIGH"), help="use the points of these rates only")
    add("--list", action="store_true", help="show the curves in results/ and leave")
    add("--json", action="store_true", help="print JSON instead of a table")
    add("--debug", action="store_true", help="show where an error happened")
    args = parser.parse_args(argv)
    if not args.list and not (args.anchor and args.curves):
        raise UserError("name an --anchor and at least one curve; --list shows the curves in results/")
    return args


def load(reference: str, metric: str, limits: Sequence[float] | None) -> Curve:
    """The curve, cut to `limits` in bpp. Raises UserError if less than two points of it are left."""
    curve = load_curve(reference, metric)
    low, high = limits or (0, float("inf"))
    points = [point for point in curve.points if low <= point[0] <= high]
    if len(points) < 2:
        where = " within --bpp" if limits else ""
        left = f" ({'; '.join(curve.notes)})" if curve.notes else ""
        found = "one point" if points else "no points"
        raise UserError(f"{reference}: has {found}{where}, and two are needed{left}")
    bpp, quality = zip(*points)
    return replace(curve, bpp=bpp, quality=quality)


def describe(curve: Curve) -> str:
    """A line that says which points a curve has."""
    bpp, quality = ((values[0], values[-1]) for values in (curve.bpp, curve.quality))
    return (
        f"{curve.name}: {len(curve.bpp)} points, {bpp[0]:.3f} to {bpp[1]:.3f} bpp, "
        f"{quality[0]:.2f} to {quality[1]:.2f} dB ({curve.source})"
    )


def row(comparisons: Sequence[Comparison]) -> tuple[str, ...]:
    """A curve's line: the same for all methods of interpolation, then two numbers for each."""
    first = comparisons[0]
    deltas = [(format_number(c.rate_percent, 2), format_number(c.quality_db, 3)) for c in comparisons]
    common = _interval(first.common_quality, 2), f"{100 * first.share:.0f}", _interval(first.common_bpp, 3)
    return (first.test.name, str(len(first.test.bpp)), *common, *(number for pair in deltas for number in pair))


def _interval(interval: Interval | None, decimals: int) -> str:
    return "none" if interval is None else f"{interval[0]:.{decimals}f}..{interval[1]:.{decimals}f}"


def print_table(table: Sequence[Sequence[Comparison]], metric: str) -> None:
    """The anchor, a line a curve, and where the points are from."""
    quality = METRICS[metric].split()[0]
    header = ["curve", "points", "common dB", "% of it", "common bpp"]
    for comparison in table[0]:
        header += [f"BD-rate % {comparison.method}", f"BD-{quality} dB {comparison.method}"]
    print(f"anchor {describe(table[0][0].anchor)}; {quality}")
    print(format_table(header, [row(comparisons) for comparisons in table]))
    for comparisons in table:
        print(describe(comparisons[0].test))


def warn(table: Sequence[Sequence[Comparison]]) -> None:
    """Each warning once, on stderr."""
    lines = [line for c in (row[0] for row in table) for line in (*c.anchor.notes, *c.test.notes, *c.warnings)]
    for line in dict.fromkeys(lines):
        print(f"warning: {line}", file=sys.stderr)


def main(argv: Sequence[str]) -> None:
    args = parse_arguments(argv)
    if args.list:
        print(describe_curves())
        return
    anchor, *curves = (load(reference, args.metric, args.bpp) for reference in (args.anchor, *args.curves))
    table = [[compare(anchor, curve, method) for method in args.method] for curve in curves]
    warn(table)
    if args.json:
        print(to_json([asdict(comparison) for comparisons in table for comparison in comparisons]))
    else:
        print_table(table, args.metric)


if __name__ == "__main__":
    run_program(main)
