"""The ablation studies of the paper of models/dcae.py, Tables 2 to 6: what to run, and the tables from what was run.

    python scripts/ablation.py commands --data openimages --evaluation kodak --cuda
    python scripts/ablation.py collect --anchor kodak/vtm
    python scripts/ablation.py commands --size small --data photos        # then collect --size small

`commands` prints for every configuration a line that trains it, once for each lambda, and a line that evaluates it, by
the paper's recipe: batches of 8, 20 epochs at 1e-4 and 5 at 1e-5. `collect` looks in --runs for what these lines
leave there, NAME/results.json, and puts BD-rates and latencies beside the paper's (results/paper_ablations.json).
FTIC's part of Table 6 is left out, since no library has its autoencoder. `--size small` is the question of Tables 2 to
4 at a size that a processor can train, against its own baseline (utils/figures/small_ablation.py).
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import project_root  # noqa: F401

from utils.cli import UserError, run_program
from utils.evaluation.results import read_results
from utils.figures import small_ablation
from utils.figures.bd_rate import compare
from utils.figures.rd_curves import Curve, load_curve
from utils.tables import format_number, format_table
from utils.text import to_json
from utils.training.step import PRECISIONS

PAPER = Path(__file__).parent.parent / "results" / "paper_ablations.json"
TABLES: dict[str, dict[str, Any]] = json.loads(PAPER.read_text(encoding="utf-8"))["tables"]
LAMBDAS = (0.0018, 0.0035, 0.0067, 0.013, 0.025, 0.05)
RECIPE = "--batch-size 8 -lr 1e-4 --epochs 25 --lr_epoch 20"


@dataclass(frozen=True)
class Found:
    """What a run came to: points, BD-rate in percent (None: not defined), milliseconds an image (None: no times)."""

    points: int
    bd_rate: float | None
    latency_ms: float | None


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    verbs = parser.add_subparsers(dest="verb", required=True)
    commands = verbs.add_parser("commands", help="print what trains and evaluates each configuration")
    collect = verbs.add_parser("collect", help="fill the tables from the runs found")
    for verb in (commands, collect):
        verb.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES), help="default: all")
        verb.add_argument("--size", choices=("paper", "small"), default="paper", help="default: paper")
        verb.add_argument("--runs", type=Path, metavar="DIR", help="default: runs/ablation, runs/ablation-small")
        verb.add_argument("--debug", action="store_true", help="show where an error happened")
    commands.add_argument("--data", type=Path, required=True, metavar="DIR", help="what to train on")
    commands.add_argument("--evaluation", type=Path, default=Path("kodak"), metavar="DIR", help="default: kodak")
    commands.add_argument(
        "--lambdas", type=float, nargs="+", default=LAMBDAS, metavar="L", help="default: the paper's six"
    )
    commands.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of training; default: fp32")
    commands.add_argument("--cuda", action="store_true", help="on a GPU")
    collect.add_argument(
        "--anchor", default="kodak/vtm", metavar="CURVE", help="see scripts/bd_rate.py; default: kodak/vtm"
    )
    collect.add_argument("--json", action="store_true", help="print the tables as JSON")
    args = parser.parse_args(argv)
    args.runs = args.runs or Path("runs") / ("ablation" if args.size == "paper" else "ablation-small")
    return args


def models_of(tables: Sequence[str]) -> list[str]:
    """The names of the configurations in these tables, each once."""
    return list(dict.fromkeys(row["model"] for table in tables for row in TABLES[table]["rows"]))


def training_command(name: str, args: argparse.Namespace) -> str:
    """A line for the shell that trains the configuration at every lambda; started again, it resumes."""
    folder, data = shlex.quote(str(args.runs / name)), shlex.quote(str(args.data))
    values = " ".join(f"{value:g}" for value in args.lambdas)
    machine = f"--precision {args.precision}{' --cuda' * args.cuda}"
    flags = f"--model {name} -d {data} {RECIPE} --lambda $l --save_path {folder}/$l --resume {machine}"
    return f"for l in {values}; do python train.py {flags}; done"


def evaluation_command(name: str, args: argparse.Namespace) -> str:
    """A line for the shell that measures what was trained, on real files."""
    folder, data = shlex.quote(str(args.runs / name)), shlex.quote(str(args.evaluation))
    flags = f"--data {data} --real --name {name} --output {folder}/results.json{' --cuda' * args.cuda}"
    return f"python eval.py --checkpoint {folder}/*/best.pt {flags}"


def print_commands(args: argparse.Namespace) -> None:
    for name in models_of(args.tables):
        print(f"# {name}", training_command(name, args), evaluation_command(name, args), sep="\n", end="\n\n")


def find_runs(args: argparse.Namespace) -> dict[str, Found]:
    """Of each configuration that has been evaluated, what it came to. Raises UserError if none has."""
    anchor, found = load_curve(args.anchor), {}
    for name in models_of(args.tables):
        path = args.runs / name / "results.json"
        if path.is_file():
            found[name] = examine(path, anchor)
    if not found:
        raise UserError(f"--runs {args.runs}: no NAME/results.json of any configuration; `commands` says what to run")
    return found


def examine(path: Path, anchor: Curve) -> Found:
    """The numbers of one results.json; what is doubtful about them goes to stderr."""
    curve, columns = load_curve(f"{path.parent.name}={path}"), read_results(path)["results"]
    comparison = compare(anchor, curve)
    for warning in dict.fromkeys((*curve.notes, *comparison.warnings)):
        print(f"warning: {warning}", file=sys.stderr)
    times = [columns.get(key) or [None] for key in ("encoding_time", "decoding_time")]
    missing = any(time is None for column in times for time in column)
    latency = None if missing else sum(1000 * sum(column) / len(column) for column in times)
    return Found(len(curve.bpp), comparison.rate_percent, latency)


def fill(table: dict[str, Any], found: dict[str, Found]) -> list[dict[str, Any]]:
    """The table's rows with "points", "our_bd_rate_percent" and "our_latency_ms", None where there is no run."""
    rows = []
    for row in table["rows"]:
        ours = found.get(row["model"], Found(0, None, None))
        measured = {"points": ours.points, "our_bd_rate_percent": ours.bd_rate, "our_latency_ms": ours.latency_ms}
        rows.append({**row, **measured})
    return rows


