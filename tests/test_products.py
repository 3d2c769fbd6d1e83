"""Products in every way that this machine has: values, packed weights, and how the choice is made and kept."""

from __future__ import annotations

import copy
import gc
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F

from utils.cli import UserError
from utils.inference import products
from utils.inference.choice import Choice, file_of_choices
from utils.inference.products import DTYPES, KINDS, WAYS, available, batched, choice, linear, measure

AGREES = {torch.float32: 1e-5, torch.float64: 1e-13}  # of the largest value; sums have a hundred terms or so
ALL = [(kind, dtype, way) for kind in KINDS for dtype in DTYPES for way in available(kind, dtype)]
LINEAR = [(dtype, way) for kind, dtype, way in ALL if kind == "linear"]


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No product is too small, nothing is recorded, choices are this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("DCAE_PRODUCTS", raising=False)
    monkeypatch.setattr(products, "LEAST_PRODUCTS", 1)
    choice.fix(None)
    with torch.no_grad():
        yield
    monkeypatch.undo()
    choice.fix(None)


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).to(dtype)


def assert_agrees(result: torch.Tensor, truth: torch.Tensor) -> None:
    assert result.shape == truth.shape and result.is_contiguous()
    assert (result.double() - truth).abs().max() <= AGREES[result.dtype] * truth.abs().max()


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 5, 7), (1, 33, 17)])
@pytest.mark.parametrize("dtype, way", LINEAR)
def test_linear_is_the_exact_product(dtype, way, shape, threads):
    x, weight, bias = draw(*shape, 96, dtype=dtype), draw(40, 96, dtype=dtype), draw(40, dtype=dtype)
    with choice.fixed(way):
        assert_agrees(linear(x, weight, bias), F.linear(x.double(), weight.double(), bias.double()))
        assert_agrees(linear(x, weight), F.linear(x.double(), weight.double()))
        assert_agrees(linear(x, weight[:, :, None, None], bias), linear(x.double(), weight.double(), bias.double()))
        assert choice("linear", dtype) == way


@pytest.mark.parametrize("dtype, way", LINEAR)
def test_views_of_any_order_in_memory(dtype, way):
    x = draw(1, 96, 6, 4, dtype=dtype).permute(0, 2, 3, 1)  # a map seen as tokens
    weight = draw(96, 40, dtype=dtype).T
    with choice.fixed(way):
        assert_agrees(linear(x, weight), x.double() @ weight.double().T)


@pytest.mark.parametrize("kind, dtype, way", [case for case in ALL if case[0] != "linear"])
def test_batched_is_the_exact_product(kind, dtype, way, threads):
    x, weights = draw(36, 7, 48, dtype=dtype), draw(36, 48, 20, dtype=dtype)
    with choice.fixed(way):
        assert_agrees(batched(x, weights, constant=kind == "batched"), torch.bmm(x.double(), weights.double()))
        assert choice(kind, dtype) == way


@pytest.mark.parametrize("way", WAYS)
def test_what_is_none_of_its_business_is_torchs(way):
    layer, x = torch.nn.Linear(32, 16), draw(8, 32)
    with choice.fixed(way):
        with torch.enable_grad():
            assert torch.equal(linear(x, layer.weight, layer.bias), layer(x))
            linear(x, layer.weight, layer.bias).sum().backward()
        assert layer.weight.grad.abs().sum() > 0
        with torch.autocast("cpu", torch.bfloat16):
            assert linear(x, layer.weight, layer.bias).dtype is torch.bfloat16
        narrow = layer.bfloat16()
        assert torch.equal(linear(x.bfloat16(), narrow.weight, narrow.bias), narrow(x.bfloat16()))
        assert linear(x.to("meta"), draw(16, 32).to("meta")).shape == (8, 16)
        assert linear(draw(0, 32), draw(16, 32)).shape == (0, 16)
        with pytest.raises(RuntimeError):
            linear(x.double(), draw(16, 32))


def test_small_products_measure_nothing(monkeypatch):
    monkeypatch.setattr(products, "LEAST_PRODUCTS", 8 * 32 * 16 + 1)
    linear(draw(8, 32), draw(16, 32))
    assert not choice.made


# ---- packed weights ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("way", available("linear", torch.float32))
def test_a_changed_weight_is_multiplied_by(way, inference):
    with torch.inference_mode(inference), choice.fixed(way):
        layer, x = torch.nn.Linear(32, 16).requires_grad_(False), draw(8, 32)

        def check():
            assert_agrees(
                linear(x, layer.weight, layer.bias), F.linear(x.double(), layer.weight.double(), layer.bias.double())
            )

        check()
        layer.weight.mul_(3)
        check()
        layer.load_state_dict({"weight": draw(16, 32), "bias": draw(16)})
        check()
        layer.weight.data = draw(16, 32) + 1
        check()
        copied = copy.deepcopy(layer)
        copied.weight.add_(1)
        check()
        layer = copied
        check()


def test_packed_weights_go_with_their_weight():
    with choice.fixed("onednn"):
        before, weight, weights = len(products._packed), draw(16, 32), draw(4, 32, 8)
        for _ in range(2):
            linear(draw(8, 32), weight)
            batched(draw(4, 5, 32), weights, constant=True)
        assert len(products._packed) == before + 2
        del weight, weights
        gc.collect()
        assert len(products._packed) == before


