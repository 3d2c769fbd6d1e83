"""Transforms that start as principal components: what they must do before the first step."""

import pytest
import torch

from models import build_model
from tests.toys import TOYS, toy_image
from utils.cli import UserError
from utils.metrics import psnr
from utils.training.pca_start import start_as_pca, step_size

SIZES = {"channels": (16, 48, 96), "depths": (0, 1, 2), "head_dims": (8, 8, 8), "slices": 4, "hidden": (8, 8)}


def started(M: int, weight: float = 0.013, bypass: int = 0):
    """A DCAE with M channels of y after its start, and the images it was started from."""
    torch.manual_seed(0)
    sizes = {**SIZES, "M": M, "N": 16, "hyper_head_dim": 8, "dictionary_entries": 8, "dictionary_heads": 2}
    model = build_model("dcae", **sizes, bypass=bypass)
    images = toy_image(128, 128, batch=4)
    start_as_pca(model, images, weight)
    return model, images


@torch.no_grad()
def test_more_channels_keep_more_of_the_image():
    quality = []
    for M in (32, 96):
        model, images = started(M)
        quality.append(psnr(model.g_s(model.g_a(images)), images))
    assert 20 < quality[0] < quality[1] - 1


@torch.no_grad()
def test_the_kept_channels_are_orthogonal_coefficients_in_order_of_variance():
    model, images = started(96)
    y = model.g_a(images).permute(1, 0, 2, 3).flatten(1).double() * step_size(0.013)
    covariance = (y @ y.T / y.shape[1])[:48, :48]
    off_diagonal = covariance - covariance.diagonal().diag()
    assert off_diagonal.abs().max() < 1e-3 * covariance.diagonal().max()
    variance = covariance.diagonal()
    assert (variance[:-1] >= variance[1:] - 1e-6).all()
    assert variance.sum() <= 256 * (images - images.mean((0, 2, 3), keepdim=True)).square().sum(1).mean() * 1.001


@torch.no_grad()
def test_a_larger_lambda_scales_the_latent_up():
    (fine, images), (coarse, _) = started(32, 0.05), started(32, 0.0125)
    assert torch.allclose(fine.g_a(images), 2 * coarse.g_a(images), atol=1e-3)


@torch.no_grad()
def test_a_bypass_adds_nothing_yet():
    model, images = started(32, bypass=8)
    y = model.analysis(images)
    assert torch.equal(y, model.g_a(images)) and torch.equal(model.synthesis(y), model.g_s(y))


def test_other_models_are_refused():
    name, options = TOYS["tcm"]
    with pytest.raises(UserError, match="--start pca: tcm has other transforms"):
        start_as_pca(build_model(name, **options), toy_image(64, 64), 0.013)
