"""SOAP against the algorithm written out for one matrix, and what it leaves to Adam."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.toys import toy_model
from utils.training.optimization import TRANSFORM_RATE, make_optimizers, set_rate
from utils.training.soap import (
    BASIS_EVERY,
    STATISTICS_EVERY,
    Soap,
    as_matrices,
    eigenvectors,
    from_matrices,
    largest_step,
    rotate,
)

RATE, BETA, EPS = 0.01, 0.95, 1e-8


def gradients(shape: tuple[int, ...], count: int) -> list[Tensor]:
    """Random ones whose rows and columns are correlated, so that there are directions to find."""
    generator = torch.Generator().manual_seed(0)
    mix = [torch.randn(side, side, generator=generator) for side in shape[:2]]
    return [torch.einsum("ia,jb,ab...->ij...", *mix, torch.randn(shape, generator=generator)) for _ in range(count)]


def trained(optimizer: torch.optim.Optimizer, weight: Tensor, steps: list[Tensor]) -> Tensor:
    for gradient in steps:
        weight.grad = gradient.clone()
        optimizer.step()
    return weight.detach()


def written_out(weight: Tensor, steps: list[Tensor]) -> Tensor:
    """The paper's Algorithm 3 for one matrix, with its averages in the basis and sums in float64."""
    first = steps[0].double()
    left, right = first @ first.T, first.T @ first
    q_left, q_right = (torch.linalg.eigh(m)[1].flip(1) for m in (left, right))
    mean = square = torch.zeros_like(weight)
    for t, gradient in enumerate(g.double() for g in steps):
        if t and t % STATISTICS_EVERY == 0:
            left = BETA * left + (1 - BETA) * gradient @ gradient.T
            right = BETA * right + (1 - BETA) * gradient.T @ gradient
        if t and t % BASIS_EVERY == 0:
            plain = q_left @ mean @ q_right.T
            rows, columns = (
                torch.diagonal(q.T @ m @ q).argsort(descending=True) for q, m in ((q_left, left), (q_right, right))
            )
            q_left, q_right = (
                torch.linalg.qr(m @ q)[0] for q, m in ((q_left[:, rows], left), (q_right[:, columns], right))
            )
            mean, square = q_left.T @ plain @ q_right, square[rows][:, columns]
        rotated = q_left.T @ gradient @ q_right
        mean, square = BETA * mean + (1 - BETA) * rotated, BETA * square + (1 - BETA) * rotated**2
        change = (mean / (1 - BETA ** (t + 1))) / ((square / (1 - BETA ** (t + 1))).sqrt() + EPS)
        weight = weight - RATE * q_left @ change @ q_right.T
    return weight


def test_it_is_the_algorithm_of_the_paper():
    steps = gradients((6, 4), 3 * BASIS_EVERY + 1)
    start = torch.randn(6, 4, dtype=torch.float64)  # in float32 rounding decides where the first basis has freedom
    weight = nn.Parameter(start.clone())
    ours = trained(Soap([{"params": [weight]}], RATE), weight, [g.double() for g in steps])
    assert torch.allclose(ours, written_out(start, steps), atol=1e-9)


def test_without_axes_to_rotate_it_is_adam():
    """Where `rotated` is False, and where every axis is too long."""
    steps = gradients((6, 4), 25)
    for group in ({"rotated": False}, {"largest": 3}):
        weight, other = (nn.Parameter(torch.ones(6, 4)) for _ in range(2))
        ours = trained(Soap([{"params": [weight], **group}], RATE), weight, steps)
        assert torch.allclose(ours, trained(torch.optim.Adam([other], RATE, (BETA, BETA)), other, steps), atol=1e-6)


def test_no_step_is_longer_than_adam_could_make_it():
    """As it would be where a turned basis has left the second average behind the first."""
    weight = nn.Parameter(torch.randn(6, 4))
    optimizer = Soap([{"params": [weight]}], RATE)
    trained(optimizer, weight, gradients((6, 4), BASIS_EVERY))
    state, before = optimizer.state[weight], weight.detach().clone()
    state["exp_avg_sq"].fill_(1e-14)
    trained(optimizer, weight, [1e-9 * gradients((6, 4), 1)[0]])
    change = rotate(as_matrices(weight.detach() - before), state["bases"])
    assert change.abs().max() <= 1.001 * RATE
    assert largest_step(BETA, BETA) == pytest.approx(1) and largest_step(0.9, 0.999) == pytest.approx(7.27, abs=0.01)


def test_what_is_rotated_comes_back():
    weight = gradients((6, 4, 3, 3), 1)[0]
    bases = [torch.linalg.qr(torch.randn(side, side))[0] for side in (9, 6, 4)]
    there = rotate(as_matrices(weight), bases)
    assert not torch.allclose(there, as_matrices(weight), atol=0.1)
    assert torch.allclose(from_matrices(rotate(there, bases, back=True), weight.shape), weight, atol=1e-4)
    assert torch.equal(from_matrices(as_matrices(weight), weight.shape), weight)


