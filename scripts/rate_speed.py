"""Rate over speed, the paper's Figure 1: BD-rate against VTM over the latency of an image; left and up is better.

    python scripts/rate_speed.py --output figure1.pdf
    python scripts/rate_speed.py --output figure1.png --add Ours=out/results.json kodak/measured/avif --latency decode

The paper's numbers are those of its Table 1 (results/paper_table1.json). A curve that is added (eval.py --real and
bench_codecs.py write the times that are needed) has the mean time of its points, and its BD-rate is computed: against
--anchor, if one is named, where the paper's stay against VTM, as axis and table say.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import project_root  # noqa: F401

from utils.cli import UserError, run_program
from utils.evaluation.results import read_results
from utils.figures.bd_rate import compare
from utils.figures.plots import MARKERS, check_format, new_figure, save_figure
from utils.figures.rd_curves import RESULTS, SETS, load_curve, mean_seconds, resolve
from utils.files import require_writable
from utils.tables import format_table

TABLE = RESULTS / "paper_table1.json"
PAPER = "paper's Table 1, on a GPU"
VTM = "VTM"
ANCHORS = {"kodak": "kodak/vtm", "clic": "clic/vtm-12.1"}
LATENCIES = {"total": ("encoding_time", "decoding_time"), "encode": ("encoding_time",), "decode": ("decoding_time",)}


@dataclass(frozen=True)
class Contender:
    """A point of the figure: milliseconds an image, BD-rate in percent, where the time was measured, and the anchor."""

    name: str
    latency_ms: float
    rate_percent: float
    origin: str
    anchor: str = VTM


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="FILE", help=".png, .svg or .pdf")
    add("--add", nargs="+", default=[], metavar="CURVE", help="name in results/ or JSON file, or NAME=either")
    add("--latency", choices=LATENCIES, default="total", help="default: total")
    add("--set", choices=SETS, default="kodak", help="whose BD-rate is shown (default: kodak)")
    add("--anchor", metavar="CURVE", help="of --add (default: VTM on the set)")
    add("--debug", action="store_true", help="show where an error happened")
    args = parser.parse_args(argv)
    check_format(args.output)
    args.anchor = args.anchor or ANCHORS.get(args.set)
    if args.add and not args.anchor:
        raise UserError(f"--set {args.set}: no VTM points were published; name an --anchor for what is to --add")
    require_writable(args.output, "--output")
    return args


def published(latency: str, data: str) -> list[Contender]:
    """The models of the paper's Table 1 that have both numbers."""
    rows = json.loads(TABLE.read_text(encoding="utf-8"))["models"]
    pairs = [(row["name"], row["latency_ms"][latency], row["bd_rate_percent"][data]) for row in rows]
    return [Contender(*pair, PAPER) for pair in pairs if None not in pair]


def measured(reference: str, latency: str, anchor: str) -> Contender:
    """A curve with times. Raises UserError, naming it, if it has none or does not overlap the anchor."""
    curve, content = load_curve(reference), read_results(resolve(reference)[1])
    against = load_curve(anchor)
    comparison = compare(against, curve)
    for warning in (*curve.notes, *comparison.warnings):
        print(f"warning: {warning}", file=sys.stderr)
    if comparison.rate_percent is None:
        raise UserError(f"--add {reference}: has no BD-rate against {anchor}")
    devices = dict.fromkeys(point.get("device") for point in content.get("points") or [])
    origin = ", ".join(device for device in devices if device) or "its file"
    name = VTM if anchor in ANCHORS.values() else against.name
    return Contender(curve.name, mean_latency(reference, latency), comparison.rate_percent, origin, name)


def mean_latency(reference: str, latency: str) -> float:
    """Milliseconds an image, mean over the points of a results.json. Raises UserError where it has no times."""
    seconds = [mean_seconds(reference, column) for column in LATENCIES[latency]]
    if None in seconds:
        raise UserError(f"--add {reference}: has no {' and '.join(LATENCIES[latency])}; eval.py --real measures them")
    return 1000 * sum(seconds)


def rate_label(codecs: Sequence[Contender]) -> str:
    """What the BD-rates are against: VTM, or the paper's alone."""
    others = ", ".join(dict.fromkeys(codec.anchor for codec in codecs if codec.anchor != VTM))
    return f"BD-rate (%): the paper's against VTM, the added against {others}" if others else "BD-rate against VTM (%)"


def draw(codecs: Sequence[Contender], latency: str, data: str, output: Path) -> None:
    """The figure: latency on a logarithmic axis, fewer bits upwards; beside it what each mark is."""
    from matplotlib.ticker import LogLocator, NullFormatter  # here, because it takes a second

    figure, axes = new_figure(SETS[data], f"latency, {latency} (ms)", rate_label(codecs), (8, 5))
    for codec, marker in zip(codecs, MARKERS * len(codecs)):
        label = codec.name if codec.origin == PAPER else f"{codec.name}\n({codec.origin})"
        axes.plot(codec.latency_ms, codec.rate_percent, marker, markersize=8, label=label)
    axes.set_xscale("log")
    latencies = [codec.latency_ms for codec in codecs]
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5) if max(latencies) < 20 * min(latencies) else (1,)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.invert_yaxis()
    axes.margins(0.1)
    figure.legend(loc="outside right upper", fontsize="small")
    save_figure(figure, output)


def main(argv: Sequence[str]) -> None:
    args = parse_arguments(argv)
    codecs = published(args.latency, args.set)
    codecs += [measured(reference, args.latency, args.anchor) for reference in args.add]
    draw(codecs, args.latency, args.set, args.output)
    rows = [(c.name, f"{c.latency_ms:.0f}", f"{c.rate_percent:.1f}", c.anchor, c.origin) for c in codecs]
    print(format_table(("codec", f"{args.latency} ms", "BD-rate %", "against", "time measured on"), rows))


if __name__ == "__main__":
    run_program(main)
