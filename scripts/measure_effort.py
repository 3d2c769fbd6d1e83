"""What effort wins and takes: BD-rate against effort 0 over encoder seconds, beside AVIF at its speeds 10 to 0.

    python scripts/measure_effort.py --data kodak assets/samples --name DCAE-medium-2 --output runs/effort
    python scripts/measure_effort.py --data kodak --output runs/quick --effort 0 3 --quality 10 30 50 70 90 --images 4

Real files, 8-bit images. Seconds are processor time, which other work on the machine hardly changes. BD-rates are of
PSNR, the mean of the images' own. --output gets measured.json, written after each image, so that a run that was cut
goes on where it was; a results.json of each set and encoder, "kodak-effort-3.json", for the other scripts; and
effort.png. The table is printed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import project_root  # noqa: F401
import torch
from bench_codecs import make_curve, make_point, measure
from tqdm import tqdm

from utils.cli import UserError, run_program
from utils.codec.checkpoint import DEFAULT_CHECKPOINT, load_model
from utils.codec.codec import Codec
from utils.codec.flags import require_quality
from utils.codec.search import PACE
from utils.codec.trade_off import COARSER, EFFORTS, STEPS
from utils.data.images import read_image, to_tensor, to_uint8
from utils.data.listing import find_images
from utils.evaluation.evaluation import Record
from utils.evaluation.results import write_results
from utils.figures.bd_rate import mean_over_images
from utils.figures.classical_codecs import AVIF, AVIF_BEST, ClassicalCodec, PillowCodec
from utils.figures.plots import new_figure, save_figure
from utils.figures.rd_curves import image_curves, mean_seconds
from utils.files import atomic_write, require_writable
from utils.inference.memory import keep_memory
from utils.tables import format_table
from utils.text import to_json

QUALITIES = (10, 40, 70, 95)
SPEEDS = (10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0)
AVIF_QUALITIES = (12, 32, 55, 80)
ANCHOR = "effort-0"
Row = tuple[ClassicalCodec, float | None, float]  # an encoder, its BD-rate in percent, processor seconds an image
Measured = dict[str, dict[str, dict[str, Record]]]  # image, encoder, setting


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--data", type=Path, nargs="+", required=True, metavar="DIR", help="folders of images, a table each")
    add("--output", type=Path, required=True, metavar="DIR", help="where measured.json, the curves and the plot go")
    add("--checkpoint", type=Path, default=DEFAULT_CHECKPOINT, metavar="FILE", help="default: the one in assets")
    add("--name", help="of the model in tables and plots (default: its file's)")
    add("--effort", nargs="+", type=int, choices=EFFORTS, default=[0, 3, 6, 9], metavar="E", help="default: 0 3 6 9")
    add("--quality", nargs="+", type=float, default=QUALITIES, metavar="Q", help="at least four; default: 10 40 70 95")
    add(
        "--speeds", nargs="*", type=int, choices=SPEEDS, default=SPEEDS, metavar="S", help="of AVIF; none: leave it out"
    )
    add("--images", type=int, metavar="N", help="only the first N of each folder")
    add("--threads", type=int, metavar="N", help="CPU threads of the model (default: torch's choice)")
    add("--debug", action="store_true", help="show where an error happened")
    args = parser.parse_args(argv)
    args.effort = sorted({0, *args.effort})
    if len(args.quality) < 4:
        raise UserError("--quality: a BD-rate needs four or more")
    for quality in args.quality:
        require_quality(quality)
    if args.speeds and (reason := avif_at(SPEEDS[0]).missing()):
        raise UserError(f"--speeds: {reason}; give --speeds alone to leave AVIF out")
    if len({folder.resolve().name for folder in args.data}) < len(args.data):
        raise UserError("--data: two folders have the same name; rename one, or measure them in two runs")
    return args


@dataclass(frozen=True)
class SearchingEncoder(ClassicalCodec):
    """A model at one effort, as what scripts/bench_codecs.py measures."""

    codec: Codec
    model_name: str
    effort: int
    settings: Sequence[float]
    setting_name: str = "quality"

    @property
    def name(self) -> str:
        return f"effort-{self.effort}"

    @property
    def label(self) -> str:
        return f"{self.model_name}, effort {self.effort}"

    def description(self) -> str:
        return f"model {self.codec.fingerprint.hex()}, {STEPS[self.effort]} steps"

    def encode(self, pixels: Any, setting: float) -> bytes:
        return self.codec.compress(to_tensor(pixels).to(self.codec.device), setting, self.effort)

    def decode(self, data: bytes, shape: tuple[int, ...]) -> Any:
        return to_uint8(self.codec.decompress(data))


def encoders(codec: Codec, args: argparse.Namespace) -> list[ClassicalCodec]:
    """What is measured: the model at each effort, and AVIF at each speed."""
    name = args.name or args.checkpoint.stem
    searching = [SearchingEncoder(codec, name, effort, args.quality) for effort in args.effort]
    return [*searching, *map(avif_at, args.speeds)]


def avif_at(speed: int) -> PillowCodec:
    options = {**AVIF_BEST, "speed": speed}
    return PillowCodec(f"avif-{speed}", f"AVIF 4:4:4, speed {speed}", *AVIF, AVIF_QUALITIES, options)


def measure_image(chosen: Sequence[ClassicalCodec], path: Path, done: dict[str, dict[str, Record]]) -> None:
    """Add to `done`, {"effort-3": {"50": record}}, what it lacks."""
    pixels = read_image(path)[0]
    for encoder in chosen:
        points = done.setdefault(encoder.name, {})
        for setting in encoder.settings:
            if f"{setting:g}" not in points:
                points[f"{setting:g}"] = measure(encoder, setting, pixels)


def read_measured(path: Path, model: str) -> dict[str, Any]:
    """What an earlier run has measured. Raises UserError where that was of another model, or searched differently, or
    cannot be read."""
    search = {"steps": list(STEPS), "pace": list(PACE), "coarser": COARSER}
    if not path.exists():
        return {"model": model, "search": search, "sets": {}}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content["model"], str) or not isinstance(content["sets"], dict):
            raise ValueError("no measurements")
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"--output {path}: damaged, or of another program; choose another, or remove it") from error
    if content["model"] != model:
        raise UserError(f"--output {path}: holds measurements of model {content['model']}, not {model}; choose another")
    if content.get("search") != search:
        raise UserError(f"--output {path}: holds measurements of an older search; choose another, or remove it")
    return content


def write_curve(encoder: ClassicalCodec, images: Measured, data: str, path: Path) -> None:
    """Its results.json: a point a setting, of these images."""
    points = []
    for setting in encoder.settings:
        records = [{**done[encoder.name][f"{setting:g}"], "name": name} for name, done in images.items()]
        points.append(make_point(encoder, setting, records))
    kind = "learned" if isinstance(encoder, SearchingEncoder) else "classical"
    write_results(path, make_curve(encoder, points, data, "measure_effort.py", kind))


def summary(chosen: Sequence[ClassicalCodec], paths: dict[str, Path]) -> list[Row]:
    """Of the curves that were written, by the encoder's name."""
    anchor = image_curves(str(paths[ANCHOR]))
    rows = []
    for encoder in chosen:
        path = str(paths[encoder.name])
        delta = mean_over_images(anchor, image_curves(path))
        rows.append((encoder, delta and delta[0], mean_seconds(path, "encoding_time")))
    return rows


