"""docs/reproduce.md tells the truth: its programs, flags, curves and models exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from models import MODELS
from scripts.plot_rd import FIGURES
from utils.figures.rd_curves import resolve

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "reproduce.md").read_text().replace("\\\n", " ")
COMMANDS = [shlex.split(line, comments=True)[1:] for line in re.findall(r"^python .*|(?<=`)python [^`]*", TEXT, re.M)]
ELSEWHERE = {"train.py": "utils/training/flags.py"}  # where a program's flags are
WRITTEN = re.compile(r"kodak/dcae-medium")  # by a command before


def test_every_table_and_figure_is_there():
    for number in (1, 4, 5, 6, 13, 14, 15, 16):
        assert f"| Figure {number} |" in TEXT
    for heading in ("Table 1", "Tables 2 to 5", "Table 6", "Figures 7, 11 and 12", "Figures 8 and 10"):
        assert re.search(rf"^## {heading}:", TEXT, re.M), heading
    assert set(re.findall(r"--figure (\S+)", TEXT)) == set(FIGURES)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_commands_name_what_exists(command):
    source = (ROOT / command[0]).read_text() + (ROOT / ELSEWHERE.get(command[0], command[0])).read_text()
    for flag in (word for word in command if word.startswith("--")):
        assert f'"{flag}"' in source, flag
    for name in (word.split("=")[-1] for word in command if re.match(r"([^=]*=)?(kodak|clic|tecnick)/[^.]*$", word)):
        assert WRITTEN.match(name) or resolve(name)[1].is_file()
    for name in (following for word, following in zip(command, command[1:]) if word in ("--model", "--models")):
        assert name in MODELS
