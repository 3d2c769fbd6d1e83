"""One listing of files for all programs: links are followed once, and whatever is left out is told by reason."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.toy_training import ENVIRONMENT, ROOT
from utils.cli import UserError
from utils.data import listing
from utils.data.images import read_image
from utils.data.listing import closing_line, find_images, left_out_line, list_files, list_images


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def names_of(found, folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in found.paths]


def test_images_by_suffix_in_any_case_in_order(tmp_path):
    touch(
        tmp_path, "b.PNG", "a.Jpg", "notes.txt", "sub/c.webp", "folder.png/d.tif", "e.AVIF", "f.jp2", "g.Gif", "h.mpo"
    )
    assert names_of(list_images(tmp_path), tmp_path) == ["a.Jpg", "b.PNG", "e.AVIF", "f.jp2", "g.Gif", "h.mpo"]
    assert list_images(tmp_path).left_out == {listing.FOLDER: ["folder.png", "sub"]}
    whole = list_images(tmp_path, recursive=True)
    assert set(names_of(whole, tmp_path)) > {"folder.png/d.tif", "sub/c.webp"} and whole.left_out == {}
    assert list_images(tmp_path / "notes.txt").paths == [tmp_path / "notes.txt"]


def test_nothing_to_list_is_said(tmp_path):
    with pytest.raises(UserError, match="no images"):
        list_images(touch(tmp_path / "empty", "a.txt"))
    with pytest.raises(UserError, match=r"no images .*1 left out: 1 of a format that is not read \(a.psd\)"):
        list_images(touch(tmp_path / "other", "a.psd"))
    with pytest.raises(UserError, match="no such file"):
        list_images(tmp_path / "absent")


def test_linked_folders_are_entered_once_and_loops_end(tmp_path):
    data, other = touch(tmp_path / "data", "a/1.png", "z/2.png"), touch(tmp_path / "other", "3.png", "deep/4.png")
    (data / "a" / "more").symlink_to(other)
    (data / "again").symlink_to(other)
    (data / "loop").symlink_to(data)
    (data / "up").symlink_to("..")
    (other / "deep" / "back").symlink_to(data / "a")
    (data / "early").symlink_to(data / "z")  # its images keep the names that they had without the link
    found = list_images(data, recursive=True)
    assert names_of(found, data) == ["a/1.png", "again/3.png", "again/deep/4.png", "z/2.png"]
    assert set(found.left_out) == {listing.LISTED} and "loop" in found.left_out[listing.LISTED]


def test_a_linked_file_is_a_file_and_a_link_to_nothing_is_said(tmp_path):
    data = touch(tmp_path / "data", "a.png")
    (data / "b.png").symlink_to("a.png")
    (data / "c.png").symlink_to("gone.png")
    (data / "d").symlink_to(tmp_path / "gone")
    (data / "e.png").symlink_to("e.png")  # to itself
    found = list_images(data, recursive=True)
    assert names_of(found, data) == ["a.png", "b.png"]
    assert sorted(name for names in found.left_out.values() for name in names) == ["c.png", "d", "e.png"]


def test_hidden_files_pipes_and_sockets_are_left_out(tmp_path, monkeypatch):
    data = touch(tmp_path / "data", "a.png", "._a.png", ".hidden/b.png", ".notes")
    os.mkfifo(data / "pipe.png")
    os.mkfifo(data / "pipe.txt")
    monkeypatch.chdir(data)  # the name of a socket must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
        found = list_images(data, recursive=True)
    assert names_of(found, data) == ["a.png"]
    assert found.left_out == {listing.HIDDEN: ["._a.png", ".hidden"], listing.SPECIAL: ["pipe.png", "socket.png"]}
    for read in (list_images, read_image):
        with pytest.raises(UserError, match="pipe.png: .*neither a file nor a folder"):
            read(data / "pipe.png")  # and does not wait for somebody to write


def test_folders_that_cannot_be_opened_are_named(tmp_path, monkeypatch):
    """The system lets the administrator into every folder: it is asked in its stead."""
    data, scan = touch(tmp_path / "data", "a.png", "locked/b.png"), os.scandir

    def refusing(path):
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    found = list_images(data, recursive=True)
    assert names_of(found, data) == ["a.png"] and found.left_out == {listing.UNOPENED: ["locked"]}
    with pytest.raises(UserError, match=r"locked: cannot be opened \(Permission denied\)"):
        list_images(data / "locked")


def test_bin_files_are_listed_alike(tmp_path):
    touch(tmp_path, "a.bin", "B.BIN", "._a.bin", "old.bin/c.bin", "d.png")
    assert names_of(list_files(tmp_path, [".bin"]), tmp_path) == ["B.BIN", "a.bin"]
    assert list_files(tmp_path, [".bin"]).left_out == {listing.HIDDEN: ["._a.bin"], listing.FOLDER: ["old.bin"]}
    assert names_of(list_files(tmp_path, [".bin"], recursive=True), tmp_path) == ["B.BIN", "a.bin", "old.bin/c.bin"]


def test_what_is_left_out_in_a_line(capsys, tmp_path):
    left_out = {"hidden": ["a", "b", "c", "d"], "of a format that is not read": ["e.psd"]}
    told = "5 left out: 4 hidden (a, b, c, ...), 1 of a format that is not read (e.psd)"
    assert left_out_line(left_out) == told and left_out_line({}) == "none left out"
    assert closing_line(3, 2, 1, left_out) == f"3 done, 2 kept, 1 failed, {told}"
    assert find_images(touch(tmp_path, "a.png", "b.psd")) == [tmp_path / "a.png"]
    assert capsys.readouterr().err == f"note: {tmp_path}: 1 left out: 1 of a format that is not read (b.psd)\n"


# ---- formats -------------------------------------------------------------------------------------------------------

HEADS = {
    "a.HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "b.jxl": b"\xff\x0a\0\x10",
    "c.jpg": b"\0\0\0\x18ftypheix\0\0",
}
READ = """
import sys
from utils.cli import UserError
from utils.data.images import read_image
from utils.data.listing import left_out_line, list_images
found = list_images(sys.argv[1])
print(left_out_line(found.left_out))
for path in found.paths:
    try:
        print(path.name, read_image(path)[0][0, 0].tolist())
    except UserError as error:
        print(error)
