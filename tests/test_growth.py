"""Wider models that start as narrower ones: what they keep, and what is refused."""

import pytest
import torch

import train
from models import build_model
from models.coders import EstimatingCoder
from tests.toy_training import RECIPE, checkpoint, write_photos
from tests.toys import toy_image, toy_model
from utils.cli import UserError
from utils.codec.checkpoint import save_checkpoint
from utils.metrics import psnr
from utils.training.growth import grow
from utils.training.pca_start import step_size

SAME = {"feature_channels": 40, "answer_channels": 40}  # of the toy: its M
LATENT = {"M": 56, "slices": [8] * 5 + [16], "bypass": 16, **SAME}
WIDER = {"channels": (8, 24, 24), **LATENT}


def grown(kind: str = "dcae", weight: float | None = 0.01, **changes):
    """The toy, what was grown from it, and the images that was done with."""
    source, images = toy_model(kind), toy_image(128, 128, batch=2)
    torch.manual_seed(0)
    model = build_model("dcae", **{**source.config, **changes}).eval()
    grow(model, source, images, None if model.variable_rate else weight)
    return source, model, images


@torch.no_grad()
def test_a_longer_latent_leaves_the_old_one_and_its_entropy_model_as_they_were():
    source, model, images = grown(**LATENT)
    old, new = source(images), model(images)
    assert torch.allclose(new["para"]["y"][:, :40], old["para"]["y"], atol=1e-5)
    assert torch.allclose(new["likelihoods"]["y"][:, :40], old["likelihoods"]["y"], atol=1e-5)
    assert torch.equal(new["likelihoods"]["z"], old["likelihoods"]["z"])
    assert psnr(without_the_new(model, images), old["x_hat"]) > 60


def without_the_new(model, images) -> torch.Tensor:
    """The image where nothing is known of the latents from channel 40 on."""
    coder = EstimatingCoder(model.gaussian_conditional)
    y = model.to_latent(images)
    y_hat = model.code_slices(model.estimate_hyper(y)[0], y, coder)
    return model.to_image(torch.cat((y_hat[:, :40], torch.zeros_like(y_hat[:, 40:])), 1))


@torch.no_grad()
def test_new_latents_tell_at_once_what_the_old_ones_leave_over():
    source, model, images = grown(**LATENT)
    new = model(images)
    assert psnr(new["x_hat"], images) > psnr(source(images)["x_hat"], images) + 1
    assert (new["para"]["y"][:, 40:].abs() > 0.5).float().mean((0, 2, 3)).min() > 0.1  # not rounded to zero
    assert new["para"]["means"][:, 40:].abs().max() == 0
    flat = model.analysis(torch.full_like(images, 0.7)) - model.analysis(torch.full_like(images, 0.2))
    assert flat[:, 40:].abs().max() < 1e-4


@torch.no_grad()
def test_new_latents_have_the_step_of_the_trade_off():
    steps = []
    for weight in (0.0025, 0.04):
        source, model, images = grown(weight=weight, **LATENT)
        back = model.bypass_s.weight.flatten(1)
        assert torch.allclose(back.T @ back, torch.eye(16) * step_size(weight) ** 2, atol=1e-6)
        steps.append(step_size(weight))
    assert steps[0] == pytest.approx(4 * steps[1])


@torch.no_grad()
def test_latents_that_are_there_can_become_those_of_a_bypass():
    """As those of a model that was grown when new latents did not start like this."""
    source, model, images = grown(bypass=8)
    old, new = source.analysis(images), model.analysis(images)
    assert torch.allclose(new[:, :32], old[:, :32], atol=1e-5) and not torch.allclose(
        new[:, 32:], old[:, 32:], atol=0.1
    )
    assert model.g_a[-1].weight[32:].abs().max() == 0 == model.g_s[0].weight[32:].abs().max()


@torch.no_grad()
def test_wider_layers_give_nearly_the_same_image():
    source, model, images = grown(**WIDER)
    assert psnr(without_the_new(model, images), source(images)["x_hat"]) > 40
    y, old = model.analysis(images)[:, :40], source.analysis(images)
    assert (y - old).pow(2).mean() < 0.01 * old.var()


