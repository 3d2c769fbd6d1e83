"""The floors of the house: a file imports what stands below it, never above (CONTRIBUTING.md)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = (  # from the top down; what stands on one line knows nothing of each other
    {"train", "eval", "compress_and_decompress", "scripts"},
    {"utils.training", "utils.figures", "utils.measuring"},
    {"utils.evaluation"},
    {"utils.codec"},
    {"utils.inference"},
    {"models"},
    {"utils.data", "utils.entropy_coding"},
    {"utils"},
)
OLD_ADDRESSES = {ROOT / "utils" / "images.py"}  # a file that hands on what has moved up to a package
HEIGHT = {name: len(FLOORS) - i for i, floor in enumerate(FLOORS) for name in floor}
FILES = sorted(p for folder in ("models", "utils", "scripts") for p in (ROOT / folder).rglob("*.py")) + [
    ROOT / f"{program}.py" for program in ("train", "eval", "compress_and_decompress")
]


def floor_of(module: str) -> str | None:
    """The floor that a module stands on; None where it is not of this project."""
    parts = module.split(".")
    names = (".".join(parts[:n]) for n in (2, 1))
    return next((name for name in names if name in HEIGHT), None)


def imports_of(path: Path) -> set[str]:
    """Modules that a file imports anywhere, `from package import module` as package.module."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize(
    "path", [path for path in FILES if path not in OLD_ADDRESSES], ids=lambda path: str(path.relative_to(ROOT))
)
def test_imports_run_down(path):
    own = floor_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    for module in imports_of(path):
        other = floor_of(module)
        if other in (None, own) or {own, other} <= FLOORS[0]:
            continue
        assert HEIGHT[other] < HEIGHT[own], f"{path} imports {module}, which stands above or beside it"


def test_old_addresses_are_for_others_alone():
    from utils import images as old
    from utils.data import images, listing

    assert old.read_image is images.read_image and old.find_images is listing.find_images
    gone = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in OLD_ADDRESSES}
    assert not any(gone & imports_of(path) for path in FILES)


def test_nothing_imports_tests():
    for path in FILES:
        assert not any(module.split(".")[0] == "tests" for module in imports_of(path)), path


def test_models_need_the_entropy_coder_alone():
    used = {
        module for path in FILES if "models" in path.parts for module in imports_of(path) if module.startswith("utils")
    }
    assert all(module.startswith("utils.entropy_coding") for module in used), used
