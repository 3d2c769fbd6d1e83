"""results.json: rate-distortion points in CompressAI's layout, with what they were averaged from beside them.

    {"name", "description", "notes": {what: unit and meaning},
     "results": {"bpp": [...], "psnr-rgb": [...], "ms-ssim-rgb": [...], "encoding_time": [...], "decoding_time": [...]},
     "points": [{"checkpoint", "model", "quality", "rate", "arithmetic", "device", "average", "images", "failed"}, ...],
     "left_out": {reason: [names of files that were not evaluated]}, where there are any}

All lists have one entry a checkpoint and quality, in order of bpp. CompressAI's tools read "results"; "points" is ours,
with the records of utils/evaluation/evaluation.py under "images" and their averages under "average". Points that others
published (results/) have neither notes nor "points" but "kind", "classical" or "learned", and "source", where they are
from.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.cli import UserError
from utils.files import atomic_write
from utils.text import to_json

NOTES = {
    "bpp": "bits per pixel of the image without padding, mean over images; whole files if the rate is real",
    "psnr-rgb": "dB, of 8-bit pixels, all channels together, mean over images of each image's PSNR",
    "ms-ssim-rgb": "0..1, of 8-bit pixels, mean over the images with both sides of 161 pixels or more",
    "encoding_time": "seconds an image, from pixels to the bytes of the file; null if the rate is estimated",
    "decoding_time": "seconds an image, from the bytes of the file to pixels; null if the rate is estimated",
    "points": "*_ms in milliseconds, psnr* and *_db in dB, bpp* in bits per pixel, *_percent in percent; *_float "
    "before rounding to 8 bits; won_percent, lambda, metric, source: of a search with effort; null: not measured, "
    "not defined (MS-SSIM of small images), infinite (PSNR)",
}


def make_results(
    name: str, description: str, points: Sequence[dict[str, Any]], left_out: dict[str, list[str]] | None = None
) -> dict[str, Any]:
    """Put evaluated points, each with its "average" and its "images", into the layout above, in order of bpp."""
    points = sorted(points, key=lambda point: point["average"]["bpp"])
    averages = [point["average"] for point in points]
    columns = {
        "bpp": [average["bpp"] for average in averages],
        "psnr-rgb": [average["psnr"] for average in averages],
        "ms-ssim-rgb": [average["ms_ssim"] for average in averages],
        "encoding_time": [_seconds(average["encode_ms"]) for average in averages],
        "decoding_time": [_seconds(average["decode_ms"]) for average in averages],
    }
    told = {"left_out": left_out} if left_out else {}
    return {"name": name, "description": description, "notes": NOTES, "results": columns, "points": list(points)} | told


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def write_results(path: str | Path, results: dict[str, Any]) -> None:
    """Write results.json, complete or not at all. Raises UserError where that is impossible."""
    try:
        with atomic_write(path) as file:
            file.write(to_json(results).encode() + b"\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another --output") from error


def read_results(path: str | Path) -> dict[str, Any]:
    """Read a results.json of ours or of CompressAI.

    Raises UserError, naming the file, unless it holds "results" with lists of one length, "bpp" among them, and nothing
    but objects in "points", if there are any.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{path}: not a JSON file ({error})") from error
    columns = content.get("results") if isinstance(content, dict) else None
    if not isinstance(columns, dict) or not isinstance(columns.get("bpp"), list):
        raise UserError(f'{path}: has no "results" with a list "bpp"; eval.py and CompressAI write such files')
    lengths = {len(column) for column in columns.values() if isinstance(column, list)}
    if len(lengths) != 1:
        raise UserError(f'{path}: the lists in "results" differ in length')
    points = content.get("points") or []
    if not isinstance(points, list) or not all(isinstance(point, dict) for point in points):
        raise UserError(f'{path}: "points" is not a list of objects; evaluate again, or remove it')
    return content
