"""The parts of training: losses, optimizers, schedule, averages, steps that are not finite, checkpoints."""

from __future__ import annotations

import copy
import math
from functools import cache

import pytest
import pytorch_msssim
import torch

from models.layers.gain import LAMBDA_RANGE, lambda_of_quality
from tests.toys import toy_image, toy_model
from utils.cli import UserError
from utils.codec import checkpoint
from utils.codec.checkpoint import read_checkpoint, remove_unfinished, save_checkpoint
from utils.entropy_coding.frequencies import SCALE_MIN
from utils.training.distributed import Processes
from utils.training.losses import balance, rate_distortion
from utils.training.optimization import (
    OPTIMIZERS,
    Average,
    Schedule,
    clip_gradient,
    make_optimizers,
    quantiles_of,
    weights_of,
)
from utils.training.run_state import RunState
from utils.training.step import MOST_NOT_FINITE, Recipe, train_step, transforms_in

CPU = torch.device("cpu")


@cache
def toy(kind: str = "dcae"):
    return toy_model(kind)


def fresh_state(ema: float = 0.0, kind: str = "dcae") -> RunState:
    model = copy.deepcopy(toy(kind)).train()
    optimizers = make_optimizers(model, 1e-3, 1e-3)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    schedule = Schedule("constant", 1e-3, 0, 100, ())
    return RunState("dcae", model, *optimizers, scaler, schedule, Average(model, ema) if ema else None, {}, {})


def batches(count: int = 100):
    """Batches as the loader gives them."""
    pixels = (toy_image(128, 128, batch=2).permute(0, 2, 3, 1) * 255).byte()
    return iter([(pixels, torch.tensor([1.0, 99.0]), torch.tensor([0, 1]))] * count)


def recipe(**changes) -> Recipe:
    values = {"metric": "mse", "weight": 0.01, "precision": "fp32", "accumulate": 1, "clip": 1.0}
    return Recipe(**{**values, **changes}, device=CPU, processes=Processes())


# ---- losses --------------------------------------------------------------------------------------------------------


def output(batch: int = 2, side: int = 192) -> tuple[dict, torch.Tensor]:
    """Something like a model's output with slices of 2, 1 and 3 channels, and the image it belongs to."""
    generator = torch.Generator().manual_seed(0)
    x = toy_image(side, side, batch)
    y = torch.rand(batch, 6, 4, 4, generator=generator) + 0.01
    z = torch.rand(batch, 2, 1, 1, generator=generator) + 0.01
    scales = torch.tensor([SCALE_MIN, 1.0, 0.05, 2.0]).expand(batch, 6, 4, 4)
    x_hat = (x + 0.02 * torch.randn(x.shape, generator=generator)).requires_grad_()
    return {"x_hat": x_hat, "likelihoods": {"y": y, "z": z}, "para": {"scales": scales}}, x


def test_the_loss_is_lambda_times_255_squared_mse_plus_rate():
    (out, x), lambdas = output(), torch.tensor([0.01, 0.03])
    parts = rate_distortion(out, x, lambdas, "mse", [2, 1, 3])
    pixels = 192 * 192
    bits = [-sum(out["likelihoods"][n][i].log2().sum() for n in "yz") / pixels for i in range(2)]
    errors = (out["x_hat"] - x).square().mean((1, 2, 3))
    expected = sum(w * 255**2 * e + b for w, e, b in zip(lambdas, errors, bits)) / 2
    assert torch.allclose(parts["loss"], expected, rtol=1e-5)
    assert torch.equal(parts["mse"], parts["distortion"]) and torch.allclose(parts["mse"], errors.mean())
    assert parts["bound"] == 0.5 and len(parts["bpp_slices"]) == 3
    assert torch.allclose(parts["bpp_slices"].sum(), parts["bpp_y"])
    assert torch.allclose(parts["bpp_slices"][1], -out["likelihoods"]["y"][:, 2].log2().sum() / pixels / 2, rtol=1e-5)


def test_the_ms_ssim_loss_is_one_minus_ms_ssim():
    (out, x), lambdas = output(), torch.tensor([8.0, 8.0])
    parts = rate_distortion(out, x, lambdas, "ms-ssim", [2, 1, 3])
    similarity = pytorch_msssim.ms_ssim(out["x_hat"], x, data_range=1.0)
    assert torch.allclose(parts["distortion"], 1 - similarity, atol=1e-6)
    assert torch.allclose(parts["loss"], 8 * parts["distortion"] + parts["bpp_y"] + parts["bpp_z"], rtol=1e-5)
    assert torch.allclose(parts["mse"], (out["x_hat"] - x).square().mean())
    parts["loss"].backward()
    assert out["x_hat"].grad.abs().sum() > 0