def format_summary(summary: Sequence[Row]) -> str:
    rows = []
    for encoder, delta, seconds in summary:
        steps = str(STEPS[encoder.effort]) if isinstance(encoder, SearchingEncoder) else ""
        rows.append((encoder.label, steps, "" if delta is None else f"{delta:+.1f}", f"{seconds:.2f}"))
    return format_table(("encoder", "steps", "BD-rate %", "processor s"), rows)


def draw(summaries: dict[str, Sequence[Row]], output: Path) -> None:
    """BD-rate over processor seconds: the efforts on each set, and AVIF's speeds."""
    figure, axes = new_figure("BD-rate against effort 0, PSNR", "encoder, processor seconds an image", "BD-rate (%)")
    for number, (data, measured) in enumerate(summaries.items()):
        for searching, style in ((True, "o-"), (False, "s--")):
            points = [
                (s, d, e.name.split("-")[1])
                for e, d, s in measured
                if isinstance(e, SearchingEncoder) == searching and d is not None
            ]
            if not points:
                continue
            seconds, deltas, numbers = zip(*points)
            what = "search, effort" if searching else "AVIF 4:4:4, speed"
            colour = f"C{2 * number + (not searching)}"
            axes.plot(seconds, deltas, style, color=colour, label=f"{data}: {what} {numbers[0]} to {numbers[-1]}")
            for point in points:
                axes.annotate(point[2], point[:2], textcoords="offset points", xytext=(4, 4), fontsize="x-small")
    axes.set_xscale("log")
    axes.legend(fontsize="small")
    save_figure(figure, output)


def main(argv: Sequence[str]) -> None:
    args = parse_arguments(argv)
    keep_memory()
    if args.threads:
        torch.set_num_threads(args.threads)
    codec, path = Codec(load_model(args.checkpoint)), args.output / "measured.json"
    if not codec.model.variable_rate:
        raise UserError(f"--checkpoint {args.checkpoint}: has one quality only; name a variable-rate model")
    content, chosen = read_measured(path, codec.fingerprint.hex()), encoders(codec, args)
    require_writable(path, "--output")
    codec.decompress(codec.compress(torch.rand(1, 3, 64, 64), args.quality[0]))  # warms up
    summaries = {}
    for folder in args.data:
        data = folder.resolve().name
        images = content["sets"].setdefault(data, {})
        found = find_images(folder)[: args.images]
        for image in tqdm(found, desc=data, unit="image", disable=None):
            measure_image(chosen, image, images.setdefault(image.name, {}))
            with atomic_write(path) as file:
                file.write(to_json(content).encode() + b"\n")
        images = {image.name: images[image.name] for image in found}
        paths = {encoder.name: args.output / f"{data}-{encoder.name}.json" for encoder in chosen}
        for encoder in chosen:
            write_curve(encoder, images, data, paths[encoder.name])
        summaries[data] = summary(chosen, paths)
        print(f"{data}, {len(images)} images", format_summary(summaries[data]), sep="\n", end="\n\n", flush=True)
    draw(summaries, args.output / "effort.png")


if __name__ == "__main__":
    run_program(main)
