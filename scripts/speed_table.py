"""What scripts/benchmark.py measured on several machines, as the README's tables in Markdown.

    python scripts/speed_table.py
    python scripts/speed_table.py results/benchmark-xeon.json mine.json
    python scripts/speed_table.py --update README.md docs/speed.md

Seconds of encoding and decoding, how far the parts of a model are from what the machine can do, and the machines. With
--update they replace what documents have between <!-- seconds -->, <!-- peaks -->, <!-- machines --> and <!-- end -->.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from project_root import ROOT

from utils.cli import UserError, run_program
from utils.files import atomic_write
from utils.tables import format_markdown

RESULTS = ROOT / "results"
PARTS_OF_SECONDS, PARTS_OF_PEAK = ("transforms", "shipped"), ("parts", "shipped-parts")
STEPS = ("encode, s", "decode, s")
WAYS = {"fp32": "fp32", "bf16": "bf16", "fp64": "portable"}
Results = dict[str, dict[str, Any]]  # a file of scripts/benchmark.py: part -> machine and rows


def read(path: Path) -> Results:
    """Raises UserError, naming the file, where it is none of scripts/benchmark.py."""
    try:
        results = json.loads(path.read_text())
        known = all("rows" in part for part in results.values())
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{path}: cannot be read as a file of scripts/benchmark.py") from error
    if not known:
        raise UserError(f"{path}: not a file that scripts/benchmark.py wrote")
    return results


def machine(part: dict[str, Any]) -> str:
    """Processor and threads, as short as the tables need it."""
    return f"{part['cpu']}, {part['threads']} thread{'s' * (part['threads'] > 1)}"


def described(part: dict[str, Any]) -> str:
    """The machine, when it was measured there, with what and how."""
    versions = ", ".join(f"{name} {part[name]}" for name in ("python", "torch", "numpy") if name in part)
    clock = {"wall": "seconds on the clock", "cpu": "processor seconds"}[part["clock"]]
    return f"- {machine(part)}: {part['date']}, {versions}; {clock}"


def seconds_table(files: Sequence[Results]) -> str:
    """Plain and quick, a row for machine, model and direction."""
    header = ["machine: model", "plain", "plain, memory kept", *WAYS.values()]
    return format_markdown(header, list(rows_of(files, PARTS_OF_SECONDS, seconds_cells)))


def seconds_cells(row: dict[str, Any]) -> list[str]:
    """Seconds; of the quick ways also how many times as fast as plain."""
    if row["what"] not in STEPS:
        return []
    cells = [f"{row[way]:#.2g}" for way in ("plain", "plain, memory kept")]
    quick = (f"{row[way]:#.2g} ({row[f'plain/{way}']:.2f} x)" if way in row else "has none" for way in WAYS)
    return [*cells, *quick]


def peak_table(files: Sequence[Results]) -> str:
    """The parts of the models beside the peak."""
    header = ["machine: model, part", "type", "GMAC", "seconds", "GFLOP/s", "peak", "of peak"]
    return format_markdown(header, list(rows_of(files, PARTS_OF_PEAK, peak_cells)))


def peak_cells(row: dict[str, Any]) -> list[str]:
    """As measured, rounded."""
    numbers = [f"{row['GMAC']:#.3g}".rstrip("."), f"{row['seconds']:#.2g}"]
    return [row["type"], *numbers, *(f"{row[key]:.0f}" for key in ("GFLOP/s", "peak")), f"{row['of peak']:.0%}"]


def rows_of(
    files: Sequence[Results], names: Sequence[str], cells: Callable[[dict[str, Any]], list[str]]
) -> Iterator[list[str]]:
    """The cells of each row that has some, behind machine, model and what it is."""
    for part in (results[name] for results in files for name in names if name in results):
        for row in part["rows"]:
            if values := cells(row):
                yield [f"{machine(part)}: {part['model']}, {row['what'].removesuffix(', s')}", *values]


def machines(files: Sequence[Results]) -> str:
    """A line for each that the tables name."""
    names = PARTS_OF_SECONDS + PARTS_OF_PEAK
    return "\n".join(dict.fromkeys(described(results[name]) for results in files for name in names if name in results))


def updated(text: str, made: dict[str, str]) -> str:
    """The text with what was made where it is marked."""
    for name, table in made.items():
        text = re.sub(rf"(<!-- {name} -->\n\n).*?(\n\n<!-- end -->)", rf"\g<1>{table}\g<2>", text, flags=re.DOTALL)
    return text


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="default: results/benchmark*.json")
    parser.add_argument("--update", nargs="+", type=Path, default=[], metavar="MD", help="documents with such tables")
    args = parser.parse_args(argv)
    files = [read(path) for path in args.files or sorted(RESULTS.glob("benchmark*.json"), key=lambda path: path.stem)]
    made = {"seconds": seconds_table(files), "peaks": peak_table(files), "machines": machines(files)}
    for path in args.update:
        text = updated(path.read_text(encoding="utf-8"), made)
        with atomic_write(path) as file:
            file.write(text.encode())
    if not args.update:
        print("\n\n".join(made.values()))


if __name__ == "__main__":
    run_program(main)
