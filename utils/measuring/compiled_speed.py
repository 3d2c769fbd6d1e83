"""What `--compile` (utils/inference/compiled.py) wins over the quick transforms."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from models.base import SliceCompressionModel
from utils.devices import precisions_here
from utils.inference.compiled import CompiledTransforms
from utils.inference.engine import Engine
from utils.inference.memory import PRECISIONS
from utils.measuring.runs import CLOCKS, in_turn


def compiled_speed(model: SliceCompressionModel, x: Tensor, runs: int, clock: str) -> list[dict[str, Any]]:
    """Rows for a table: transform and precision, seconds quick and compiled, their ratio, seconds to compile.

    Medians of `runs` in turn, after one to warm up, for image x (1, 3, H, W) of a size that the model takes.
    """
    inputs, rows = {"analysis": x, "synthesis": model.analysis(x)}, []
    with tempfile.TemporaryDirectory() as folder:
        for precision in precisions_here(PRECISIONS):
            libraries = CompiledTransforms(Path(folder))
            engines = {"quick": Engine(model, precision), "compiled": Engine(model, precision, compiled=libraries)}
            for name, value in inputs.items():
                start = CLOCKS["wall"]()
                libraries.get(model, precision, name, value)
                compiling = CLOCKS["wall"]() - start
                ways = {way: partial(getattr(engine.quick, name), value) for way, engine in engines.items()}
                seconds = in_turn(ways, runs, clock)
                ratio = {"quick/compiled": seconds["quick"] / seconds["compiled"], "compiling_s": compiling}
                rows.append({"what": f"{name}, {precision}, s", **seconds, **ratio})
    return rows
