"""The program as a user runs it: real files in, real files out, one line for what is wrong."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import compress_and_decompress
from compress_and_decompress import main, share_threads
from models import load_model
from scripts import demo
from tests.toys import toy_image, toy_model
from utils.cli import UserError
from utils.codec import shipped
from utils.codec.codec import Codec, fingerprint
from utils.codec.flags import parse_arguments
from utils.data.images import read_image, to_uint8
from utils.evaluation.evaluation import evaluate_images
from utils.files import atomic_write

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "toy.pth.tar"
    torch.save({"state_dict": toy_model("dcae").state_dict()}, path)
    return path


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    pixels = to_uint8(toy_image(40, 60))
    Image.fromarray(pixels).save(folder / "a.png")
    Image.fromarray(pixels[::-1]).save(folder / "a.JPG", format="JPEG")
    Image.fromarray(pixels[:, ::2]).save(folder / "b.webp")
    Image.fromarray(pixels).save(folder / "sub" / "c.tiff")
    return folder


def run(mode, data, save_path, checkpoint, *flags) -> int:
    return main(
        ["--mode", mode, "--data", str(data), "--save_path", str(save_path), "--checkpoint", str(checkpoint), *flags]
    )


def test_there_and_back(photos, tmp_path, checkpoint, capsys):
    assert run("compress", photos, tmp_path / "bins", checkpoint, "--recursive", "--verify", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    names = ["a.JPG.bin", "a.png.bin", "b.bin", "sub/c.bin"]
    assert sorted(p.relative_to(tmp_path / "bins").as_posix() for p in (tmp_path / "bins").rglob("*.bin")) == names
    assert summary["total"]["done"] == 4
    assert summary["total"]["bytes"] == sum((tmp_path / "bins" / name).stat().st_size for name in names)
    assert run("decompress", tmp_path / "bins", tmp_path / "out", checkpoint, "--recursive") == 0
    for name, source in (("a.png.png", "a.png"), ("b.png", "b.webp"), ("sub/c.png", "sub/c.tiff")):
        decoded = Image.open(tmp_path / "out" / name)
        assert decoded.mode == "RGB" and decoded.size == Image.open(photos / source).size


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_files_at_once_are_those_of_one_after_the_other(photos, tmp_path, checkpoint, monkeypatch, threads):
    """Also where a file of another arithmetic needs all threads; failures are counted as ever."""
    (photos / "broken.png").write_bytes(b"no image")
    for folder, jobs in (("one", "1"), ("many", "3")):
        assert run("compress", photos, tmp_path / folder, checkpoint, "--jobs", jobs, "--threads", "1") == 2
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == ["a.JPG.bin", "a.png.bin", "b.bin"] == sorted(path.name for path in (tmp_path / "many").iterdir())
    assert all((tmp_path / "one" / n).read_bytes() == (tmp_path / "many" / n).read_bytes() for n in names)
    (photos / "broken.png").unlink()
    run("compress", photos, tmp_path / "many", checkpoint, "--arithmetic", "fp32", "--overwrite", "--threads", "2")
    used = {}
    monkeypatch.setattr(
        Codec,
        "decompress",
        lambda self, data, original=Codec.decompress: (
            used.update({data: torch.get_num_threads()}) or original(self, data)
        ),
    )
    for folder, expected in (("one", 1), ("many", 2)):
        flags = ("--jobs", "2", "--threads", "2")
        assert run("decompress", tmp_path / folder, tmp_path / f"{folder} out", checkpoint, *flags) == 0
        assert [used[(tmp_path / folder / name).read_bytes()] for name in names] == [expected] * 3


def test_a_files_threads_are_its_own(threads):
    """Another file's share does not become this thread's, whichever is set last."""
    set_here, set_there, used = threading.Event(), threading.Event(), []
    args = argparse.Namespace(jobs=2, threads=2)
    torch.set_num_threads(2)

    def all_threads() -> None:
        share_threads(args, portable=False)
        set_here.set()
        set_there.wait(10)
        torch.ones(1 << 20).sum()
        used.append(torch.get_num_threads())

    def a_share() -> None:
        set_here.wait(10)
        share_threads(args)
        set_there.set()

    workers = [threading.Thread(target=work) for work in (all_threads, a_share)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert used == [2]


def test_existing_outputs_are_kept_unless_told_otherwise(photos, tmp_path, checkpoint, capsys):
    run("compress", photos / "a.png", tmp_path / "bins", checkpoint)
    (tmp_path / "bins" / "a.bin").write_bytes(b"mine")
    assert run("compress", photos / "a.png", tmp_path / "bins", checkpoint) == 0
    assert "1 kept" in capsys.readouterr().out
    assert (tmp_path / "bins" / "a.bin").read_bytes() == b"mine"
    with pytest.raises(UserError, match="--overwrite: .*a.bin may be an original, it was not written by --mode comp"):
        run("compress", photos / "a.png", tmp_path / "bins", checkpoint, "--overwrite")
    assert (tmp_path / "bins" / "a.bin").read_bytes() == b"mine"


def test_files_of_either_layout_and_empty_ones_are_replaced(photos, tmp_path, checkpoint):
    target = tmp_path / "a.bin"
    run("compress", photos / "a.png", target, checkpoint, "--format", "official")
    for before in (target.read_bytes(), b"\xd1IC damaged", b""):
        target.write_bytes(before)
        run("compress", photos / "a.png", target, checkpoint, "--overwrite")
        assert target.read_bytes() != before


@pytest.mark.parametrize("flags", [(), ("--arithmetic", "fp32"), ("--format", "official")])
@pytest.mark.parametrize("padding", ["zero", "replicate", "reflect"])
def test_formats_give_the_models_image(photos, tmp_path, checkpoint, flags, padding):
    run("compress", photos / "a.png", tmp_path / "bins", checkpoint, "--padding", padding, *flags)
    run("decompress", tmp_path / "bins", tmp_path / "out", checkpoint)
    from utils.data.images import to_tensor
    from utils.data.padding import crop_centred, pad_centred

    x = to_tensor(read_image(photos / "a.png")[0])
    with torch.no_grad():
        x_hat = toy_model("dcae")(pad_centred(x, 128, padding))["x_hat"]
    expected = to_uint8(crop_centred(x_hat, (40, 60)))
    difference = np.abs(expected.astype(int) - read_image(tmp_path / "out" / "a.png")[0].astype(int))
    assert (difference > 1).mean() < 0.01  # in another arithmetic a symbol may fall to the other side of .5


def test_one_bad_file_does_not_stop_the_others(photos, tmp_path, checkpoint, capsys):
    (photos / "broken.png").write_bytes((photos / "a.png").read_bytes()[:100])
    assert run("compress", photos, tmp_path / "bins", checkpoint) == 2
    out, err = capsys.readouterr()
    assert "broken.png" in err and "1 failed" in out
    assert len(list((tmp_path / "bins").glob("*.bin"))) == 3


def test_one_file_to_one_file_and_back(photos, tmp_path, checkpoint):
    target = tmp_path / "new" / "x.bin"
    assert run("compress", photos / "a.png", target, checkpoint, "--verify") == 0 and target.is_file()
    assert run("decompress", target, tmp_path / "y.PNG", checkpoint) == 0
    assert Image.open(tmp_path / "y.PNG").size == (60, 40)
    (tmp_path / "folder.bin").mkdir()
    assert run("compress", photos / "a.png", tmp_path / "folder.bin", checkpoint) == 0
    assert (tmp_path / "folder.bin" / "a.bin").is_file()
    with pytest.raises(UserError, match="x.jpg: --mode decompress writes .png"):
        run("decompress", target, tmp_path / "x.jpg", checkpoint)
    with pytest.raises(UserError, match="x.png: --mode compress writes .bin"):
        run("compress", photos / "a.png", tmp_path / "x.png", checkpoint)


def test_originals_are_never_overwritten(photos, tmp_path, checkpoint):
    """Beside their .bin files, in another folder, or named alone; what was decoded before is."""
    original = (photos / "a.png").read_bytes()
    (photos / "a.JPG").unlink()
    (photos / "alias").symlink_to(photos)
    run("compress", photos, photos, checkpoint)
    run("compress", photos, tmp_path / "bins", checkpoint)
    for data, save_path in (
        (photos, photos), (photos, photos / "alias"), (photos / "a.bin", photos), (tmp_path / "bins", photos),
        (photos / "a.bin", photos / "a.png"),
    ):  # fmt: skip
        with pytest.raises(UserError, match="--overwrite: .*a.png may be an original"):
            run("decompress", data, save_path, checkpoint, "--overwrite")
    assert (photos / "a.png").read_bytes() == original
    run("decompress", tmp_path / "bins", tmp_path / "out", checkpoint)
    (tmp_path / "out" / "b.png").unlink()
    assert run("decompress", tmp_path / "bins", tmp_path / "out", checkpoint, "--overwrite") == 0
    (photos / "a.png").rename(photos / "image.bin")
    with pytest.raises(UserError, match="--overwrite: .*image.bin may be an original"):
        run("compress", photos / "image.bin", photos, checkpoint, "--overwrite")


@pytest.mark.parametrize("flags", [(), ("--verify",), ("--jobs", "2")])
def test_a_file_that_another_program_has_written_meanwhile_is_kept(photos, tmp_path, checkpoint, monkeypatch, flags):
    compress, theirs = Codec.compress, b"\xd1IC and more"

    def meanwhile(*given):
        (tmp_path / "bins" / "a.bin").write_bytes(theirs)
        return compress(*given)

    monkeypatch.setattr(Codec, "compress", meanwhile)
    (tmp_path / "bins").mkdir()
    assert run("compress", photos / "a.png", tmp_path / "bins", checkpoint, *flags) == 0
    assert (tmp_path / "bins" / "a.bin").read_bytes() == theirs and len(list((tmp_path / "bins").iterdir())) == 1
    assert run("compress", photos / "a.png", tmp_path / "bins", checkpoint, "--overwrite", *flags) == 0
    assert (tmp_path / "bins" / "a.bin").read_bytes() != theirs


def test_a_pipe_is_read_to_its_end_both_ways(photos, tmp_path, checkpoint):
    def through_pipe(source: Path) -> Path:
        os.mkfifo(pipe := tmp_path / f"pipe-of-{source.suffix[1:]}")
        threading.Thread(target=lambda: pipe.write_bytes(source.read_bytes())).start()
        return pipe

    assert run("compress", through_pipe(photos / "a.png"), tmp_path / "out/a.bin", checkpoint) == 0
    assert run("compress", photos / "a.png", tmp_path / "out/b.bin", checkpoint) == 0
    assert (tmp_path / "out/a.bin").read_bytes() == (tmp_path / "out/b.bin").read_bytes()
    assert run("decompress", through_pipe(tmp_path / "out/a.bin"), tmp_path / "out", checkpoint) == 0
    assert (tmp_path / "out/pipe-of-bin.png").exists()


@pytest.mark.parametrize("flags", [(), ("--overwrite",), ("--jobs", "2")])
def test_what_is_no_file_is_not_kept_for_one(photos, tmp_path, checkpoint, flags, capsys):
    """A folder, or a link to nothing, where the output belongs."""
    (tmp_path / "bins/b.bin").mkdir(parents=True)
    (tmp_path / "bins/a.JPG.bin").symlink_to("nowhere")
    assert run("compress", photos, tmp_path / "bins", checkpoint, *flags) == 2
    linked = "--overwrite" in flags  # the link is replaced, a folder is not
    said = capsys.readouterr()
    assert said.out.splitlines()[-1].startswith(f"{2 if linked else 1} done, 0 kept, {1 if linked else 2} failed")
    assert "b.webp: " in said.err and (tmp_path / "bins/a.png.bin").is_file()


def test_without_hard_links_a_file_is_kept_too(tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    with atomic_write(tmp_path / "a", replace=False) as file:
        file.write(b"mine")
    with pytest.raises(FileExistsError), atomic_write(tmp_path / "a", replace=False) as file:
        file.write(b"other")
    assert (tmp_path / "a").read_bytes() == b"mine" and len(list(tmp_path.iterdir())) == 1


def test_an_image_that_is_not_finite_is_an_error(photos, tmp_path, checkpoint, capsys):
    """Weights that are finite, and overflow."""
    weights = torch.load(checkpoint, weights_only=True)["state_dict"]
    run("compress", photos / "a.png", tmp_path / "bins", checkpoint)
    last = [name for name in weights if name.startswith("g_s") and name.endswith("weight")][-1]
    weights[last] = torch.full_like(weights[last], 3e38)
    torch.save({"state_dict": weights}, tmp_path / "huge.pt")
    run("compress", photos / "a.png", tmp_path / "huge", tmp_path / "huge.pt")
    capsys.readouterr()
    assert run("decompress", tmp_path / "huge", tmp_path / "out", tmp_path / "huge.pt") == 2
    assert "a.bin: the reconstruction is not finite" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())
    model = load_model(tmp_path / "huge.pt")
    assert evaluate_images(Codec(model), [photos / "a.png"], failed=lambda path, error: print(error)) == []
    assert "not finite" in capsys.readouterr().out


def damaged(data: bytes):
    """Every truncation and every single-bit flip, as (what it is, bytes)."""
    for length in range(len(data)):
        yield f"first {length} bytes", data[:length]
    for bit in range(8 * len(data)):
        broken = bytearray(data)
        broken[bit // 8] ^= 1 << bit % 8
        yield f"bit {bit} flipped", bytes(broken)


def test_no_damaged_file_gives_an_image(photos, tmp_path, checkpoint):
    from models import load_model
    from utils.codec.bitstream import BitstreamError
    from utils.codec.codec import Codec
    from utils.data.images import to_tensor

    codec = Codec(load_model(checkpoint))
    data = codec.compress(to_tensor(read_image(photos / "a.png")[0][:16, :16]))
    cases = 0
    for name, broken in damaged(data):
        with pytest.raises(BitstreamError):
            codec.decompress(broken)
            pytest.fail(name)
        cases += 1
    print(f"{cases} damaged files, none gave an image")


def test_a_published_file_that_cannot_be_decoded_is_refused(photos, tmp_path, checkpoint, capsys):
    """The published layout has no checksum; the entropy decoder's end tells a wrong model and a damaged string."""
    other = tmp_path / "other.pth.tar"
    torch.save({"state_dict": toy_model("dcae", salt="other").state_dict()}, other)
    run("compress", photos / "a.png", tmp_path / "bins", checkpoint, "--format", "official")
    assert run("decompress", tmp_path / "bins", tmp_path / "out", other) == 2
    assert "lost its place" in capsys.readouterr().err
    data = (tmp_path / "bins" / "a.bin").read_bytes()
    (tmp_path / "bins" / "a.bin").write_bytes(data[:300] + bytes(8) + data[308:])
    assert run("decompress", tmp_path / "bins", tmp_path / "out", checkpoint) == 2
    assert not list((tmp_path / "out").iterdir())


