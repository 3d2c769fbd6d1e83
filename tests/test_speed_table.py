"""Parts of models beside the machine's peak, and the README's tables of that."""

from __future__ import annotations

import json

import pytest
import torch

from scripts import speed_table
from tests.test_readme import README
from tests.toys import toy_image, toy_model
from utils.cli import UserError
from utils.measuring import part_speed as measuring
from utils.measuring.complexity import count_parts

PEAKS = {"fp32": 200.0, "bf16": 400.0, "fp64": 100.0}


def test_parts_are_twice_their_products_a_second(monkeypatch):
    model, x = toy_model("dcae-variable-rate"), toy_image(128, 128)
    encode = {"g_a": 1.0, "h_a": 2.0, "hyper-synthesis": 3.0, "slice 1": 4.0, "slice 2": 5.0, "entropy coding": 6.0}
    times = {"encode": encode, "decode": {**encode, "g_s": 8.0}}
    monkeypatch.setattr(measuring, "time_once", lambda *args, parts: times)
    monkeypatch.setattr(measuring, "peak_speed", lambda runs, clock: PEAKS)
    rows, macs = measuring.part_speed(model, x, 50.0, 1, "wall"), count_parts(model, 128, 128)
    assert [row["type"] for row in rows] == ["fp32"] * 4 + ["bf16"] * 2 + ["fp64"]
    milliseconds = {"g_a": 1, "h_a": 2, "entropy model": 12, "g_s": 8}
    for row in rows:
        speed = 2 * macs[row["what"]].exact / 1e9 / (milliseconds[row["what"]] / 1000)
        assert row["GFLOP/s"] == pytest.approx(speed) and row["peak"] == PEAKS[row["type"]]
        assert row["of peak"] == pytest.approx(speed / PEAKS[row["type"]])


def test_every_part_is_timed(monkeypatch):
    monkeypatch.setattr(measuring, "peak_speed", lambda runs, clock: PEAKS)
    with torch.inference_mode():
        rows = measuring.part_speed(toy_model("icwem"), toy_image(128, 128), None, 1, "wall")
    assert all(row["seconds"] > 0 and row["GMAC"] > 0 for row in rows)


def test_the_readme_has_the_tables_of_the_results():
    files = [speed_table.read(path) for path in sorted(speed_table.RESULTS.glob("benchmark*.json"))]
    for table in speed_table.tables(files).split("\n\n"):
        assert table in README
    assert len({part["cpu"] for file in files for part in file.values()}) > 1


def test_another_file_is_named(tmp_path):
    for content in ("{", "[]", json.dumps({"parts": {}}), "3"):
        (tmp_path / "x.json").write_text(content)
        with pytest.raises(UserError, match=r"x\.json: .*scripts/benchmark\.py"):
            speed_table.main([str(tmp_path / "x.json")])