def test_a_balanced_loss_weighs_each_image_with_one_over_the_root_of_its_lambda():
    (out, x), middle = output(), math.sqrt(math.prod(LAMBDA_RANGE))
    lambdas = torch.tensor([middle / 4, middle * 9])
    alone = [
        rate_distortion(one(out, i), x[i : i + 1], lambdas[i : i + 1], "mse", [2, 1, 3])["loss"].item() for i in (0, 1)
    ]
    both = rate_distortion(out, x, lambdas, "mse", [2, 1, 3], balanced=LAMBDA_RANGE)
    assert both["loss"].item() == pytest.approx((2 * alone[0] + alone[1] / 3) / 2, rel=1e-5)
    plain = rate_distortion(out, x, lambdas, "mse", [2, 1, 3])
    assert all(torch.equal(both[name], plain[name]) for name in plain if name != "loss")
    assert balance(middle) == pytest.approx(1) and balance(middle / 9) == pytest.approx(1 / balance(middle * 9))


def one(out: dict, i: int) -> dict:
    """The output for one image of the batch."""
    return {key: one(value, i) if isinstance(value, dict) else value[i : i + 1] for key, value in out.items()}


# ---- optimization --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_parameter_has_one_optimizer(optimizer):
    model = toy()
    main, auxiliary = make_optimizers(model, 1e-4, 1e-3, optimizer)
    groups = [{id(p) for g in o.param_groups for p in g["params"]} for o in (main, auxiliary)]
    assert groups[1] == {id(model.entropy_bottleneck.quantiles)} == {id(p) for p in quantiles_of(model)}
    assert not groups[0] & groups[1] and len(groups[0]) + 1 == len(list(model.parameters()))


def test_the_learning_rate_over_time():
    step = Schedule("step", 1e-4, 0, 100, (46, 48))
    assert [step(i) for i in (0, 45, 46, 47, 48)] == pytest.approx([1e-4, 1e-4, 1e-5, 1e-5, 1e-6])
    assert [Schedule("constant", 1.0, 4, 9, ())(i) for i in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    linear = Schedule("linear", 1.0, 2, 100, (), cooldown=0.4)
    assert [linear(i) for i in (0, 1, 60, 80, 99)] == pytest.approx([0.5, 1, 1, 0.5, 0.025])
    assert Schedule("linear", 1.0, 0, 200, (), cooldown=0.4)(99) == 1  # a run can be made longer
    cosine = Schedule("cosine", 1.0, 0, 100, ())
    assert [cosine(i) for i in (0, 50, 100, 200)] == pytest.approx([1, 0.505, 0.01, 0.01])


def test_gradients_are_scaled_down_to_the_largest_norm():
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    for parameter, value in zip(parameters, (3.0, 4.0)):
        parameter.grad = torch.tensor([value, 0.0])
    assert clip_gradient(parameters, 0) == 5 and parameters[0].grad[0] == 3
    assert clip_gradient(parameters, 10) == 5 and parameters[0].grad[0] == 3
    assert clip_gradient(parameters, 1) == 5
    assert [float(p.grad[0]) for p in parameters] == pytest.approx([0.6, 0.8], rel=1e-4)


def test_the_average_follows_and_is_left_alone():
    model = torch.nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(1.0)
    average = Average(model, 0.9)
    model.weight.data.fill_(2.0)
    average.follow(model, 10_000)
    assert average.model.weight.item() == pytest.approx(1.1)
    average.follow(model, 0)  # early: a decay of 0.1
    assert average.model.weight.item() == pytest.approx(1.91)
    assert not average.model.weight.requires_grad and model.weight.item() == 2


# ---- steps ---------------------------------------------------------------------------------------------------------


class Poisoned(torch.nn.Module):
    """A model whose image is not a number in chosen calls."""

    def __init__(self, model: torch.nn.Module, calls) -> None:
        super().__init__()
        self.model, self.calls, self.count = model, calls, 0

    def forward(self, x, quality):
        out = self.model(x, quality)
        self.count += 1
        return {**out, "x_hat": out["x_hat"] * math.nan} if self.count in self.calls else out


def test_a_step_that_is_not_finite_is_skipped_and_counted():
    state, data = fresh_state(ema=0.5), batches()
    network = Poisoned(state.model, {2, 3})
    assert train_step(state, network, data, recipe()).finite
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    average = {name: value.clone() for name, value in state.average.model.state_dict().items()}
    for _ in range(2):
        assert not train_step(state, network, data, recipe()).finite
    assert state.not_finite == {"in_row": 2, "total": 2} and state.step == 3
    assert all(torch.equal(value, before[name]) for name, value in state.model.state_dict().items())
    assert all(torch.equal(value, average[name]) for name, value in state.average.model.state_dict().items())
    result = train_step(state, network, data, recipe())
    assert result.finite and math.isfinite(result.values["loss"]) and result.passed_over == 1
    assert state.not_finite == {"in_row": 0, "total": 2}
    assert not torch.equal(state.model.g_a[0].conv.weight, before["g_a.0.conv.weight"])


def test_twenty_in_a_row_end_the_run_with_the_reason():
    state, data = fresh_state(), batches()
    network = Poisoned(state.model, range(100))
    state.not_finite["in_row"] = MOST_NOT_FINITE - 2
    train_step(state, network, data, recipe())
    with pytest.raises(UserError, match="not finite in 20 steps in a row, up to step 2;.*--learning-rate") as raised:
        train_step(state, network, data, recipe())
    assert "\n" not in str(raised.value)
    assert all(parameter.isfinite().all() for parameter in state.model.parameters())


def test_a_full_gpu_is_one_line():
    def full(x, quality):
        raise torch.OutOfMemoryError("CUDA out of memory.\nand a table")

    with pytest.raises(UserError, match="--batch-size 2: needs more memory than the GPU has;.*--accumulate") as raised:
        train_step(fresh_state(), full, batches(), recipe())
    assert "\n" not in str(raised.value)


def test_variable_rate_is_trained_with_the_balanced_loss():
    state, (pixels, quality, _) = fresh_state(kind="dcae-variable-rate"), next(batches())
    values = train_step(state, state.model.eval(), batches(), recipe(weight=None)).values
    x = pixels.permute(0, 3, 1, 2) / 255
    out = toy("dcae-variable-rate")(x, quality)
    expected = rate_distortion(out, x, lambda_of_quality(quality), "mse", state.model.slice_sizes, LAMBDA_RANGE)
    assert values["loss"] == pytest.approx(expected["loss"].item(), rel=1e-4)


def test_accumulated_passes_are_one_step_of_the_whole_batch():
    """Two passes of two images, the same noise: the gradient of one of four."""
    gradients = []
    for accumulate in (1, 2):
        state = fresh_state()
        torch.manual_seed(0)
        train_step(state, state.model.eval(), batches(), recipe(accumulate=accumulate, clip=0.0))
        gradients.append([parameter.grad for parameter in weights_of(state.model)])
    for one, two in zip(*gradients):
        assert torch.allclose(one, two, rtol=1e-3, atol=1e-5 * float(one.abs().max()) + 1e-9)


def test_in_bf16_likelihoods_and_loss_stay_in_fp32():
    model, x = toy(), toy_image(128, 128)
    losses = {}
    for precision in ("fp32", "bf16"):
        with transforms_in(precision, CPU):
            out = model(x)
        assert {t.dtype for t in (*out["likelihoods"].values(), *out["para"].values())} == {torch.float32}
        parts = rate_distortion(out, x, torch.tensor([0.01]), "mse", model.slice_sizes)
        assert parts["loss"].dtype == torch.float32
        losses[precision] = parts["loss"].item()
    assert losses["bf16"] != losses["fp32"] and losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)


