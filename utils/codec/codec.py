"""One image to the bytes of a file and back: where model, engine, padding and file format meet.

codec = Codec(load_model("dcae_0.0130.pth.tar"))
data = codec.compress(x)       # x (1, 3, H, W) in [0, 1], any H and W
x_hat = codec.decompress(data)
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from models import STRIDE_Z
from models.base import SliceCompressionModel
from utils.cli import UserError
from utils.codec.bitstream import (
    Bitstream,
    BitstreamError,
    ModelMismatch,
    check_plausible,
    pack,
    pack_official,
    quality_steps,
    unpack,
)
from utils.codec.effort import Progress, Searched, compress_with_effort
from utils.codec.environment import current_environment, describe_environment
from utils.codec.search import searchable
from utils.codec.trade_off import TradeOff
from utils.data.padding import DEFAULT_PADDING, pad_centred, padded_size
from utils.entropy_coding.rans import DesynchronisedError
from utils.inference import products
from utils.inference.engine import Engine


class Codec(Engine):
    """A model as it is used: its quick copies, its tables and its fingerprint. The weights must not change any more.

    arithmetic: of the path from z_hat to the scales: "fp64" for files that decode anywhere, "fp32" for faster ones,
    "published" for the published program's layout; padding: see utils/data/padding.py; effort: 0..9, of `compress`;
    trade_off: what searches minimise, by default what the model was trained for; the rest as in Engine. Threads may
    share a codec, but for `verify`.
    """

    def __init__(
        self,
        model: SliceCompressionModel,
        arithmetic: str = "fp64",
        padding: str = DEFAULT_PADDING,
        effort: int = 0,
        trade_off: TradeOff | None = None,
        **engine: Any,
    ) -> None:
        super().__init__(model, **engine)
        self.arithmetic, self.padding, self.effort = arithmetic, padding, effort
        if trade_off is not None and model.variable_rate:
            raise UserError("--lambda: this model has a lambda for every quality; leave it out and choose --quality")
        if arithmetic == "published" and model.variable_rate:
            raise UserError(
                "--format official: has no place for a quality; leave it out, or name a checkpoint of one rate"
            )
        trained_for = model.trained_for and TradeOff(model.trained_for[1], model.trained_for[0], "checkpoint")
        self.trade_off = trade_off or trained_for  # None: that of the quality, or of the image
        self._searchable = None
        self.settings = {"arithmetic": arithmetic, "padding": padding, "effort": effort, **engine}

    @cached_property
    def fingerprint(self) -> bytes:
        """Which model wrote a file. Raises ValueError where the entropy tables are empty."""
        return fingerprint(self.model)

    @property
    def environment(self) -> bytes:
        """What float32 files record about their writer's machine."""
        device = self.device.type
        return current_environment(device, products.choice("linear", torch.float32) if device == "cpu" else "torch")

    @torch.no_grad()
    def compress(
        self, x: Tensor, quality: float | None = None, effort: int | None = None, progress: Progress | None = None
    ) -> bytes:
        """Image (1, 3, H, W) in [0, 1] -> the bytes of its file.

        `quality` 1..100, in hundredths, for variable-rate models. `effort` 0..9, by default the codec's: how long to
        search for a file that costs less (docs/effort.md); `progress` is told of its steps. Raises ValueError for a
        quality that the model does not have.
        """
        effort = self.effort if effort is None else effort
        if effort:
            return self.search(x, quality, effort, progress).data
        if quality is not None:
            quality = quality_steps(quality) / 100  # as the file will say it
        with self.bounded(*x.shape[-2:], self.arithmetic):
            y = self.quick.to_latent(self.padded(x), quality)
            return self.pack(self.code(y), x, quality)

    def search(self, x: Tensor, quality: float | None, effort: int, progress: Progress | None = None) -> Searched:
        """Image (1, 3, H, W) in [0, 1] -> its file, as by `compress` with an effort, and what the search gained.

        Effort 0 searches nothing. Raises ValueError for an effort outside 0..9 and a quality that the model does not
        have, and UserError where lambda is not known and cannot be estimated, or memory does not suffice.
        """
        quality = None if quality is None else quality_steps(quality) / 100
        return compress_with_effort(self, x, quality, effort, progress)

    def padded(self, x: Tensor) -> Tensor:
        """An image (1, 3, H, W) to the size that the model takes."""
        return pad_centred(x, self.model.size_multiple, self.padding)

    def code(self, y: Tensor, z_from: Tensor | None = None) -> dict[str, Any]:
        """y (1, M, h, w) after any gain -> what `compress_latent` returns; `z_from` as there."""
        return self.quick.compress_latent(y, self.path(self.arithmetic), z_from)

    @property
    def searchable(self) -> SliceCompressionModel:
        """The copy whose forward pass has gradients, made once."""
        with self._making:
            if self._searchable is None:
                self._searchable = searchable(self.model)
                if self.arithmetic == "published" and self.model.gaussian_conditional.fitted:
                    self._searchable.gaussian_conditional.update()  # such files know no fitted tables
        return self._searchable

    def pack(self, coded: dict[str, Any], x: Tensor, quality: float | None) -> bytes:
        """What `code` made of the padded image x (1, 3, H, W), as a file."""
        height, width = x.shape[-2:]
        (y,), (z,) = coded["strings"]
        if self.arithmetic == "published":
            return pack_official(height, width, y, z)
        portable = self.arithmetic == "fp64"
        environment = None if portable else self.environment
        return pack(
            Bitstream(height, width, (y, z), self.fingerprint, coded["checks"][0], portable, quality, environment)
        )

    @torch.no_grad()
    def decompress(self, data: bytes) -> Tensor:
        """The bytes of a file -> image (1, 3, H, W) in [0, 1] on the model's device.

        Raises BitstreamError, saying why, and ValueError for an image that is not finite.
        """
        stream = self.open(data)
        with explained(stream), self.bounded(stream.height, stream.width, stream.arithmetic):
            y_hat = self.symbols(stream)
            return self.image(y_hat, (stream.height, stream.width), stream.quality)

    def open(self, data: bytes) -> Bitstream:
        """The verified content of a file that this model can decode. Raises BitstreamError."""
        stream, model = unpack(data), self.model
        if not stream.official and stream.fingerprint != self.fingerprint:
            raise ModelMismatch(stream.fingerprint, self.fingerprint)
        if model.variable_rate != (stream.quality is not None):
            raise BitstreamError("the loaded model has several qualities and the file none" if model.variable_rate else
                                 "the file has a quality and the loaded model only one")  # fmt: skip
        check_plausible(stream, model.size_multiple, model.M, model.hyper_channels)
        return stream

    def symbols(self, stream: Bitstream) -> Tensor:
        """y_hat (1, M, h, w) of a file. Raises DesynchronisedError where its symbols are not the encoder's."""
        size = padded_size(stream.height, stream.width, self.model.size_multiple)
        shape = tuple(side // STRIDE_Z for side in size)
        strings = [[string] for string in stream.strings]
        y_hat, checks = self.quick.decompress_latent(strings, shape, self.path(stream.arithmetic))
        if stream.check is not None and checks != [stream.check]:
            raise DesynchronisedError("its symbols are not those that were encoded")
        return y_hat

    @torch.no_grad()
    def verify(self, data: bytes) -> None:
        """Decode the symbols once more in another order of summation; raise BitstreamError where they differ.

        Another number of threads, another library for products, no oneDNN: what another machine would do differently.
        """
        stream, threads = self.open(data), torch.get_num_threads()
        way = products.another_way(torch.float32 if stream.arithmetic == "fp32" else torch.float64)
        torch.set_num_threads(1 if threads > 1 else 2)
        try:
            bounded = self.bounded(stream.height, stream.width, stream.arithmetic)
            with explained(stream), products.choice.fixed(way), without_onednn(), bounded:
                self.symbols(stream)
        finally:
            torch.set_num_threads(threads)


def fingerprint(model: SliceCompressionModel) -> bytes:
    """4 bytes over weights and entropy tables: which model wrote a file. Raises ValueError before `update()`."""
    for prior in model.entropy_models():
        prior.tables()
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy())
    return digest.digest()[:4]


@contextmanager
def explained(stream: Bitstream) -> Iterator[None]:
    """Turn a lost decoder into a BitstreamError that says what to do."""
    try:
        yield
    except DesynchronisedError as error:
        if stream.official:
            advice = "files in the published layout need the checkpoint and the kind of machine that wrote them"
        elif stream.portable:
            advice = "please report this file: a portable file should decode anywhere"
        else:
            written = describe_environment(stream.environment)
            advice = f"decode it where it was written ({written}), or compress with --arithmetic fp64"
        raise BitstreamError(f"{error}; {advice}") from error


@contextmanager
def without_onednn() -> Iterator[None]:
    """Let torch's own kernels do what oneDNN does otherwise."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="TF32", category=UserWarning)  # about GPUs that are not there
        with torch.backends.mkldnn.flags(enabled=False):
            yield
