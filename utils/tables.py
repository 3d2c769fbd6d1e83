"""Text tables, for a terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from utils.text import one_line


def format_number(value: float | None, decimals: int) -> str:
    """A number with fixed decimals; "n/a" where there is none."""
    return "n/a" if value is None else f"{value:.{decimals}f}"


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], footer: Sequence[str] | None = None) -> str:
    """Columns as wide as their widest cell, the first to the left and the others to the right; footer under a rule."""
    lines = [[one_line(cell) for cell in line] for line in (header, *rows, *([footer] if footer else []))]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    rule = "  ".join("-" * width for width in widths)
    text = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines]
    text.insert(1, rule)
    if footer:
        text.insert(-1, rule)
    return "\n".join(text)


def format_markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same as a Markdown table, the first column to the left and the others to the right."""
    rule = [":--", *("--:" for _ in header[1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *rows))