def format_rows(rows: Sequence[dict[str, Any]]) -> str:
    """Our numbers and the paper's."""
    columns = (("our_bd_rate_percent", 2), ("our_latency_ms", 0), ("bd_rate_percent", 2), ("latency_ms", 0))
    lines = [
        [row["label"], row["model"], str(row["points"]), *(format_number(row[key], places) for key, places in columns)]
        for row in rows
    ]
    return format_table(("", "model", "points", "BD-rate %", "ms", "paper BD-rate %", "paper ms"), lines)


def print_small(args: argparse.Namespace) -> None:
    """The table of the small runs, and what two seeds of the baseline differ by."""
    paper = {row["model"]: row["bd_rate_percent"] for table in "234" for row in TABLES[table]["rows"]}
    entries, noise = small_ablation.collect(args.runs, paper), small_ablation.seed_noise(args.runs)
    if args.json:
        print(to_json({"configurations": entries, "seed_noise_percent": noise}))
        return
    print(
        "Tables 2 to 4 in small (anchor: the baseline of the same seed)",
        small_ablation.format_entries(entries),
        sep="\n",
    )
    if noise is not None:
        print(f"two baselines that differ in their seed alone: {noise:.2f} %")


def main(argv: Sequence[str]) -> None:
    args = parse_arguments(argv)
    if args.verb == "commands":
        (print_commands if args.size == "paper" else small_ablation.print_commands)(args)
        return
    if args.size == "small":
        print_small(args)
        return
    found = find_runs(args)
    tables = {number: {**TABLES[number], "rows": fill(TABLES[number], found)} for number in args.tables}
    if args.json:
        print(to_json(tables))
        return
    for number, table in tables.items():
        print(
            f"Table {number}: {table['title']} (anchor {args.anchor})", format_rows(table["rows"]), sep="\n", end="\n\n"
        )


if __name__ == "__main__":
    run_program(main)
