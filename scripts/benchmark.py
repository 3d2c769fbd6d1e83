"""Time and memory of coding, each way of computing against its plain formulation in turn.

    python scripts/benchmark.py [--parts products peak coder transforms ...] [--sizes 0.4 1.6 6 25] [--runs 3]

Weights are freshly drawn (speed does not depend on them), those of the shipped model apart; images are synthetic.
Prints tables and writes them as JSON.

    products    matrix products by torch, oneDNN and OpenBLAS, GFLOP/s
    peak        the largest rates that any of them, or a 3x3 convolution, reaches on this machine
    coder       the entropy coder against CompressAI's, on as many symbols as a 768x512 image has
    parts       transforms and entropy model beside the machine's peak, measured in the same run
    transforms  the model without the engine, float32, bfloat16 transforms, and portable files (a float64 path)
    shipped, shipped-parts      the same two for the model in assets
    compiled    analysis and synthesis by --compile against the quick ones; compiles for minutes, only if named
    sizes       seconds and memory of portable files over megapixels, a process each; both should be linear
    folder      images a second, one at a time against reading and writing beside the work, and --jobs
    start       seconds to import torch, the program, and to load a model

Medians. `--clock cpu` counts this process's processor seconds, which a machine with other work on it hardly changes;
with one thread they are what a clock shows on an idle one.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from project_root import ROOT

from compress_and_decompress import write_bytes, write_image
from models import MODELS, build_model
from models.layers.gain import DEFAULT_QUALITY
from utils.cli import run_program
from utils.codec.checkpoint import DEFAULT_CHECKPOINT, load_model
from utils.codec.codec import Codec
from utils.codec.folders import Job, Outcome, Stages, run_jobs
from utils.data.images import read_image, to_tensor, to_uint8, write_png
from utils.devices import precisions_here, processor
from utils.inference.memory import DEFAULT_STRIPE, held, keep_memory
from utils.inference.rows import stripes_of
from utils.measuring.coder_speed import coder_speed
from utils.measuring.compiled_speed import compiled_speed
from utils.measuring.part_speed import part_speed
from utils.measuring.product_speed import peak_speed, product_speed
from utils.measuring.runs import CLOCKS, image, in_new_process, in_turn, peak, record_part, reset_peak
from utils.tables import format_table

STRIPES = {"whole": None, "thin": 1 << 20, "usual": DEFAULT_STRIPE}  # bytes; thin is for short memory
WHOLE_UP_TO = 2  # megapixels: whole maps take 3 kB a pixel
WAYS = ("plain", "plain, memory kept", "fp32", "bf16", "fp64")


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=[part for part in PARTS if part != "compiled"])
    add("--model", choices=MODELS, default="dcae")
    add("--sizes", nargs="+", type=float, default=[0.4, 1.6], metavar="MP", help="megapixels (default: 0.4 1.6)")
    add("--images", type=int, default=6, help="in the folder, of the first size (default: 6)")
    add("--runs", type=int, default=3, help="of which medians are taken (default: 3)")
    add("--threads", type=int, default=0, help="default: torch's choice")
    add("--clock", choices=CLOCKS, default="wall")
    add("--output", type=Path, default=ROOT / "results" / "benchmark.json")
    add("--checkpoint", type=Path, help="instead of --model")
    add("--one-size", type=float, help=argparse.SUPPRESS)
    add("--one-way", choices=WAYS, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def get_model(args: argparse.Namespace):
    if args.checkpoint:
        return load_model(args.checkpoint)
    torch.manual_seed(0)
    model = build_model(args.model).eval().requires_grad_(False)
    model.update()
    return model


def measure_transforms(args: argparse.Namespace) -> list[dict]:
    """Encoding and decoding an image of the first size, and the transforms in them: a process each, in turn.

    The plain formulas run as torch runs them, and once more with the memory kept that our programs keep. bf16 is left
    out on processors that have none.
    """
    flags = [*shared_flags(args), "--sizes", f"{args.sizes[0]}"]
    ways = precisions_here(WAYS)
    measured = [
        {way: in_new_process(__file__, ["--one-way", way, *flags], f"transforms, {way}") for way in ways}
        for _ in range(args.runs)
    ]
    rows = []
    for step in measured[0]["plain"]:
        seconds = {way: statistics.median(run[way][step] for run in measured) for way in ways}
        times = {f"plain/{way}": seconds["plain"] / seconds[way] for way in ways if "plain" not in way}
        rows.append({"what": f"{step}, s", **seconds, **times})
    return rows


def measure_shipped(args: argparse.Namespace) -> list[dict]:
    """`measure_transforms` of the default checkpoint."""
    return measure_transforms(argparse.Namespace(**{**vars(args), "checkpoint": DEFAULT_CHECKPOINT}))


def shared_flags(args: argparse.Namespace) -> list[str]:
    """What processes for one measurement are told."""
    model = ["--checkpoint", str(args.checkpoint)] if args.checkpoint else ["--model", args.model]
    return [*model, "--clock", args.clock, "--threads", str(args.threads)]


def measure_one_way(args: argparse.Namespace) -> dict[str, float]:
    """Seconds of each step in one of WAYS."""
    model, x, clock, way = get_model(args), image(args.sizes[0]), CLOCKS[args.clock], args.one_way
    quality = DEFAULT_QUALITY if model.variable_rate else None
    codec = Codec(model, "fp64" if way == "fp64" else "fp32", precision="bf16" if way == "bf16" else "fp32")
    model, path = (model, model) if way.startswith("plain") else (codec.quick, codec.path(codec.arithmetic))
    coded = model.compress_latent(model.to_latent(x, quality), path)
    strings = coded["strings"], coded["shape"]
    steps = {
        "encode": lambda: model.compress_latent(model.to_latent(x, quality), path),
        "of it analysis": lambda: model.to_latent(x, quality),
        "decode": lambda: model.to_image(model.decompress_latent(*strings, path)[0], quality),
        "of it synthesis": lambda: model.to_image(coded["y_hat"], quality),
    }
    seconds = {}
    for name, step in steps.items():
        for _ in range(2):  # the first warms up
            start = clock()
            step()
            seconds[name] = clock() - start
    return seconds


def measure_parts(args: argparse.Namespace) -> list[dict]:
    """The model's parts for an image of the first size, beside the machine's peak."""
    model = get_model(args)
    quality = DEFAULT_QUALITY if model.variable_rate else None
    return part_speed(model, image(args.sizes[0]), quality, args.runs, args.clock)


def measure_shipped_parts(args: argparse.Namespace) -> list[dict]:
    """`measure_parts` of the default checkpoint."""
    return measure_parts(argparse.Namespace(**{**vars(args), "checkpoint": DEFAULT_CHECKPOINT}))


def measure_compiled(args: argparse.Namespace) -> list[dict]:
    """What compiling the transforms for an image of the first size wins."""
    with torch.inference_mode(False):  # whose tensors cannot be exported
        model = get_model(args).requires_grad_(False)
    return compiled_speed(model, image(args.sizes[0]), args.runs, args.clock)


def measure_sizes(args: argparse.Namespace) -> Iterator[dict]:
    """A process for each size."""
    for size in args.sizes:
        yield from in_new_process(__file__, ["--one-size", f"{size}", *shared_flags(args)], f"--sizes {size}")


def measure_one_size(args: argparse.Namespace) -> list[dict]:
    """Seconds and peak bytes a pixel above what was held before; whole maps, thin stripes and usual ones.

    As under --max-memory, freed memory is not kept for the next map.
    """
    codec, clock, rows = Codec(get_model(args)), CLOCKS[args.clock], []
    codec.decompress(codec.compress(image(0.1)))  # tables, float64 copy, compiled loops
    x = image(args.one_size)
    pixels = x.shape[-2] * x.shape[-1]
    for stripe in STRIPES if args.one_size <= WHOLE_UP_TO else ("usual",):
        reset_peak()
        before, start = held(x.device), clock()
        with stripes_of(STRIPES[stripe]):
            data = codec.compress(x)
            middle, encoding = clock(), peak() - before
            reset_peak()
            codec.decompress(data)
        row = {"megapixels": pixels / 1e6, "stripes": stripe, "encode_s": middle - start}
        row |= {"decode_s": clock() - middle, "encode_bytes_a_pixel": encoding / pixels}
        rows.append(row | {"decode_bytes_a_pixel": (peak() - before) / pixels, "held_mib": before / 2**20})
    return rows


def measure_folder(args: argparse.Namespace) -> list[dict]:
    """Compressing and decompressing a folder with the shipped model.

    One after the other; reading and writing beside it; as many files at once as there are threads.
    """
    codec, rows = Codec(load_model(DEFAULT_CHECKPOINT)), []
    code = partial(codec.compress, quality=DEFAULT_QUALITY)
    with tempfile.TemporaryDirectory() as folder:
        names = [Path(folder, f"{i}") for i in range(args.images)]
        for name in names:
            write_png(name.with_suffix(".png"), to_uint8(image(args.sizes[0])))
        to_bins = [Job(n.name, n.with_suffix(".png"), n.with_suffix(".bin")) for n in names]
        to_images = [Job(n.name, n.with_suffix(".bin"), n.with_suffix(".out")) for n in names]
        compress = Stages(
            read=lambda job: read_image(job.source)[0],
            work=lambda job, pixels: (code(to_tensor(pixels)), Outcome(job.name, "done")),
            write=write_bytes,
        )
        decompress = Stages(
            read=lambda job: job.source.read_bytes(),
            work=lambda job, data: (to_uint8(codec.decompress(data)), Outcome(job.name, "done")),
            write=write_image,
        )
        for what, jobs, stages in (("compress", to_bins, compress), ("decompress", to_images, decompress)):
            ways = {"one_at_a_time": partial(one_at_a_time, jobs, stages)}
            ways["overlapping"] = partial(run_jobs, jobs, stages, True, what)
            alone = replace(stages, work=partial(with_one_thread, stages.work))
            ways["side_by_side"] = partial(run_jobs, jobs, alone, True, what, torch.get_num_threads())
            seconds = in_turn(ways, args.runs, "wall")
            rows.append({"what": what, **{f"{way}_per_s": args.images / value for way, value in seconds.items()}})
    return rows


def one_at_a_time(jobs: list[Job], stages: Stages) -> None:
    for job in jobs:
        stages.write(job, stages.work(job, stages.read(job)))


def with_one_thread(work: Callable, job: Job, content: Any) -> Any:
    torch.set_num_threads(1)
    return work(job, content)


def measure_start(args: argparse.Namespace) -> list[dict]:
    """What a decoder takes before it decodes, each in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder, "model.pt")
        torch.save({"state_dict": get_model(args).state_dict()}, checkpoint)
        load = f"from models import load_model; load_model({str(checkpoint)!r})"
        programs = {"import torch": "import torch", "import program": "import compress_and_decompress"}
        programs["import and load model"] = f"import compress_and_decompress; {load}"
        run = partial(subprocess.run, cwd=ROOT, check=True, capture_output=True)
        ways = {name: partial(run, [sys.executable, "-c", code]) for name, code in programs.items()}
        seconds = in_turn(ways, args.runs, "wall")
    return [{"what": name, "seconds": value} for name, value in seconds.items()]


