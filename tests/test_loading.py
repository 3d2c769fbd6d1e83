"""Checkpoints as they occur, and what is no checkpoint."""

from __future__ import annotations

import re

import pytest
import torch

from models import build_model, default_config, load_model
from models.integers import from_integers, to_integers
from models.loading import detect
from scripts.export_checkpoint import without_padding
from tests.toys import TOYS, toy_image, toy_model
from utils.cli import UserError
from utils.codec.codec import fingerprint

PUBLISHED = ("dcae", "tcm", "icwem")
OLD = {"matrices": "_matrix", "biases": "_bias", "factors": "_factor"}


def old_spelling(name: str) -> str:
    return re.sub(r"\.(matrices|biases|factors)\.(\d)", lambda m: f".{OLD[m[1]]}{m[2]}", name)


def without_tables(weights: dict) -> dict:
    return {
        n: t for n, t in weights.items() if not n.endswith(("_offset", "_quantized_cdf", "_cdf_length", "scale_table"))
    }


def packed_tables(weights: dict) -> dict:
    packed = dict(weights)
    without_padding(packed)
    assert all(packed[n].dim() == 1 for n in packed if n.endswith("._quantized_cdf"))
    return packed


FORMS = {
    "filled tables": dict,
    "packed tables": packed_tables,
    "no tables": without_tables,
    "empty tables": lambda w: {n: t if n in without_tables(w) else t.flatten()[:0] for n, t in w.items()},
    "old names": lambda w: {old_spelling(n): t for n, t in w.items()},
    "module.": lambda w: {f"module.{n}": t for n, t in w.items()},
    "all at once": lambda w: {f"module.{old_spelling(n)}": t for n, t in without_tables(w).items()},
}


@pytest.mark.parametrize("kind", TOYS)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_loads(kind, form, tmp_path):
    model, path = toy_model(kind), tmp_path / "checkpoint.pth.tar"
    content = {"state_dict": FORMS[form](model.state_dict()), "epoch": 3, "optimizer": {"state": {}}}
    if model.model_name not in PUBLISHED:  # others come from train.py, which records what they are
        content["model"] = {"name": TOYS[kind][0], "config": model.config}
    torch.save(content, path)
    loaded = load_model(path)
    assert type(loaded) is type(model) and loaded.config == model.config
    assert fingerprint(loaded) == fingerprint(model)
    x, quality = toy_image(64, 64), 20.0 if model.variable_rate else None
    coded = [m.compress(x, quality, "fp64") for m in (loaded, model)]
    assert all(coded[0][key] == coded[1][key] for key in ("strings", "shape", "checks"))


def test_recorded_arguments_decide(tmp_path):
    model, path = toy_model("dcae-no-msfa"), tmp_path / "own.pt"
    record = {"name": "dcae", "config": model.config}
    torch.save({"format": 1, "model": record, "state_dict": model.half().state_dict()}, path)
    loaded = load_model(path)
    assert loaded.config == model.config and loaded.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("g_s.0.weight"), "missing: g_s.0.weight"),
        (lambda w: w.update(extra=torch.zeros(1)), "not expected: extra"),
        (lambda w: w.update({"g_s.0.weight": torch.zeros(2, 2)}), r"g_s.0.weight is \(2, 2\) instead of"),
    ],
)
def test_wrong_tensors_are_named(change, message, tmp_path):
    weights, path = toy_model("dcae").state_dict(), tmp_path / "wrong.pt"
    change(weights)
    torch.save({"state_dict": weights}, path)
    with pytest.raises(UserError, match=message):
        load_model(path)


def test_what_is_no_checkpoint(tmp_path):
    whole = tmp_path / "whole.pt"
    torch.save({"state_dict": toy_model("dcae").state_dict()}, whole)
    data = whole.read_bytes()
    for name, content in {
        "truncated": data[: len(data) // 2],
        "empty": b"",
        "text": b"hello",
        "png": b"\x89PNG\r\n",
    }.items():
        path = tmp_path / f"{name}.pt"
        path.write_bytes(content)
        with pytest.raises(UserError, match=name):
            load_model(path)
    torch.save({"state_dict": torch.nn.Linear(2, 2).state_dict()}, whole)
    with pytest.raises(UserError, match="neither DCAE's nor TCM's nor ICWEM's"):
        load_model(whole)
    torch.save([1, 2], whole)
    with pytest.raises(UserError, match="holds a list"):
        load_model(whole)
    with pytest.raises(UserError, match="no such checkpoint"):
        load_model(tmp_path / "nowhere.pt")


def test_no_code_is_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (exit, (9,))

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match="evil.pt"):
        load_model(tmp_path / "evil.pt")


def test_detection_gives_the_published_sizes():
    """Full-size models are told from their names and shapes alone, also where a stage has no Transformer layers."""
    for name in ("dcae-ablation", "tcm-small"):
        name_found, config = detect(build_model(name).state_dict())
        assert build_model(name_found, **config).config == default_config(name)


# ---- integers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 10])
@pytest.mark.parametrize("shape", [(6, 5), (7, 3, 5, 5)])
def test_integers_are_within_half_a_step_of_the_weight(bits, shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    weight[0] *= 100  # one channel does not cost the others their precision
    stored = to_integers(weight, bits)
    assert stored["high"].dtype == torch.int8 and stored["scale"].dtype == torch.bfloat16
    step = weight.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    error = (from_integers(stored) - weight).abs() / step  # a scale itself has 8 bits, and is rounded up
    assert 0.3 < error.max() < 0.51


def test_integers_are_exact_in_float32():
    """So that files written with them decode on every machine."""
    weight = torch.randn(31, 17, 3, 3, generator=torch.Generator().manual_seed(0))
    stored = to_integers(weight, 10)
    low = torch.stack([(stored["low"] >> shift) & 3 for shift in (0, 2, 4, 6)], 1).flatten()[: weight.numel()]
    exact = (4 * stored["high"].double().flatten() + low.double()).view(weight.shape) * stored["scale"].double()
    assert torch.equal(from_integers(stored).double(), exact)
    assert torch.equal(from_integers(to_integers(torch.zeros(4, 4), 8)), torch.zeros(4, 4))
    with pytest.raises(ValueError, match="8 or 10 bits"):
        to_integers(weight, 4)
