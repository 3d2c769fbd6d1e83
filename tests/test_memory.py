"""Limits on memory, and memory that is kept."""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.toys import toy_image, toy_model
from utils import devices
from utils.cli import UserError
from utils.codec.codec import Codec
from utils.inference import memory as inference
from utils.inference import products
from utils.inference.memory import give_back_memory, held, keep_memory, memory_size, stripe_within


def test_max_memory_is_kept_or_refused():
    model = toy_model("dcae")
    Codec(model).compress(toy_image(10, 10))  # what is held from then on: libraries, tables, float64 copy
    codec = Codec(model, max_memory=held(torch.device("cpu")) + (64 << 20))
    data = codec.compress(toy_image(100, 100))
    assert codec.decompress(data).shape == (1, 3, 100, 100)
    codec = Codec(model, max_memory=1 << 20)
    with pytest.raises(UserError, match="--max-memory 1M: this image takes"), codec.bounded(100, 100):
        pass
    assert stripe_within(10**9, 10**8, 10**8) > stripe_within(4 * 10**8, 3 * 10**8, 9 * 10**7)


def test_packed_weights_count_as_held(monkeypatch):
    codec, image = Codec(toy_model("dcae"), max_memory=4 << 30), (100, 100)
    with codec.bounded(*image, "fp64"):
        pass
    monkeypatch.setattr(products, "bytes_to_pack", lambda *models: 4 << 30)
    with pytest.raises(UserError, match="--max-memory 4096M: this image takes"), codec.bounded(*image, "fp64"):
        pass


def test_a_processor_without_bfloat16_says_so_once(monkeypatch, capsys):
    args = argparse.Namespace(products=None, precision="bf16", max_memory=None, compile=False)
    for lacks, device, said in ((False, "cpu", 0), (True, "cuda", 0), (True, "cpu", 1)):
        inference._say_that_bfloat16_is_slow.cache_clear()
        monkeypatch.setattr(inference, "lacks_bfloat16", lambda lacks=lacks: lacks)
        for _ in range(2):
            inference.engine_options(args, torch.device(device))
        assert capsys.readouterr().err.count("note: this processor has no instructions for bfloat16") == said


@pytest.mark.parametrize(
    "text, lacks",
    [
        ("flags\t\t: fpu avx2\n", True),
        ("flags\t\t: avx512f amx_bf16\n", False),
        ("Features\t: asimd\n", True),
        ("Features\t: asimd bf16\n", False),
        ("model name\t: bf16\n", False),
    ],
)
def test_what_linux_says_of_bfloat16(text, lacks, monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda self: text)
    monkeypatch.setattr(Path, "exists", lambda self: True)
    assert devices.lacks_bfloat16() == lacks


@pytest.mark.parametrize(
    "flags, name", [("avx2 avx512f avx512_bf16", "EPYC (AVX-512 with bf16)"), ("avx2", "EPYC (AVX2)"), ("sse2", "EPYC")]
)
def test_virtual_processors_of_one_name_are_told_apart(flags, name, monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda self: f"model name\t: EPYC\nflags\t\t: fpu {flags}\n")
    monkeypatch.setattr(Path, "exists", lambda self: True)
    assert devices.processor() == name


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
