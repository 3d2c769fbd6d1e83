"""`--compile`: what is compiled for what, and that it computes the same."""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

import pytest
import torch

from compress_and_decompress import decompress
from tests.toys import toy_image, toy_model
from utils.cli import UserError
from utils.codec.bitstream import ModelMismatch
from utils.codec.codec import Codec
from utils.codec.folders import Job
from utils.inference import compiled
from utils.inference.compiled import CompiledTransforms, check_ready
from utils.inference.memory import PRECISIONS
from utils.measuring.compiled_speed import compiled_speed


@pytest.fixture
def exported(monkeypatch):
    """The compiler is replaced: a file says which of these modules is to be called, as a library would be."""
    modules: list[torch.nn.Module] = []

    def package(module, package_path, inductor_configs):
        assert inductor_configs == {"freezing": True}
        Path(package_path).write_text(str(len(modules)))
        modules.append(module)

    monkeypatch.setattr(torch.export, "export", lambda module, inputs, strict: module)
    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", package)
    monkeypatch.setattr(torch._inductor, "aoti_load_package", lambda path: modules[int(Path(path).read_text())])
    return modules


def compiling(kind: str, folder: Path, **options) -> Codec:
    return Codec(toy_model(kind), compiled=CompiledTransforms(folder), **options)


@pytest.mark.parametrize("kind", ["dcae", "icwem", "dcae-bypass"])
def test_each_size_and_precision_is_compiled_once(kind, tmp_path, exported, capsys):
    x = toy_image(130, 100)
    codec, quality = compiling(kind, tmp_path), 50 if kind == "dcae-bypass" else None
    codec.prepare(130, 100, "analysis", "synthesis")
    said = capsys.readouterr().err
    assert len(exported) == 2 and "compiling analysis for" in said and "compiling synthesis for" in said
    image = codec.decompress(codec.compress(x, quality))
    assert len(exported) == 2 and not capsys.readouterr().err  # nothing was left to be done
    again = compiling(kind, tmp_path)
    assert torch.equal(again.decompress(again.compress(x, quality)), image)
    assert len(exported) == 2  # another process finds them
    eager = Codec(toy_model(kind))
    assert torch.allclose(image, eager.decompress(eager.compress(x, quality)), atol=1e-4)
    narrow = compiling(kind, tmp_path, precision="bf16")
    decoded = narrow.decompress(narrow.compress(x, quality))
    assert len(exported) == 4 and not torch.equal(decoded, image) and decoded.dtype == torch.float32
    assert {path.suffix for path in tmp_path.iterdir()} == {".pt2"} and len(list(tmp_path.iterdir())) == 4


def test_what_compiling_wins(exported, monkeypatch):
    monkeypatch.setattr("utils.devices.lacks_bfloat16", lambda: False)
    model, x = toy_model("dcae"), toy_image(128, 128)
    with torch.no_grad():
        rows = compiled_speed(model, x, 1, "wall")
    assert [row["what"] for row in rows] == [f"{t}, {p}, s" for p in PRECISIONS for t in ("analysis", "synthesis")]
    assert all(row["quick/compiled"] == row["quick"] / row["compiled"] > 0 for row in rows)
    assert len(exported) == 4 and all(row["compiling_s"] > 0 for row in rows)


def test_other_weights_are_compiled_anew(tmp_path, exported):
    x, other = toy_image(128, 128), toy_model("dcae", salt="other")
    before = compiling("dcae", tmp_path).quick.analysis(x)
    after = Codec(other, compiled=CompiledTransforms(tmp_path)).quick.analysis(x)
    assert not torch.allclose(after, before) and len(exported) == 2


def test_other_code_is_compiled_anew(tmp_path, exported, monkeypatch):
    compiling("dcae", tmp_path).prepare(128, 128, "analysis")
    monkeypatch.setattr(compiled, "_code", lambda: "changed")
    compiling("dcae", tmp_path).prepare(128, 128, "analysis")
    assert len(exported) == 2


def test_a_broken_library_is_made_again(tmp_path, exported):
    compiling("dcae", tmp_path).prepare(128, 128, "analysis")
    (library,) = tmp_path.iterdir()
    library.write_text("cut o")
    codec = compiling("dcae", tmp_path)
    codec.prepare(128, 128, "analysis")
    assert len(exported) == 2 and codec.quick.analysis(toy_image(128, 128)).isfinite().all()


def test_it_is_asked_at_the_start_whether_anything_can_be_compiled(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--compile: cannot write to"):
        check_ready(tmp_path / "file" / "folder")
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", lambda: 1 / 0)
    with pytest.raises(UserError, match=r"there is no C\+\+ compiler; install"):
        check_ready(tmp_path)


def test_nothing_is_compiled_for_a_file_of_another_model(tmp_path, exported, monkeypatch):
    """A file may say any size."""
    codec = compiling("dcae", tmp_path)
    data = Codec(toy_model("dcae", salt="other")).compress(toy_image(128, 128))
    args = argparse.Namespace(compile=True, jobs=1, checkpoint=Path("x"), random_weights=None)
    with pytest.raises(ModelMismatch):
        decompress(Job("x", tmp_path / "x", tmp_path / "y"), data, codec, args, set())
    assert not exported


def test_what_cannot_be_compiled(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no C++ compiler\nand more")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", fail)
    with pytest.raises(UserError, match=r"--compile: analysis.*\(no C\+\+ compiler\)"):
        compiling("dcae", tmp_path).prepare(128, 128, "analysis")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_real_libraries(tmp_path):
    """Where there is a compiler; where there is none, that is what is said."""
    if not any(map(shutil.which, ("g++", "clang++", os.environ.get("CXX", "c++")))):
        with pytest.raises(UserError, match=r"no C\+\+ compiler"):
            check_ready(tmp_path)
        return
    x = toy_image(128, 128)
    with torch.inference_mode():
        result, expected = compiling("dcae", tmp_path).quick.analysis(x), toy_model("dcae").analysis(x)
        again = compiling("dcae", tmp_path).quick.analysis(x)
    assert torch.allclose(result, expected, atol=1e-4) and torch.equal(again, result)
    assert len(list(tmp_path.iterdir())) == 1
