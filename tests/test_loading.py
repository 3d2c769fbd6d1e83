"""Checkpoints as they occur, and what is no checkpoint."""

from __future__ import annotations

import argparse
import enum
import gzip
import json
import math
import os
import re
import tarfile
import zipfile
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PureWindowsPath
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from models import build_model, default_config, load_model
from models.checkpoints.integers import from_integers, to_integers
from models.checkpoints.loading import detect
from models.checkpoints.reading import CheckpointError, StandIn, read_content
from scripts.export_checkpoint import main as export
from scripts.export_checkpoint import without_padding
from tests.toys import TOYS, toy_image, toy_model
from utils.cli import UserError
from utils.codec.checkpoint import load_model as load_for_program
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


@pytest.mark.parametrize(
    ("form", "kind"), [*((form, "dcae-variable-rate") for form in FORMS), *(("all at once", kind) for kind in TOYS)]
)
def test_every_form_loads(form, kind, tmp_path):
    model, path = toy_model(kind), tmp_path / "checkpoint.pth.tar"
    content = {"state_dict": FORMS[form](model.state_dict()), "epoch": 3, "optimizer": {"state": {}}}
    if model.model_name not in PUBLISHED:  # others come from train.py, which records what they are
        content["model"] = {"name": TOYS[kind][0], "config": model.config}
    torch.save(content, path)
    loaded = load_model(path)
    assert type(loaded) is type(model) and loaded.config == model.config
    assert fingerprint(loaded) == fingerprint(model)
    x, quality = toy_image(64, 64), 20.0 if model.variable_rate else None
    coded = [m.compress(x, quality) for m in (loaded, model)]
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
    with pytest.raises(CheckpointError, match=message):
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
        with pytest.raises(CheckpointError, match=name):
            load_model(path)
    torch.save({"state_dict": torch.nn.Linear(2, 2).state_dict()}, whole)
    with pytest.raises(CheckpointError, match="neither DCAE's nor TCM's nor ICWEM's"):
        load_model(whole)
    torch.save([1, 2], whole)
    with pytest.raises(CheckpointError, match="holds a list"):
        load_model(whole)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_model(tmp_path / "nowhere.pt")


class Calls:
    """An object whose pickle calls a function."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_no_code_is_run(tmp_path):
    """Neither what makes a checkpoint nor what stands beside one is called."""
    trace = tmp_path / "trace"
    for function, arguments in ((exit, (9,)), (os.mkdir, (str(trace),)), (Path.touch, (trace,)), (exec, ("1 / 0",))):
        torch.save({"state_dict": Calls(function, *arguments)}, tmp_path / "evil.pt")
        with pytest.raises(CheckpointError, match="evil.pt"):
            load_model(tmp_path / "evil.pt")
    torch.save({"state_dict": toy_model("dcae").state_dict(), "x": Calls(os.mkdir, str(trace))}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match="asks to run posix.mkdir"):
        load_model(tmp_path / "evil.pt")
    assert not trace.exists()


# ---- as other people's programs save them --------------------------------------------------------------------------


def under(*keys: str):
    """A layout: the weights below these keys."""

    def layout(weights: dict) -> dict:
        for key in reversed(keys):
            weights = {key: weights, "epoch": 3}
        return weights

    return layout


def prefixed(prefix: str, **beside) -> Callable[[dict], dict]:
    return lambda weights: {"state_dict": {**{prefix + n: t for n, t in weights.items()}, **beside}}


def compiled_parts(weights: dict) -> dict:
    return {"state_dict": {re.sub(r"^(g_a|h_a)\.", r"\1._orig_mod.", n): t for n, t in weights.items()}}


def zeros(weights: dict) -> dict:
    return {n: torch.zeros_like(t) for n, t in weights.items()}


LAYOUTS = {
    "top": dict,
    **{" ".join(k): under(*k) for k in (("model",), ("model_state_dict",), ("net",), ("params",), ("generator",))},
    "in depth": under("checkpoint", "models", "g"),
    "module.module.": prefixed("module.module."),
    "_orig_mod.module.": prefixed("_orig_mod.module."),
    "model._orig_mod.": prefixed("model._orig_mod."),
    "net.model.module.": prefixed("net.model.module."),
    "beside a loss": prefixed("model.", **{"criterion.window": torch.ones(3), "lpips.net.0.weight": torch.ones(2)}),
    "compiled parts": compiled_parts,
    "counted": lambda w: {"state_dict": {**w, "total_ops": torch.zeros(1), "g_a.total_params": torch.zeros(1)}},
    "averaged beside trained": lambda w: {"params": zeros(w), "params_ema": w},
    "averaged in the same": lambda w: {
        "state_dict": {**{f"net.{n}": t for n, t in zeros(w).items()}, **{f"ema_net.{n}": t for n, t in w.items()}}
    },
    "an optimizer first": lambda w: {"optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}, "net": w},
    "a discriminator beside": lambda w: {"discriminator": {"0.weight": torch.ones(2, 2)}, "net": w},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_other_programs(layout, tmp_path):
    model = toy_model("dcae")
    torch.save(LAYOUTS[layout](model.state_dict()), tmp_path / "a.pth")
    assert fingerprint(load_model(tmp_path / "a.pth")) == fingerprint(model)


class Options(dict):
    """What a file may hold that this project does not know: a class of somebody's program."""