def test_bases_stay_orthonormal_and_find_the_directions():
    weight = nn.Parameter(torch.zeros(6, 4, 3, 3))
    optimizer = Soap([{"params": [weight]}], RATE)
    trained(optimizer, weight, gradients((6, 4, 3, 3), 15 * BASIS_EVERY))
    for basis in optimizer.state[weight]["bases"]:
        assert torch.allclose(basis.T @ basis, torch.eye(len(basis)), atol=1e-5)
    for statistics, basis in zip(*(optimizer.state[weight][key][1:] for key in ("statistics", "bases"))):
        assert torch.diagonal(statistics).norm() < 0.95 * statistics.norm()  # channels are correlated, positions not
        assert torch.diagonal(basis.T @ statistics @ basis).norm() > 0.99 * statistics.norm()


@pytest.mark.parametrize("seed", [0, 2, 5, 6, 10])
def test_the_first_basis_of_a_layer_with_dead_and_nearly_dead_channels(seed):
    """Gradients of 40 channels are zero, of the others 1e-3 to 1e-23: in float32 LAPACK finds no eigenvectors."""
    generator = torch.Generator().manual_seed(seed)
    exponent = -3 - 20 * torch.rand(64, generator=generator)
    exponent[torch.randperm(64, generator=generator)[:40]] = -60
    for rank in (2, 3, 8, 27):
        gradient = torch.randn(64, rank, generator=generator) * 10 ** exponent[:, None]
        basis = eigenvectors(gradient @ gradient.T)
        assert basis.dtype == torch.float32 and (basis.T @ basis - torch.eye(64)).abs().max() < 1e-5


def test_it_is_sooner_at_the_end_of_a_narrow_valley():
    """Least squares whose curvature differs 10,000-fold between directions that no axis follows."""
    generator = torch.Generator().manual_seed(1)
    basis = torch.linalg.qr(torch.randn(16, 16, generator=generator))[0]
    data = basis * torch.logspace(0, -2, 16) @ torch.linalg.qr(torch.randn(16, 16, generator=generator))[0]
    target, losses = torch.randn(16, 16, generator=generator), {}
    for kind in ("adam", "soap"):
        weight = nn.Parameter(torch.zeros(16, 16))
        optimizer = Soap([{"params": [weight], "rotated": kind == "soap"}], 0.05)
        for _ in range(300):
            optimizer.zero_grad()
            loss = (data @ (weight - target)).square().sum()
            loss.backward()
            optimizer.step()
        losses[kind] = loss.item()
    assert losses["soap"] < 0.5 * losses["adam"]


def test_what_of_a_model_it_rotates():
    """Weights of linear layers and convolutions; not depthwise kernels, dictionary, gains, prior, biases."""
    model = toy_model("dcae-bypass")
    optimizer = make_optimizers(model, 1e-3, 1e-3, "soap")[0]
    names = {id(p): name for name, p in model.named_parameters()}
    rotated = {names[id(p)] for g in optimizer.param_groups if g["rotated"] for p in g["params"]}
    assert {"g_a.0.conv.weight", "g_s.0.weight", "cc_mean_transforms.0.4.weight", "h_a.0.res1.conv1.weight"} <= rotated
    assert not [n for n in rotated if any(word in n for word in ("bias", "dwconv", "gain", "entropy_bottleneck"))]
    assert "dt" not in rotated and "dt" in names.values()
    set_rate(optimizer, 1.0)
    rates = {names[id(p)]: g["lr"] for g in optimizer.param_groups for p in g["params"]}
    assert len(rates) + 1 == len(names)  # the quantiles have an optimizer of their own
    assert all(
        rate == (TRANSFORM_RATE if n.startswith(("g_a.", "g_s.", "bypass_")) else 1.0) for n, rate in rates.items()
    )


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_its_state_survives_a_checkpoint_bit_for_bit(precision, tmp_path):
    steps = gradients((6, 4, 3, 3), 3 * BASIS_EVERY)
    one, other = (nn.Parameter(torch.zeros(6, 4, 3, 3, dtype=precision)) for _ in range(2))
    first = Soap([{"params": [one]}], RATE)
    trained(first, one, [g.to(precision) for g in steps[:17]])
    torch.save(first.state_dict(), tmp_path / "state.pt")
    other.data.copy_(one.data)
    second = Soap([{"params": [other]}], RATE)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    rest = [g.to(precision) for g in steps[17:]]
    assert torch.equal(trained(first, one, rest), trained(second, other, rest))
