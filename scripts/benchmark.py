"""Seconds and memory to encode and decode an image, for each model at full size, in fast and portable arithmetic.

    python scripts/benchmark.py [--models dcae tcm-large icwem] [--data IMAGE] [--runs 3] [--threads 2]

Weights are freshly drawn (speed does not depend on them); without --data a synthetic 768x512 image is used. Every model
runs in a process of its own, so that peak memory is its own. Fast and portable runs take turns; medians are printed.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from utils.cli import run_program  # noqa: E402
from utils.tables import format_table  # noqa: E402

ARITHMETICS = ("fp32", "fp64")


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["dcae", "tcm-large", "icwem"])
    parser.add_argument("--data", type=Path, help="an image (default: a synthetic one of 768x512)")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="default: torch's choice")
    parser.add_argument("--output", type=Path, help="also write the numbers as JSON")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def measure(name: str, args: argparse.Namespace) -> dict:
    """Seconds of every run, by arithmetic and direction, and the peak memory of this process in MiB."""
    import torch

    from models import build_model

    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = build_model(name).eval()
    model.update()
    x, seconds = read(args.data), {}
    for run in range(args.runs + 1):  # the first warms up
        for arithmetic in ARITHMETICS:
            start = time.perf_counter()
            out = model.compress(x, arithmetic=arithmetic)
            middle = time.perf_counter()
            model.decompress(out["strings"], out["shape"], arithmetic=arithmetic)
            if run:
                times = seconds.setdefault(arithmetic, {"encode": [], "decode": []})
                times["encode"].append(middle - start)
                times["decode"].append(time.perf_counter() - middle)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"model": name, "seconds": seconds, "peak_mib": peak, "threads": torch.get_num_threads()}


def read(path: Path | None):
    """The image (1, 3, H, W) in [0, 1]."""
    import torch

    if path is None:
        coarse = torch.rand(1, 3, 17, 25)
        return torch.nn.functional.interpolate(coarse, (512, 768), mode="bicubic").clamp(0, 1)
    from utils.images import read_image, to_tensor

    return to_tensor(read_image(path)[0])


def row(result: dict) -> tuple[str, ...]:
    """Medians, and what portable arithmetic costs."""
    median = {a: {d: statistics.median(t) for d, t in times.items()} for a, times in result["seconds"].items()}
    ratio = [median["fp64"][d] / median["fp32"][d] for d in ("encode", "decode")]
    numbers = [f"{median[a][d]:.2f}" for a in ARITHMETICS for d in ("encode", "decode")]
    return (result["model"], *numbers, *(f"{r:.2f}" for r in ratio), f"{result['peak_mib']:.0f}")


def main(argv: Sequence[str]) -> None:
    args = parse_arguments(argv)
    if args.one:
        print(json.dumps(measure(args.one, args)))
        return
    results = []
    for name in args.models:
        command = [sys.executable, __file__, *argv, "--one", name]
        results.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    print(f"{platform.processor() or platform.machine()}, {results[0]['threads']} threads, median of {args.runs}, s")
    header = ("model", "fp32 enc", "fp32 dec", "fp64 enc", "fp64 dec", "enc ratio", "dec ratio", "peak MiB")
    print(format_table(header, [row(result) for result in results]))
    if args.output:
        args.output.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    run_program(main)