def test_new_channels_learn():
    _, model, images = grown(**WIDER)
    out = model.train()(images)
    (out["x_hat"].pow(2).mean() - out["likelihoods"]["y"].log().mean()).backward()
    assert (model.g_a[2].conv.weight.grad[16:].abs().amax((1, 2, 3)) > 0).all()  # new outputs
    assert (model.h_a[0].conv.weight.grad[:, 40:].abs().amax((0, 2, 3)) > 0).all()  # new inputs
    unread = model.g_s[0].weight.grad[40:, :16]  # from new latents to old channels: zeros that move at once
    assert (unread.abs().amax((1, 2, 3)) > 0).all()


@torch.no_grad()
def test_gains_stay_those_of_a_trade_off_over_another_range():
    source, model, _ = grown("dcae-variable-rate", **LATENT, lambda_range=(0.0018, 0.05 * (0.05 / 0.0018)))
    for name in ("log_gain", "log_inverse_gain"):
        old, new = getattr(source.gain, name), getattr(model.gain, name)[:, :40]
        assert torch.allclose(new[0], old[0], atol=1e-5) and torch.allclose(new[1], old[2], atol=1e-5)
        assert torch.allclose(new[3], old[5] + (old[5] - old[4]), atol=1e-4)  # on along the last slope


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({**LATENT, "slices": [16, 8, 8, 8, 16]}, r"slices=.* do not begin with the file's"),
        ({"M": 56, "slices": [8] * 5 + [16]}, "fresh latents would stay zero; .*--model-option bypass=16"),
        ({**LATENT, "bypass": 20}, "no slice begins with the 20 latents of the bypass"),
        (
            {"M": 56, "slices": [8] * 5 + [16], "bypass": 16},
            "add --model-option feature_channels=40 answer_channels=40",
        ),
        ({"channels": (8, 8, 8)}, "choose larger sizes"),
        ({**LATENT, "dictionary_entries": 20}, "dictionary_entries must be as in the file"),
        ({**LATENT, "depths": (1, 2, 4), "window": 4}, "depths, window must be as in the file"),
        ({"variable_rate": True}, "both have to be, or neither"),
    ],
)
def test_what_cannot_be_a_part_of_the_model_is_refused(changes, message):
    with pytest.raises(UserError, match=f"--grow: .*{message}"):
        grown(**changes)


def test_a_run_starts_from_a_narrower_file_and_goes_on_without_it(tmp_path, capsys):
    photos, file = write_photos(tmp_path / "photos"), tmp_path / "narrow.pt"
    source = toy_model("dcae-variable-rate")
    save_checkpoint(file, {"model": {"name": "dcae", "config": source.config}, "state_dict": source.state_dict()})
    flags = ["-d", str(photos), "--save_path", str(tmp_path / "run"), *RECIPE, "--variable-rate", "--batch-size", "2"]
    flags += ["--grow", str(file), "--M", "56", "--model-option", f"slices={LATENT['slices']}", "bypass=16"]
    train.main([*flags, "--max-steps", "1"])
    assert f"growing {file}" in capsys.readouterr().err
    with pytest.raises(UserError, match="narrow.pt: holds a variable-rate model; add --variable-rate"):
        train.main([flag for flag in [*flags, "--save_path", str(tmp_path / "other")] if flag != "--variable-rate"])
    grown = checkpoint(tmp_path / "run")["model"]["config"]
    assert grown["M"] == 56 and grown["feature_channels"] == 40
    file.unlink()
    train.main([*flags, "--max-steps", "2", "--resume"])
    assert checkpoint(tmp_path / "run")["step"] == 2


def test_a_bypass_stays_as_large_as_it_is():
    with pytest.raises(UserError, match="a bypass of 8 latents, which cannot grow"):
        grown("dcae-bypass", bypass=16, feature_channels=24, answer_channels=24)
    source, model, images = grown("dcae-bypass", channels=(8, 16, 16), feature_channels=24, answer_channels=24)
    assert torch.equal(model.bypass_a.weight, source.bypass_a.weight)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--start", "pca"], "--grow: brings weights"),
        (["--model", "tcm-small"], "--grow: is for dcae"),
        (["--checkpoint", "a.pt"], "--grow: --checkpoint brings weights, too"),
    ],
)
def test_contradicting_flags_are_refused(tmp_path, more, message):
    with pytest.raises(UserError, match=message):
        train.main(["-d", str(tmp_path), "--grow", "narrow.pt", *more])
