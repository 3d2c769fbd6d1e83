"""Symbols on their way between the model's device and the entropy coder."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from models.coders import BOUND, get_symbols, put_symbols
from tests.toys import toy_model
from utils.entropy_coding import transfers as memory_of_gpu
from utils.entropy_coding.check import SymbolCheck
from utils.entropy_coding.rans import Decoder, Encoder
from utils.entropy_coding.transfers import to_host


@pytest.fixture(params=[False, True], ids=["here", "away"])
def away(request, monkeypatch):
    """Whether tensors are taken for ones of a GPU, which come over in one row of bytes."""
    monkeypatch.setattr(memory_of_gpu, "is_away", lambda tensor: request.param)
    monkeypatch.setattr(memory_of_gpu, "pinned", torch.empty_like)


def test_arrays_are_what_tensors_were(away):
    symbols = torch.arange(-30, 30, dtype=torch.int32).reshape(2, 3, 5, 2).permute(0, 2, 3, 1)
    indexes = torch.randint(64, (2, 5, 2, 3), dtype=torch.uint8)
    for tensors in ((symbols, indexes), (symbols,), (indexes,)):
        arrays = to_host(*tensors)
        assert all(np.array_equal(a, t.numpy()) and a.dtype == t.numpy().dtype for a, t in zip(arrays, tensors))


def test_symbols_come_back(away):
    tables = toy_model("dcae").gaussian_conditional.tables()
    values = torch.tensor([[0.0, -1, 5, BOUND - 64], [-3000, 2, -0.0, -(BOUND - 64)]]).reshape(2, 1, 2, 2)
    indexes = torch.tensor([0, 1, 63, 5, 30, 2, 0, 0], dtype=torch.uint8).reshape(2, 1, 2, 2)
    checks, again = [SymbolCheck(), SymbolCheck()], [SymbolCheck(), SymbolCheck()]
    encoders = [Encoder(check) for check in checks]
    put_symbols(encoders, values, indexes, tables)
    decoders = [Decoder(encoder.finish(), check) for encoder, check in zip(encoders, again)]
    symbols = get_symbols(decoders, indexes, tables)
    assert symbols.dtype is torch.int32 and torch.equal(symbols.float(), values)
    assert [check.value for check in again] == [check.value for check in checks]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, BOUND, -BOUND, 1e30, -1e30])
def test_what_is_no_symbol_is_refused(value, dtype, away):
    values, encoder = torch.zeros(1, 1, 2, 2, dtype=dtype), Encoder()
    values[0, 0, 1, 0] = value
    with pytest.raises(ValueError, match="not finite or too large"):
        put_symbols([encoder], values, torch.zeros(1, 1, 2, 2, dtype=torch.uint8), None)
    assert math.isnan(value) == bool(values.isnan().any())  # left as it was
