"""A model as it computes: its quick copies, in which precision, in how much memory.

    peak = what is held before (weights, libraries, transformed kernels) + maps, a number of bytes a pixel + temporaries

The last part grows with the stripe (utils/inference/rows.py), so that a limit sets its size. `bounded` cuts each
image as it needs. Files do not depend on any of it: the path of the entropy coder keeps its own arithmetic, and stripes
only change the order of sums.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from threading import RLock

import torch
from torch import Tensor

from models import STRIDE_Y
from models.base import SliceCompressionModel
from utils.cli import UserError
from utils.data.padding import crop_centred, padded_size
from utils.inference import products
from utils.inference.bfloat16 import in_bfloat16
from utils.inference.compiled import CompiledTransforms
from utils.inference.fast import fast, uncut
from utils.inference.float64 import portable
from utils.inference.memory import BYTES_A_PIXEL, PRECISIONS, PUBLISHED_WIDTH, give_back_memory, held, stripe_within
from utils.inference.published import published_tables, unfitted_tables
from utils.inference.rows import stripes_of
from utils.inference.winograd import warm_up, workspace
from utils.metrics import require_finite

ARITHMETICS = ("fp64", "fp32", "published")
BESIDE = ("entropy_bottleneck", "gaussian_conditional", "gain", "token_decoder")  # small, or not on the way


class Engine:
    """Quick copies of a model, made once each.

    precision: "fp32" or "bf16", of analysis and synthesis; max_memory: bytes that the process is to stay below, None
    for no limit; compiled: transforms as libraries, None for none. The weights must not change any more. Raises
    UserError where a limit cannot be kept, ValueError for an unknown precision.
    """

    def __init__(
        self,
        model: SliceCompressionModel,
        precision: str = "fp32",
        max_memory: int | None = None,
        compiled: CompiledTransforms | None = None,
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision {precision!r} is none of {', '.join(PRECISIONS)}")
        self.model, self.max_memory, self.compiled, self.precision = model, max_memory, compiled, precision
        self.quick = fast(model)
        self._paths: dict[str, SliceCompressionModel] = {"fp32": self.quick}
        self._making = RLock()  # of threads that work with one model, one makes a copy and the others wait
        if max_memory is not None:
            check_cut(self.quick, model.model_name)
        if self.device.type == "cpu":
            products.prepare(torch.float32, torch.float64)
        if precision == "bf16":
            in_bfloat16(self.quick)
        if compiled is not None:
            compiled.replace(self.quick, model, precision)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def path(self, arithmetic: str) -> SliceCompressionModel:
        """The copy whose `code_slices` works in `arithmetic`. Raises ValueError where there is none such.

        "published" files come from float32 programs on other machines: float64 is the closest to all of them, with the
        tables of z as CompressAI computes them.
        """
        if arithmetic not in ARITHMETICS:
            raise ValueError(f"arithmetic {arithmetic!r} is none of {', '.join(ARITHMETICS)}")
        with self._making:
            if arithmetic not in self._paths:
                self._paths[arithmetic] = path = portable(self.model)
                if arithmetic == "published":
                    path.entropy_bottleneck.use(published_tables(self.model.entropy_bottleneck))
                    path.gaussian_conditional.use(unfitted_tables(self.model.gaussian_conditional))
        return self._paths[arithmetic]

    def image(self, y_hat: Tensor, size: tuple[int, int], quality: float | None = None) -> Tensor:
        """y_hat (B, M, h, w), before any inverse gain -> image (B, 3, *size) in [0, 1].

        Raises ValueError where it is not finite.
        """
        return crop_centred(require_finite(self.quick.to_image(y_hat, quality)), size).clamp(0, 1)

    @contextmanager
    def bounded(self, height: int, width: int, arithmetic: str = "fp32") -> Iterator[None]:
        """Inside the block, an image of this size is coded within the limit. Raises UserError where that is too low."""
        if self.max_memory is None:
            with stripes_of(None) if self.device.type == "cuda" else nullcontext():
                yield
            return
        path, device = self.path(arithmetic), self.device
        if device.type == "cpu":
            warm_up()
            give_back_memory()
        held_before = held(device) + (workspace(path) + self.to_pack(path) if device.type == "cpu" else 0)
        rows, columns = padded_size(height, width, self.model.size_multiple)
        wider = max(1, self.model.config.get("channels", (0,))[0] / PUBLISHED_WIDTH)
        with stripes_of(stripe_within(self.max_memory, held_before, round(rows * columns * wider * BYTES_A_PIXEL))):
            yield

    def to_pack(self, path: SliceCompressionModel) -> int:
        """Bytes of weights that will be packed (utils/inference/products.py) when an image is coded by this path."""
        if path is self.quick:
            return products.bytes_to_pack(path)
        names = self.quick.transform_names + self.quick.hyper_names
        return products.bytes_to_pack(path, *(getattr(self.quick, name) for name in names))

    def prepare(self, height: int, width: int, *transforms: str) -> None:
        """With `compiled`, make what an image of this size needs before the clock of its own time starts."""
        if self.compiled is not None:
            rows, columns = padded_size(height, width, self.model.size_multiple)
            shapes = {"analysis": (1, 3, rows, columns)}
            shapes["synthesis"] = (1, self.model.M, rows // STRIDE_Y, columns // STRIDE_Y)
            for name in transforms:
                self.compiled.get(self.model, self.precision, name, torch.zeros(shapes[name], device=self.device))


def check_cut(quick: SliceCompressionModel, name: str) -> None:
    """Raise UserError, naming it, for the first layer of a quick copy that works on whole maps."""
    for key, child in quick.named_children():
        if key in BESIDE:
            continue
        for layer, module in uncut(child, key):
            raise UserError(
                f"--max-memory: {name}'s layer {layer} ({type(module).__name__}) works on whole maps, which no limit"
                " can bound; leave the flag out"
            )
