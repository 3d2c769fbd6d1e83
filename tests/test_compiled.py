"""`--compile`: what is compiled for what, and that it computes the same."""

from __future__ import annotations

import argparse
import copy
import os
import shutil
from pathlib import Path

import pytest
import torch

from compress_and_decompress import decompress
from models import stripes
from models.layers import winograd
from tests.toys import toy_image, toy_model
from utils.cli import UserError
from utils.codec.bitstream import ModelMismatch
from utils.codec.codec import compress_image, decompress_image
from utils.codec.folders import Job
from utils.inference import compiled
from utils.inference.compiled import CompiledTransforms, check_ready
from utils.inference.memory import compile_ahead


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


def compiling(kind: str, folder: Path):
    model = copy.deepcopy(toy_model(kind))
    model.compiled = CompiledTransforms(folder)
    return model


@pytest.mark.parametrize("kind", ["dcae", "icwem", "dcae-variable-rate"])
def test_each_size_and_precision_is_compiled_once(kind, tmp_path, exported, capsys):
    x = toy_image(130, 100)
    model, quality = compiling(kind, tmp_path), 50 if kind == "dcae-variable-rate" else None
    with torch.inference_mode():
        compile_ahead(model, 130, 100, "analysis", "synthesis")
        said = capsys.readouterr().err
        assert len(exported) == 2 and "compiling analysis for" in said and "compiling synthesis for" in said
        image = decompress_image(model, compress_image(model, x, quality))
        assert len(exported) == 2 and not capsys.readouterr().err  # nothing was left to be done
        again = compiling(kind, tmp_path)
        assert torch.equal(decompress_image(again, compress_image(again, x, quality)), image)
        assert len(exported) == 2  # another process finds them
        expected = decompress_image(toy_model(kind), compress_image(toy_model(kind), x, quality))
        assert torch.allclose(image, expected, atol=1e-4)
        again.precision = torch.bfloat16
        narrow = decompress_image(again, compress_image(again, x, quality))
        assert len(exported) == 4 and not torch.equal(narrow, image) and narrow.dtype == torch.float32
    assert {path.suffix for path in tmp_path.iterdir()} == {".pt2"} and len(list(tmp_path.iterdir())) == 4


def test_other_weights_are_compiled_anew(tmp_path, exported):
    model, x = compiling("dcae", tmp_path), toy_image(128, 128)
    with torch.inference_mode():
        before = model.transform("analysis", x)
    with torch.no_grad():
        model.load_state_dict({name: value * 0.5 for name, value in model.state_dict().items()})
    model.update(force=True)
    with torch.inference_mode():
        assert not torch.allclose(model.transform("analysis", x), before) and len(exported) == 2


def test_other_code_is_compiled_anew(tmp_path, exported, monkeypatch):
    with torch.inference_mode():
        compile_ahead(compiling("dcae", tmp_path), 128, 128, "analysis")
        monkeypatch.setattr(compiled, "_code", lambda: "changed")
        compile_ahead(compiling("dcae", tmp_path), 128, 128, "analysis")
    assert len(exported) == 2


def test_a_broken_library_is_made_again(tmp_path, exported):
    with torch.inference_mode():
        compile_ahead(compiling("dcae", tmp_path), 128, 128, "analysis")
        (library,) = tmp_path.iterdir()
        library.write_text("cut o")
        model = compiling("dcae", tmp_path)
        compile_ahead(model, 128, 128, "analysis")
        assert len(exported) == 2 and model.transform("analysis", toy_image(128, 128)).isfinite().all()


def test_it_is_asked_at_the_start_whether_anything_can_be_compiled(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--compile: cannot write to"):
        check_ready(tmp_path / "file" / "folder")
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", lambda: 1 / 0)
    with pytest.raises(UserError, match=r"there is no C\+\+ compiler; install"):
        check_ready(tmp_path)


def test_nothing_is_compiled_for_a_file_of_another_model(tmp_path, exported, monkeypatch):
    """A file may say any size."""
    model = compiling("dcae", tmp_path)
    data = compress_image(toy_model("dcae", salt="other"), toy_image(128, 128))
    args = argparse.Namespace(compile=True, jobs=1, device=torch.device("cpu"))
    with torch.inference_mode(), pytest.raises(ModelMismatch):
        decompress(Job("x", tmp_path / "x", tmp_path / "y"), data, model, args, set())
    assert not exported


def test_what_cannot_be_compiled(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no C++ compiler\nand more")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", fail)
    model = compiling("dcae", tmp_path)
    with torch.inference_mode(), pytest.raises(UserError, match=r"--compile: analysis.*\(no C\+\+ compiler\)"):
        compile_ahead(model, 128, 128, "analysis")
    assert not list(tmp_path.iterdir())


def test_wide_layers_are_exported(monkeypatch, tmp_path):
    """Their loops are for eager models; what is exported computes the same."""

    def package(exported, package_path, inductor_configs):
        Path(package_path).touch()
        modules.append(exported.module())

    modules: list[torch.nn.Module] = []
    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", package)
    monkeypatch.setattr(torch._inductor, "aoti_load_package", lambda path: modules[-1])
    model, x = compiling("dcae", tmp_path), torch.rand(1, 128, 9, 13)
    wide = torch.nn.Conv2d(128, 128, 3, padding=1)
    model.analysis = lambda x: stripes.convolution(wide, x)
    with torch.inference_mode():
        assert winograd.pays(x, wide)
        assert torch.allclose(model.transform("analysis", x), model.analysis(x), atol=1e-5)


@pytest.mark.slow
def test_real_libraries(tmp_path):
    """Where there is a compiler; where there is none, that is what is said."""
    if not any(map(shutil.which, ("g++", "clang++", os.environ.get("CXX", "c++")))):
        with pytest.raises(UserError, match=r"no C\+\+ compiler"):
            check_ready(tmp_path)
        return
    model, x = compiling("dcae", tmp_path), toy_image(128, 128)
    with torch.inference_mode():
        result, expected = model.transform("analysis", x), toy_model("dcae").analysis(x)
        again = compiling("dcae", tmp_path).transform("analysis", x)
    assert torch.allclose(result, expected, atol=1e-4) and torch.equal(again, result)
    assert len(list(tmp_path.iterdir())) == 1