PARTS: dict[str, Callable[[argparse.Namespace], Iterable[dict]]] = {
    "products": lambda args: product_speed(args.runs, args.clock),
    "peak": lambda args: [{"type": t, "GFLOP/s": v} for t, v in peak_speed(args.runs, args.clock).items()],
    "coder": lambda args: coder_speed(args.runs, args.clock),
    "parts": measure_parts,
    "shipped-parts": measure_shipped_parts,
    "transforms": measure_transforms,
    "shipped": measure_shipped,
    "compiled": measure_compiled,
    "sizes": measure_sizes,
    "folder": measure_folder,
    "start": measure_start,
}
OF_THE_SHIPPED_MODEL = ("shipped", "shipped-parts", "folder")


def machine(args: argparse.Namespace) -> dict:
    """What the numbers were measured on, without its name."""
    flags = {
        "model": args.checkpoint.stem if args.checkpoint else args.model,
        "runs": args.runs,
        "clock": args.clock,
        "threads": torch.get_num_threads(),
    }
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    return {"cpu": processor(), "date": date.today().isoformat(), **versions, **flags}


def main(argv: Sequence[str]) -> None:
    args = parse_arguments(argv)
    if args.one_way != "plain" and not args.one_size:  # kept memory would count as a map's
        keep_memory()
    if args.threads:
        torch.set_num_threads(args.threads)
    with torch.inference_mode():
        if args.one_size:
            print(json.dumps(measure_one_size(args)))
            return
        if args.one_way:
            print(json.dumps(measure_one_way(args)))
            return
        print(", ".join(f"{key} {value}" for key, value in machine(args).items()))
        for name in args.parts:
            described = machine(args) | ({"model": DEFAULT_CHECKPOINT.stem} if name in OF_THE_SHIPPED_MODEL else {})
            rows = []
            for row in PARTS[name](args):  # each is recorded as it comes: large sizes take long
                rows.append(row)
                record_part(args.output, name, {**described, "rows": rows})
            cells = [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
            print(f"\n{name}\n{format_table(list(rows[0]), cells)}", flush=True)


if __name__ == "__main__":
    run_program(main)
