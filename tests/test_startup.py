"""Programs answer wrong flags before they load what takes seconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAMS = ("compress_and_decompress", "eval", "train", "scripts.export_checkpoint", "scripts.compare_crops")
HEAVY = ("compressai", "numba", "timm", "torch_geometric", "scipy")


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_takes_seconds_is_loaded_when_it_is_needed(program):
    code = f"import sys, {program}; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    command = [sys.executable, "-W", "ignore", "-c", code]
    path = {"PYTHONPATH": f"{ROOT}:{ROOT / 'scripts'}"}
    done = subprocess.run(command, cwd=ROOT, env=path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
