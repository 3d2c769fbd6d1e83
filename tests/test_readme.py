"""The README tells the truth: its commands parse, its files exist."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
MADE_BY_RUNNING = ("demo", "runs", "results.json", "__pycache__")
COMMANDS = [line for line in README.splitlines() if re.match(r"python \S+\.py ", line)]


@pytest.mark.parametrize("program", sorted({line.split()[1] for line in COMMANDS}))
def test_flags_exist(program, capsys):
    with pytest.raises(SystemExit, match="^0$"):
        importlib.import_module(program.removesuffix(".py").replace("/", ".")).main(["--help"])
    explained = capsys.readouterr().out
    words = [word for line in COMMANDS if f" {program} " in line for word in shlex.split(line, comments=True)]
    used = {word for word in words if word.startswith("--")}
    assert used and all(re.search(rf"(^|[\s,\[]){flag}\b", explained) for flag in used)


def test_files_and_targets_exist():
    tree = README.split("## Files")[1].split("```")[1]
    named = re.findall(r"[\w./]+\.(?:py|md|txt|toml|cff)\b|\b\w+/(?=\s|$)|Makefile|LICENSE", tree)
    code = [folder for top in ("models", "utils", "assets") for folder in (ROOT / top).rglob("*") if folder.is_dir()]
    folders = [ROOT, *code, *(ROOT / top for top in ("models", "utils", "scripts", "tests", "docs", "assets"))]
    for name in named:
        assert any((folder / name).exists() for folder in folders), name
    for entry in (p.name for p in ROOT.iterdir()):
        if not entry.startswith(".") and entry not in {"README.md", *MADE_BY_RUNNING}:
            assert entry in tree or f"{entry}/" in tree, f"{entry} is missing from the README's file tree"
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"\bmake (\w+)", README)) - {"without"} <= targets | {"make"}


def test_links_lead_somewhere():
    for link in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (ROOT / link).exists(), link
