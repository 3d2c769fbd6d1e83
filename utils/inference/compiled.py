"""`--compile`: analysis and synthesis as machine code for one size of image, made once and kept on disk.

torch.export and AOTInductor write a library for each transform, image size and precision. Its products find their
weights packed, and what lies between them is fused. That takes a C++ compiler and a minute or two; a later run
loads the library in a moment. Whole maps are held, so that it is for images of a few megapixels. No file depends on it:
the path of the entropy coder stays as it is.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from models.base import SliceCompressionModel
from models.stripes import stripes_of
from utils.cli import UserError
from utils.devices import processor
from utils.files import atomic_write, require_writable


def cache_folder() -> Path:
    """Where libraries are kept: `dcae` in XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "dcae"


def check_ready(folder: Path) -> None:
    """Raise UserError where nothing can be compiled or kept in the folder; asked before any image."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    require_writable(folder / "library", "--compile")
    try:
        get_cpp_compiler()
    except Exception as error:
        raise UserError("--compile: there is no C++ compiler; install g++, name one in CXX, or leave it out") from error


@cache
def _code() -> str:
    """Hash of the programs that make a library: other code, other libraries."""
    files = sorted((Path(__file__).parents[2] / "models").rglob("*.py")) + [Path(__file__)]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


class CompiledTransforms:
    """What a model's `compiled` is set to: calls its transforms, which are compiled or loaded at their first use."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.loaded: dict[tuple, Callable[[Tensor], Tensor]] = {}
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it remarks that there is no GPU

    def __deepcopy__(self, memo: dict) -> CompiledTransforms:
        """Copies of a model share the libraries."""
        return self

    def prepare(self, model: SliceCompressionModel, height: int, width: int, names: Sequence[str]) -> None:
        """Compile or load what an image of this size will need, so that its time does not count this."""
        multiple, like = model.size_multiple, next(model.parameters())
        rows, columns = (-(-side // multiple) * multiple for side in (height, width))
        shapes = {"analysis": (1, 3, rows, columns), "synthesis": (1, model.M, rows // 16, columns // 16)}
        for name in names:
            self.get(model, name, torch.zeros(shapes[name], dtype=like.dtype, device=like.device))

    def __call__(self, model: SliceCompressionModel, name: str, x: Tensor) -> Tensor:
        """`analysis` or `synthesis` of x. Raises UserError where it cannot be compiled."""
        x = x.contiguous()
        return self.get(model, name, x)(x)

    def get(self, model: SliceCompressionModel, name: str, x: Tensor) -> Callable[[Tensor], Tensor]:
        """The library for inputs like x. Raises UserError where there is none and none can be made."""
        what = (model.fingerprint().hex(), name, tuple(x.shape), model.precision)
        if what not in self.loaded:
            machine = (torch.__version__, processor(), torch.backends.cpu.get_cpu_capability(), torch.get_num_threads())
            key = hashlib.sha256(repr((what, machine, _code())).encode()).hexdigest()
            path = self.folder / f"{name}-{key[:16]}.pt2"
            library = _load(path)
            if library is None:
                _compile(model, name, x, path)
                library = _load(path)
            if library is None:
                raise UserError(f"--compile: {path} cannot be loaded; leave the flag out")
            self.loaded[what] = library
        return self.loaded[what]


def _load(path: Path) -> Callable[[Tensor], Tensor] | None:
    """The library at path; None where there is none, or a broken one."""
    try:
        return torch._inductor.aoti_load_package(str(path)) if path.exists() else None
    except Exception:  # whatever it is, it will be made again
        return None


def _compile(model: SliceCompressionModel, name: str, x: Tensor, path: Path) -> None:
    start = time.perf_counter()
    print(f"compiling {name} for inputs of {'x'.join(map(str, x.shape))} ...", file=sys.stderr)
    try:
        with tempfile.TemporaryDirectory() as folder, atomic_write(path) as file:
            library = Path(folder, "library.pt2")
            with torch.inference_mode(False), torch.no_grad(), stripes_of(None):
                exported = torch.export.export(Transform(model, name), (torch.zeros_like(x),), strict=False)
                configs = {"freezing": True}
                torch._inductor.aoti_compile_and_package(exported, package_path=str(library), inductor_configs=configs)
            file.write(library.read_bytes())
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"--compile: {name} cannot be compiled ({reason}); leave the flag out") from error
    print(f"compiled in {time.perf_counter() - start:.0f} s, kept in {path}", file=sys.stderr)


class Transform(nn.Module):
    """One transform of a model as a module of its own, in the model's precision; the result is float32."""

    def __init__(self, model: SliceCompressionModel, name: str) -> None:
        super().__init__()
        others = {id(child): nn.Identity() for key, child in model.named_children() if key not in model.transform_names}
        self.model = model.copied(others).eval().requires_grad_(False)
        self.name, self.precision = name, model.precision

    def forward(self, x: Tensor) -> Tensor:
        """As the model's method."""
        with torch.autocast(x.device.type, self.precision, enabled=self.precision != torch.float32):
            return getattr(self.model, self.name)(x).to(x.dtype)
