"""Every model on a GPU that is not there: fake tensors have a device and no values.

They find a tensor that was left on the processor, and whatever waits for a GPU's result inside the slice loop: an
`.item()`, a branch on a tensor. Each transfer between processor and GPU is seen and counted. Symbols and tables that
the entropy coder gets are all zero.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from models.base import SliceCompressionModel
from tests.toys import TOYS, toy_model
from utils.entropy_coding import transfers as memory_of_gpu
from utils.inference.engine import Engine
from utils.inference.rows import stripes_of

GPU = {"device": "cuda"}
SIZE = (128, 128)


class Transfer(NamedTuple):
    """Where to; whether through memory that the GPU reads by itself; how many values."""

    to: str
    pinned: bool
    values: int


class Transfers(TorchDispatchMode):
    """Notes each copy between devices inside the block."""

    def __init__(self, pinned: list[Tensor]) -> None:
        super().__init__()
        self.pinned, self.seen = pinned, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if name in ("_to_copy", "copy_"):
            target, source = (result, args[0]) if name == "_to_copy" else args[:2]
            if target.device.type != source.device.type:
                here = source if source.device.type == "cpu" else target
                fast = any(here is tensor for tensor in self.pinned)
                self.seen.append(Transfer(target.device.type, fast, source.numel()))
        return result

    def to(self, device: str) -> list[Transfer]:
        return [transfer for transfer in self.seen if transfer.to == device]


@pytest.fixture
def pinned(monkeypatch):
    """Fake tensors everywhere; the arrays that the entropy coder sees are zeros. The memory that was pinned."""
    memory, pin = [], memory_of_gpu.pinned
    monkeypatch.setattr(memory_of_gpu, "pinned", lambda like: memory.append(pin(like)) or memory[-1])
    monkeypatch.setattr(memory_of_gpu, "array_of", lambda tensor: np.zeros(tensor.shape, str(tensor.dtype)[6:]))
    monkeypatch.setattr(SliceCompressionModel, "double", lambda self: on_gpu(self, torch.float64))
    monkeypatch.setattr(FakeTensorMode, "__deepcopy__", lambda self, memo: self, raising=False)
    with FakeTensorMode():
        yield memory


def on_gpu(model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """All its tensors fake ones on a GPU, floating-point ones in another type if one is given."""

    def fake(tensor: Tensor) -> Tensor:
        other = dtype if dtype and tensor.is_floating_point() else tensor.dtype
        return torch.empty(tensor.shape, dtype=other, **GPU)

    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(fake(parameter), requires_grad=False)
        module._buffers.update({name: fake(buffer) for name, buffer in module._buffers.items() if buffer is not None})
    return model


def toy_on_gpu(kind: str) -> tuple[SliceCompressionModel, Tensor, float | None]:
    """The toy, an image, and a quality as users give it."""
    with torch._subclasses.fake_tensor.unset_fake_temporarily():
        model = toy_model(kind)
        for prior in model.entropy_models():
            prior.tables()  # of the entropy coder, from real values
    return on_gpu(model), torch.rand(1, 3, *SIZE, **GPU), 37.5 if model.variable_rate else None


def calls_of_coder(model: SliceCompressionModel) -> int:
    """How often slices are coded: ELIC's in two passes, since the second reads the symbols of the first."""
    return model.slices * (2 if hasattr(model, "spatial_context") else 1)


@pytest.mark.parametrize("kind", TOYS)
def test_forward_under_autocast(kind, pinned):
    model, x, quality = toy_on_gpu(kind)
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16), Transfers(pinned) as transfers:
        out = model(x, quality)
    assert out["x_hat"].shape == x.shape
    tensors = [out["x_hat"], *out["likelihoods"].values(), *out["para"].values()]
    assert {tensor.device.type for tensor in tensors} == {"cuda"}
    assert not transfers.seen


@pytest.mark.parametrize(
    ("kind", "arithmetic"),
    [
        *((kind, "fp64") for kind in ("dcae-variable-rate", "tcm", "elic-plus-dictionary", "global-tokens")),
        *((kind, "fp32") for kind in ("dcae", "elic")),
    ],
)
def test_transfers_of_coding(kind, arithmetic, pinned):
    """One to the host a call of the coder, and one back when decoding, all of them pinned; nothing else."""
    model, x, quality = toy_on_gpu(kind)
    calls, side_information = calls_of_coder(model), 2 if hasattr(model, "tokens") else 1  # z, or z and tokens
    assert calls <= 2 * model.slices
    engine = Engine(model)
    engine.path(arithmetic)  # its constants are copied once
    with torch.no_grad(), stripes_of(None), Transfers(pinned) as encoding:
        coded = engine.quick.compress_latent(engine.quick.to_latent(x, quality), engine.path(arithmetic))
    assert coded["y_hat"].device.type == "cuda"
    assert [transfer.pinned for transfer in encoding.to("cpu")] == [True] * (calls + side_information)
    assert not encoding.to("cuda")
    with torch.no_grad(), stripes_of(None), Transfers(pinned) as decoding:
        y_hat, _ = engine.quick.decompress_latent(coded["strings"], coded["shape"], engine.path(arithmetic))
        back = engine.quick.to_image(y_hat, quality)
    assert back.device.type == "cuda" and back.shape == x.shape
    assert [transfer.pinned for transfer in decoding.to("cpu")] == [True] * calls
    assert [transfer.pinned for transfer in decoding.to("cuda")] == [True] * (side_information + calls)


# ---- what the tests above would find -------------------------------------------------------------------------------


def spoil(model: SliceCompressionModel, monkeypatch, change) -> None:
    original = type(model).slice_support
    monkeypatch.setattr(type(model), "slice_support", lambda self, i, *known: change(*original(self, i, *known)))


def test_a_hidden_synchronisation_is_found(pinned, monkeypatch):
    model, x, _ = toy_on_gpu("dcae")
    spoil(model, monkeypatch, lambda mean, scale: (mean, scale if mean.max() > 0 else mean))
    with pytest.raises(DataDependentOutputException):
        model.compress(x)


def test_a_tensor_left_behind_is_found(pinned, monkeypatch):
    model, x, _ = toy_on_gpu("dcae")
    spoil(model, monkeypatch, lambda mean, scale: (mean + torch.zeros(mean.shape), scale))
    with pytest.raises(RuntimeError, match="device"):
        model.compress(x)


def test_a_transfer_is_found(pinned, monkeypatch):
    model, x, _ = toy_on_gpu("dcae")
    with Transfers(pinned) as before:
        model.compress(x)
    spoil(model, monkeypatch, lambda mean, scale: (mean.cpu().cuda(), scale))
    with Transfers(pinned) as after:
        model.compress(x)
    assert len(after.seen) == len(before.seen) + 2 * model.slices
