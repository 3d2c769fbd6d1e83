"""What effort wins and takes: BD-rate against effort 0 over encoder seconds, beside AVIF at its speeds 10 to 0.

    python scripts/measure_effort.py --data kodak assets/samples --output results/effort
    python scripts/measure_effort.py --data kodak --output runs/effort --effort 0 3 --quality 10 30 50 70 90 --images 4

Real files, 8-bit images. Seconds are processor time, which other work on the machine hardly changes, and, for the
search, of the clock too. BD-rates are of PSNR, the mean of the images' own. --output gets measured.json, written after
each image, so that a run that was cut goes on where it was, and effort.png; the table is printed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import project_root  # noqa: F401
import torch
from bench_codecs import processor_seconds
from tqdm import tqdm

from utils.cli import UserError, run_program
from utils.codec.checkpoint import DEFAULT_CHECKPOINT, load_model
from utils.codec.codec import Codec
from utils.codec.trade_off import EFFORTS, STEPS
from utils.data.images import read_image, to_tensor, to_uint8
from utils.data.listing import find_images
from utils.evaluation.evaluation import mean
from utils.figures.bd_rate import mean_over_images
from utils.figures.classical_codecs import AVIF, AVIF_BEST, PillowCodec
from utils.figures.plots import new_figure, save_figure
from utils.figures.rd_curves import Curve
from utils.files import atomic_write, require_writable
from utils.inference.memory import keep_memory
from utils.metrics import psnr
from utils.tables import format_table
from utils.text import to_json

QUALITIES = (5, 20, 35, 50, 65, 80, 95)
SPEEDS = (10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0)
AVIF_QUALITIES = (10, 25, 40, 52, 64, 75, 85)
ANCHOR = "effort 0"
Record = dict[str, Any]  # bytes, pixels, psnr, seconds (processor), clock (seconds)


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--data", type=Path, nargs="+", required=True, metavar="DIR", help="folders of images, a table each")
    add("--output", type=Path, required=True, metavar="DIR", help="where measured.json and effort.png go")
    add("--checkpoint", type=Path, default=DEFAULT_CHECKPOINT, metavar="FILE", help="default: the one in assets")
    add(
        "--effort",
        nargs="+",
        type=int,
        choices=EFFORTS,
        default=[0, 1, 3, 6, 9],
        metavar="E",
        help="default: 0 1 3 6 9",
    )
    add("--quality", nargs="+", type=float, default=QUALITIES, metavar="Q", help="at least four; default: 5 20 ... 95")
    add(
        "--speeds", nargs="*", type=int, choices=SPEEDS, default=SPEEDS, metavar="S", help="of AVIF; none: leave it out"
    )
    add("--images", type=int, metavar="N", help="only the first N of each folder")
    add("--threads", type=int, metavar="N", help="CPU threads of the model (default: torch's choice)")
    add("--debug", action="store_true", help="show where an error happened")
    args = parser.parse_args(argv)
    args.effort = sorted({0, *args.effort})
    if len(args.quality) < 2:
        raise UserError("--quality: a BD-rate needs several; give at least four")
    return args


def measured(encode: Callable[[], bytes], decode: Callable[[bytes], Any], pixels: Any) -> Record:
    """Record of one file of an image, uint8 (H, W, 3)."""
    before, clock = processor_seconds(), time.perf_counter()
    data = encode()
    seconds, clock = processor_seconds() - before, time.perf_counter() - clock
    decibels = psnr(to_tensor(decode(data)), to_tensor(pixels))
    size = pixels.shape[0] * pixels.shape[1]
    return {"bytes": len(data), "pixels": size, "psnr": decibels, "seconds": seconds, "clock": clock}


def of_model(codec: Codec, pixels: Any, effort: int, quality: float) -> Record:
    x = to_tensor(pixels).to(codec.device)
    return measured(lambda: codec.compress(x, quality, effort), lambda data: to_uint8(codec.decompress(data)), pixels)


def of_avif(pixels: Any, speed: int, quality: float) -> Record:
    avif = PillowCodec("avif", "AVIF", *AVIF, AVIF_QUALITIES, {**AVIF_BEST, "speed": speed})
    return measured(lambda: avif.encode(pixels, quality), lambda data: avif.decode(data, pixels.shape), pixels)


def measure_image(codec: Codec, path: Path, args: argparse.Namespace, done: dict[str, Record]) -> None:
    """Add to `done`, {"effort 3": {"50": record}}, what it lacks."""
    pixels = read_image(path)[0]
    work = [
        (f"effort {e}", q, lambda e=e, q=q: of_model(codec, pixels, e, q)) for e in args.effort for q in args.quality
    ]
    work += [
        (f"AVIF speed {s}", q, lambda s=s, q=q: of_avif(pixels, s, q)) for s in args.speeds for q in AVIF_QUALITIES
    ]
    for name, quality, measure in work:
        points = done.setdefault(name, {})
        if f"{quality:g}" not in points:
            points[f"{quality:g}"] = measure()


def read_measured(path: Path, model: str) -> dict[str, Any]:
    """What an earlier run has measured. Raises UserError where that was of another model."""
    if not path.exists():
        return {"model": model, "sets": {}}
    content = json.loads(path.read_text(encoding="utf-8"))
    if content["model"] != model:
        raise UserError(f"--output {path}: holds measurements of model {content['model']}, not {model}; choose another")
    return content


def curves(images: dict[str, dict[str, Record]], name: str) -> dict[str, Curve]:
    """A curve of each image by a codec."""
    found = {}
    for image, codecs in images.items():
        points = sorted((8 * r["bytes"] / r["pixels"], r["psnr"]) for r in codecs.get(name, {}).values())
        rising = [p for i, p in enumerate(points) if all(p[1] > other[1] for other in points[:i])]
        if rising:
            found[image] = Curve(name, *map(tuple, zip(*rising)))
    return found


def summary(images: dict[str, dict[str, Record]]) -> Iterator[tuple[str, float | None, float, float]]:
    """Of each codec its name, BD-rate in percent, and seconds an image, of processor and of clock."""
    names = dict.fromkeys(name for codecs in images.values() for name in codecs)
    for name in names:
        records = [r for codecs in images.values() for r in codecs.get(name, {}).values()]
        delta = mean_over_images(curves(images, ANCHOR), curves(images, name))
        yield name, delta and delta[0], mean(r["seconds"] for r in records), mean(r["clock"] for r in records)


def format_summary(images: dict[str, dict[str, Record]]) -> str:
    rows = []
    for name, delta, seconds, clock in summary(images):
        steps = str(STEPS[int(name.split()[1])]) if name.startswith("effort") else ""
        rows.append((name, steps, "" if delta is None else f"{delta:+.1f}", f"{seconds:.2f}", f"{clock:.2f}"))
    return format_table(("encoder", "steps", "BD-rate %", "processor s", "clock s"), rows)


def draw(sets: dict[str, dict], output: Path) -> None:
    """BD-rate over processor seconds: the efforts of each set, and AVIF's speeds."""
    figure, axes = new_figure("BD-rate against effort 0, PSNR", "encoder, processor seconds an image", "BD-rate (%)")
    for number, (label, images) in enumerate(sets.items()):
        for prefix, style in (("effort", "o-"), ("AVIF", "s--")):
            points = [(s, d, n.split()[-1]) for n, d, s, _ in summary(images) if n.startswith(prefix) and d is not None]
            if not points:
                continue
            seconds, deltas, numbers = zip(*points)
            what = "search, effort" if prefix == "effort" else "AVIF 4:4:4, speed"
            colour = f"C{2 * number + (prefix == 'AVIF')}"
            axes.plot(seconds, deltas, style, color=colour, label=f"{label}: {what} {numbers[0]} to {numbers[-1]}")
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
    content = read_measured(path, codec.fingerprint.hex())
    require_writable(path, "--output")
    for folder in args.data:
        images = content["sets"].setdefault(folder.resolve().name, {})
        for image in tqdm(find_images(folder)[: args.images], desc=folder.name, unit="image", disable=None):
            measure_image(codec, image, args, images.setdefault(image.name, {}))
            with atomic_write(path) as file:
                file.write(to_json(content).encode() + b"\n")
        print(f"{folder.name}, {len(images)} images", format_summary(images), sep="\n", end="\n\n", flush=True)
    draw(content["sets"], args.output / "effort.png")


if __name__ == "__main__":
    run_program(main)
