"""Portable files decode to the same symbols however the sums are ordered, today and for ever."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from models.coders import SymbolCheck
from models.stripes import stripes_of
from tests.toys import TOYS, toy_model
from utils.codec.bitstream import BitstreamError
from utils.codec.codec import compress_image, decompress_image, latent_shape, open_file, verify_file, without_onednn
from utils.data.images import read_image, to_tensor

HERE = Path(__file__).parent
SAMPLES = HERE.parent / "assets" / "samples"
QUALITY = 62.5
STRIPE = 4000  # bytes: a few rows of the toys' maps


@contextlib.contextmanager
def environment(threads: int, onednn: bool, explicit: bool, striped: bool = False):
    """Another order of summation: threads, oneDNN on or off, explicit or fused attention, thin stripes or none."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with contextlib.ExitStack() as stack:
            if not onednn:
                stack.enter_context(without_onednn())
            stack.enter_context(stripes_of(STRIPE if striped else None))
            if explicit:
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            yield
    finally:
        torch.set_num_threads(before)


# Half of all combinations, so chosen that any three settings occur in all their combinations.
ENVIRONMENTS = [(1 + a, bool(b), bool(c), bool(a ^ b ^ c)) for a, b, c in itertools.product((0, 1), repeat=3)]


def photo(name: str, side: int = 90) -> torch.Tensor:
    return to_tensor(read_image(SAMPLES / f"{name}.png")[0][100 : 100 + side, 200 : 200 + side + 33])


@pytest.mark.parametrize("kind", TOYS)
def test_matrix_of_environments(kind):
    """A file written under each decodes under every other, and all files are the same."""
    model, x = toy_model(kind), photo("city")
    quality = QUALITY if model.variable_rate else None
    files = set()
    for chosen in ENVIRONMENTS:
        with environment(*chosen):
            files.add(compress_image(model, x.clone(), quality))
    for data in files:
        for chosen in ENVIRONMENTS:
            with environment(*chosen):
                decompress_image(model, data)  # raises where a symbol differs


def test_compiled_and_eager():
    """With networks that a compiler takes apart, but for the loops, files are the same, and decode both ways."""
    model, compiled, x = toy_model("dcae"), toy_model("dcae"), photo("night")
    path = compiled.entropy_path("fp64")
    for parent, name, network in list(networks(path)):
        parent[name] = torch.compile(network, backend="aot_eager_decomp_partition", dynamic=False)
    with torch.no_grad():
        files = [compress_image(m, x) for m in (model, compiled)]
    assert files[0] == files[1]
    for m in (model, compiled):
        decompress_image(m, files[0])


def networks(path):
    """(dict of children, name, network) of everything that the scales depend on."""
    for name, child in path.named_children():
        if name in ("h_z_s1", "h_z_s2"):
            yield path._modules, name, child
        elif name.endswith("_transforms") or name == "dt_cross_attention":
            for i, network in child.named_children():
                yield child._modules, i, network


def hang_on_last_bits(network, arguments, scales):
    """Scales that turn differences in the last places of a float32 sum into other levels."""
    return (scales * 1e5).remainder(5) + 0.2


def test_verify_notices_fast_files_that_fail_elsewhere():
    """What happens once in many images, made to happen in one: the fast file fails, the portable one does not."""
    model, x = toy_model("dcae"), photo("grass")
    for network in model.cc_scale_transforms:
        network.register_forward_hook(hang_on_last_bits)
    fast, portable = compress_image(model, x, arithmetic="fp32"), compress_image(model, x)
    verify_file(model, portable)
    with pytest.raises(BitstreamError, match="compress with --arithmetic fp64"):
        verify_file(model, fast)


PORTABLE_FILES = sorted((HERE / "portable").glob("*.bin"))


@pytest.mark.parametrize("path", PORTABLE_FILES, ids=lambda p: p.stem)
def test_files_of_the_past_decode(path, monkeypatch):
    """Files committed once, with the hash of their symbols: no later change may break what people have stored."""
    model, digest = toy_model(path.stem), hashlib.sha256()
    monkeypatch.setattr(SymbolCheck, "add", recorder(digest, SymbolCheck.add))
    stream = open_file(model, path.read_bytes())
    model.decompress_latent([[s] for s in stream.strings], latent_shape(model, stream), stream.arithmetic)
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
            model, digest = toy_model(kind), hashlib.sha256()
            path.write_bytes(compress_image(model, photo("flowers", 60), QUALITY if model.variable_rate else None))
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(SymbolCheck, "add", recorder(digest, SymbolCheck.add))
                stream = open_file(model, path.read_bytes())
                model.decompress_latent([[s] for s in stream.strings], latent_shape(model, stream), "fp64")
            path.with_suffix(".sha256").write_text(digest.hexdigest() + "\n")


if __name__ == "__main__":
    write_files()
