"""The training set comes out the same from any copy, from any start after any end, and from its list."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts import prepare_openimages
from scripts.prepare_openimages import JOURNAL, LIST, main
from utils.cli import UserError

GOOD, SMALL, BROKEN = 12, 3, 2


@pytest.fixture
def originals(tmp_path) -> Path:
    """12 good images in two folders, 3 with a short side of 39, 2 that cannot be decoded."""
    folder = tmp_path / "openimages"
    random = np.random.default_rng(0)
    for i in range(GOOD + SMALL + BROKEN):
        path = folder / f"train_{i % 2}" / f"{i:016x}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        sides = (40, 39) if GOOD <= i < GOOD + SMALL else (40, 52)
        Image.fromarray(random.integers(0, 256, (*sides, 3), dtype=np.uint8)).save(path)
        if i >= GOOD + SMALL:
            path.write_bytes(path.read_bytes()[:200])
    return folder


def prepare(originals: Path, save_path: Path, *more: str) -> list[str]:
    """Run the program for images of at least 40 pixels; the lines of its list."""
    sizes = [] if "--list" in more else ["--smallest", "40"]
    main(["--data", str(originals), "--save_path", str(save_path), "-n", "2", *sizes, *more])
    return (save_path / LIST).read_text().splitlines()


def test_good_images_are_taken_and_the_others_counted(originals, tmp_path, capsys):
    lines = prepare(originals, tmp_path / "set", "--images", "10", "--validation", "2")
    assert "12 good images; left out: 2 unreadable, 3 smaller than 40 pixels" in capsys.readouterr().out
    assert len(list((tmp_path / "set/train").iterdir())) == 10 and len(list((tmp_path / "set/test").iterdir())) == 2
    for line in lines:
        digest, name = line.split("  ")
        assert hashlib.sha256((tmp_path / "set" / name).read_bytes()).hexdigest() == digest
    checked = subprocess.run(["sha256sum", "--check", LIST], cwd=tmp_path / "set", capture_output=True)
    assert checked.returncode == 0


def test_what_became_of_the_files_is_said_at_the_end(originals, tmp_path, capsys):
    shutil.copy(originals / f"train_0/{0:016x}.jpg", originals / f"train_1/{0:016x}.jpg")
    for placed, kept in ((12, 0), (0, 12)):
        prepare(originals, tmp_path / "set", "--images", "10", "--validation", "2")
        said = capsys.readouterr().out.splitlines()[-1]
        assert f" {placed} done, {kept} kept, 2 failed, 4 left out: 1 of a name that came before (train_1/" in said
        assert ", 3 smaller than 40 pixels (" in said


def test_links_become_copies(originals, tmp_path, capsys):
    sizes = ("--images", "10", "--validation", "2")
    for flags, placed in (((), 12), (("--copy",), 12), (("--copy",), 0), ((), 0)):
        prepare(originals, tmp_path / "set", *sizes, *flags)
        assert f" {placed} done, {12 - placed} kept" in capsys.readouterr().out.splitlines()[-1]
        links = [path.is_symlink() for path in (tmp_path / "set").glob("t*/*")]
        assert len(links) == 12 and set(links) == {not flags and placed > 0}
    assert all(path.is_file() for path in originals.rglob("*.jpg"))


def test_the_choice_does_not_depend_on_folders_or_on_other_images(originals, tmp_path):
    few = prepare(originals, tmp_path / "one", "--images", "5", "--validation", "0")
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in originals.rglob("*.jpg"):
        shutil.copy(path, flat)
    assert prepare(flat, tmp_path / "two", "--images", "5", "--validation", "0", "--copy") == few
    assert set(few) < set(prepare(flat, tmp_path / "more", "--images", "8", "--validation", "0"))
    assert not any(path.is_symlink() for path in (tmp_path / "two/train").iterdir())


def test_an_interrupted_run_goes_on(originals, tmp_path, monkeypatch):
    """Stopped in the middle of a line of its notes: what was looked at is not looked at again."""
    sizes = ("--images", "12", "--validation", "0")
    whole = prepare(originals, tmp_path / "whole", *sizes)
    notes = (tmp_path / "whole" / JOURNAL).read_bytes()
    part = tmp_path / "part"
    part.mkdir()
    lines = notes.splitlines(keepends=True)
    (part / JOURNAL).write_bytes(b"".join(lines[:9]) + lines[9][:20])
    looked = []
    monkeypatch.setattr(
        prepare_openimages.ProcessPoolExecutor,
        "map",
        lambda _, look, paths, chunksize: [looked.append(path.name) or look(path) for path in paths],
    )
    assert prepare(originals, part, *sizes) == whole
    assert len(looked) == len(lines) - 9 and (part / JOURNAL).read_bytes() == notes
    looked.clear()
    assert prepare(originals, part, *sizes) == whole and not looked


def test_a_list_gives_the_same_set_and_finds_what_changed(originals, tmp_path):
    whole = prepare(originals, tmp_path / "set", "--images", "10", "--validation", "2")
    given = ("--list", str(tmp_path / "set" / LIST))
    assert prepare(originals, tmp_path / "same", *given) == whole
    name = Path(whole[0].split("  ")[1]).name
    (path,) = originals.rglob(name)
    Image.new("RGB", (40, 52)).save(path)
    with pytest.raises(UserError, match=f"1 of its images are other than listed .*{name}"):
        prepare(originals, tmp_path / "changed", *given)
    path.unlink()
    with pytest.raises(UserError, match=f"1 of its images are missing .*{name}"):
        prepare(originals, tmp_path / "missing", *given)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--images", "11", "--validation", "2"), "only 12 good"),
        (("--images", "0"), "--images 0"),
        (("-n", "0"), "--num-workers 0"),
        (("--data", "."), "beside it"),
        (("--list", "nowhere.sha256"), "nowhere.sha256"),
        (("--list", __file__), "not a list"),
        (("--list", "nowhere.sha256", "--images", "3"), "--images"),
    ],
)
def test_what_cannot_be_done_is_one_line(originals, tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as raised:
        prepare(originals, tmp_path / "set", *flags)
    assert "\n" not in str(raised.value)


def test_another_set_in_the_folder_is_refused(originals, tmp_path):
    prepare(originals, tmp_path / "set", "--images", "10", "--validation", "2")
    with pytest.raises(UserError, match="another set"):
        prepare(originals, tmp_path / "set", "--images", "5", "--validation", "0")


def test_a_file_that_may_not_be_opened_ends_the_program(originals, tmp_path, monkeypatch):
    """In a worker process, which inherits what is patched; such a file is not noted as an unreadable image."""
    read = Path.read_bytes

    def refused(path):
        if path.suffix == ".jpg":
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(UserError, match=r"jpg: cannot be opened \(Permission denied\); make it readable"):
        prepare(originals, tmp_path / "set")
    assert not (tmp_path / "set" / JOURNAL).read_text()
