"""Training in processes of their own: killed at any moment, two as one, failing together."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from tests.toy_training import ENVIRONMENT, RECIPE, ROOT, checkpoint, equal, events, flags, launched, run, write_photos
from tests.toys import toy_model
from train import main
from utils.cli import UserError
from utils.codec.checkpoint import save_checkpoint
from utils.training import distributed
from utils.training.distributed import joined_processes

ONE_STEP = ("--batch-size", "2", "--max-steps", "1", "--val-every", "0")
ENDLESS = ("--batch-size", "1", "--max-steps", "100000", "--save-every", "3", "--log-every", "1", "--val-every", "0")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("photos"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def started(command: list[str], log: Path, steps: int) -> subprocess.Popen:
    """The program, running, when its log has lines of so many steps."""
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    end = time.monotonic() + 90
    while not log.exists() or log.read_text().count('"event": "train"') < steps:
        assert process.poll() is None and time.monotonic() < end, process.communicate()[1]
        time.sleep(0.05)
    return process


# ---- killed and resumed --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_twice_and_resumed_equals_uninterrupted(photos, tmp_path):
    """Bit for bit: SIGKILL between two checkpoints, then SIGTERM, which saves, says how to go on and leaves with 0."""
    more = ("--batch-size", "1", "--val-every", "8", "--save-every", "3", "--log-every", "1", "--ema", "0.9")
    more += ("--max-steps", "16")
    command = [sys.executable, "train.py"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run([*command, *flags(photos, whole, *more)]).returncode == 0
    process = started([*command, *flags(photos, parts, *more)], parts / "log.jsonl", 5)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL and checkpoint(parts)["step"] < 16
    process = started([*command, *flags(photos, parts, *more, "--resume")], parts / "log.jsonl", 9)
    process.terminate()
    said = process.communicate()[1]
    assert process.returncode == 0 and "and saved; go on with: python train.py" in said
    assert 8 < checkpoint(parts)["step"] < 16
    resume = shlex.split(said.rsplit("python train.py ", 1)[1].splitlines()[0])
    assert run([*command, *resume]).returncode == 0
    one, other = checkpoint(whole), checkpoint(parts)
    assert one["step"] == other["step"] == 16 and one["best"] == other["best"]
    assert equal(one["state_dict"], other["state_dict"]) and equal(one["ema"]["trained"], other["ema"]["trained"])
    for kind, keys in (("train", ("step", "loss", "gradient_norm")), ("validation", ("step", "loss", "bpp", "psnr"))):
        logged = [[[event[key] for key in keys] for event in events(folder, kind)] for folder in (whole, parts)]
        assert logged[0] == logged[1]


# ---- several processes ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_equal_one(photos, tmp_path):
    """Half the batch each, the same crops and the same noise: the same weights but for the order of sums."""
    more = ("--max-steps", "3", "--accumulate", "2", "--val-every", "3", "--log-every", "1", "--val-share", "0.5")
    main(flags(photos, tmp_path / "one", *more, "--batch-size", "2"))
    done = run(launched(*flags(photos, tmp_path / "two", *more, "--batch-size", "1"), port=free_port()))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("finished at step 3") == 1
    one, two = checkpoint(tmp_path / "one")["state_dict"], checkpoint(tmp_path / "two")["state_dict"]
    for name, value in one.items():
        assert torch.allclose(value, two[name], rtol=0, atol=2e-5), name
    for kind, keys in (
        ("train", ("loss", "bpp_y", "gradient_norm", "aux")),
        ("validation", ("loss", "psnr", "images")),
    ):
        pairs = list(zip(*(events(tmp_path / folder, kind) for folder in ("one", "two"))))
        assert len(pairs) == (3 if kind == "train" else 1)
        for a, b in pairs:
            assert [a[key] for key in keys] == pytest.approx([b[key] for key in keys], rel=1e-3)


@pytest.mark.slow
def test_two_processes_with_soap_train_as_one(photos, tmp_path):
    """Bases of directions that a gradient does not have are left to rounding, so weights agree less closely."""
    more = ("--max-steps", "6", "--val-every", "6", "--log-every", "1", "--val-share", "0.5", "--optimizer", "soap")
    more += ("-lr", "1e-3", "--ema", "0.5")
    main(flags(photos, tmp_path / "one", *more, "--batch-size", "2"))
    done = run(launched(*flags(photos, tmp_path / "two", *more, "--batch-size", "1"), port=free_port()))
    assert done.returncode == 0, done.stderr
    pairs = list(zip(*(events(tmp_path / folder, "train") for folder in ("one", "two"))))
    assert [a["loss"] for a, _ in pairs] == pytest.approx([b["loss"] for _, b in pairs], rel=5e-3)
    assert pairs[-1][0]["loss"] < 0.97 * pairs[0][0]["loss"]  # far enough for the agreement to mean something
    one, two = (checkpoint(tmp_path / folder)["state_dict"]["g_a.0.conv.weight"] for folder in ("one", "two"))
    assert (one - two).norm() < 0.01 * one.norm()


@pytest.mark.slow
def test_when_one_process_is_killed_the_others_end(photos, tmp_path):
    process = started(
        launched(*flags(photos, tmp_path, *ENDLESS), port=free_port()), tmp_path / "log.jsonl", 1
    )  # fmt: skip
    ranks = workers_of(process.pid)
    assert set(ranks) == {0, 1}
    os.kill(ranks[1], signal.SIGKILL)
    said = process.communicate(timeout=60)[1]
    assert process.returncode != 0 and not any(Path(f"/proc/{pid}").exists() for pid in ranks.values())
    assert said.count("error: another process of this run has ended") == 1


@pytest.mark.slow
def test_a_signal_to_torchrun_saves_the_state_of_all(photos, tmp_path):
    """torchrun passes SIGTERM on; its own status is not ours."""
    process = started(launched(*flags(photos, tmp_path, *ENDLESS), port=free_port()), tmp_path / "log.jsonl", 1)
    process.terminate()
    said = process.communicate(timeout=60)[1]
    step = checkpoint(tmp_path)["step"]
    assert said.count(f"stopped at step {step} and saved; go on with: torchrun --nproc_per_node=2 -- train.py") == 1
    assert events(tmp_path, "train")[-1]["step"] == step


def workers_of(launcher: int) -> dict[int, int]:
    """Rank -> process id of what a launcher has started."""
    found = {}
    for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        variables = Path(f"/proc/{pid}/environ").read_text().split("\0")
        found |= {int(v.partition("=")[2]): int(pid) for v in variables if v.startswith("RANK=")}
    return found


@pytest.mark.slow
def test_several_processes_say_once_what_is_wrong(tmp_path):
    done = run(launched("-d", str(tmp_path / "none"), "--no-save", port=free_port()))
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode != 0 and len(lines) == 1 and lines[0].startswith("error: --dataset"), done.stderr


def test_a_port_in_use_is_one_line(photos, tmp_path, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for name, value in {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "localhost", "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, str(value))
        with pytest.raises(UserError, match=f"--master_port {port}: not a free port") as raised:
            main(flags(photos, tmp_path, *ONE_STEP))
        assert "\n" not in str(raised.value)


def test_more_processes_than_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in {"RANK": 0, "WORLD_SIZE": 4, "LOCAL_WORLD_SIZE": 4}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(UserError, match="--nproc_per_node=4: there are only 2 GPUs"), joined_processes(cuda=True):
        pass
    monkeypatch.setenv("RANK", "1")  # the first says it for all
    monkeypatch.setattr(distributed, "TIME_TO_SPEAK", 0)
    with pytest.raises(SystemExit), joined_processes(cuda=True):
        pass


def test_the_first_process_alone_says_what_is_wrong_with_the_flags(monkeypatch, capsys):
    monkeypatch.setattr(distributed, "TIME_TO_SPEAK", 0)
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) as left:
            main(["-d", "photos", "--batch-size", "0"])
        assert left.value.code == 2 and ("--batch-size" in capsys.readouterr().err) == (rank == "0")


# ---- the papers' command for several GPUs --------------------------------------------------------------------------

DISTRIBUTED = """CUDA_VISIBLE_DEVICES='0, 1' python -m torch.distributed.launch --nproc_per_node=[the number of nodes] \
	--master_port=29506 ./train.py -d [path of training dataset] \
    -lr 1e-4 --cuda --epochs 50 --lr_epoch 46 --batch-size 8 \
    --save_path [path for storing the checkpoints] --save \
    --checkpoint [path of the pretrained checkpoint]"""


LAUNCHER = "python -m torch.distributed.launch"


@pytest.mark.slow
def test_the_papers_distributed_command_runs(photos, tmp_path):
    """In a shell as it stands, but for flags that make it small; torchrun takes the place of what torch has no more."""
    launcher = LAUNCHER if find_spec("torch.distributed.launch") else "torchrun"
    save_checkpoint(tmp_path / "dcae.pth.tar", {"state_dict": toy_model("dcae").state_dict()})
    places = {"the number of nodes": 2, "path of training dataset": photos}
    places |= {"path for storing the checkpoints": tmp_path / "run", LAUNCHER: launcher}
    places |= {"path of the pretrained checkpoint": tmp_path / "dcae.pth.tar", "29506": free_port()}
    command = DISTRIBUTED
    for name, value in places.items():
        command = command.replace(f"[{name}]" if f"[{name}]" in command else name, str(value))
    if torch.cuda.device_count() < 2:
        command = command.replace("--cuda", "")
    environment = {**ENVIRONMENT, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    small = shlex.join([*RECIPE, *ONE_STEP])
    done = subprocess.run(
        f"{command} {small}", shell=True, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=90
    )
    assert done.returncode == 0, done.stderr
    assert "processes=2" in done.stderr and checkpoint(tmp_path / "run")["step"] == 1