class Kind(enum.Enum):
    MSE = 1


def marked(tensor: torch.Tensor) -> torch.Tensor:
    tensor.origin = "a layer"  # changes how it is pickled
    return tensor


EXTRAS = {
    "numpy": {"loss": np.float64(0.7), "best": np.int64(3), "curve": np.arange(3.0), "names": np.array(["a"])},
    "arguments": argparse.Namespace(lmbda=0.013, dataset=Path("data"), windows=PureWindowsPath("c:/x")),
    "containers": [Counter([40, 45]), defaultdict(list, a=[1]), OrderedDict(a=1), {1, 2}, frozenset({3}), deque([1])],
    "torch": [torch.Size([1]), torch.float16, torch.device("cuda:1"), torch.nn.Parameter(torch.ones(1)), torch.strided],
    "scheduler": torch.optim.lr_scheduler.MultiStepLR(torch.optim.Adam([torch.nn.Parameter(torch.ones(1))]), [40, 45]),
    "classes": {"options": Options(a=1), Kind.MSE: Kind.MSE, "module": torch.nn.Linear(2, 2), "kind": Options},
    "marked tensors": [datetime(2024, 1, 1), marked(torch.ones(2))],
    "others": [datetime(2024, 1, 1), Decimal("0.1"), Fraction(1, 3), complex(1, 2), range(3), SimpleNamespace(a=1)],
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("extra", EXTRAS)
def test_harmless_extras_are_no_obstacle(extra, protocol, tmp_path):
    model = toy_model("dcae")
    content = {"state_dict": model.state_dict(), "extra": EXTRAS[extra]}
    torch.save(content, tmp_path / "a.pth.tar", pickle_protocol=protocol)
    assert fingerprint(load_model(tmp_path / "a.pth.tar")) == fingerprint(model)
    torch.save(content, tmp_path / "old.pth.tar", _use_new_zipfile_serialization=False, pickle_protocol=protocol)
    assert fingerprint(load_model(tmp_path / "old.pth.tar")) == fingerprint(model)


def test_weights_that_somebody_has_marked_beside_an_extra(tmp_path):
    model = toy_model("dcae")
    content = {"state_dict": {n: marked(t.clone()) for n, t in model.state_dict().items()}, "args": EXTRAS["arguments"]}
    torch.save(content, tmp_path / "a.pth.tar")
    assert fingerprint(load_model(tmp_path / "a.pth.tar")) == fingerprint(model)


def test_a_whole_module_is_its_weights(tmp_path):
    model = toy_model("dcae")
    torch.save({"model": torch.nn.DataParallel(model), "epoch": 1}, tmp_path / "module.pth")
    assert fingerprint(load_model(tmp_path / "module.pth")) == fingerprint(model)
    assert isinstance(read_content(tmp_path / "module.pth")["model"], StandIn)


# ---- what is said of what does not load ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dcae", "tcm"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused(kind, value, tmp_path):
    weights = toy_model(kind).state_dict()
    for name in ("g_s.0.weight" if kind == "dcae" else "g_a.0.conv1.weight", "entropy_bottleneck.quantiles",
                 "gaussian_conditional.scale_table"):  # fmt: skip
        broken = {**weights, name: weights[name].clone()}
        broken[name].view(-1)[-1] = value
        torch.save({"state_dict": broken}, tmp_path / "broken.pt")
        with pytest.raises(CheckpointError, match=f"broken.pt: holds numbers that are not finite .* in {name}; "):
            load_model(tmp_path / "broken.pt")


def test_tables_that_do_not_fit_are_refused(tmp_path):
    weights = packed_tables(toy_model("dcae").state_dict())
    weights["entropy_bottleneck._quantized_cdf"] = weights["entropy_bottleneck._quantized_cdf"][:-1]
    torch.save({"state_dict": weights}, tmp_path / "broken.pt")
    with pytest.raises(CheckpointError, match="broken.pt: its entropy tables are damaged"):
        load_model(tmp_path / "broken.pt")


def test_other_files_are_told_by_what_they_are(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as archive:
        archive.write(tmp_path / "a.pt", "a.pt")
    with tarfile.open(tmp_path / "packed.pth.tar", "w") as archive:
        archive.add(tmp_path / "a.pt", "a.pt")
    (tmp_path / "a.pt.gz").write_bytes(gzip.compress(b"x"))
    (tmp_path / "page.pth").write_text("<!DOCTYPE html><html></html>")
    (tmp_path / "pointer.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "broken.safetensors").write_bytes(b"\xff" * 100)
    said = {
        "packed.zip": "zip archive of a.pt; unpack it", "packed.pth.tar": "tar archive of a.pt; unpack it",
        "a.pt.gz": "packed archive", "page.pth": "web page", "pointer.pt": "git lfs pull", "empty.pt": "is empty",
        "broken.safetensors": "damaged or truncated", ".": "is a folder",
    }  # fmt: skip
    for name, text in said.items():
        with pytest.raises(CheckpointError) as raised:
            load_model(tmp_path / name)
        assert text in str(raised.value) and str(tmp_path / name) in str(raised.value) and "\n" not in str(raised.value)


def test_tensors_of_no_known_model_are_shown(tmp_path):
    torch.save({"net": torch.nn.Linear(2, 3).state_dict()}, tmp_path / "linear.pt")
    with pytest.raises(CheckpointError, match=r"which have h_z_s1.* its tensors are weight \(3, 2\), bias \(3,\)"):
        load_model(tmp_path / "linear.pt")
    names = ("g_a.0.weight", "latent_codec.h_a.0.weight", "latent_codec.z.entropy_bottleneck.quantiles")
    torch.save({name: torch.ones(1) for name in names}, tmp_path / "compressai.pt")
    with pytest.raises(CheckpointError, match="names that CompressAI gives .* g_a.0.weight"):
        load_model(tmp_path / "compressai.pt")
    torch.save({"epoch": 3}, tmp_path / "nothing.pt")
    with pytest.raises(CheckpointError, match="no tensors in it, only epoch"):
        load_model(tmp_path / "nothing.pt")


def test_programs_name_the_other_checkpoints_of_a_run(tmp_path):
    for name in ("latest.pt", "best.pt", "step_0000010.pt", "other.pt"):
        torch.save({"state_dict": toy_model("dcae").state_dict()}, tmp_path / name)
    data = (tmp_path / "latest.pt").read_bytes()
    (tmp_path / "latest.pt").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="latest.pt: damaged") as raised:
        load_for_program(tmp_path / "latest.pt")
    assert "best.pt" in str(raised.value) and "step_0000010.pt" in str(raised.value)
    assert "other.pt" not in str(raised.value)
    with pytest.raises(UserError, match="none.pt: there is no such checkpoint file$"):
        load_for_program(tmp_path / "none.pt")


# ---- safetensors ---------------------------------------------------------------------------------------------------


def test_export_as_safetensors_and_back(tmp_path):
    from safetensors import safe_open

    model = toy_model("elic-plus-dictionary")  # of a kind that its tensors alone do not tell
    record = {"name": "elic-plus-dictionary", "config": model.config}
    torch.save({"format": 1, "model": record, "state_dict": model.state_dict()}, tmp_path / "best.pt")
    command = ["--checkpoint", str(tmp_path / "best.pt"), "--precision", "fp32", "--output"]
    export([*command, str(tmp_path / "small.safetensors")])
    loaded = load_model(tmp_path / "small.safetensors")
    assert fingerprint(loaded) == fingerprint(model) and loaded.config == model.config
    with safe_open(tmp_path / "small.safetensors", "pt") as file:
        assert json.loads(file.metadata()["model"]) == record
    (tmp_path / "small.safetensors").rename(tmp_path / "renamed.pt")
    assert fingerprint(load_model(tmp_path / "renamed.pt")) == fingerprint(model)
    before = (tmp_path / "best.pt").read_bytes()
    with pytest.raises(UserError, match="--output .*best.pt: is a --checkpoint itself"):
        export([*command, str(tmp_path / "best.pt")])
    assert (tmp_path / "best.pt").read_bytes() == before


def test_safetensors_of_other_programs(tmp_path):
    from safetensors.torch import save_file

    model = toy_model("dcae")
    save_file({f"module.{n}": t.clone() for n, t in model.state_dict().items()}, tmp_path / "a.safetensors")
    assert fingerprint(load_model(tmp_path / "a.safetensors")) == fingerprint(model)


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


def test_integers_as_safetensors_and_back(tmp_path):
    """The same weights as from the other format; a part that is missing is an error, not another weight."""
    model = toy_model("dcae")
    record = {"name": "dcae", "config": model.config}
    torch.save({"format": 1, "model": record, "state_dict": model.state_dict()}, tmp_path / "best.pt")
    for name in ("small.pt", "small.safetensors"):
        export(["--checkpoint", str(tmp_path / "best.pt"), "--precision", "int8", "--output", str(tmp_path / name)])
    one, other = (load_model(tmp_path / name) for name in ("small.pt", "small.safetensors"))
    assert fingerprint(one) == fingerprint(other) != fingerprint(model)
    content = torch.load(tmp_path / "small.pt", weights_only=True)
    torch.save(content, tmp_path / "as torch writes it.pt")
    assert (tmp_path / "small.pt").stat().st_size < 0.9 * (tmp_path / "as torch writes it.pt").stat().st_size
    del next(iter(content["integers"].values()))["scale"]
    torch.save(content, tmp_path / "broken.pt")
    with pytest.raises(CheckpointError, match="broken.pt: its integer weights are damaged"):
        load_model(tmp_path / "broken.pt")
