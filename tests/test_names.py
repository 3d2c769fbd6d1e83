"""Names that are not UTF-8 and terminals that are not either: every program survives both, and its JSON is valid."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from PIL import Image

import compress_and_decompress
import eval as evaluation
from scripts import compare_crops, prepare_openimages
from tests.toy_training import ENVIRONMENT, ROOT, SIZES
from tests.toys import toy_image, toy_model
from utils.cli import UserError, run_program
from utils.codec.folders import Job, guarded
from utils.data.images import to_uint8
from utils.data.split import name_hash, path_hash, split_folder
from utils.files import atomic_write
from utils.tables import format_table
from utils.text import forgive, printable, to_json
from utils.training.log import TrainLog

STRANGE = os.fsdecode(b"caf\xe9.png")  # Latin-1, as old archives have it; Python holds the byte as \udce9
SPELT = "caf\\xe9.png"


@pytest.fixture
def photos(tmp_path) -> Path:
    """Two images of 40x60, one with a strange name, and a format that is not read."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed, name in enumerate((STRANGE, "写真.png")):
        Image.fromarray(to_uint8(toy_image(40, 60, seed=seed))).save(folder / name, format="PNG")
    (folder / os.fsdecode(b"\xff.psd")).touch()
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "toy.pth.tar"
    torch.save({"state_dict": toy_model("dcae").state_dict()}, path)
    return path


def strict(text: str):
    """JSON that every reader takes: of UTF-8 names, without halves of surrogate pairs."""
    value = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    text.encode("utf-8")
    json.dumps(value, ensure_ascii=False).encode("utf-8")
    return value


def test_what_an_encoding_lacks_is_spelt_out():
    assert printable(f"a/{STRANGE}") == f"a/{SPELT}" and printable("写真 é") == "写真 é"
    for encoding, expected in (("ascii", "caf\\xe9 \\u5199 \\xe9"), ("latin-1", "caf\\xe9 \\u5199 é")):
        raw = io.BytesIO()
        stream = io.TextIOWrapper(raw, encoding=encoding)
        forgive(stream)
        stream.write(os.fsdecode(b"caf\xe9") + " 写 é")
        stream.flush()
        assert raw.getvalue().decode(encoding) == expected
    forgive(None)
    forgive(io.StringIO())
    assert strict(to_json({STRANGE: [STRANGE, float("inf"), float("nan"), 1.5]})) == {SPELT: [SPELT, None, None, 1.5]}


def test_the_longest_names_and_names_of_two_lines(tmp_path):
    for name in (
        "写" * 83 + ".png",
        "x" * 251 + ".png",
        os.fsdecode(b"\xe9" * 251 + b".png"),
        "é" + "x" * 249 + ".png",
    ):
        with atomic_write(tmp_path / name) as file:
            file.write(b"whole")
        assert (tmp_path / name).read_bytes() == b"whole"
    assert format_table(["file", "n"], [["two\nlines", "1"]]).splitlines()[2:] == ["two\\nlines  1"]
    outcome = guarded(Job("a", tmp_path / "two\nlines", tmp_path), lambda: int("x"))
    assert outcome.message.startswith(f"{tmp_path}/two\\nlines: invalid literal")
    refused = UserError(f"{tmp_path}/two\nlines: no image")
    outcome = guarded(Job("a", tmp_path / "two\nlines", tmp_path), Mock(side_effect=refused))
    assert outcome.message == f"{tmp_path}/two\\nlines: no image"


