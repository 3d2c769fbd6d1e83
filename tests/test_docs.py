"""What documents and docstrings name exists: files, and the names of this project's code in backquotes."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import torch

from tests.toys import toy_image, toy_model

ROOT = Path(__file__).parents[1]
CODE = [p for folder in ("models", "utils", "scripts") for p in (ROOT / folder).rglob("*.py")] + [*ROOT.glob("*.py")]
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "tests").rglob("*.md")]
FILE = re.compile(r"(?<![\w/.*-])((?:models|utils|scripts|tests|docs|assets)/[\w./-]*\w|[\w-]+\.py)\b")
NAMES = {path.name for path in CODE} | {path.name for path in (ROOT / "tests").glob("*.py")}
CALL = re.compile(r"`([A-Za-z_][\w.]*)\(")


def is_there(name: str) -> bool:
    """Whether a file or folder of the project is called that, or begins like that."""
    return name in NAMES or any((ROOT / name).parent.glob(f"{Path(name).name}*"))


@pytest.mark.parametrize("path", [*CODE, *DOCUMENTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_are_named_exist(path):
    missing = [name for name in FILE.findall(path.read_text(encoding="utf-8")) if not is_there(name)]
    assert not missing, missing


def docstrings(path: Path) -> str:
    """All of a program's, one after the other."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = (node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, kinds))
    return "\n".join(ast.get_docstring(node) or "" for node in nodes)


def test_functions_that_are_named_exist():
    """A word before a bracket, as in `update()`, is defined or called somewhere."""
    texts = [path.read_text(encoding="utf-8") for path in DOCUMENTS] + [docstrings(path) for path in CODE]
    named = {call.split(".")[-1] for text in texts for call in CALL.findall(text)}
    nodes = [node for path in CODE for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    known = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    known |= {node.id for node in nodes if isinstance(node, ast.Name)}
    known |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    assert len(named) > 10 and named <= known, named - known


def test_the_readme_in_python_runs_as_written(tmp_path, monkeypatch):
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## In Python")[1]
    code = section.split("```python\n")[1].split("```")[0]
    (checkpoint,) = re.findall(r'load_model\("(.+?)"\)', code)
    torch.save({"state_dict": toy_model("dcae").state_dict()}, tmp_path / checkpoint)
    monkeypatch.chdir(tmp_path)
    names = {"x": toy_image(60, 70)}
    exec(code, names)
    assert names["x_hat"].shape == names["x"].shape and isinstance(names["data"], bytes)
