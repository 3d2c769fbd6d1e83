"""`--compile`: analysis and synthesis as machine code for one size of image, made once and kept on disk.

torch.export and AOTInductor write a library for each transform, image size and precision. Its products find their
weights packed, and what lies between them is fused. That takes a C++ compiler and a minute or two; a later run
loads the library in a moment. Whole maps are held, so that it is for images of a few megapixels. No file depends on it:
the path of the entropy coder stays as it is.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from models.base import SliceCompressionModel
from models.stripes import stripes_of
from utils.cli import UserError


def cache_folder() -> Path:
    """Where libraries are kept: `dcae` in XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dcae"


class CompiledTransforms:
    """What a model's `compiled` is set to: calls its transforms, which are compiled or loaded at their first use."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.loaded: dict[tuple, nn.Module] = {}
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

    def get(self, model: SliceCompressionModel, name: str, x: Tensor) -> nn.Module:
        """The library for inputs like x."""
        described = (model.fingerprint().hex(), name, tuple(x.shape), model.precision, x.device.type)
        if described not in self.loaded:
            described_too = (torch.__version__, platform.processor(), torch.backends.cpu.get_cpu_capability())
            key = hashlib.sha256(repr((described, described_too, torch.get_num_threads())).encode()).hexdigest()
            path = self.folder / f"{name}-{key[:16]}.pt2"
            if not path.exists():
                self._compile(model, name, x, path)
            self.loaded[described] = torch._inductor.aoti_load_package(str(path))
        return self.loaded[described]

    def _compile(self, model: SliceCompressionModel, name: str, x: Tensor, path: Path) -> None:
        start = time.perf_counter()
        print(f"compiling {name} for {x.shape[-1]}x{x.shape[-2]} ...", end=" ", file=sys.stderr, flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=".pt2")
        os.close(handle)
        try:
            with torch.inference_mode(False), torch.no_grad(), stripes_of(None):
                exported = torch.export.export(Transform(model, name), (torch.zeros_like(x),), strict=False)
                configs = {"freezing": True}
                torch._inductor.aoti_compile_and_package(exported, package_path=temporary, inductor_configs=configs)
            os.replace(temporary, path)
        except Exception as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise UserError(f"--compile: {name} cannot be compiled ({reason}); leave the flag out") from error
        finally:
            Path(temporary).unlink(missing_ok=True)
        print(f"{time.perf_counter() - start:.0f} s, kept in {path}", file=sys.stderr)


class Transform(nn.Module):
    """One transform of a model as a module of its own, in the model's precision; the result is float32."""

    def __init__(self, model: SliceCompressionModel, name: str) -> None:
        super().__init__()
        others = {id(child): nn.Identity() for key, child in model.named_children() if key not in model.transform_names}
        self.model = copy.deepcopy(model, others).eval().requires_grad_(False)
        self.name, self.precision = name, model.precision

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, self.precision, enabled=self.precision != torch.float32):
            return getattr(self.model, self.name)(x).to(x.dtype)
