"""The paper's Tables 2 to 4 (models/dcae.py) in small: one shape that an hour of one processor core can train.

Every run has the same shape but for what is examined, the same number of steps, and for a seed the same crops and first
random numbers. One run is a whole curve, since the models are of variable rate. The first three configurations are
trained with two seeds: what the seeds differ by is what a difference between configurations must exceed.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.cli import UserError
from utils.figures.bd_rate import compare
from utils.figures.rd_curves import Curve, load_curve
from utils.tables import format_number, format_table

SHAPE = (
    "--model dcae --variable-rate --N 64 --M 192 --model-option 'channels=[32,64,128]' 'depths=[0,0,2]'"
    " 'head_dims=[8,16,32]' slices=3 'hidden=[64,48]' dictionary_heads=4 dictionary_head_dim=32 hyper_head_dim=16"
)
RECIPE = (
    "--start pca --optimizer soap -lr 2e-3 --warmup 100 --schedule linear --cooldown 0.4 --max-steps 1500"
    " --batch-size 8 --patch-size 128 --recolor 0.2 --downscale 0.3 --ema 0.995 --cache ram --val-every 0"
    " --save-every 300"
)
QUALITIES = "1 20 45 70 100"


@dataclass(frozen=True)
class Configuration:
    """What differs from the shape, how many seeds train it, and the paper's model of that kind if there is one."""

    label: str
    options: str
    seeds: int
    paper: str | None


CONFIGURATIONS = {
    "baseline": Configuration("baseline", "dictionary_entries=0 msfa=0", 2, "dcae-ablation-baseline"),
    "dictionary": Configuration("+ dictionary of 128", "dictionary_entries=128 msfa=0", 2, "dcae-ablation-entries-128"),
    "msfa-3": Configuration("+ MSFA, m = 3", "dictionary_entries=128 msfa=3", 2, "dcae-ablation"),
    "msfa-1": Configuration("+ MSFA, m = 1", "dictionary_entries=128 msfa=1", 1, "dcae-ablation-msfa-1"),
    "entries-32": Configuration("dictionary of 32, no MSFA", "dictionary_entries=32 msfa=0", 1, None),
}


def print_commands(args: argparse.Namespace) -> None:
    """For every run a line that trains it and one that evaluates it; started again, training resumes."""
    for name, configuration in CONFIGURATIONS.items():
        for seed in range(configuration.seeds):
            folder = shlex.quote(str(folder_of(args.runs, name, seed)))
            data, images, cuda = shlex.quote(str(args.data)), shlex.quote(str(args.evaluation)), " --cuda" * args.cuda
            where = f"-d {data} --save_path {folder} --resume --precision {args.precision}{cuda}"
            points = f"--data {images} --real --quality {QUALITIES} --name {name}-{seed}"
            print(f"# {name}, seed {seed}")
            print(f"python train.py {SHAPE} {configuration.options} {RECIPE} --seed {seed} {where}")
            print(f"python eval.py --checkpoint {folder}/latest.pt {points} --output {folder}/results.json{cuda}\n")


def folder_of(runs: Path, name: str, seed: int) -> Path:
    return runs / f"{name}-{seed}"


def collect(runs: Path, paper: dict[str, float]) -> list[dict]:
    """One entry a configuration that has been evaluated: "bd_rates" in percent against the baseline of the same seed.

    Also "label", "name" and "paper", the paper's figure brought to its baseline (None where it has none). `paper` gives
    its BD-rates by model. Raises UserError where there is no run, or a seed lacks its baseline.
    """
    curves = {key: load_curve(str(path)) for key, path in evaluated(runs).items()}
    if not curves:
        raise UserError(
            f"--runs {runs}: no NAME-SEED/results.json of any run; `commands --size small` says what to run"
        )
    entries = []
    for name, configuration in CONFIGURATIONS.items():
        pairs = [(baseline(curves, runs, seed), curve) for (n, seed), curve in curves.items() if n == name]
        if pairs:
            rates = [bd_rate(*pair) for pair in pairs]
            entries.append({"name": name, "label": configuration.label, "bd_rates": rates,
                            "paper": relative(paper, configuration.paper)})  # fmt: skip
    return entries


def evaluated(runs: Path) -> dict[tuple[str, int], Path]:
    """The results of (name, seed), of those that there are."""
    every = {(n, s): folder_of(runs, n, s) / "results.json" for n, c in CONFIGURATIONS.items() for s in range(c.seeds)}
    return {key: path for key, path in every.items() if path.is_file()}


def baseline(curves: dict[tuple[str, int], Curve], runs: Path, seed: int) -> Curve:
    """What a seed's runs are compared with."""
    if ("baseline", seed) not in curves:
        raise UserError(f"--runs {runs}: baseline-{seed}/results.json is missing; the others are compared with it")
    return curves["baseline", seed]


def bd_rate(anchor: Curve, test: Curve) -> float | None:
    """In percent; what is doubtful about it goes to stderr."""
    comparison = compare(anchor, test)
    for warning in dict.fromkeys((*test.notes, *comparison.warnings)):
        print(f"warning: {warning}", file=sys.stderr)
    return comparison.rate_percent


def relative(paper: dict[str, float], model: str | None) -> float | None:
    """The paper's BD-rate of a model against its baseline, from both against VTM."""
    if model is None:
        return None
    return 100 * ((1 + paper[model] / 100) / (1 + paper[CONFIGURATIONS["baseline"].paper] / 100) - 1)


def seed_noise(runs: Path) -> float | None:
    """The BD-rate between two baselines that differ in nothing but their seed; None where there are not two."""
    paths = evaluated(runs)
    if not {("baseline", 0), ("baseline", 1)} <= paths.keys():
        return None
    return bd_rate(*(load_curve(str(paths["baseline", seed])) for seed in (0, 1)))


def format_entries(entries: Sequence[dict]) -> str:
    """A table: mean over the seeds, lowest and highest, and the paper's figure."""
    rows = []
    for entry in entries:
        rates = [rate for rate in entry["bd_rates"] if rate is not None]
        spread = f"{min(rates):.2f} to {max(rates):.2f}" if len(rates) > 1 else "-"
        mean = sum(rates) / len(rates) if rates else None
        rows.append([entry["label"], str(len(rates)), format_number(mean, 2), spread, format_number(entry["paper"], 2)])
    return format_table(("", "seeds", "BD-rate %", "from, to", "paper %"), rows)
