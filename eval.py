"""Rate, distortion and speed of one or several models on a folder of images.

    python eval.py --checkpoint dcae_0.0130.pth.tar --data kodak --cuda        # rate estimated, without coding
    python eval.py --checkpoint dcae_*.pth.tar --data kodak --real             # rate and time of real files
    python eval.py --data kodak --quality 10 50 90 --save_path out             # variable-rate model, with its images
    python eval.py --data kodak --report runs/report                           # and a page to look at, in a browser

Prints a table a point, writes results.json in CompressAI's layout (see utils/evaluation/results.py), with --save_path
the reconstructions, and with --report a page with curve, table, images and maps of bits (see
utils/evaluation/report.py). Leaves with status 2 if anything could not be evaluated.
"""

from __future__ import annotations

if __name__ == "__main__":
    from utils.cli import speak_while_loading

    speak_while_loading()

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from utils.cli import UserError, run_program
from utils.codec.checkpoint import DEFAULT_CHECKPOINT
from utils.codec.flags import add_effort_flags, check_effort, effort_options, require_quality
from utils.data.listing import closing_line
from utils.data.reconstructions import ImageFile, list_images, refuse_overwriting
from utils.devices import choose_device
from utils.evaluation.curve import Point, Report, evaluate_point, plan_points
from utils.evaluation.report import ReportFolder, require_report_folder
from utils.evaluation.results import make_results, write_results
from utils.evaluation.tables import format_curve, format_point
from utils.files import from_pipe, require_writable
from utils.inference.memory import add_inference_flags, engine_options, keep_memory
from utils.text import to_json


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The flags of the papers' programs, and ours."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--checkpoint", nargs="+", type=Path, metavar="FILE", help="one or several models (default: the one in assets)")
    add("--data", type=Path, required=True, metavar="DIR", help="folder of images, or one image")
    add("--recursive", action="store_true", help="also the images in the folders below --data")
    add("--cuda", action="store_true", help="work on the GPU")
    add("--device", metavar="NAME", help="cpu, cuda or cuda:N (default: cpu)")
    add("--real", action="store_true", help="code every image to a real file and back, instead of estimating the rate")
    add("--arithmetic", choices=("fp32", "fp64"), help="of the entropy path of real files (default: fp32)")
    add_effort_flags(parser)
    add_inference_flags(parser)
    add("--quality", nargs="+", type=float, metavar="Q", help="1..100, of variable-rate models; a point for each")
    add("--save_path", type=Path, metavar="DIR", help="where the reconstructions go, as PNG")
    add("--report", type=Path, metavar="DIR", help="where an HTML page of the results goes: open index.html there")
    add("--overwrite", action="store_true", help="let --report replace what a folder that is not empty holds")
    add("--output", type=Path, metavar="FILE", help="default: results.json in --save_path or the current folder")
    add("--name", help="name of the curve in results.json (default: the model's)")
    add("--json", action="store_true", help="print the results as JSON instead of tables")
    add("--debug", action="store_true", help="stop at the first error and show where it happened")
    args = parser.parse_args(argv)
    check_effort(args, parser)
    return args


def check_checkpoints(given: list[Path] | None) -> list[Path]:
    """The files to evaluate. Raises UserError where there is no such file."""
    paths = given or [DEFAULT_CHECKPOINT]
    for path in paths:
        if not path.is_file():
            raise UserError(f"--checkpoint {path}: there is no such file")
    return paths


def check_flags(args: argparse.Namespace) -> None:
    """Raise UserError for flags that would be ignored or fail later."""
    if args.arithmetic and not args.real:
        raise UserError(f"--arithmetic {args.arithmetic} matters to real files only; add --real or leave it out")
    if args.effort and not args.real:
        raise UserError(f"--effort {args.effort} matters to real files only; add --real or leave it out")
    if args.weight and len(args.checkpoint or []) > 1:
        raise UserError("--lambda is of one checkpoint; evaluate the others without it, or each by itself")
    if args.overwrite and not args.report:
        raise UserError("--overwrite matters to --report only; leave it out")
    for quality in args.quality or []:
        require_quality(quality)


def evaluate_points(
    args: argparse.Namespace,
    points: list[Point],
    images: list[ImageFile],
    device: torch.device,
    report: Report,
    page: ReportFolder | None,
) -> list[dict[str, Any]]:
    """What the points come to, without those that failed."""
    results = []
    for point in points:
        try:
            watcher = page.watch(point) if page else None
            options = {"arithmetic": args.arithmetic or "fp32", **effort_options(args), **engine_options(args, device)}
            results.append(evaluate_point(point, images, device, args.real, report, watcher, **options))
        except UserError as error:
            if len(points) == 1:
                raise
            report.failed(point.checkpoint, error)
    return [result for result in results if result]


def describe(args: argparse.Namespace, results: list[dict[str, Any]]) -> tuple[str, str]:
    """Name and description of the curve."""
    models = sorted({result["model"] for result in results})
    rate = "rate of real files" if args.real else "estimated rate"
    return args.name or ", ".join(models), f"{' '.join(models)} on {args.data.name}, {rate}, {results[0]['device']}"


def print_tables(results: list[dict[str, Any]], real: bool) -> None:
    """A table a point; of several, one more with their averages."""
    for result in results:
        print(f"{result['label']}: {result['model']}, {result['rate']} rate, {result['device']}")
        print(format_point(result["images"], result["average"], real), end="\n\n")
    if len(results) > 1:
        print(format_curve([r["label"] for r in results], [r["average"] for r in results], real))


def main(argv: Sequence[str]) -> int:
    """Evaluate what the flags say; return the exit status."""
    args = parse_arguments(argv)
    check_flags(args)
    if args.max_memory is None:
        keep_memory()
    device = choose_device(args.device, args.cuda)
    args.data = from_pipe(args.data)
    images, left_out = list_images(args.data, args.recursive)
    points = plan_points(check_checkpoints(args.checkpoint), args.quality, args.save_path)
    output = args.output or (args.save_path or Path()) / "results.json"
    require_writable(output, "--output" if args.output else "--save_path" if args.save_path else "results.json")
    if args.save_path:
        refuse_overwriting([point.folder for point in points], images)
        require_writable(args.save_path / "image.png", "--save_path")
    if args.report:
        require_report_folder(args.report, images, args.overwrite)

    report, page = Report(args.debug), ReportFolder(args.report, images) if args.report else None
    results = evaluate_points(args, points, images, device, report, page)
    if not results:
        raise UserError(f"--data {args.data}: not one of {len(images)} image(s) could be evaluated")
    curve = make_results(*describe(args, results), results, left_out)
    write_results(output, curve)
    if page:
        page.write(curve)
    if args.json:
        print(to_json(curve))
    else:
        print_tables(curve["points"], args.real)
    failed = sum(image.path in report.failed_files for image in images)
    print(closing_line(len(images) - failed, 0, failed, left_out), file=sys.stderr)
    return 2 if report.failures else 0


if __name__ == "__main__":
    run_program(main)
