"""Portable files decode to the same symbols however the sums are ordered, today and for ever."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path

import pytest
import torch

from tests.toys import TOYS, toy_model, writer
from utils.codec.bitstream import BitstreamError
from utils.codec.codec import Codec
from utils.data.images import read_image, to_tensor
from utils.entropy_coding.check import SymbolCheck
from utils.inference import products
from utils.measuring.environments import environment

HERE = Path(__file__).parent
SAMPLES = HERE.parent / "assets" / "samples"
QUALITY = 62.5


# Half of all combinations, so chosen that any three settings occur in all of theirs, for the models that differ
# most; for the others half of these: any two of the first three settings do, and stripes go with threads.
ENVIRONMENTS = [(1 + a, bool(b), bool(c), bool(a ^ b ^ c)) for a, b, c in itertools.product((0, 1), repeat=3)]
FEWER = [(1 + a, bool(b), bool(a ^ b), bool(a)) for a, b in itertools.product((0, 1), repeat=2)]
DIFFERENT = ("dcae-variable-rate", "tcm", "elic-plus-dictionary", "global-tokens")


def photo(name: str, side: int = 90) -> torch.Tensor:
    return to_tensor(read_image(SAMPLES / f"{name}.png")[0][100 : 100 + side, 200 : 200 + side + 33])


@pytest.mark.parametrize("kind", TOYS)
def test_matrix_of_environments(kind):
    """A file written under each decodes under every other, and all files are the same."""
    codec, x = Codec(toy_model(kind)), photo("city")
    quality = QUALITY if codec.model.variable_rate else None
    files, environments = set(), ENVIRONMENTS if kind in DIFFERENT else FEWER
    for chosen in environments:
        with environment(*chosen):
            files.add(codec.compress(x.clone(), quality))
    for data in files:
        for chosen in environments:
            with environment(*chosen):
                codec.decompress(data)  # raises where a symbol differs


WAYS = products.available("linear", torch.float32)


@pytest.fixture
def every_product(monkeypatch):
    """None is too small to be multiplied in the way that is chosen."""
    monkeypatch.setattr(products, "LEAST_PRODUCTS", 1)


@pytest.mark.parametrize("kind", TOYS)
def test_matrix_of_products(kind, every_product):
    """A file written with each library for products decodes with every other."""
    codec, x, files = Codec(toy_model(kind)), photo("city", 60), {}
    for way in WAYS:
        with products.choice.fixed(way):
            files[way] = codec.compress(x, QUALITY if codec.model.variable_rate else None)
    for written, data in files.items():
        for way in WAYS:
            if way != written:
                with products.choice.fixed(way):
                    codec.symbols(codec.open(data))  # raises where a symbol differs


@pytest.mark.parametrize("arithmetic, dtype", [("fp32", torch.float32), ("fp64", torch.float64)])
@pytest.mark.parametrize("way", WAYS)
def test_verify_multiplies_in_another_way(way, arithmetic, dtype, every_product, monkeypatch):
    codec, used = Codec(toy_model("dcae"), arithmetic), set()
    for name, function in products.LINEAR.items():
        monkeypatch.setitem(products.LINEAR, name, noting(used, name, function))
    with products.choice.fixed(way):
        data, usual = codec.compress(photo("grass", 60)), products.choice("linear", dtype)
        used.clear()
        codec.verify(data)
        assert products.choice("linear", dtype) == usual
    assert used and (usual not in used or products.available("linear", dtype) == ["torch"])


def noting(used: set, name: str, function):
    def multiply(*operands):
        used.add(name)
        return function(*operands)

    return multiply


def hang_on_last_bits(network, arguments, scales):
    """Scales that turn differences in the last places of a float32 sum into other levels."""
    return (scales * 1e5).remainder(5) + 0.2


def test_verify_notices_fast_files_that_fail_elsewhere():
    """What happens once in many images, made to happen in one: the fast file fails, the portable one does not."""
    model, x = toy_model("dcae"), photo("grass")
    for network in model.cc_scale_transforms:
        network.register_forward_hook(hang_on_last_bits)
    codec = Codec(model)
    fast, portable = Codec(model, "fp32").compress(x), codec.compress(x)
    codec.verify(portable)
    with pytest.raises(BitstreamError, match="compress with --arithmetic fp64"):
        codec.verify(fast)


PORTABLE_FILES = sorted((HERE / "portable").glob("*.bin"))


@pytest.mark.parametrize("path", PORTABLE_FILES, ids=lambda p: p.stem)
def test_files_of_the_past_decode(path, monkeypatch):
    """Files committed once, with the hash of their symbols: no later change may break what people have stored."""
    model, digest = writer(path.stem), hashlib.sha256()
    monkeypatch.setattr(SymbolCheck, "add", recorder(digest, SymbolCheck.add))
    codec = Codec(model)
    stream = codec.open(path.read_bytes())
    codec.symbols(stream)
    assert digest.hexdigest() == path.with_suffix(".sha256").read_text().strip()


def test_there_are_files_of_every_kind():
    assert {path.stem for path in PORTABLE_FILES} == set(TOYS)


def recorder(digest, original):
    def add(self, symbols) -> None:
        digest.update(symbols.astype("<i4").tobytes())
        original(self, symbols)

    return add


def write_files() -> None:
    """Write the files of the past anew: only for a new kind of model, never for an old one."""
    for kind in TOYS:
        path = HERE / "portable" / f"{kind}.bin"
        if not path.exists():
            model, digest = writer(kind), hashlib.sha256()
            path.write_bytes(Codec(model).compress(photo("flowers", 60), QUALITY if model.variable_rate else None))
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(SymbolCheck, "add", recorder(digest, SymbolCheck.add))
                codec = Codec(model)
                codec.symbols(codec.open(path.read_bytes()))
            path.with_suffix(".sha256").write_text(digest.hexdigest() + "\n")


if __name__ == "__main__":
    write_files()
