"""Rate, distortion and time of classical image codecs on a folder of images, as results.json of eval.py.

    python scripts/bench_codecs.py --data kodak --output results/kodak/measured
    python scripts/bench_codecs.py --data kodak --output out --codecs avif jpegxl --settings 1 2 4 --processes 8

JPEG, WebP, JPEG 2000 and AVIF come with Pillow; JPEG XL (cjxl), HEVC (heif-enc), BPG (bpgenc) and VVC (VTM's
EncoderApp) are measured if their programs are on the PATH. Bytes are those of whole files, distortion is of 8-bit
pixels, as for the models. Times are processor time, which other work on the machine hardly changes; codecs that can
choose use one thread. Each codec is a file in --output and a table on stdout.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import resource
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import project_root  # noqa: F401
import torch
from tqdm import tqdm

from utils.cli import UserError, run_program
from utils.data.images import read_image, to_tensor
from utils.data.listing import find_images
from utils.evaluation.evaluation import QUANTITIES, Record, average, distortion
from utils.evaluation.results import make_results, write_results
from utils.figures.classical_codecs import CODECS, ClassicalCodec
from utils.files import require_writable
from utils.metrics import bpp
from utils.tables import format_number, format_table

Result = TypeVar("Result")


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="DIR", help="folder of images, or one image")
    add("--output", type=Path, required=True, metavar="DIR", help="where the results go, a JSON file a codec")
    add("--codecs", nargs="+", choices=CODECS, help="default: all that are there")
    add("--settings", nargs="+", type=float, metavar="S", help="qualities or what the codec has instead")
    add("--processes", type=int, default=1, metavar="N", help="images at once")
    add("--recursive", action="store_true", help="also the images in the folders below --data")
    add("--debug", action="store_true", help="show where an error happened")
    args = parser.parse_args(argv)
    if args.processes < 1:
        raise UserError(f"--processes {args.processes}: has to be 1 or more")
    return args


def choose_codecs(names: Sequence[str] | None) -> list[ClassicalCodec]:
    """The codecs asked for, or all that can be used here. Raises UserError for one asked for that cannot."""
    for name in names or []:
        if reason := CODECS[name].missing():
            raise UserError(f"--codecs {name}: {reason}; install it or leave it out")
    for codec in CODECS.values():
        if not names and (reason := codec.missing()):
            print(f"{codec.name} left out: {reason}", file=sys.stderr)
    return [codec for codec in CODECS.values() if codec.name in (names or CODECS) and not codec.missing()]


def timed(function: Callable[[], Result]) -> tuple[Result, float]:
    """What `function` returns, and milliseconds of processor time, those of programs that it ran included."""
    start = processor_seconds()
    result = function()
    return result, 1000 * (processor_seconds() - start)


def processor_seconds() -> float:
    """What this process and the programs it has run to their end have used so far."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def measure(codec: ClassicalCodec, setting: float, pixels: np.ndarray) -> Record:
    """Record (see utils/evaluation/evaluation.py) of one image, uint8 (H, W, 3), without its name."""
    try:
        data, encode_ms = timed(lambda: codec.encode(pixels, setting))
        decoded, decode_ms = timed(lambda: codec.decode(data, pixels.shape))
    except (OSError, ValueError, TypeError) as error:  # what libraries raise for settings and sizes they cannot do
        raise UserError(f"{codec.name}, {codec.setting_name} {setting:g}: {error}") from error
    if decoded.shape != pixels.shape:
        raise UserError(f"{codec.name}: an image of shape {pixels.shape} came back as {decoded.shape}")
    height, width = pixels.shape[:2]
    record = {"height": height, "width": width, **dict.fromkeys(QUANTITIES), "bytes": len(data)}
    record |= {"bpp": bpp(8 * len(data), height, width), "encode_ms": encode_ms, "decode_ms": decode_ms}
    return record | distortion(to_tensor(pixels), to_tensor(decoded))


def measure_file(codec: ClassicalCodec, job: tuple[float, Path], root: Path) -> Record:
    """Record of one image file at one setting, named relative to `root`."""
    setting, path = job
    try:
        record = measure(codec, setting, read_image(path)[0])
    except UserError as error:
        raise UserError(f"{path.name}: {error}") from error
    return {**record, "name": path.relative_to(root).as_posix()}


def measure_codec(
    codec: ClassicalCodec, settings: Sequence[float], images: Sequence[Path], root: Path, n: int
) -> list[Record]:
    """Records of all images at the first setting, then at the second, and so on; n images at once."""
    jobs, work = [(setting, path) for setting in settings for path in images], partial(measure_file, codec, root=root)
    bar = partial(tqdm, total=len(jobs), desc=codec.name, unit="image", disable=None)
    work(jobs[0])  # warms up
    if n == 1:
        return list(bar(map(work, jobs)))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(n, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return list(bar(pool.map(work, jobs)))


def make_point(codec: ClassicalCodec, setting: float, records: Sequence[Record]) -> dict[str, Any]:
    """An entry of "points" in utils/evaluation/results.py; of each image only what was measured, for a smaller file."""
    return {
        "label": f"{codec.setting_name} {setting:g}",
        "model": codec.name,
        "quality": setting,
        "rate": "real",
        "device": f"{platform.machine()} CPU, processor time",
        "average": average(records),
        "images": [{key: value for key, value in record.items() if value is not None} for record in records],
        "failed": [],
    }


def make_curve(
    codec: ClassicalCodec, points: Sequence[dict[str, Any]], data: str, script: str, kind: str = "classical"
) -> dict[str, Any]:
    """The codec's results.json, measured by `script` on the folder `data`."""
    results = make_results(codec.label, f"{codec.label} on {data}: {codec.description()}", points)
    source = f"scripts/{script}, {codec.description()}"
    return {"name": codec.label, "description": "", "kind": kind, "source": source, **results}


def format_points(points: Sequence[dict[str, Any]]) -> str:
    """A row a setting: averages over the images."""
    columns = [("bpp", 4), ("psnr", 3), ("ms_ssim", 5), ("ms_ssim_db", 3), ("encode_ms", 1), ("decode_ms", 1)]
    rows = [[p["label"], *(format_number(p["average"][key], decimals) for key, decimals in columns)] for p in points]
    return format_table(("setting", "bpp", "PSNR dB", "MS-SSIM", "MS-SSIM dB", "encode ms", "decode ms"), rows)


def main(argv: Sequence[str]) -> None:
    args = parse_arguments(argv)
    codecs, images = choose_codecs(args.codecs), find_images(args.data, args.recursive)
    root = args.data if args.data.is_dir() else args.data.parent
    require_writable(args.output / "codec.json", "--output")
    for codec in codecs:
        settings = args.settings or codec.settings
        records = measure_codec(codec, settings, images, root, args.processes)
        groups = [records[i * len(images) : (i + 1) * len(images)] for i in range(len(settings))]
        points = [make_point(codec, setting, group) for setting, group in zip(settings, groups)]
        curve = make_curve(codec, points, args.data.resolve().name, "bench_codecs.py")
        write_results(args.output / f"{codec.name}.json", curve)
        print(f"{curve['description']}; {len(images)} images, {points[0]['device']}")
        print(format_points(curve["points"]), end="\n\n", flush=True)


if __name__ == "__main__":
    run_program(main)