def test_bad_files_are_quick_clear_and_leave_nothing(photos, tmp_path, checkpoint, capsys):
    bins = tmp_path / "bins"
    run("compress", photos / "a.png", bins, checkpoint)
    good = (bins / "a.bin").read_bytes()
    (bins / "short.bin").write_bytes(good[:-5])
    (bins / "renamed.bin").write_bytes((photos / "a.png").read_bytes())
    (bins / "empty.bin").write_bytes(b"")
    start = time.monotonic()
    assert run("decompress", bins, tmp_path / "out", checkpoint) == 2
    assert time.monotonic() - start < 5
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 3 and all(name in "".join(lines) for name in ("short.bin", "renamed.bin", "empty.bin"))
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a.png"]


def test_without_a_checkpoint_the_file_says_which_of_the_shipped_models_it_needs(photos, tmp_path, monkeypatch, capsys):
    """Two in assets, a file of each and one of neither; with jobs as well."""
    assets, makers = tmp_path / "assets", ("new", "old", "foreign")
    assets.mkdir()
    for name in makers:
        folder = tmp_path if name == "foreign" else assets
        torch.save({"state_dict": toy_model("dcae", salt=name).state_dict()}, folder / f"{name}.pt")
        run("compress", photos / "a.png", tmp_path / name, folder / f"{name}.pt")
        (tmp_path / name / "a.bin").rename(tmp_path / name / f"{name}.bin")
        run("decompress", tmp_path / name, tmp_path / "expected", folder / f"{name}.pt")
    for module in (compress_and_decompress, shipped):
        monkeypatch.setattr(module, "DEFAULT_CHECKPOINT", assets / "new.pt")
    for name in makers:
        (tmp_path / name / f"{name}.bin").rename(tmp_path / f"{name}.bin")
    capsys.readouterr()
    for jobs in ("1", "2"):
        out = tmp_path / f"out{jobs}"
        flags = ["--mode", "decompress", "--data", str(tmp_path), "--save_path", str(out), "--jobs", jobs]
        assert main(flags) == 2
        assert "foreign.bin: written with model" in capsys.readouterr().err
        assert sorted(path.name for path in out.iterdir()) == ["new.png", "old.png"]
        for path in out.iterdir():
            assert path.read_bytes() == (tmp_path / "expected" / path.name).read_bytes()


