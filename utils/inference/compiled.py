"""`--compile`: analysis and synthesis as machine code for one size of image, made once and kept on disk.

torch.export and AOTInductor write a library for each transform, image size and precision. Its products find their
weights packed, and what lies between them is fused. That takes a C++ compiler and a minute or two; a later run
loads the library in a moment. Whole maps are held, so that it is for images of a few megapixels. No file depends on it:
the path of the entropy coder stays as it is.
"""

from __future__ import annotations

import hashlib
import logging
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from models.base import SliceCompressionModel
from utils.cli import UserError
from utils.devices import processor
from utils.files import atomic_write, require_writable
from utils.inference.fast import shared_copy


def check_ready(folder: Path) -> None:
    """Raise UserError where nothing can be compiled or kept in the folder; asked before any image."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    require_writable(folder / "library", "--compile")
    try:
        get_cpp_compiler()
    except Exception as error:
        raise UserError("--compile: there is no C++ compiler; install g++, name one in CXX, or leave it out") from error


def weights_hash(model: nn.Module) -> str:
    """Hash of all weights."""
    digest = hashlib.sha256()
    for name, tensor in model.named_parameters():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy())
    return digest.hexdigest()


@cache
def _code() -> str:
    """Hash of the code that a library is compiled from."""
    files = sorted((Path(__file__).parents[2] / "models").rglob("*.py")) + [Path(__file__)]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


class CompiledTransforms:
    """The transforms of models, compiled or loaded at their first use."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.loaded: dict[tuple, Callable[[Tensor], Tensor]] = {}
        self.hashes: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns that there is no GPU

    def replace(self, quick: SliceCompressionModel, model: SliceCompressionModel, precision: str) -> None:
        """Let a quick copy of `model` call libraries for analysis and synthesis."""
        for name in ("analysis", "synthesis"):
            setattr(quick, name, partial(self.call, model, precision, name))

    def call(self, model: SliceCompressionModel, precision: str, name: str, x: Tensor) -> Tensor:
        """`analysis` or `synthesis` of x (B, C, H, W). Raises UserError where it cannot be compiled."""
        x = x.contiguous()
        return self.get(model, precision, name, x)(x)

    def get(self, model: SliceCompressionModel, precision: str, name: str, x: Tensor) -> Callable[[Tensor], Tensor]:
        """The library for inputs like x (B, C, H, W). Raises UserError where there is none and none can be made."""
        if model not in self.hashes:
            self.hashes[model] = weights_hash(model)
        what = (self.hashes[model], name, tuple(x.shape), precision)
        if what not in self.loaded:
            machine = (torch.__version__, processor(), torch.backends.cpu.get_cpu_capability(), torch.get_num_threads())
            key = hashlib.sha256(repr((what, machine, _code())).encode()).hexdigest()
            path = self.folder / f"{name}-{key[:16]}.pt2"
            library = _load(path)
            if library is None:
                _compile(Transform(model, precision, name), x, path)
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


def _compile(transform: Transform, x: Tensor, path: Path) -> None:
    start, name = time.perf_counter(), transform.name
    print(f"compiling {name} for inputs of {'x'.join(map(str, x.shape))} ...", file=sys.stderr)
    try:
        with tempfile.TemporaryDirectory() as folder, atomic_write(path) as file:
            library = Path(folder, "library.pt2")
            with torch.inference_mode(False), torch.no_grad():
                exported = torch.export.export(transform, (torch.zeros_like(x),), strict=False)
                configs = {"freezing": True}
                torch._inductor.aoti_compile_and_package(exported, package_path=str(library), inductor_configs=configs)
            file.write(library.read_bytes())
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"--compile: {name} cannot be compiled ({reason}); leave the flag out") from error
    print(f"compiled in {time.perf_counter() - start:.0f} s, kept in {path}", file=sys.stderr)


class Transform(nn.Module):
    """One transform of a model, as its paper writes it, as a module of its own; the result is float32."""

    def __init__(self, model: SliceCompressionModel, precision: str, name: str) -> None:
        super().__init__()
        others = {id(child): nn.Identity() for key, child in model.named_children() if key not in model.transform_names}
        self.model = shared_copy(model, others).eval()
        self.name, self.narrow = name, precision == "bf16"

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, M, H/16, W/16) for analysis, the reverse for synthesis."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.narrow):
            return getattr(self.model, self.name)(x).to(x.dtype)
