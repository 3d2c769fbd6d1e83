"""Optimizers at equal processor time: validation loss over what their runs have cost, and what SOAP costs beside Adam.

    python scripts/compare_optimizers.py commands --data photos
    python scripts/compare_optimizers.py commands --data photos --steps 10800 7200 --precision bf16
    python scripts/compare_optimizers.py plot SOAP=runs/optimizers/soap Adam=runs/optimizers/adam --output loss.png
    python scripts/compare_optimizers.py count --model dcae

`commands` prints a line for each optimizer that trains the same small model on the same crops. `plot` reads the
log.jsonl of runs of train.py, any runs: seconds are of the processor, without validation. With --json it prints the
numbers, which take the place of the runs when they are plotted again. `count` counts on shapes alone.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import project_root  # noqa: F401

from models import MODELS, build_model
from utils.cli import UserError, run_program
from utils.figures.plots import check_format, new_figure, save_figure
from utils.figures.small_ablation import SHAPE
from utils.files import require_writable
from utils.measuring.complexity import count_parts
from utils.tables import format_table
from utils.text import to_json
from utils.training.flags import positive
from utils.training.optimizer_cost import soap_cost
from utils.training.step import PRECISIONS

RUNS = {"adam": "--optimizer adam -lr 5e-4", "soap": "--optimizer soap -lr 2e-3"}
STEPS = (500, 360)  # of Adam and SOAP, which take the same time on a processor without bf16
RECIPE = (
    "--start pca --warmup 50 --schedule linear --cooldown 0.4 --batch-size 8 --patch-size 128 --recolor 0.2"
    " --downscale 0.3 --ema 0.99 --cache ram --val-images 6 --log-every 20 --seed 1"
)
VALIDATIONS = 12  # at most about so many a run
PASS = 3  # forward passes that a pass forward and backward is worth
BATCH, SIDE = 16, 256  # of crops, for the share of a step


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    verbs = parser.add_subparsers(dest="verb", required=True)
    commands = verbs.add_parser("commands", help="print what trains with each optimizer")
    commands.add_argument("--data", type=Path, required=True, metavar="DIR", help="what to train on")
    commands.add_argument("--runs", type=Path, default=Path("runs/optimizers"), metavar="DIR")
    commands.add_argument(
        "--steps", type=positive, nargs=2, default=STEPS, metavar=("ADAM", "SOAP"), help="default: 500 360"
    )
    commands.add_argument("--precision", choices=PRECISIONS, default="fp32", help="default: fp32")
    plot = verbs.add_parser("plot", help="loss over processor seconds")
    plot.add_argument("runs", nargs="+", metavar="NAME=DIR", help="runs of train.py, or one file of --json")
    plot.add_argument("--output", type=Path, metavar="FILE", help="the figure: png, svg or pdf")
    plot.add_argument("--json", action="store_true", help="print the numbers as JSON")
    count = verbs.add_parser("count", help="memory and operations of SOAP beside Adam")
    count.add_argument("--model", choices=MODELS, default="dcae", help="default: dcae")
    for verb in (commands, plot, count):
        verb.add_argument("--debug", action="store_true", help="show where an error happened")
    return parser.parse_args(argv)


def print_commands(args: argparse.Namespace) -> None:
    for (name, flags), steps in zip(RUNS.items(), args.steps):
        length = f"--max-steps {steps} --val-every {max(100, steps // VALIDATIONS)} --precision {args.precision}"
        where = f"-d {shlex.quote(str(args.data))} --save_path {shlex.quote(str(args.runs / name))} --resume"
        print(f"python train.py {SHAPE} dictionary_entries=64 msfa=2 {RECIPE} {flags} {length} {where}")


def read_runs(references: Sequence[str]) -> dict[str, list[dict[str, float]]]:
    """For each run its validations: {"step", "seconds", "loss"}. Raises UserError, naming what is wrong."""
    if len(references) == 1 and references[0].endswith(".json"):
        return read_json(Path(references[0]))
    runs = {}
    for reference in references:
        name, equals, folder = reference.partition("=")
        if not equals:
            raise UserError(f"{reference}: give NAME=DIR, the folder of a run of train.py")
        runs[name] = points_of(read_json(Path(folder) / "log.jsonl"))
        if not runs[name]:
            raise UserError(f"{reference}: its log holds no validation with a loss; train with --val-every")
    return runs


def read_json(path: Path) -> Any:
    """A JSON file, or the list of objects of one that holds an object a line."""
    try:
        text = path.read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as a log or as the numbers of --json ({error})") from error


def points_of(events: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """The validations, each with the processor seconds of all steps before it; not those whose loss is not finite."""
    seconds, points = 0.0, []
    for event in events:
        if event["event"] == "train":
            seconds += event.get("processor_s", 0.0)
        elif event["event"] == "validation" and event["loss"] is not None:
            points.append({"step": event["step"], "seconds": round(seconds, 1), "loss": event["loss"]})
    return points


def plot(args: argparse.Namespace) -> None:
    if args.output:
        check_format(args.output)
        require_writable(args.output, "--output")
    runs = read_runs(args.runs)
    if args.json:
        print(to_json(runs))
    else:
        rows = [[n, str(p["step"]), f"{p['seconds']:.0f}", f"{p['loss']:.4f}"] for n, ps in runs.items() for p in ps]
        print(format_table(("run", "step", "processor s", "validation loss"), rows))
    if args.output:
        figure, axes = new_figure("Validation loss of optimizers", "processor seconds", "balanced validation loss")
        for name, points in runs.items():
            axes.plot([p["seconds"] for p in points], [p["loss"] for p in points], marker="o", markersize=4, label=name)
        axes.legend()
        save_figure(figure, args.output)


def print_count(args: argparse.Namespace) -> None:
    """State and operations of both optimizers, and the share of a step on BATCH crops of SIDE."""
    model = build_model(args.model)
    cost = soap_cost(model)
    forward = sum(macs.exact for macs in count_parts(model, SIDE, SIDE).values())
    whole = PASS * 2 * forward * BATCH
    print(f"{args.model}: {cost.parameters / 1e6:.1f} M parameters, float32")
    print(f"state of Adam {cost.adam_bytes / 2**30:.2f} GiB, of SOAP {cost.soap_bytes / 2**30:.2f} GiB")
    print(f"GFLOP a step beside Adam's: rotations {cost.rotations / 1e9:.1f}, statistics {cost.statistics / 1e9:.1f},"
          f" new bases {cost.renewals / 1e9:.1f}")  # fmt: skip
    print(f"a pass of {BATCH} crops of {SIDE}x{SIDE}: {whole / 1e9:.0f}; SOAP adds {cost.operations / whole:.1%}")


def main(argv: Sequence[str]) -> None:
    args = parse_arguments(argv)
    {"commands": print_commands, "plot": plot, "count": print_count}[args.verb](args)


if __name__ == "__main__":
    run_program(main)