def test_the_wrong_checkpoint_is_named(photos, tmp_path, checkpoint, capsys):
    other = tmp_path / "other.pth.tar"
    torch.save({"state_dict": toy_model("dcae", salt="other").state_dict()}, other)
    run("compress", photos / "a.png", tmp_path / "bins", checkpoint)
    assert run("decompress", tmp_path / "bins", tmp_path / "out", other) == 2
    error = capsys.readouterr().err
    assert fingerprint(toy_model("dcae")).hex() in error
    assert fingerprint(toy_model("dcae", salt="other")).hex() in error


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--cuda",), "--cuda"),
        (("--device", "tpu"), "--device tpu"),
        (("--quality", "50"), "--quality"),
        (("--model", "tcm-small"), "--model tcm-small: .*toy.pth.tar is not tcm-small; name another --checkpoint"),
        (("--data", "/nowhere"), "/nowhere"),
    ],
)
def test_bad_flags_are_named(photos, tmp_path, checkpoint, flags, message):
    if flags == ("--cuda",) and torch.cuda.is_available():
        flags, message = ("--device", "cuda:99"), "cuda:99"
    with pytest.raises(UserError, match=message):
        run("compress", photos, tmp_path / "bins", checkpoint, *flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--jobs", "0"), "--jobs must be at least 1"),
        (("--jobs", "2", "--verify"), "--jobs 2: --verify"),
        (("--jobs", "2", "--max-memory", "8G"), "--jobs 2: --max-memory"),
        (("--jobs", "2", "--compile"), "--jobs 2: --compile"),
        (("--jobs", "2", "--arithmetic", "fp32"), "--jobs 2: --arithmetic fp32"),
        (("--jobs", "2", "--format", "official"), "--jobs 2: --format official"),
        (("--random-weights", "1"), "--random-weights and --checkpoint each give the weights"),
        (("--mode", "decompress", "--verify"), "--verify is for compressing"),
        (("--mode", "decompress", "--target-bpp", "1"), "--target-bpp is for compressing"),
        (("--mode", "decompress", "--padding", "zero"), "--padding is for compressing"),
        (("--mode", "decompress", "--quality", "0"), "--quality is for compressing"),
        (("--mode", "decompress", "--format", "bin"), "--format is for compressing"),
    ],
)
def test_flags_that_exclude_each_other(photos, tmp_path, checkpoint, flags, message, capsys):
    with pytest.raises(SystemExit) as left:
        run("compress", photos, tmp_path / "bins", checkpoint, *flags)
    assert left.value.code == 2 and message in capsys.readouterr().err


