"""eval.py from its command line: tables, results.json, reconstructions, and what it says when something is wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import eval as program
from tests.toys import TOYS, toy_image, toy_model
from utils.cli import UserError
from utils.codec.checkpoint import save_checkpoint
from utils.data.images import read_image, to_uint8, write_png
from utils.data.reconstructions import DECODED, output_names
from utils.evaluation.curve import plan_points

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Kind of toy -> its checkpoint."""
    folder, paths = tmp_path_factory.mktemp("checkpoints"), {}
    for kind in ("dcae", "dcae-no-dictionary", "dcae-variable-rate"):
        model = toy_model(kind)
        recorded = {"name": TOYS[kind][0], "config": model.config}
        paths[kind] = folder / f"{kind}.pth.tar"
        save_checkpoint(paths[kind], {"format": 1, "model": recorded, "state_dict": model.state_dict()})
    return paths


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A folder of two small images with one more below, which is also where results go unless told otherwise."""
    folder = tmp_path / "data"
    (folder / "below").mkdir(parents=True)
    for number, name in enumerate(["a.png", "b.bmp", "below/a.png"]):
        Image.fromarray(to_uint8(toy_image(40 + number, 60, seed=number))).save(folder / name)
    monkeypatch.chdir(tmp_path)
    return folder


def run(*arguments) -> int:
    return program.main([str(argument) for argument in arguments])


def results_of(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def test_estimates_a_folder(checkpoints, data, tmp_path, capsys):
    assert run("--checkpoint", checkpoints["dcae"], "--data", data) == 0
    text, results = capsys.readouterr().out, results_of(tmp_path)
    assert "a.png" in text and "b.bmp" in text and "mean of 2" in text and "n/a" in text
    assert results["name"] == "dcae" and "estimated" in results["description"]
    (point,) = results["points"]
    assert [image["name"] for image in point["images"]] == ["a.png", "b.bmp"]
    assert results["results"]["bpp"] == [np.mean([image["bpp"] for image in point["images"]])]
    assert results["results"]["psnr-rgb"] == [np.mean([image["psnr"] for image in point["images"]])]
    assert results["results"]["ms-ssim-rgb"] == results["results"]["encoding_time"] == [None]
    assert f"{results['results']['bpp'][0]:.4f}" in text
    assert not list(tmp_path.rglob("*.tmp"))


def test_real_files_and_reconstructions(checkpoints, data, tmp_path, capsys):
    out = tmp_path / "out"
    flags = [
        "--data",
        data,
        "--recursive",
        "--real",
        "--arithmetic",
        "fp64",
        "--save_path",
        out,
        "--json",
        "--name",
        "x",
    ]
    assert run("--checkpoint", checkpoints["dcae"], *flags) == 0
    printed, results = json.loads(capsys.readouterr().out), results_of(out)
    assert printed == results and results["name"] == "x"
    (point,) = results["points"]
    assert point["rate"] == "real" and point["arithmetic"] == "fp64" and point["failed"] == []
    assert {p.relative_to(out).as_posix() for p in out.rglob("*.png")} == {"a.png", "b.png", "below/a.png"}
    for image in point["images"]:
        original = read_image(data / image["name"])[0].astype(float)
        decoded = read_image((out / image["name"]).with_suffix(".png"))[0]
        error = np.mean((original - decoded) ** 2)
        assert image["psnr"] == pytest.approx(10 * np.log10(255**2 / error), abs=1e-4)
    milliseconds = np.mean([image["encode_ms"] for image in point["images"]])
    assert results["results"]["encoding_time"] == [pytest.approx(milliseconds / 1000)]


def test_images_of_others_are_not_replaced_by_reconstructions(checkpoints, data, tmp_path):
    """Its own are, and so are those that a .bin file gave."""
    out, flags = tmp_path / "out", ["--checkpoint", checkpoints["dcae"], "--data", data / "a.png"]
    run(*flags, "--save_path", out)
    own = (out / "a.png").read_bytes()
    write_png(out / "a.png", read_image(out / "a.png")[0], comment=DECODED)
    assert run(*flags, "--save_path", out) == 0 and (out / "a.png").read_bytes() == own
    Image.new("RGB", (3, 3)).save(out / "a.png")
    mine = (out / "a.png").read_bytes()
    with pytest.raises(UserError, match="--save_path: .*a.png may be an original, it was not written by eval.py"):
        run(*flags, "--save_path", out)
    assert (out / "a.png").read_bytes() == mine


def test_real_rate_is_that_of_the_files_that_compress_writes(checkpoints, data, tmp_path):
    import compress_and_decompress

    flags = ["--checkpoint", str(checkpoints["dcae"]), "--data", str(data), "--save_path", str(tmp_path / "bins")]
    assert compress_and_decompress.main(["--mode", "compress", *flags, "--arithmetic", "fp32"]) == 0
    run("--checkpoint", checkpoints["dcae"], "--data", data, "--real")
    sizes = [image["bytes"] for image in results_of(tmp_path)["points"][0]["images"]]
    assert sizes == [(tmp_path / "bins" / name).stat().st_size for name in ("a.bin", "b.bin")]


def test_several_checkpoints_make_a_curve_in_order_of_rate(checkpoints, data, tmp_path, capsys):
    given = [checkpoints["dcae"], checkpoints["dcae-no-dictionary"]]
    rates = []
    for order in (given, given[::-1]):
        assert run("--checkpoint", *order, "--data", data, "--save_path", tmp_path / "out") == 0
        results = results_of(tmp_path / "out")
        rates.append(results["results"]["bpp"])
        assert [point["average"]["bpp"] for point in results["points"]] == rates[-1] == sorted(rates[-1])
    assert rates[0] == rates[1] and len(set(rates[0])) == 2
    assert "point" in capsys.readouterr().out
    assert {p.parent.name for p in (tmp_path / "out").rglob("*.png")} == {"dcae", "dcae-no-dictionary"}


def test_several_qualities_of_one_model(checkpoints, data, tmp_path, capsys):
    assert run("--checkpoint", checkpoints["dcae-variable-rate"], "--data", data, "--quality", 20, 80.5) == 0
    points = results_of(tmp_path)["points"]
    assert {point["quality"] for point in points} == {20, 80.5}
    assert {point["label"] for point in points} == {"dcae-variable-rate_q20", "dcae-variable-rate_q80.5"}
    assert points[0]["average"]["bpp"] < points[1]["average"]["bpp"]


def test_a_variable_rate_model_has_a_default_quality(checkpoints, data, tmp_path, capsys):
    assert run("--checkpoint", checkpoints["dcae-variable-rate"], "--data", data) == 0
    assert results_of(tmp_path)["points"][0]["quality"] == 50
    assert "quality 50" in capsys.readouterr().err


def test_one_bad_image_is_counted_and_the_rest_evaluated(checkpoints, data, tmp_path, capsys):
    (data / "broken.png").write_bytes(b"nothing")
    assert run("--checkpoint", checkpoints["dcae"], "--data", data) == 2
    (point,) = results_of(tmp_path)["points"]
    assert len(point["images"]) == 2 and point["failed"][0]["name"].endswith("broken.png")
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(errors) == 1 and "broken.png" in errors[0]
    with pytest.raises(UserError):
        run("--checkpoint", checkpoints["dcae"], "--data", data, "--debug")


def test_one_bad_checkpoint_among_several_is_counted(checkpoints, data, tmp_path, capsys):
    bad = tmp_path / "bad.pt"
    bad.write_bytes(checkpoints["dcae"].read_bytes()[:5000])
    assert run("--checkpoint", bad, checkpoints["dcae"], "--data", data) == 2
    assert len(results_of(tmp_path)["points"]) == 1
    assert f"error: {bad}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, reason",
    [
        (["--data", "nowhere"], "nowhere: there is no such"),
        (["--checkpoint", "none.pt"], "none.pt: there is no such file"),
        (["--quality", "0.5"], "--quality 0.5 is outside"),
        (["--quality", "50"], "one quality only; leave out --quality"),
        (["--arithmetic", "fp64"], "add --real"),
        (["--effort", "3"], "add --real"),
        (
            ["--real", "--effort", "3", "--lambda", "0.01", "--checkpoint", "a.pt", "b.pt"],
            "--lambda is of one checkpoint",
        ),
        (["--device", "abacus"], "--device abacus: no such device"),
        (["--device", "mps"], "--device mps: no such device"),
        (["--device", "cpu", "--cuda"], "contradict"),
        (["--save_path", "data"], "a.png would overwrite an original"),
        (["--save_path", "data/a.png"], "--save_path: cannot write"),
        (["--output", "data"], "--output: data is a folder"),
        (["--output", "data/a.png/r.json"], "--output: cannot write"),
    ],
)
def test_what_a_user_can_put_right_is_said_before_work_starts(checkpoints, data, flags, reason, monkeypatch):
    monkeypatch.setattr(program, "make_results", None)  # never reached
    before = {path: path.read_bytes() for path in data.rglob("*.*")}
    defaults = [] if "--checkpoint" in flags else ["--checkpoint", checkpoints["dcae"]]
    defaults += [] if "--data" in flags else ["--data", "data"]
    with pytest.raises(UserError) as caught:
        run(*flags, *defaults)
    assert reason in str(caught.value) and "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in data.rglob("*.*")} == before


def test_cuda_without_a_gpu_is_an_error(checkpoints, data, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no usable CUDA GPU"):
        run("--checkpoint", checkpoints["dcae"], "--data", data, "--cuda")


def test_without_a_checkpoint_the_default_is_used_if_it_is_there(checkpoints, data, tmp_path, monkeypatch):
    monkeypatch.setattr(program, "DEFAULT_CHECKPOINT", tmp_path / "none.pt")
    with pytest.raises(UserError, match="none.pt: there is no such file"):
        run("--data", data)
    monkeypatch.setattr(program, "DEFAULT_CHECKPOINT", checkpoints["dcae"])
    assert run("--data", data) == 0


def test_nothing_evaluated_writes_nothing(checkpoints, data, tmp_path):
    (data / "broken.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match="not one of 1"):
        run("--checkpoint", checkpoints["dcae"], "--data", data / "broken.png")
    assert not (tmp_path / "results.json").exists()


def test_reconstructions_never_share_a_name():
    names = [Path(name) for name in ("a.png", "b.jpg", "b.tif", "sub/b.jpg")]
    assert [p.as_posix() for p in output_names(names)] == ["a.png", "b.jpg.png", "b.tif.png", "sub/b.png"]
    awkward = [Path(name) for name in ("a.jpg", "a.tif", "a.jpg.bmp")]
    assert len(set(output_names(awkward))) == 3


def test_checkpoints_of_one_name_keep_their_reconstructions_apart():
    points = plan_points([Path("x/best.pth.tar"), Path("y/best.pt"), Path("z/last.pt")], None, Path("out"))
    assert [point.label for point in points] == ["1_best", "2_best", "last"]
    assert [point.folder for point in points] == [Path("out/1_best"), Path("out/2_best"), Path("out/last")]
    assert plan_points([Path("x/best.pt")], None, Path("out"))[0].folder == Path("out")


@pytest.mark.slow
def test_the_papers_command_as_a_process(checkpoints, data):
    """The READMEs' command without a GPU: one line, status 2; without --cuda it works, importing nothing needless."""
    command = [sys.executable, "-W", "ignore", "-X", "importtime", str(ROOT / "eval.py")]
    command += ["--checkpoint", str(checkpoints["dcae"]), "--data", str(data)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    options = {"env": environment, "capture_output": True, "text": True}
    refused = subprocess.run([*command, "--cuda"], **options)
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert [line for line in refused.stderr.splitlines() if line.startswith("error: --cuda")]
    done = subprocess.run(command, **options)
    assert done.returncode == 0 and "mean of 2" in done.stdout
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time")}
    assert not imported & {"matplotlib", "thop", "tensorboard"}  # CompressAI loads the rest
