"""Training as a user starts it: it learns, stops when told, goes on as if nothing had happened, and adds up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models import load_model
from tests.toys import toy_image
from train import main
from utils.cli import UserError
from utils.images import to_uint8

ROOT = Path(__file__).parent.parent
SIZES = ["--model", "dcae", "--N", "16", "--M", "40", "--model-option", "channels=[8,16,16]", "depths=[0,1,1]"]
SIZES += ["head_dims=[4,8,8]", "hidden=[12,10]", "hyper_head_dim=8", "dictionary_entries=12", "dictionary_heads=2"]
SIZES += ["dictionary_head_dim=8"]
RECIPE = ["--patch-size", "128", "-n", "0", "--cache", "ram", "--log-every", "5", "--no-tensorboard"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for i in range(8):
        Image.fromarray(to_uint8(toy_image(150, 170, seed=i))).save(folder / f"{i}.png")
    (folder / "broken.png").write_bytes(b"no image")
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(folder / "small.png")
    return folder


def flags(photos: Path, save_path: Path, *more: str) -> list[str]:
    return ["-d", str(photos), "--save_path", str(save_path), *SIZES, *RECIPE, *more]


def command(*arguments: str, processes: int = 1) -> list[str]:
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--master_port=29563"]
    return [sys.executable, *(launcher if processes > 1 else []), "train.py", *arguments]


def run(*arguments: str, processes: int = 1) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command(*arguments, processes=processes), cwd=ROOT, capture_output=True, text=True, env=environment
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "latest.pt", weights_only=True)["state_dict"]


def test_the_loss_falls_and_the_checkpoint_works(photos, tmp_path):
    more = ("--batch-size", "2", "--max-steps", "30", "-lr", "1e-3", "--ema", "0.9", "--val-every", "15")
    main(flags(photos, tmp_path, *more))
    events = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    losses = [event["loss"] for event in events if event["event"] == "validation"]
    assert len(losses) == 2 and losses[1] < losses[0]
    assert load_model(tmp_path / "best.pt").compress(toy_image(40, 50))["strings"]


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(photos, tmp_path):
    """Bit for bit: SIGTERM in the middle of a run, then --resume."""
    more = ("--batch-size", "2", "--max-steps", "60", "--val-every", "25")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(*flags(photos, whole, *more)).returncode == 0
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command(*flags(photos, parts, *more)), cwd=ROOT, stderr=subprocess.PIPE, env=environment)
    while not (parts / "log.jsonl").exists() or '"train"' not in (parts / "log.jsonl").read_text():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said = process.communicate()[1].decode()
    assert process.returncode == 0 and "--resume" in said
    stopped = torch.load(parts / "latest.pt", weights_only=True)["step"]
    assert 0 < stopped < 60
    assert run(*flags(photos, parts, *more, "--resume")).returncode == 0
    one, other = weights(whole), weights(parts)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_two_processes_equal_one(photos, tmp_path):
    """Half the batch each, the same crops and the same noise: the same weights but for the order of sums."""
    for folder, batch, processes in (("one", "4", 1), ("two", "2", 2)):
        done = run(
            *flags(photos, tmp_path / folder, "--max-steps", "4", "--batch-size", batch, "--val-every", "4"),
            processes=processes,
        )
        assert done.returncode == 0, done.stderr
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name, value in one.items():
        assert torch.allclose(value, two[name], rtol=0, atol=2e-5), name


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--patch-size", "512"), "--patch-size"),
        (("--lambda", "0.01", "--variable-rate"), "--variable-rate"),
        (("--model-option", "nonsense=1"), "nonsense"),
        (("--checkpoint", "/nowhere.pt"), "/nowhere.pt"),
        (("--type", "ms-ssim"), "--patch-size 128"),
    ],
)
def test_what_cannot_be_honoured_is_named(photos, tmp_path, more, message):
    with pytest.raises(UserError, match=message):
        main(flags(photos, tmp_path, "--max-steps", "1", *more))


def test_a_folder_without_images(tmp_path):
    with pytest.raises(UserError, match="no images"):
        main(flags(tmp_path, tmp_path / "out", "--max-steps", "1"))


def test_export_keeps_the_model(photos, tmp_path):
    """In fp16 the exported file is small, loads without a flag, and its tables are those of its rounded weights."""
    from scripts.export_checkpoint import main as export

    main(flags(photos, tmp_path, "--batch-size", "2", "--max-steps", "2", "--val-every", "0"))
    export(["--checkpoint", str(tmp_path / "latest.pt"), "--output", str(tmp_path / "small.pt")])
    model, original = load_model(tmp_path / "small.pt"), load_model(tmp_path / "latest.pt")
    for exported, parameter in zip(model.parameters(), original.parameters()):
        assert torch.equal(exported, parameter.half().float())
    tables = model.entropy_bottleneck.tables().cdf
    model.update(force=True)
    assert np.array_equal(model.entropy_bottleneck.tables().cdf, tables)
    assert (tmp_path / "small.pt").stat().st_size < (tmp_path / "latest.pt").stat().st_size / 3