def test_a_log_of_strange_names_and_numbers_after_a_damaged_one(tmp_path):
    (tmp_path / "log.jsonl").write_bytes(
        b'{"step": 1, "event": "train"}\n\xff\xfe\n{"step": 9, "event": "train"}\n{"st'
    )
    log = TrainLog(tmp_path, True, 2, 5, False, -1)
    log.event("start", 2, {STRANGE: [float("nan"), {"a": (STRANGE, float("-inf"))}], "b": 0.5})
    log.close()
    lines = (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert [strict(line) for line in lines] == [
        {"step": 1, "event": "train"},
        {"event": "start", "step": 2, SPELT: [None, {"a": [SPELT, None]}], "b": 0.5},
    ]


def test_every_program_forgives_its_streams(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    with pytest.raises(SystemExit) as left:
        run_program(lambda _: print(STRANGE, "写"), [])
    assert left.value.code == 0 and raw.getvalue() == b"caf\\xe9.png \\u5199\n"


def test_hashes_are_of_the_bytes_of_a_name(tmp_path):
    def number(data: bytes) -> float:
        return int.from_bytes(hashlib.sha256(data).digest()[:8], "big") / 2**64

    assert name_hash("写真/é.png") == number("写真/é.png".encode()) and name_hash(STRANGE) == number(b"caf\xe9.png")
    assert name_hash("a.png") == pytest.approx(0.4962016, abs=1e-6)  # never another: runs are validated on it
    assert path_hash(tmp_path / "x" / STRANGE, tmp_path) == number(b"x/caf\xe9.png")


def test_a_division_with_strange_names(photos):
    split = split_folder(photos, 0.5)
    assert len(split.train) == len(split.validation) == 1
    assert split.left_out == {"of a format that is not read": ["\\xff.psd"]}


def test_coding(photos, tmp_path, checkpoint, capsys):
    shared = ["--checkpoint", str(checkpoint)]
    flags = ["--mode", "compress", "--data", str(photos), "--save_path", str(tmp_path / "bins"), *shared]
    assert compress_and_decompress.main([*flags, "--json"]) == 0
    summary = strict(capsys.readouterr().out)
    assert {file["file"] for file in summary["files"]} == {SPELT, "写真.png"}
    assert summary["left_out"] == {"of a format that is not read": ["\\xff.psd"]}
    assert os.listdir(os.fsencode(tmp_path / "bins")) and (tmp_path / "bins" / os.fsdecode(b"caf\xe9.bin")).exists()
    flags = ["--mode", "decompress", "--data", str(tmp_path / "bins"), "--save_path", str(tmp_path / "out"), *shared]
    assert compress_and_decompress.main(flags) == 0
    out = capsys.readouterr().out
    assert "caf\\xe9.bin" in out and out.splitlines()[-1] == "2 done, 0 kept, 0 failed, none left out"
    assert (tmp_path / "out" / STRANGE).exists()
    assert compress_and_decompress.main(flags) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "0 done, 2 kept, 0 failed, none left out"


def test_evaluation_and_its_page(photos, tmp_path, checkpoint, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (photos / os.fsdecode(b"\xe9.png")).write_bytes(b"no image")
    flags = ["--checkpoint", str(checkpoint), "--data", str(photos), "--save_path", "out", "--report", "page", "--json"]
    assert evaluation.main(flags) == 2
    said = capsys.readouterr()
    results = strict(said.out)
    assert results == strict((tmp_path / "out/results.json").read_text(encoding="utf-8"))
    assert [image["name"] for image in results["points"][0]["images"]] == [SPELT, "写真.png"]
    assert results["left_out"] == {"of a format that is not read": ["\\xff.psd"]}
    closing = "2 done, 0 kept, 1 failed, 1 left out: 1 of a format that is not read (\\xff.psd)"
    assert said.err.splitlines()[-1] == closing
    assert (tmp_path / "out" / STRANGE).exists()
    assert SPELT in (tmp_path / "page/index.html").read_text(encoding="utf-8")


def test_preparation(photos, tmp_path, capsys):
    Image.new("RGB", (60, 60)).save(photos / "two\nlines.png")
    flags = ["--data", str(photos), "--images", "1", "--validation", "1", "--smallest", "30", "-n", "1"]
    prepare_openimages.main([*flags, "--save_path", str(tmp_path / "set")])
    prepare_openimages.main([*flags, "--save_path", str(tmp_path / "set")])  # from what was noted
    out = capsys.readouterr().out
    assert "2 left out: 1 of a format that is not read (" in out and "1 with a line break in the name" in out
    listed = (tmp_path / "set/images.sha256").read_bytes()
    assert b"/caf\xe9.png\n" in listed and "/写真.png\n".encode() in listed and listed.count(b"\n") == 2
    checked = subprocess.run(["sha256sum", "--check", "images.sha256"], cwd=tmp_path / "set", capture_output=True)
    assert checked.returncode == 0
    same = ["--data", str(photos), "--list", str(tmp_path / "set/images.sha256"), "-n", "1"]
    prepare_openimages.main([*same, "--save_path", str(tmp_path / "same")])
    assert (tmp_path / "same/images.sha256").read_bytes() == listed


def test_a_figure_with_a_strange_name(photos, tmp_path, capsys):
    compare_crops.main(["jpeg-420:50", "--data", str(photos / STRANGE), "--output", str(tmp_path / "figure.png")])
    assert (tmp_path / "figure.png").exists() and SPELT in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}])
def test_training_on_a_terminal_that_knows_ascii_alone(tmp_path, environment):
    """With TensorBoard, which gets the names of validated images."""
    for seed, name in enumerate((STRANGE, "写真.png", "c.png")):
        folder = tmp_path / os.fsdecode(b"\xe9") / ("test" if seed == 0 else "train")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(to_uint8(toy_image(150, 170, seed=seed))).save(folder / name, format="PNG")
    flags = ["-d", str(folder.parent), "--save_path", str(tmp_path / "run"), *SIZES, "--patch-size", "128", "-n", "0"]
    done = subprocess.run(
        [sys.executable, "train.py", *flags, "--batch-size", "1", "--max-steps", "1"],
        cwd=ROOT, capture_output=True, env={**ENVIRONMENT, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-800:]
    assert b"2 images to train on, 1 to validate on" in done.stderr and b"finished at step 1" in done.stderr
    for line in (tmp_path / "run/log.jsonl").read_text(encoding="utf-8").splitlines():
        json.loads(line)
