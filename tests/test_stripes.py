"""Stripes, precision and memory: they change how a model computes, not what files hold."""

from __future__ import annotations

import argparse
import copy
import platform
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from models import portable
from models.base import pad_to_multiple
from models.layers import winograd
from models.layers.checkerboard import CheckerboardConvolution
from models.portable import MatrixConvolution
from models.stripes import (
    by_rows,
    convolution,
    convolutions,
    cut,
    deconvolution,
    of_last_channels,
    own,
    stripes_of,
    to_map,
    to_tokens,
)
from tests.plain import plain
from tests.toys import TOYS, toy_image, toy_model
from utils.cli import UserError
from utils.codec.codec import compress_image, decompress_image
from utils.inference import memory as inference
from utils.inference.memory import (
    apply_inference_flags,
    bounded,
    give_back_memory,
    held,
    keep_memory,
    memory_size,
    stripe_within,
)
from utils.inference.threads import in_threads
from utils.training.optimization import Average

THIN = 3000  # bytes: a row or a few


@pytest.fixture
def two_threads(monkeypatch):
    """Loops are cut into as many parts as there are rows, for two threads."""
    monkeypatch.setattr("utils.inference.threads.LEAST_VALUES", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (4, 4), (7, 5), (9, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loops_are_convolutions(size, dtype, two_threads):
    """At any size, of images in a batch, and of more channels than a block."""
    x, tolerance = torch.randn(2, 70, *size, dtype=dtype), 1e-3 if dtype == torch.float32 else 1e-11
    layer = torch.nn.Conv2d(70, 5, 3, padding=1, dtype=dtype)
    with torch.inference_mode():
        tiles = winograd.Tiles(to_tokens(x), (1, 1))
        result = tiles.convolve(winograd.transform_kernels(layer.weight), layer.bias)
        assert torch.allclose(to_map(result), layer(x), atol=tolerance)
        if dtype == torch.float64:
            for kernel in (3, (5, 1)):
                padding = kernel // 2 if isinstance(kernel, int) else tuple(k // 2 for k in kernel)
                depthwise = torch.nn.Conv2d(70, 70, kernel, padding=padding, groups=70, dtype=dtype)
                assert torch.allclose(MatrixConvolution.of(depthwise)(x), depthwise(x), atol=tolerance)


def test_an_error_in_a_thread_is_raised(two_threads):
    meeting = threading.Barrier(2, timeout=10)  # a part each

    def loop(first: int, last: int) -> None:
        meeting.wait()
        if threading.current_thread() is not threading.main_thread():
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        in_threads(loop, 2, 2)


@pytest.mark.parametrize("kernel,stride", [(1, 1), (3, 1), (5, 2), (3, 2), (7, 1)])
@pytest.mark.parametrize("size", [(1, 1), (2, 6), (32, 10)], ids=str)
def test_convolutions_in_stripes(kernel, stride, size):
    x = torch.randn(2, 6, *size)
    layer = torch.nn.Conv2d(6, 4, kernel, stride, kernel // 2)
    up = torch.nn.ConvTranspose2d(6, 4, kernel, stride, kernel // 2, stride - 1)
    with torch.no_grad(), stripes_of(600):
        assert torch.allclose(convolution(layer, x), layer(x), atol=1e-5)
        assert torch.allclose(deconvolution(up, x), up(x), atol=1e-5)


@pytest.mark.parametrize("dtype,bound", [(torch.float32, 1e-5), (torch.float64, 1e-13)], ids=str)
@pytest.mark.parametrize("size", [(1, 1), (2, 6), (33, 10)], ids=str)
def test_tiled_convolutions(size, dtype, bound):
    """Several 3x3 convolutions of one map through its tiles, the last with more channels than the map."""
    x, rest = (torch.randn(2, channels, *size, dtype=dtype) for channels in (6, 3))
    layers = [torch.nn.Conv2d(channels, 4, 3, padding=1).to(dtype) for channels in (6, 6, 9)]
    expected = [layer(part) for layer, part in zip(layers, (x, x, torch.cat([x, rest], 1)))]
    for stripe in (600, None):
        with torch.no_grad(), stripes_of(stripe):
            first, second, part = convolutions(layers, x)
            own = [first, second, part + of_last_channels(layers[2], rest)]
        assert all(torch.allclose(a, b, rtol=0, atol=bound) for a, b in zip(own, expected))


def test_wide_convolutions_are_tiled_where_no_gradients_are_recorded():
    x, layer = torch.randn(1, 128, 9, 13), torch.nn.Conv2d(128, 128, 3, padding=1)
    with torch.no_grad(), stripes_of(30000):
        assert winograd.pays(x, layer)
        assert torch.allclose(convolution(layer, x), layer(x), atol=1e-5)
        assert not winograd.pays(x, torch.nn.Conv2d(128, 128, 3, 2, 1))
    assert not winograd.pays(x, layer)


def test_workspace_is_that_of_the_largest_transformed_kernels():
    layers = torch.nn.Sequential(torch.nn.Conv2d(6, 4, 3, padding=1), torch.nn.Conv2d(50, 50, 1)).double()
    assert winograd.workspace(layers) == 4 * winograd.transform_kernels(layers[0].weight).nbytes
    dilated = torch.nn.Conv2d(6, 4, 3, padding=1, dilation=2)
    even = torch.nn.Conv2d(6, 6, 2, padding=1, groups=6)
    assert not MatrixConvolution.can_replace(even)
    assert winograd.workspace(dilated) == 0 and not MatrixConvolution.can_replace(dilated)


def test_pixels_keep_their_digits():
    """The layer that reads an image leaves autocast; those behind it do not."""
    x, layers = toy_image(40, 40), (torch.nn.Conv2d(3, 8, 5, 2, 2), torch.nn.Conv2d(8, 8, 3, padding=1))
    with torch.no_grad():
        first = convolution(layers[0], x)
        second = convolution(layers[1], first)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(convolution(layers[0], x), first)
            assert not torch.equal(convolution(layers[1], first), second)


def test_a_copy_in_another_precision_leaves_the_model_as_it_is():
    model, x = copy.deepcopy(toy_model("dcae")).train(), toy_image(128, 128)
    model.precision = torch.bfloat16
    with torch.no_grad():
        model.transform("analysis", x)  # while training with the weights as they are
        assert not model._derived
        model.narrow()
    assert all(module.training for module in model.modules())


def test_nothing_is_derived_from_weights_that_follow_others():
    """The average of the weights is validated again and again, in between it moves."""
    model, x = copy.deepcopy(toy_model("dcae")), toy_image(128, 128)
    average = Average(model, 0.5)
    with torch.no_grad():
        before = average.model(x)["x_hat"]
        model.dt += 1
        average.follow(model, 100)
        after = average.model(x)["x_hat"]
        assert not torch.equal(before, after)
        assert torch.equal(after, copy.deepcopy(average.model).eval()(x)["x_hat"])
        wrapped = torch.nn.ModuleList([average.model])
        wrapped.load_state_dict({name: value * 0.5 for name, value in wrapped.state_dict().items()})
        assert not average.model._derived


def test_narrow_weights_change_nothing():
    """They are what autocast would make of the weights, and follow them when these change."""
    model, x = copy.deepcopy(toy_model("dcae")), toy_image(128, 128)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = model.analysis(x).float()
    model.precision = torch.bfloat16
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    with torch.no_grad():
        assert torch.equal(model.transform("analysis", x), expected)
        assert flags == {name: p.requires_grad for name, p in model.named_parameters()} and any(flags.values())
        model.load_state_dict({name: value * 0 for name, value in model.state_dict().items()})
        assert not model.transform("analysis", x).any()


@pytest.mark.parametrize("kind", TOYS)
def test_files_do_not_depend_on_whether_kernels_are_kept(kind, monkeypatch):
    """Of the shipped model they are, of full-size models they are not."""
    keeping, x = toy_model(kind), toy_image(128, 200)
    quality = 50 if keeping.variable_rate else None
    path = keeping.entropy_path("fp64")
    assert winograd.workspace(path) == 0
    monkeypatch.setattr(portable, "KEPT_KERNELS", -1)
    other = toy_model(kind)
    tiled = [layer for layer in other.entropy_path("fp64").modules() if winograd.applies(layer)]
    assert (winograd.workspace(other.entropy_path("fp64")) > 0) == bool(tiled)
    files = [compress_image(model, x, quality) for model in (keeping, other)]
    images = [
        decompress_image(model, data) for model, data in zip((other, keeping), files)
    ]  # raise if a symbol differs
    assert files[0] == files[1] and torch.allclose(*images, atol=1e-3)


def test_only_matrix_convolutions_keep_kernels():
    """Neither layers with a forward pass of their own nor any on another device."""
    elic = toy_model("elic-dictionary")
    elic.h_a[0] = CheckerboardConvolution(8, 8, 3)
    assert not winograd.applies(elic.h_a[0]) and winograd.applies(torch.nn.Conv2d(8, 8, 3, padding=1))
    path = portable.portable_copy(toy_model("dcae").to("meta"))
    assert path.cc_mean_transforms[0].first.weight.dim() == 4


def test_stripes_are_equally_high():
    x = torch.zeros(1, 34, 10, 10)  # 400 bytes a row
    with torch.no_grad(), stripes_of(400 * 16):
        heights = [bottom - top for top, bottom in cut(x, 34)]
        assert heights == [12, 12, 10]
        assert all(top % 8 == 0 for top, _ in cut(x, 34, 8)) and len(cut(x, 34, times=3)) == 1


def test_rows_are_overwritten_only_where_that_is_safe():
    """A halo reads the rows above a stripe as they were, also when the result replaces them."""
    x = torch.randn(1, 40, 5, 3)
    function = lambda rows, border: torch.nn.functional.pad(rows, (0, 0, 0, 0, *border)).unfold(1, 3, 1).sum(-1)  # noqa: E731
    again = x.clone()
    with stripes_of(None):
        expected = by_rows(function, x, halo=1)
    with torch.no_grad(), stripes_of(200):
        result = by_rows(function, x, halo=1, out=own(x))
        view = by_rows(function, again[:, :], halo=1, out=again[:, :])
    assert result is x and torch.equal(result, expected) and torch.equal(view, expected)
    assert own(x) is None  # while gradients are recorded


@pytest.mark.parametrize("kind", ["dcae", "dcae-no-dictionary", "dcae-no-msfa", "tcm", "elic-plus-dictionary"])
@pytest.mark.parametrize("size", [(128, 128), (200, 150)], ids=str)
def test_fast_and_plain_models_are_equal(kind, size):
    """The model in stripes, whole, and as the papers write it down (tests/plain.py)."""
    model, x = toy_model(kind), pad_to_multiple(toy_image(*size), 128)
    with torch.no_grad():
        expected = plain(model)(x)
        for stripe in (THIN, None):
            with stripes_of(stripe):
                out = model(x)
            assert torch.allclose(out["x_hat"], expected["x_hat"], atol=2e-4)
            for name in ("means", "scales", "y"):
                assert torch.allclose(out["para"][name], expected["para"][name], atol=2e-4), name


@pytest.mark.parametrize("kind", TOYS)
def test_portable_files_are_read_in_any_stripe(kind):
    model, x = toy_model(kind), toy_image(150, 260)
    quality = 50 if model.variable_rate else None
    images = []
    for writing, reading in ((THIN, None), (None, THIN), (10 * THIN, THIN)):
        with stripes_of(writing):
            data = compress_image(model, x, quality)
        with stripes_of(reading):
            images.append(decompress_image(model, data))  # raises where a symbol differs
    assert all(torch.allclose(image, images[0], atol=0.02) for image in images)


def test_bfloat16_transforms_change_no_file_s_decoding():
    """Files written with bfloat16 transforms decode in float32 and the other way round, portable or not."""
    model, x = toy_model("dcae"), toy_image(128, 128)
    for arithmetic in ("fp64", "fp32"):
        images = []
        for writing in (torch.bfloat16, torch.float32):
            model.precision = writing
            data = compress_image(model, x, arithmetic=arithmetic)
            for reading in (torch.bfloat16, torch.float32):
                model.precision = reading
                images.append(decompress_image(model, data))
        assert all(image.dtype == torch.float32 for image in images)
        assert (images[0] - images[3]).abs().max() > 0  # it was not float32 throughout
        assert ((images[0] - images[3]) ** 2).mean() < 1e-3


def test_max_memory_is_kept_or_refused():
    model = toy_model("dcae")
    compress_image(model, toy_image(10, 10))  # what is held from then on: libraries, tables, float64 copy
    flags = argparse.Namespace(max_memory=held(torch.device("cpu")) + (64 << 20), precision="fp32", compile=False)
    apply_inference_flags(model, flags)
    data = compress_image(model, toy_image(100, 100))
    assert decompress_image(model, data).shape == (1, 3, 100, 100)
    model.max_memory = 1 << 20
    with pytest.raises(UserError, match="--max-memory 1M: this image takes"), bounded(model, 100, 100):
        pass
    assert stripe_within(10**9, 10**8, 10**8) > stripe_within(4 * 10**8, 3 * 10**8, 9 * 10**7)
    with pytest.raises(UserError, match="tcm holds whole maps"):
        apply_inference_flags(toy_model("tcm"), flags)


MEASURE_KEPT_MEMORY = """
import resource  # which Windows has not
import torch
from utils.inference.memory import give_back_memory, held, keep_memory
keep_memory()
for pages in (20 << 10, 16 << 10, 15 << 10):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(pages << 10)  # 4 KiB each
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
before = held(torch.device("cpu"))
give_back_memory()
print(before - held(torch.device("cpu")))
"""  # in a process of its own: what other tests left free would be taken first


def test_freed_memory_is_kept_until_it_is_given_back():
    """Where the C library is glibc. The calls do nothing elsewhere."""
    if platform.libc_ver()[0] != "glibc":
        assert keep_memory() is None and give_back_memory() is None
        return
    command = [sys.executable, "-W", "ignore", "-c", MEASURE_KEPT_MEMORY]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *faults, given_back = map(int, done.stdout.split())
    assert max(faults[1:]) < 1000  # otherwise all of them, each time
    assert given_back > 50 << 20


@pytest.mark.parametrize("threshold_taken", [1, 0])
def test_no_map_goes_back_by_itself_in_any_version_of_the_library(monkeypatch, threshold_taken):
    """Versions that refuse the threshold are told to use no maps of their own at all."""
    asked = {}

    def mallopt(option: int, value: int) -> int:
        asked[option] = value
        return threshold_taken if option == inference.M_MMAP_THRESHOLD else 1

    monkeypatch.setattr(inference, "_of_allocator", lambda name: {"mallopt": mallopt}[name])
    keep_memory()
    assert asked[inference.M_TRIM_THRESHOLD] == asked[inference.M_MMAP_THRESHOLD] == inference.LARGEST_KEPT
    assert (asked.get(inference.M_MMAP_MAX) == 0) == (not threshold_taken)
    monkeypatch.setattr(inference, "_of_allocator", lambda name: None)
    assert keep_memory() is None and give_back_memory() is None


@pytest.mark.parametrize("text,size", [("8G", 8 << 30), ("1.5GiB", 3 << 29), ("900m", 900 << 20), ("12345", 12345)])
def test_amounts_of_memory(text, size):
    assert memory_size(text) == size
    with pytest.raises(argparse.ArgumentTypeError, match="no amount"):
        memory_size(text + "x")
