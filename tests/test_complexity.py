"""Counts of multiplications are thop's where they should be and the paper's; times add up."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from models import build_model
from scripts.complexity import main
from tests.toys import toy_image, toy_model
from utils.cli import UserError
from utils.codec.codec import Codec
from utils.measuring.complexity import PARTS, count, count_parts, encoder_and_decoder, parameters_that_thop_sees
from utils.measuring.latency import CODING, Stopwatch, measure_latency


class Attention(nn.Module):
    """Products of computed tensors, which thop cannot see."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.scaled_dot_product_attention(x, x, x)


class Tokens(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(2).transpose(1, 2)


def test_counts_are_those_of_the_library_and_of_the_definition():
    import thop
    from compressai.layers import GDN

    layers = [
        nn.Conv2d(3, 8, 5, 2, 2),
        GDN(8),
        nn.ConvTranspose2d(8, 6, 3, 2, 1, 1),
        nn.Conv2d(6, 6, 3, 1, 1, groups=6),
    ]
    model, x = (
        nn.Sequential(*layers, Tokens(), nn.Linear(6, 10), nn.LayerNorm(10), Attention()),
        torch.rand(1, 3, 16, 16),
    )
    macs = count(model, lambda: model(x))[1]
    by_definition = 8 * 8 * 8 * (3 * 25 + 8) + 8 * 8 * 8 * 6 * 9 + 16 * 16 * (6 * 9 + 6 * 10) + 2 * 256 * 256 * 10
    assert macs.exact == by_definition
    unseen = 2 * 256 * 256 * 10 + 8 * 8 * 8 * 8  # attention, GDN
    assert macs.thop == by_definition - unseen + 3 * 8 * 8 * 8 * 6 * 9 + 256 * 10 * 4  # transposed, norms
    parameters = parameters_that_thop_sees(model)
    assert (macs.thop, parameters) == thop.profile(model, (x,), verbose=False)


def check_paper(name: str, encode: int, decode: int, millions: float) -> None:
    """Table 1 has whole GMACs of a 768x512 image, and parameters to a decimal."""
    model = build_model(name)
    counted = [macs.thop / 1e9 for macs in encoder_and_decoder(count_parts(model, 512, 768))]
    assert [round(value) for value in counted] == [encode, decode]
    assert round(parameters_that_thop_sees(model) / 1e6, 1) == millions


@pytest.mark.slow
def test_dcae_is_as_complex_as_the_paper_says():
    check_paper("dcae", 252, 305, 119.2)


@pytest.mark.slow
def test_tcm_is_as_complex_as_the_paper_says():
    check_paper("tcm-large", 307, 441, 75.9)


@pytest.mark.parametrize("kind", ["icwem", "global-tokens"])
def test_every_kind_of_model_is_counted(kind):
    parts = count_parts(toy_model(kind), 128, 128)
    assert tuple(parts) == PARTS and all(macs.exact > 0 for macs in parts.values())


def test_macs_grow_with_the_area_as_it_is_padded():
    model = toy_model("dcae-no-dictionary")
    small, large = count_parts(model, 100, 128), count_parts(model, 256, 256)
    assert {part: 4 * macs.exact for part, macs in small.items()} == {part: macs.exact for part, macs in large.items()}


def test_a_part_inside_another_stops_its_clock():
    seconds = iter(range(100))
    watch = Stopwatch(torch.device("cpu"), lambda: 2.0 ** next(seconds))
    with watch.part("outer"), watch.part("inner"):
        pass
    assert watch.milliseconds == {"outer": 1000 * (2 - 1 + 8 - 4), "inner": 1000 * (4 - 2)}


def test_parts_add_up_and_leave_the_model_as_it_was():
    model, x = toy_model("dcae"), toy_image(128, 128)
    before = dict(vars(model))
    latency = measure_latency(Codec(model, "fp32"), x, runs=1)
    assert vars(model).keys() == before.keys() and model.slice_support(0, *[torch.zeros(1, 40, 8, 8)] * 2, [])
    slices = {f"slice {i}" for i in range(1, 6)}
    assert set(latency["parts"]["encode"]) == {"g_a", "h_a", "hyper-synthesis", CODING, "rest"} | slices
    assert set(latency["parts"]["decode"]) == {"hyper-synthesis", CODING, "g_s", "rest"} | slices
    assert latency["total"] == latency["encode"] + latency["decode"]
    assert 0 < latency["coding"]["decode"] < sum(latency["parts"]["decode"].values())


@pytest.mark.slow
def test_program(toy_checkpoint, tmp_path, capsys):
    output = tmp_path / "complexity.json"
    flags = ["--size", "100", "70", "--runs", "1", "--warm-up", "0", "--threads", "1", "--cpu-time", "--profile"]
    main(["--checkpoint", str(toy_checkpoint), *flags, "--output", str(output)])
    text, content = capsys.readouterr().out, json.loads(output.read_text())
    (model,) = content["models"]
    assert "one image of 100x70, CPU time" in text and "slice 5" in text and "freshly" not in text
    assert model["image"] == [70, 100] and model["paper"] is None and model["peak_mib"] > 100
    assert model["macs_g"]["exact"]["encode"] > 0 and model["latency_ms"]["total"] > 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--models", "dcae", "--checkpoint", "x.pt"], "choose one"),
        (["--quality", "3"], "--quality"),
        (["--runs", "0"], "--runs 0"),
        (["--cpu-time"], "--threads 1"),
        (["--checkpoint", "missing.pt"], "missing.pt: there is no such"),
    ],
)
def test_errors(flags, message):
    with pytest.raises(UserError, match=message):
        main(flags)
