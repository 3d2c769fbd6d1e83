"""The measurement of products: what it times, and what it says of that."""

from __future__ import annotations

import pytest

from utils.inference.products import LINEAR, available
from utils.measuring import product_speed as measuring


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(measuring, "LINEAR_SIZES", ((8, 16, 4),))
    monkeypatch.setattr(measuring, "BATCHED_SIZES", ((4, 8, 16, 4),))
    monkeypatch.setattr(measuring, "CONVOLUTION", (8, 4, 4))


def test_a_row_for_each_size_and_type():
    rows = measuring.product_speed(1, "wall")
    assert [(row["what"], row["type"]) for row in rows] == [
        ("linear 8x16x4", "fp32"),
        ("linear 8x16x4", "fp64"),
        ("batched 4x8x16x4", "fp32"),
        ("batched 4x8x16x4", "fp64"),
        ("1x1 convolution of 8x4x4 to 8", "fp32"),
        ("3x3 convolution of 8x4x4 to 8", "fp32"),
    ]
    for row in rows[:2]:
        measured = [way for way in LINEAR if row[way] is not None]
        assert measured == available("linear", measuring.TYPES[row["type"]]) and row["chosen"] in measured
        assert all(row[way] > 0 for way in measured)


def test_gigaflops_are_two_operations_a_multiplication(monkeypatch):
    monkeypatch.setattr(measuring, "in_turn", lambda ways, runs, clock: dict.fromkeys(ways, 2.0))
    rows = measuring.product_speed(1, "wall")
    assert rows[0]["torch"] == pytest.approx(2 * 8 * 16 * 4 / 2.0 / 1e9)
    assert rows[-1]["onednn"] == pytest.approx(2 * 8 * 8 * 9 * 4 * 4 / 2.0 / 1e9)


def test_the_peak_is_the_largest(monkeypatch):
    def timed(ways, runs, clock):
        return {way: 1 / (1 + number) for number, way in enumerate(ways)}  # the last is the fastest

    monkeypatch.setattr(measuring, "in_turn", timed)
    product = 2 * 1536 * 640 * 640 / 1e9
    ways = {name: len(available("linear", dtype)) for name, dtype in measuring.TYPES.items()}
    expected = {name: product * count for name, count in ways.items()}
    assert measuring.peak_speed(1) == pytest.approx(expected)
    monkeypatch.setattr(measuring, "_convolution_speed", lambda *_: 1e6)
    assert measuring.peak_speed(1) == pytest.approx(expected | {"fp32": 1e6, "bf16": 1e6})