def test_the_default_checkpoint_is_named_where_it_is_another_model(monkeypatch, checkpoint):
    monkeypatch.setattr(compress_and_decompress, "DEFAULT_CHECKPOINT", checkpoint)
    args = argparse.Namespace(random_weights=None, checkpoint=None, model="tcm-small")
    with pytest.raises(UserError, match=f"--model tcm-small: {checkpoint} is not tcm-small"):
        compress_and_decompress.get_model(args, torch.device("cpu"))


def test_flags_of_the_demo_that_are_for_compressing_go_to_the_first_step(monkeypatch):
    steps = []
    monkeypatch.setattr(compress_and_decompress, "main", lambda flags: steps.append(parse_arguments(flags)) or 0)
    monkeypatch.setattr(demo.compare_crops, "main", lambda flags: 0)
    assert demo.main(["--effort", "3", "--threads", "2", "--quality=30", "--verify", "--json"]) == 0
    first, second = steps
    assert (first.mode, first.effort, first.quality, first.verify) == ("compress", 3, 30, True)
    assert (second.mode, second.effort, second.quality, second.verify) == ("decompress", 0, None, False)
    assert first.threads == second.threads == 2 and first.json and second.json


@pytest.mark.slow
def test_processes_share_a_folder(photos, tmp_path, checkpoint):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29561"]
    command += ["compress_and_decompress.py", "--mode", "compress", "--data", str(photos), "--recursive"]
    command += ["--save_path", str(tmp_path / "bins"), "--checkpoint", str(checkpoint), "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["total"]["done"] == 4
    assert len(list((tmp_path / "bins").rglob("*.bin"))) == 4


@pytest.mark.slow
def test_the_papers_command_and_its_exit_status(photos, tmp_path, checkpoint):
    command = [sys.executable, "-u", "./compress_and_decompress.py", "--data", str(photos), "--save_path"]
    command += [str(tmp_path / "bins"), "--mode", "compress", "--checkpoint", str(checkpoint)]
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0
    missing = subprocess.run([*command[:-1], "nowhere.pth.tar"], cwd=ROOT, capture_output=True, text=True)
    assert (
        missing.returncode == 2
        and missing.stderr.startswith("error: nowhere.pth.tar")
        and "Traceback" not in missing.stderr
    )