"""
PLUG_IN = """
from PIL import Image, PngImagePlugin
class Heif(PngImagePlugin.PngImageFile):
    format = "HEIF"
def register_heif_opener():
    Image.register_open("HEIF", Heif, lambda head: head.startswith(b"\\x89PNG"))
"""


def read_beside(tmp_path: Path, plug_ins: dict[str, str]) -> list[str]:
    """What a program of its own, with these modules for plug-ins, says of the folder's images."""
    for name, text in plug_ins.items():
        (tmp_path / name).write_text(text)
    environment = {**ENVIRONMENT, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-c", READ, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_a_format_that_needs_a_plug_in_names_it_by_suffix_and_by_content(tmp_path):
    absent = dict.fromkeys(("pillow_heif.py", "pillow_jxl.py"), "raise ImportError")
    for name, head in HEADS.items():
        (tmp_path / name).write_bytes(head)
    left_out, error = read_beside(tmp_path, absent)
    assert "1 in HEIF, which needs the Pillow plug-in pillow-heif (a.HEIC)" in left_out
    assert "1 in JXL, which needs the Pillow plug-in pillow-jxl-plugin (b.jxl)" in left_out
    assert error.startswith(f"{tmp_path / 'c.jpg'}: is HEIF, which needs the Pillow plug-in pillow-heif; install it")


@pytest.mark.slow
def test_a_plug_in_that_is_installed_is_used(tmp_path):
    """A stand-in of the same name, which takes PNG for HEIF."""
    Image.new("RGB", (5, 4), (10, 20, 30)).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.Heic")
    lines = read_beside(tmp_path, {"pillow_heif.py": PLUG_IN, "pillow_jxl.py": "raise ImportError"})
    assert lines == ["none left out", "a.Heic [10, 20, 30]"]
