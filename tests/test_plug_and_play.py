"""The dictionary under other autoencoders: ELIC is CompressAI's, context flows one way, and all of them train."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from models import build_model, default_config, load_model
from models.coders import EstimatingCoder
from models.layers.checkerboard import CheckerboardConvolution, half, join_halves
from models.layers.dictionary import DictionaryCrossAttention
from tests.toys import TOYS, toy_hyper, toy_image, toy_model
from train import main as train
from utils.cli import UserError
from utils.codec.codec import Codec
from utils.data.images import to_uint8, write_png

KINDS = ("tcm-dictionary", "elic", "elic-dictionary", "elic-plus-dictionary", "global-tokens")
NAMES_OF_COMPRESSAI = (
    (r"^(h_[as])\.", r"latent_codec.hyper.\1."),
    (r"^entropy_bottleneck\.", "latent_codec.hyper.entropy_bottleneck."),
    (r"^channel_context\.(\d)\.", lambda m: f"latent_codec.y.channel_context.y{int(m[1]) + 1}."),
    (r"^spatial_context\.(\d)\.", r"latent_codec.y.latent_codec.y\1.context_prediction."),
    (r"^param_aggregation\.(\d)\.", r"latent_codec.y.latent_codec.y\1.entropy_parameters."),
)


def name_of_compressai(name: str) -> str:
    for own, theirs in NAMES_OF_COMPRESSAI:
        name = re.sub(own, theirs, name)
    return name


def test_elic_is_the_elic_of_compressai():
    """The same likelihoods and images from the same weights, at a width that is not ours to choose: M - 128 > 0."""
    from compressai.models.sensetime import Elic2022Official

    torch.manual_seed(0)
    theirs = Elic2022Official(N=8, M=136).eval()
    own = build_model("elic", N=8, M=136, groups=(16, 16, 32, 64, 8)).eval()
    shared = theirs.state_dict()
    weights = {name: shared[name_of_compressai(name)] for name, _ in own.named_parameters()}
    own.load_state_dict(weights, strict=False)
    with torch.no_grad():
        for transform in (theirs.g_a, own.g_a):
            transform[13].weight.mul_(30)  # latents of several steps instead of zeros
        x = toy_image(64, 128)
        expected, out = theirs(x), own(x)
    assert expected["likelihoods"]["y"].log2().sum() < -100
    for name in ("y", "z"):
        assert torch.allclose(out["likelihoods"][name], expected["likelihoods"][name], rtol=1e-3, atol=1e-5)
    assert torch.allclose(out["x_hat"], expected["x_hat"], atol=1e-5)


def test_full_size_elic_has_the_tensors_of_compressai():
    from compressai.models.sensetime import Elic2022Official

    with torch.device("meta"):
        own = build_model("elic")
    theirs = {name: tensor.shape for name, tensor in Elic2022Official().named_parameters()}
    assert {name_of_compressai(name): tensor.shape for name, tensor in own.named_parameters()} == theirs


def test_halves_are_taken_apart_and_joined():
    x = torch.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6)
    row, column = torch.meshgrid(torch.arange(4), torch.arange(6), indexing="ij")
    for parity in (0, 1):
        expected = x[:, :, (row + column) % 2 == parity].reshape(2, 3, 4, 3)
        assert torch.equal(half(x, parity), expected)
    assert torch.equal(join_halves(half(x, 0), half(x, 1)), x)


def test_checkerboard_convolution_sees_the_other_colour_only():
    layer, x = CheckerboardConvolution(1, 1, 5), torch.randn(1, 1, 8, 8)
    changed = x.clone()
    changed[..., 4, 4] += 1
    difference = (layer(changed) - layer(x))[0, 0] != 0
    row, column = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    near = ((row - 4).abs() <= 2) & ((column - 4).abs() <= 2)
    assert torch.equal(difference, near & ((row + column) % 2 == 1))


@pytest.mark.parametrize("kind", ["elic", "elic-plus-dictionary"])
def test_anchors_help_the_others_and_not_themselves(kind):
    """Within a slice, anchors change the parameters of the others; the others change nothing of their own slice."""
    model, z_hat = toy_model(kind), None
    z_hat, y = toy_hyper(model, 2), torch.randn(1, model.M, 8, 8) * 4

    def means(y):
        coder = EstimatingCoder(model.gaussian_conditional)
        with torch.no_grad():
            model.code_slices(z_hat, y, coder)
        return coder.means[:2]  # of the first slice: anchors, others

    before, first = means(y), y.split(model.slice_sizes, 1)[0]
    for parity in (0, 1):
        changed = y.clone()
        parts = [half(first, p) + 5 * (p == parity) for p in (0, 1)]
        changed[:, : first.shape[1]] = join_halves(*parts)
        after = means(changed)
        assert torch.equal(before[0], after[0])
        assert torch.equal(before[1], after[1]) == (parity == 1)


def test_an_image_of_its_own_dictionary_for_each_of_a_batch():
    layer, x = DictionaryCrossAttention(6, 5, 8, 2, 0), torch.randn(2, 6, 4, 4)
    dictionaries = torch.randn(2, 7, 8)
    together = layer(x, dictionaries)
    for i in range(2):
        assert torch.allclose(together[i : i + 1], layer(x[i : i + 1], dictionaries[i]), atol=1e-6)


def test_tokens_cost_rate_and_reach_the_decoder():
    """Their symbols are in the string of z, and without them the image is another."""
    model, x = toy_model("global-tokens"), toy_image(128, 128)
    with torch.no_grad():
        likelihoods = model(x)["likelihoods"]["z"]
    assert likelihoods.shape == (1, model.hyper_channels * (2 * 2 + model.tokens))
    own = Codec(model).compress(x)
    with torch.no_grad():
        model.token_encoder.linear.bias += 3
    other = Codec(model).compress(x)
    model.update(force=True)
    assert own != other
    assert Codec(model).decompress(Codec(model).compress(x)).shape == x.shape


@pytest.mark.parametrize("name", ["tcm-dictionary", "elic", "elic-dictionary", "elic-plus-dictionary"])
def test_full_size_names_and_sizes(name):
    """The entropy model is the paper's whatever the autoencoder; ELIC alone has no dictionary."""
    config, papers = default_config(name), default_config("dcae")
    papers |= {"dictionary_entries": 0} if name == "elic" else {}
    shared = config.keys() & papers.keys() - {"N"}
    assert shared >= {"M", "hidden", "dictionary_entries", "dictionary_heads", "dictionary_head_dim", "msfa"}
    assert all(config[key] == papers[key] for key in shared)
    assert ("groups" in config) == (name in ("elic", "elic-plus-dictionary"))