def test_memory_of_weights_that_will_be_packed():
    convolutions = [torch.nn.Conv2d(32, 8, kernel) for kernel in (1, 3)]
    model, narrow = torch.nn.Sequential(torch.nn.Linear(32, 16), *convolutions), torch.nn.Linear(32, 16).bfloat16()
    with choice.fixed("torch"):
        assert products.bytes_to_pack(model) == 0
    with choice.fixed("onednn"):
        assert products.bytes_to_pack(model, narrow) == 4 * 32 * (16 + 8)
        half = model[0].weight.detach()[:8]
        linear(draw(8, 32), half)
        assert products.bytes_to_pack(model) == 4 * 32 * (8 + 8)
        linear(draw(8, 32), model[1].weight)
        assert products.bytes_to_pack(model) == 4 * 32 * 8


def test_weights_that_come_and_go():
    with choice.fixed("onednn"):
        for i in range(50):  # most have the id and the memory of the one before
            weight = draw(16, 32) * i
            assert_agrees(linear(draw(8, 32), weight), draw(8, 32).double() @ weight.double().T)


@pytest.mark.parametrize("dtype, way", LINEAR)
def test_threads_side_by_side(dtype, way):
    x, weights = draw(64, 96, dtype=dtype), [draw(40, 96, dtype=dtype) * i for i in range(4)]
    with choice.fixed(way), ThreadPoolExecutor(4) as pool:

        def work(i):
            with torch.no_grad():
                return linear(x, weights[i % 4])

        for i, result in enumerate(pool.map(work, range(64))):
            assert_agrees(result, x.double() @ weights[i % 4].double().T)


# ---- the choice ----------------------------------------------------------------------------------------------------


def counting(seconds: dict[str, float]) -> tuple[Choice, list]:
    calls = []

    def measured(kind, dtype, ways):
        calls.append(kind)
        return {way: seconds[way] for way in ways}

    return Choice(WAYS, lambda kind, dtype: list(seconds), measured), calls


def test_the_fastest_is_chosen_once_and_kept():
    first, calls = counting({"torch": 2.0, "onednn": 3.0, "numpy": 1.0})
    assert [first("linear", torch.float64) for _ in range(2)] == ["numpy", "numpy"]
    assert first("batched", torch.float64) == "numpy" and calls == ["linear", "batched"]
    second, calls = counting({"torch": 1.0, "onednn": 2.0, "numpy": 3.0})
    assert second("linear", torch.float64) == "numpy" and not calls  # as the file says
    assert second("linear", torch.float32) == "torch" and calls == ["linear"]


def test_noise_does_not_decide():
    made, _ = counting({"torch": 1.04, "onednn": 1.0})
    assert made("linear", torch.float32) == "torch"


def test_each_number_of_threads_has_its_choice(threads):
    counting({"torch": 1.0})[0]("linear", torch.float32)
    assert json.loads(file_of_choices().read_text()) == {"linear torch.float32": "torch"}
    made, calls = counting({"torch": 1.0})
    torch.set_num_threads(threads + 1)
    made("linear", torch.float32)
    assert calls == ["linear"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"linear torch.float32": "gone"}', b'{"x": 1}', b"\xff\xfe"])
def test_a_broken_file_is_measured_again(content):
    file_of_choices().parent.mkdir(parents=True)
    file_of_choices().write_bytes(content)
    made, calls = counting({"torch": 2.0, "onednn": 1.0})
    assert made("linear", torch.float32) == "onednn" and calls == ["linear"]
    assert json.loads(file_of_choices().read_text())["linear torch.float32"] == "onednn"


def test_a_folder_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    made, calls = counting({"torch": 2.0, "onednn": 1.0})
    assert made("linear", torch.float32) == "onednn" and calls == ["linear"]


def test_many_threads_measure_once():
    made, calls = counting({"torch": 2.0, "onednn": 1.0})
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: made("linear", torch.float32), range(64))) == {"onednn"}
    assert calls == ["linear"]


def test_a_fixed_choice_measures_nothing(monkeypatch):
    made, calls = counting({"torch": 2.0, "onednn": 1.0})
    made.fix("torch")
    assert made("linear", torch.float32) == "torch" and not calls
    monkeypatch.setenv("DCAE_PRODUCTS", "onednn")
    made.fix(None)
    assert made("linear", torch.float32) == "onednn" and not calls
    with made.fixed("torch"):
        assert made("linear", torch.float32) == "torch"
    assert made("linear", torch.float32) == "onednn"
    made.fix("auto")  # a flag outweighs the variable
    made("linear", torch.float32)
    assert calls == ["linear"] and file_of_choices().exists()


def test_no_such_way(monkeypatch):
    made, _ = counting({"torch": 1.0})
    with pytest.raises(UserError, match="^--products abacus: .*auto, torch, onednn, numpy"):
        made.fix("abacus")
    with pytest.raises(UserError, match="^--products numpy: .*choose auto"):
        made.fix("numpy")
    monkeypatch.setenv("DCAE_PRODUCTS", "abacus")
    with pytest.raises(UserError, match="^DCAE_PRODUCTS=abacus: "):
        made("linear", torch.float32)


@pytest.mark.parametrize("kind, dtype", [(kind, dtype) for kind in KINDS for dtype in DTYPES])
def test_a_measurement_times_every_way(kind, dtype, monkeypatch):
    monkeypatch.setitem(KINDS, kind, (KINDS[kind][0], [[min(side, 8) for side in size] for size in KINDS[kind][1]]))
    ways = available(kind, dtype)
    seconds = measure(kind, dtype, ways)
    assert list(seconds) == ways and all(value > 0 for value in seconds.values())
    products.prepare(dtype)
    assert choice(kind, dtype) in ways


@pytest.mark.parametrize("way", available("linear", torch.float64))
def test_another_way_is_another(way):
    with choice.fixed(way):
        assert products.another_way() in set(WAYS) - {way} or available("linear", torch.float64) == ["torch"]
