"""Flags of a training run that takes a second, and how to start it in processes of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.toys import toy_image
from utils.data.images import to_uint8

ROOT = Path(__file__).parent.parent
SIZES = ["--model", "dcae", "--N", "16", "--M", "40", "--model-option", "channels=[8,16,16]", "depths=[0,1,1]"]
SIZES += ["head_dims=[4,8,8]", "hidden=[12,10]", "hyper_head_dim=8", "dictionary_entries=12", "dictionary_heads=2"]
SIZES += ["dictionary_head_dim=8"]
RECIPE = ["--patch-size", "128", "-n", "0", "--cache", "ram", "--log-every", "5", "--no-tensorboard"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def write_photos(folder: Path) -> Path:
    """8 good images of 150x170 pixels, one that is no image and one of 20x20."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(8):
        Image.fromarray(to_uint8(toy_image(150, 170, seed=i))).save(folder / f"{i}.png")
    (folder / "broken.png").write_bytes(b"no image")
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(folder / "small.png")
    return folder


def flags(photos: Path, save_path: Path, *more: str) -> list[str]:
    return ["-d", str(photos), "--save_path", str(save_path), *SIZES, *RECIPE, *more]


def launched(*arguments: str, module: str = "torch.distributed.run", port: int = 29563) -> list[str]:
    """The command that starts train.py, or another program, in two processes."""
    program = [] if arguments[0].endswith(".py") else ["train.py"]
    return [sys.executable, "-m", module, "--nproc_per_node=2", f"--master_port={port}", *program, *arguments]


def run(command: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=ENVIRONMENT, timeout=90)


def events(folder: Path, kind: str) -> list[dict]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [event for event in map(strictly, lines) if event["event"] == kind]


def strictly(line: str) -> dict:
    """A line as any JSON parser takes it: without NaN and Infinity."""
    return json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def checkpoint(folder: Path, name: str = "latest.pt") -> dict:
    return torch.load(folder / name, weights_only=True)


def equal(one: dict, other: dict) -> bool:
    """Whether two state dicts are the same bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
