"""What one model makes of some images: rate, distortion and time, image by image and on average.

eval.py prints it, and train.py's validation is the same code on the same whole images, so that the two agree.

A record is a dict of one image; a quantity that was not measured, or that the image does not have, is None:

    name, height, width     the path as given, and its pixels
    bpp                     bits per real pixel (padding adds none): of the whole file, or estimated without one
    bpp_y, bpp_z            its parts: the latent and the hyper-latent
    bpp_header              the rest of the file (0 for an estimate)
    bpp_estimated           -sum log2 of the likelihoods per pixel
    excess_percent          how far bpp is above bpp_estimated; None with effort, which codes another latent
    bytes                   of the file
    mse, psnr, ms_ssim, ms_ssim_db                          of the image as its 8-bit file shows it; psnr in dB
    mse_float, psnr_float, ms_ssim_float, ms_ssim_db_float  of the clamped, unrounded output
    encode_ms, decode_ms    pixels to the bytes of the file, and back to pixels on the model's device
    forward_ms              the estimate: one pass through the model, without entropy coding
    won_percent, lambda, metric, source                     with effort: by how much the cost lambda * distortion + rate
                            fell, for which lambda of which metric, and where that is from ("quality", "slope", ...)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from utils.codec.bitstream import unpack
from utils.data.images import read_image, to_tensor, to_uint8
from utils.data.padding import crop_centred
from utils.metrics import (
    bits_per_position,
    bpp,
    estimated_bits,
    ms_ssim,
    ms_ssim_db,
    mse,
    psnr_of_mse,
    quantise_8_bit,
    require_finite,
)

if TYPE_CHECKING:
    from utils.codec.codec import Codec

Record = dict[str, Any]
Result = TypeVar("Result")
Criterion = Callable[[dict[str, Any], Tensor], float | None]

AS_FILE = ("mse", "psnr", "ms_ssim", "ms_ssim_db")
QUANTITIES = (
    *("bpp", "bpp_y", "bpp_z", "bpp_header", "bpp_estimated", "bytes"),
    *AS_FILE,
    *(f"{name}_float" for name in AS_FILE),
    *("encode_ms", "decode_ms", "forward_ms"),
    *("won_percent", "lambda"),  # of a codec with effort
)


def evaluate_images(
    codec: Codec,
    paths: Iterable[str | Path],
    *,
    quality: float | None = None,
    real: bool = False,
    warm_up: bool = False,
    progress: str | None = None,
    keep: Callable[[Path, np.ndarray], None] | None = None,
    keep_bits: Callable[[Path, np.ndarray], None] | None = None,
    failed: Callable[[Path, Exception], None] | None = None,
    noted: Callable[[Path, list[str]], None] | None = None,
    criterion: Criterion | None = None,
) -> list[Record]:
    """Evaluate a codec on whole images one at a time; return a record (see above) for each that worked.

    Args:
        quality: 1..100 for variable-rate models, None for the others.
        real: code every image to the bytes of a file and back (the entropy tables must be up to date) and measure
            that; otherwise the rate is estimated, without coding.
        warm_up: run the first image once before it is timed, for what a device does the first time only.
        progress: label of a bar on stderr, shown on a terminal; None for no bar.
        keep: called with each path and its reconstruction, uint8 (H, W, 3).
        keep_bits: called with each path and the estimated bits at each position of y, summed over its channels,
            float64 (h, w); of the image as it was padded.
        failed: called with each path that cannot be evaluated and why; without it the first such error is raised.
        noted: called with each path and what reading it lost or changed, if anything.
        criterion: gives each record its "loss", from the model's output, with x_hat as it is shown, and the image.
    """
    evaluate = partial(evaluate_image, codec, quality=quality, real=real, criterion=criterion)
    records: list[Record] = []
    with torch.inference_mode():
        for path in tqdm(list(paths), desc=progress, unit="image", disable=None if progress else True):
            try:
                records.append(evaluate_file(path, evaluate, warm_up and not records, keep, keep_bits, noted))
            except Exception as error:  # whatever one image brings about, the others are still worth measuring
                if failed is None:
                    raise
                failed(Path(path), error)
    return records


def evaluate_file(
    path: str | Path,
    evaluate: Callable[..., tuple[Record, np.ndarray, np.ndarray]],
    warm_up: bool = False,
    keep: Callable[[Path, np.ndarray], None] | None = None,
    keep_bits: Callable[[Path, np.ndarray], None] | None = None,
    noted: Callable[[Path, list[str]], None] | None = None,
) -> Record:
    """Read one image, uint8 (H, W, 3), `evaluate` it (once before to `warm_up`, with effort=0), pass on what comes."""
    path = Path(path)
    pixels, notes = read_image(path)
    if noted and notes:
        noted(path, notes)
    if warm_up:
        evaluate(pixels, effort=0)
    record, decoded, bits = evaluate(pixels)
    if keep:
        keep(path, decoded)
    if keep_bits:
        keep_bits(path, bits)
    return {"name": path.as_posix(), **record}


def evaluate_image(
    codec: Codec,
    pixels: np.ndarray,
    *,
    quality: float | None = None,
    real: bool = False,
    criterion: Criterion | None = None,
    effort: int | None = None,
) -> tuple[Record, np.ndarray, np.ndarray]:
    """Record of one image, uint8 (H, W, 3), without its name, its reconstruction, likewise, and its bits (h, w).

    The bits are those of the encoder's own latent, whatever the effort of the file (the codec's, if it is None).
    """
    height, width = pixels.shape[:2]
    x = to_tensor(pixels).to(codec.device)
    record: Record = {"height": height, "width": width, **dict.fromkeys(QUANTITIES)}
    rates, x_hat, bits = estimate(codec, x, quality, criterion)
    record.update(rates)
    if real:
        rates, x_hat = code(codec, x, quality, codec.effort if effort is None else effort)
        record.update(rates)
    record.update(distortion(x, quantise_8_bit(x_hat)))
    record.update({f"{name}_float": value for name, value in distortion(x, x_hat).items()})
    record["excess_percent"] = excess(record)
    return record, to_uint8(x_hat), bits.cpu().numpy()


def estimate(
    codec: Codec, x: Tensor, quality: float | None, criterion: Criterion | None = None
) -> tuple[Record, Tensor, Tensor]:
    """Estimated rate of one image (1, 3, H, W), its reconstruction, clamped to [0, 1], and bits a position (h, w).

    Padded as a file's image is, so that the estimate is of the same symbols.
    """
    size = x.shape[-2:]
    codec.prepare(*size, "analysis", "synthesis")
    with codec.bounded(*size):
        out, milliseconds = timed(lambda: codec.quick(codec.padded(x), quality), x.device)
    y, z = (bpp(estimated_bits(out["likelihoods"][name]), *size) for name in ("y", "z"))
    rates = {"bpp": y + z, "bpp_y": y, "bpp_z": z, "bpp_header": 0.0, "bpp_estimated": y + z}
    x_hat = require_finite(crop_centred(out["x_hat"], size)).clamp(0, 1)
    if criterion:
        rates["loss"] = criterion({**out, "x_hat": x_hat}, x)
    return {**rates, "forward_ms": milliseconds}, x_hat, bits_per_position(out["likelihoods"]["y"])


def code(codec: Codec, x: Tensor, quality: float | None, effort: int) -> tuple[Record, Tensor]:
    """Rate of one image (1, 3, H, W) as the bytes of its file, and the file's image in [0, 1]."""
    size, device, searched = x.shape[-2:], x.device, {}
    codec.prepare(*size, "analysis", "synthesis")
    if effort:
        found, encode_ms = timed(lambda: codec.search(x, quality, effort), device)
        data, searched = found.data, {"won_percent": found.won_percent, **found.trade_off.described()}
    else:
        data, encode_ms = timed(lambda: codec.compress(x, quality, effort), device)
    x_hat, decode_ms = timed(lambda: codec.decompress(data), device)
    y, z = (bpp(8 * len(string), *size) for string in unpack(data).strings)
    total = bpp(8 * len(data), *size)
    rates = {"bytes": len(data), "bpp": total, "bpp_y": y, "bpp_z": z, "bpp_header": total - y - z}
    return {**rates, **searched, "encode_ms": encode_ms, "decode_ms": decode_ms}, x_hat


