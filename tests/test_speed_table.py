"""Parts of models beside the machine's peak, and the README's tables of that."""

from __future__ import annotations

import json
import re

import pytest
import torch

from scripts import speed_table
from tests.toys import toy_image, toy_model
from utils.cli import UserError
from utils.measuring import part_speed as measuring
from utils.measuring.complexity import PARTS, Macs, count_parts

PEAKS = {"fp32": 200.0, "bf16": 400.0, "fp64": 100.0}


def test_parts_are_twice_their_products_a_second(monkeypatch):
    counts = []
    encode = {"g_a": 1.0, "h_a": 2.0, "hyper-synthesis": 3.0, "slice 1": 4.0, "slice 2": 5.0, "entropy coding": 6.0}
    times = {"encode": encode, "decode": {**encode, "g_s": 8.0}}
    monkeypatch.setattr(measuring, "time_once", lambda *args, parts: times)
    monkeypatch.setattr("utils.devices.lacks_bfloat16", lambda: False)
    monkeypatch.setattr(measuring, "peak_speed", lambda runs, clock: PEAKS)
    monkeypatch.setattr(measuring, "count_parts", lambda *what: counts.append(count_parts(*what)) or counts[0])
    with torch.inference_mode():
        rows = measuring.part_speed(toy_model("elic"), toy_image(64, 64), None, 1, "wall")
    assert [row["type"] for row in rows] == ["fp32"] * 4 + ["bf16"] * 2 + ["fp64"]
    milliseconds = {"g_a": 1, "h_a": 2, "entropy model": 12, "g_s": 8}
    for row in rows:
        speed = 2 * counts[0][row["what"]].exact / 1e9 / (milliseconds[row["what"]] / 1000)
        assert row["GFLOP/s"] == pytest.approx(speed) and speed > 0 and row["peak"] == PEAKS[row["type"]]
        assert row["of peak"] == pytest.approx(speed / PEAKS[row["type"]])


def test_every_part_is_timed(monkeypatch):
    monkeypatch.setattr(measuring, "peak_speed", lambda runs, clock: PEAKS)
    monkeypatch.setattr(measuring, "count_parts", lambda *_: dict.fromkeys(PARTS, Macs(10, 20)))
    with torch.inference_mode():
        rows = measuring.part_speed(toy_model("dcae-no-dictionary"), toy_image(128, 128), None, 1, "wall")
    assert all(row["seconds"] > 0 and row["GMAC"] > 0 for row in rows)


def test_the_documents_have_the_tables_of_the_results(tmp_path):
    documents = [speed_table.ROOT / "README.md", speed_table.ROOT / "docs" / "speed.md"]
    before, copies = [path.read_text() for path in documents], [tmp_path / path.name for path in documents]
    for copy, text in zip(copies, before):
        copy.write_text(re.sub(r"(?<=-->\n\n)\|.*?\|(?=\n\n<!-- end)", "| gone |", text, flags=re.DOTALL))
    assert copies[0].read_text() != before[0]
    speed_table.main(["--update", *map(str, copies)])
    assert [copy.read_text() for copy in copies] == before


def test_another_file_is_named(tmp_path):
    for content in ("{", "[]", json.dumps({"parts": {}}), "3"):
        (tmp_path / "x.json").write_text(content)
        with pytest.raises(UserError, match=r"x\.json: .*scripts/benchmark\.py"):
            speed_table.main([str(tmp_path / "x.json")])
