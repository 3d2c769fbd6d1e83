"""Attention is caught as it is computed, in stripes or whole; the program shows it and says how much is used."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from scripts.visualize_dictionary import main, summarise
from tests.toys import toy_image, toy_model
from utils.cli import UserError
from utils.codec.checkpoint import save_checkpoint
from utils.data.images import to_uint8, write_png
from utils.evaluation.attention import attention_weights
from utils.figures.dictionary_maps import Use, attention_maps, effective_number, usage


def test_attention_is_what_the_layer_weights_values_with():
    """The mean of the values under the caught weights, through `linear`, is the look-up's own result."""
    model = toy_model("dcae")
    layer, q = model.dt_cross_attention[0], torch.randn(1, 3, 4, 16)
    with torch.no_grad():
        keys, values = layer.entries(model.dt)
        weights = attention_weights(layer, q, keys)[0]
        mixed = torch.einsum("hyxn,hnd->yxhd", weights, values.reshape(2, 12, 8)).flatten(2)
        assert torch.allclose(mixed, layer.look_up(q, keys, values)[0], atol=1e-5)


@pytest.mark.parametrize("kind", ["dcae", "elic-plus-dictionary", "global-tokens"])
def test_there_is_a_map_for_each_slice(kind):
    model, x = toy_model(kind), toy_image(128, 200)
    maps = attention_maps(model, x)
    assert len(maps) == model.slices and maps[0].shape[1:3] == (8, 16)
    assert all(torch.allclose(one.sum(-1), torch.ones(one.shape[:3]), atol=1e-5) for one in maps)
    assert not any("look_up" in vars(layer) for layer in model.dt_cross_attention)


def test_scales_are_taken_away_from_the_last_on():
    model, x = toy_model("dcae"), toy_image(128, 128)
    with torch.no_grad():
        for layer in model.dt_cross_attention:
            layer.msa.dense.conv_layers[1][1].out_trans.weight.zero_()
            layer.msa.dense.conv_layers[1][1].out_trans.bias.zero_()
    whole, two, one = attention_maps(model, x), attention_maps(model, x, scales=2), attention_maps(model, x, scales=1)
    assert torch.equal(whole[0], two[0])  # the second convolution gives zeros anyway
    assert not torch.equal(two[0], one[0])
    assert torch.equal(attention_maps(model, x)[0], whole[0])  # and they are back


def test_effective_number_of_entries():
    shares = torch.tensor([[0.25, 0.25, 0.25, 0.25], [1.0, 0, 0, 0], [0.5, 0.5, 0, 0]])
    assert torch.allclose(effective_number(shares), torch.tensor([4.0, 1, 2], dtype=torch.float64))
    maps = torch.zeros(2, 3, 5, 4)
    maps[0, ..., 0], maps[1, ..., 2] = 1, 1
    assert usage([maps, maps]).tolist() == [0.5, 0, 0.5, 0]


def test_use_is_counted_over_all_images():
    """Each place of every image counts as much, whatever the sizes of the images."""
    torch.manual_seed(0)
    maps = [torch.rand(2, *size, 6).softmax(-1) for size in ((3, 5), (8, 4))]
    (row,) = summarise([[Use.of(m)] for m in maps])
    assert torch.allclose(torch.tensor(row["shares"]), usage(maps).float())
    places = torch.cat([effective_number(m).flatten() for m in maps])
    assert math.isclose(row["effective_at_a_place"], places.mean().item(), rel_tol=1e-6)


def test_program(toy_checkpoint, tmp_path, capsys):
    for i, size in enumerate(((70, 90), (128, 128))):
        write_png(tmp_path / "images" / f"{i}.png", to_uint8(toy_image(*size, seed=i)))
    flags = ["--checkpoint", str(toy_checkpoint), "--data", str(tmp_path / "images"), "--output", str(tmp_path / "out")]
    main([*flags, "--quality", "30", "--entries", "2", "12", "--head", "1", "--images", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 5 and lines[2].split()[:2] == ["1", "12"]
    pictures = {path.stem: np.asarray(Image.open(path)) for path in (tmp_path / "out").glob("*.png")}
    assert set(pictures) == {"entries", "heads", "scales", "usage"}
    assert all(picture.std() > 10 for picture in pictures.values())
    content = json.loads((tmp_path / "out" / "usage.json").read_text())
    slices = content["slices"]
    assert content["images"] == ["0.png", "1.png"]
    assert all(math.isclose(sum(row["shares"]), 1) and 1 <= row["effective"] <= 12 for row in slices)
    for wrong in (["--entries", "13"], ["--slice", "6"], ["--head", "0"]):
        with pytest.raises(UserError, match=f"{wrong[0]} {wrong[1]}: the model has 1 to"):
            main([*flags, *wrong])
    with pytest.raises(UserError, match="toy.pt: quality 500 is outside 1..100; choose another"):
        main([*flags, "--quality", "500"])


def test_model_without_a_dictionary(tmp_path):
    model = toy_model("elic")
    recorded = {"name": "elic", "config": model.config}
    save_checkpoint(tmp_path / "elic.pt", {"format": 1, "model": recorded, "state_dict": model.state_dict()})
    write_png(tmp_path / "x.png", to_uint8(toy_image(32, 32)))
    with pytest.raises(UserError, match="without a dictionary"):
        main(["--checkpoint", str(tmp_path / "elic.pt"), "--data", str(tmp_path / "x.png"), "--output", str(tmp_path)])