def distortion(x: Tensor, x_hat: Tensor) -> Record:
    """MSE, PSNR in dB, MS-SSIM in 0..1 and in dB of two images (1, 3, H, W) in [0, 1]."""
    error, similarity = mse(x, x_hat), ms_ssim(x, x_hat)
    return dict(zip(AS_FILE, (error, psnr_of_mse(error), similarity, ms_ssim_db(similarity))))


def excess(record: Record) -> float | None:
    """By how many percent the real rate is above the estimated one; None without a file, and of one with effort."""
    real = record["bytes"] is not None and record["bpp_estimated"] and record["won_percent"] is None
    return 100 * (record["bpp"] / record["bpp_estimated"] - 1) if real else None


def timed(function: Callable[[], Result], device: torch.device) -> tuple[Result, float]:
    """What `function` returns, and the milliseconds until the device has finished it."""
    synchronise(device)
    start = time.perf_counter()
    result = function()
    synchronise(device)
    return result, 1000 * (time.perf_counter() - start)


def synchronise(device: torch.device) -> None:
    """Wait for the device to finish what it was given; a CPU has finished already."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def average(records: Sequence[Record]) -> Record:
    """Average of records: each quantity's mean over the images that have it, None if none has.

    The PSNR of a set is the mean of the images' PSNR, as papers report it, and likewise MS-SSIM in dB;
    "psnr_of_mean_mse" and "ms_ssim_db_of_mean" are the other way to average. "excess_percent" compares the mean
    rates. "images" counts all, "images_with_ms_ssim" those large enough for MS-SSIM. Raises ValueError for no records.
    """
    if not records:
        raise ValueError("no images to average over")
    result = {name: mean(record[name] for record in records) for name in QUANTITIES}
    result["excess_percent"] = excess(result)
    result["psnr_of_mean_mse"] = psnr_of_mse(result["mse"])
    result["ms_ssim_db_of_mean"] = ms_ssim_db(result["ms_ssim"])
    result["images"] = len(records)
    result["images_with_ms_ssim"] = sum(record["ms_ssim"] is not None for record in records)
    return result


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are not None, None if there are none."""
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None