def training_flags(folder: Path) -> list[str]:
    """Of runs without a model of their own, on three images that are written there."""
    for i in range(3):
        write_png(folder / "images" / f"{i}.png", to_uint8(toy_image(128, 128, seed=i)))
    flags = ["-d", str(folder / "images"), "--patch-size", "128", "--batch-size", "2", "-n", "0", "--no-tensorboard"]
    return [*flags, "--val-share", "0.4", "--val-every", "0"]


def model_flags(kind: str) -> list[str]:
    name, options = TOYS[kind]
    given = [f"{key}={list(value) if isinstance(value, tuple) else value}" for key, value in options.items()]
    return ["--model", name, "--model-option", *given]


@pytest.mark.parametrize("kind", KINDS)
def test_training_and_files(kind, tmp_path):
    """Two steps of train.py, and a file written and read with the checkpoint of them.

    Heap corruption by the gradient of TCM's first layer once ended the whole test run here.
    """
    run = tmp_path / "run"
    train([*training_flags(tmp_path), *model_flags(kind), "--max-steps", "2", "--save_path", str(run)])
    model = load_model(run / "latest.pt")
    assert model.model_name == toy_model(kind).model_name
    x = toy_image(70, 90)
    assert Codec(model).decompress(Codec(model).compress(x)).shape == x.shape


def test_fine_tuning_under_a_name_that_files_do_not_have(tmp_path):
    kind, run = "global-tokens", tmp_path / "run"
    flags = training_flags(tmp_path)
    train([*flags, *model_flags(kind), "--max-steps", "1", "--save_path", str(run)])
    fine_tuning = [*flags, "--checkpoint", str(run / "latest.pt"), "--max-steps", "1", "--no-save"]
    train(fine_tuning)
    with pytest.raises(UserError, match="leave out --model"):
        train([*fine_tuning, "--model", "icwem"])
