"""One image to the bytes of a file and back: where model, padding and file format meet."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from models.base import SliceCompressionModel
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
from utils.codec.environment import current_environment, describe_environment
from utils.data.padding import DEFAULT_PADDING, pad_centred
from utils.entropy_coding.rans import DesynchronisedError
from utils.inference.memory import bounded

DEFAULT_QUALITY = 50.0


def compress_image(
    model: SliceCompressionModel,
    x: Tensor,
    quality: float | None = None,
    arithmetic: str = "fp64",
    padding: str = DEFAULT_PADDING,
) -> bytes:
    """Image (1, 3, H, W) in [0, 1] -> the bytes of its file.

    `arithmetic` is "fp64" for files that decode anywhere, "fp32" for faster ones, "published" for the published
    program's layout. `quality` 1..100, in hundredths, for variable-rate models. Raises ValueError for a quality that
    the model does not have.
    """
    if quality is not None:
        quality = quality_steps(quality) / 100  # as the file will say it
    padded = pad_centred(x, model.size_multiple, padding)
    return pack_image(model, model.compress(padded, quality, arithmetic), x, quality, arithmetic)


def pack_image(
    model: SliceCompressionModel, coded: dict[str, Any], x: Tensor, quality: float | None, arithmetic: str
) -> bytes:
    """What `model.compress` made of the padded image x (1, 3, H, W), as a file."""
    height, width = x.shape[-2:]
    (y,), (z,) = coded["strings"]
    if arithmetic == "published":
        return pack_official(height, width, y, z)
    environment = None if arithmetic == "fp64" else current_environment(x.device.type)
    stream = Bitstream(
        height, width, (y, z), model.fingerprint(), coded["checks"][0], arithmetic == "fp64", quality, environment
    )
    return pack(stream)


def decompress_image(model: SliceCompressionModel, data: bytes) -> Tensor:
    """The bytes of a file -> image (1, 3, H, W) in [0, 1] on the model's device. Raises BitstreamError, saying why."""
    stream = open_file(model, data)
    with explained(stream), bounded(model, stream.height, stream.width, stream.arithmetic):
        out = model.decompress(
            [[s] for s in stream.strings], latent_shape(model, stream), (stream.height, stream.width), stream.quality,
            stream.arithmetic,
        )  # fmt: skip
        check_symbols(stream, out["checks"])
    return out["x_hat"]


def open_file(model: SliceCompressionModel, data: bytes) -> Bitstream:
    """The verified content of a file that `model` can decode. Raises BitstreamError."""
    stream = unpack(data)
    if not stream.official and stream.fingerprint != model.fingerprint():
        raise ModelMismatch(stream.fingerprint, model.fingerprint())
    if model.variable_rate != (stream.quality is not None):
        raise BitstreamError("the loaded model has several qualities and the file none" if model.variable_rate else
                             "the file has a quality and the loaded model only one")  # fmt: skip
    check_plausible(stream, model.size_multiple, model.M, model.hyper_channels)
    return stream


def latent_shape(model: SliceCompressionModel, stream: Bitstream) -> tuple[int, int]:
    """Height and width of z."""
    multiple = model.size_multiple
    return tuple(-(-side // multiple) * multiple // 64 for side in (stream.height, stream.width))


def check_symbols(stream: Bitstream, checks: list[int]) -> None:
    """Raise DesynchronisedError where the decoded symbols are not those that were encoded."""
    if stream.check is not None and checks != [stream.check]:
        raise DesynchronisedError("its symbols are not those that were encoded")


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


def foreign_environment(stream: Bitstream, device: str) -> str | None:
    """Where a fast file was written, in words, if that is not an environment like this one; None otherwise."""
    if stream.environment is None or stream.environment == current_environment(device):
        return None
    return describe_environment(stream.environment)


def verify_file(model: SliceCompressionModel, data: bytes) -> None:
    """Decode the symbols once more in another order of summation; raise BitstreamError where they differ.

    Another number of threads and no oneDNN: what another machine would do differently.
    """
    stream = open_file(model, data)
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if threads > 1 else 2)
    try:
        with explained(stream), without_onednn(), bounded(model, stream.height, stream.width, stream.arithmetic):
            strings = [[s] for s in stream.strings]
            check_symbols(stream, model.decompress_latent(strings, latent_shape(model, stream), stream.arithmetic)[1])
    finally:
        torch.set_num_threads(threads)


@contextmanager
def without_onednn() -> Iterator[None]:
    """Let torch's own kernels do what oneDNN does otherwise."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="TF32", category=UserWarning)  # about GPUs that are not there
        with torch.backends.mkldnn.flags(enabled=False):
            yield