# ---- checkpoints ---------------------------------------------------------------------------------------------------


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "latest.pt"
    save_checkpoint(path, {"step": 1})

    def full_disk(content, file):
        file.write(b"half of it")
        raise RuntimeError("[enforce fail] file write failed\nand a trace")

    monkeypatch.setattr(checkpoint.torch, "save", full_disk)
    with pytest.raises(UserError, match="latest.pt: cannot be written") as raised:
        save_checkpoint(path, {"step": 2})
    assert "\n" not in str(raised.value)
    assert read_checkpoint(path) == {"step": 1} and [p.name for p in tmp_path.iterdir()] == ["latest.pt"]


def test_what_a_killed_writer_left_is_removed(tmp_path):
    for name in (".latest.pt.ab12.tmp", "latest.pt", ".other.tmp"):
        (tmp_path / name).write_bytes(b"")
    remove_unfinished(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"latest.pt", ".other.tmp"}


def test_a_state_survives_its_checkpoint(tmp_path):
    state, data = fresh_state(ema=0.9), batches()
    train_step(state, state.model, data, recipe())
    state.best, state.validated = 1.5, 1
    save_checkpoint(tmp_path / "a.pt", state.to_checkpoint())
    noise = torch.rand(3)
    other = fresh_state(ema=0.9)
    other.restore(read_checkpoint(tmp_path / "a.pt"))
    assert torch.equal(torch.rand(3), noise)
    assert (other.step, other.best, other.validated) == (1, 1.5, 1)
    for one in (state, other):
        torch.manual_seed(0)
        train_step(one, one.model, batches(), recipe())
    for kind in ("model", "usable"):
        pair = (getattr(one, kind).state_dict() for one in (state, other))
        assert all(torch.equal(a, b) for a, b in zip(*(s.values() for s in pair)))
    assert not torch.equal(state.usable.g_a[0].conv.weight, state.model.g_a[0].conv.weight)


def test_a_run_goes_on_in_fp16():
    """What another precision left holds no loss scale: it starts from its own."""
    content, other = fresh_state().to_checkpoint(), fresh_state()
    other.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    other.restore(content)
    assert content["scaler"] == {} and other.scaler.get_scale() == 8
