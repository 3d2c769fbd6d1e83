"""The four changes of CONTRIBUTING.md: each is trained a few steps, and codes files in every arithmetic."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn

from models.dcae import DCAE
from models.dictionary import DictionaryModel, cross_attentions
from models.layers import attention
from models.layers.checkerboard import ANCHORS, OTHERS, CheckerboardConvolution, half, join_halves
from models.layers.convolution import ResidualBottleneck
from tests.toys import TOYS, toy_image
from utils.codec.codec import Codec
from utils.inference.engine import ARITHMETICS
from utils.training import losses, step, validation
from utils.training.losses import rate_distortion

TOY = TOYS["dcae"][1]


def train(model: nn.Module, steps: int = 3, criterion=rate_distortion) -> list[float]:
    """The losses of a few steps on one crop."""
    torch.manual_seed(0)
    optimizer, x = torch.optim.Adam(model.train().parameters(), 1e-3), toy_image(128, 128)
    lambdas, values = torch.tensor([0.01]), []
    for _ in range(steps):
        loss = criterion(model(x), x, lambdas, "mse", model.slice_sizes)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    model.eval().update(force=True)
    return values


def check_files(model: nn.Module) -> None:
    """A file in every arithmetic decodes to what the model itself makes of the image."""
    x = toy_image(128, 150)
    with torch.no_grad():
        expected = model(x)["x_hat"].clamp(0, 1)
    for arithmetic in ARITHMETICS:
        codec = Codec(model, arithmetic, padding="zero")
        assert (codec.decompress(codec.compress(x)) - expected).abs().mean() < 1e-3
        narrow = Codec(model, arithmetic, precision="bf16", padding="zero")
        assert codec.decompress(narrow.compress(x)).shape == x.shape


def test_a_convolutional_block_for_the_swin_layer(monkeypatch):
    """models/layers/attention.py: what SwinStage makes its layers of."""

    class ConvolutionalLayer(nn.Module):
        """(B, C, H, W) -> (B, C, H, W); takes what ScaledSwinLayer takes."""

        def __init__(self, channels: int, head_dim: int, window: int, shifted: bool, drop_path: float) -> None:
            super().__init__()
            self.blocks = nn.Sequential(ResidualBottleneck(channels, channels), ResidualBottleneck(channels, channels))

        def forward(self, x: Tensor) -> Tensor:
            return self.blocks(x)

    monkeypatch.setattr(attention, "ScaledSwinLayer", ConvolutionalLayer)
    model = DCAE(**TOY)
    assert type(model.g_a[5].layers[0]) is ConvolutionalLayer
    losses_of_steps = train(model)
    assert losses_of_steps[-1] < losses_of_steps[0]
    check_files(model)


class TwoDictionaries(DCAE):
    """models/dictionary.py: what is built beside the dictionary, and what the support of a slice takes from it."""

    def build_queries(self) -> None:
        super().build_queries()
        answers, entries, heads, head_dim, msfa = self.of_dictionary
        self.dt2 = nn.Parameter(torch.randn(entries, heads * head_dim))
        self.dt2_cross_attention = cross_attentions(self.query_channels, answers, heads, head_dim, msfa)

    def slice_support(self, i: int, scales: Tensor, means: Tensor, decoded: list[Tensor]) -> tuple[Tensor, Tensor]:
        query = torch.cat([scales, means, *decoded], 1)
        answer = self.ask_dictionary(i, query) + self.dt2_cross_attention[i](query, self.dt2)
        support = torch.cat([query, answer], 1)
        return support, support


def test_a_second_dictionary():
    assert issubclass(DCAE, DictionaryModel)
    torch.manual_seed(1)
    model = TwoDictionaries(**TOY)
    before = model.dt2.detach().clone()
    train(model)
    assert not torch.equal(model.dt2, before)
    check_files(model)
    with torch.no_grad():
        estimate = model(toy_image(128, 128))["para"]["means"]
        model.dt2.zero_()
        assert not torch.allclose(model(toy_image(128, 128))["para"]["means"], estimate)


def test_a_loss_term(monkeypatch):
    """utils/training/losses.py: training and the choice of best.pt follow it alike."""

    @functools.wraps(rate_distortion)
    def with_term(out, x, *args, **kwargs):
        parts = rate_distortion(out, x, *args, **kwargs)
        return {**parts, "loss": parts["loss"] + 3 * out["para"]["scales"].abs().mean()}

    for module in (losses, step, validation):
        monkeypatch.setattr(module, "rate_distortion", with_term)
    torch.manual_seed(1)
    model, x = DCAE(**TOY), toy_image(128, 128)
    with torch.no_grad():
        out = model.eval()(x)
    expected = with_term(out, x, torch.tensor([0.01]), "mse", model.slice_sizes)["loss"].item()
    assert validation.loss_of(out, x, 0.01, "mse", model.slice_sizes) == pytest.approx(expected)
    assert (
        validation.loss_of(out, x, 0.01, "mse", model.slice_sizes)
        > rate_distortion(out, x, torch.tensor([0.01]), "mse", model.slice_sizes)["loss"].item()
    )
    train(model, criterion=with_term)
    check_files(model)


class CheckerboardDCAE(DCAE):
    """A file of its own, and a line in MODELS: half of the places of a slice are context for the other half."""

    model_name = "dcae-checkerboard"

    def build_entropy_model(self) -> None:
        super().build_entropy_model()
        widths = [c + self.answers for c in self.query_channels]
        self.spatial_context = nn.ModuleList(
            CheckerboardConvolution(size, width, 5) for size, width in zip(self.slice_sizes, widths)
        )

    def code_slice(self, i: int, y_i: Tensor | None, support: Tensor, scale_support: Tensor, coder) -> Tensor:
        anchors = self.code_half(i, ANCHORS, y_i, support, coder)
        context = self.spatial_context[i](join_halves(anchors, torch.zeros_like(anchors)))
        y_hat_i = join_halves(anchors, self.code_half(i, OTHERS, y_i, support + context, coder))
        return y_hat_i + self.latent_residual(i, support, y_hat_i)

    def code_half(self, i: int, parity: int, y_i: Tensor | None, support: Tensor, coder) -> Tensor:
        networks = self.cc_mean_transforms[i], self.cc_scale_transforms[i]
        mu, sigma = (half(network(support), parity) for network in networks)
        return coder(None if y_i is None else half(y_i, parity), mu, sigma)

    def join(self, parts: list[Tensor]) -> Tensor:
        return torch.cat([join_halves(*pair) for pair in zip(parts[::2], parts[1::2])], 1)


def test_a_checkerboard_context_in_each_slice():
    torch.manual_seed(1)
    model = CheckerboardDCAE(**TOY)
    train(model)
    check_files(model)
