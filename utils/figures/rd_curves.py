"""Rate-distortion curves from JSON files in the layout of utils/evaluation/results.py, which is CompressAI's too.

A curve is named by a path ("out/results.json") or, of those in results/, by folder and stem ("kodak/vtm");
"Ours=out.json" gives it another name. Quality is always in dB: PSNR, or MS-SSIM as -10 log10(1 - MS-SSIM) of the mean
over the images.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from utils.cli import UserError
from utils.evaluation.results import read_results
from utils.metrics import ms_ssim_db
from utils.text import printable

RESULTS = Path(__file__).parents[2] / "results"
SETS = {"kodak": "Kodak", "clic": "CLIC professional valid", "tecnick": "Tecnick 1200x1200"}
METRICS = {"psnr": "PSNR (dB)", "ms-ssim": "MS-SSIM (dB)"}  # name on the command line -> label of an axis
COLUMNS = {"psnr": ("psnr-rgb", "psnr"), "ms-ssim": ("ms-ssim-rgb", "ms-ssim")}  # CompressAI's newer and older keys

LARGEST = 1e300  # no bits and no decibels reach it; infinity, and what is no number at all, are not below it


@dataclass(frozen=True)
class Curve:
    """Points in order of rate, each of more bits and of higher quality than the one before.

    bpp: bits per pixel; quality: dB; kind: "classical", "learned" or "" (not said); source: where the points are from;
    notes: what was left out on reading, a line each.
    """

    name: str
    bpp: tuple[float, ...]
    quality: tuple[float, ...]
    metric: str = "psnr"
    kind: str = ""
    source: str = ""
    notes: tuple[str, ...] = ()

    @property
    def points(self) -> list[tuple[float, float]]:
        return list(zip(self.bpp, self.quality))


def load_curve(reference: str, metric: str = "psnr") -> Curve:
    """The curve that `reference` names, see above. Raises UserError, naming it, if there is none or not of `metric`."""
    label, path = resolve(reference)
    content = read_results(path)
    points = [(rate, value) for rate, value in _points(content, metric, path) if _usable(rate, value)]
    curve = Curve(
        name=printable(label or str(content.get("name") or path.stem)),
        bpp=(),
        quality=(),
        metric=metric,
        kind=content.get("kind", ""),
        source=printable(str(content.get("source") or content.get("description") or path.name)),
    )
    dropped = len(content["results"]["bpp"]) - len(points)
    left = f"{curve.name}: {dropped} point(s) without a value in {metric} left out, or without a rate above 0"
    return _rising(replace(curve, notes=(left,) if dropped else ()), sorted(points))


def _usable(rate: float | None, value: float | None) -> bool:
    """Whether a point has a value at a rate above 0: the others have no place on a curve."""
    return None not in (rate, value) and rate > 0


def mean_seconds(reference: str, column: str) -> float | None:
    """Mean of "encoding_time" or "decoding_time" over the points, in seconds an image; None where it is not given."""
    path = resolve(reference)[1]
    times = _numbers(read_results(path)["results"].get(column) or [None], column, path)
    return None if None in times else sum(times) / len(times)


def image_curves(reference: str) -> dict[str, Curve]:
    """PSNR curves of the single images, by name; none where the file holds only means.

    Raises UserError, naming the file, where an image lacks its name, its bpp or its psnr.
    """
    points: dict[str, list[tuple[float, float]]] = {}
    path = resolve(reference)[1]
    try:
        found = [image for point in read_results(path).get("points") or [] for image in point.get("images") or []]
        images = [(str(image["name"]), image["bpp"], image["psnr"]) for image in found]
    except (TypeError, KeyError) as error:
        raise UserError(f'{path}: an entry of "images" lacks name, bpp or psnr; evaluate again') from error
    for name, *pair in images:
        if _usable(*_numbers(pair, "images", path)):
            points.setdefault(name, []).append(tuple(pair))
    return {name: _rising(Curve(name, (), ()), sorted(pairs)) for name, pairs in points.items()}


def resolve(reference: str) -> tuple[str | None, Path]:
    """(label or None, file) of "kodak/vtm", of a path, or of either as "label=...". Raises UserError if not there."""
    label, separator, rest = reference.partition("=")
    if separator and not Path(reference).exists():
        return label, resolve(rest)[1]
    path = Path(reference)
    for candidate in (path, RESULTS / f"{reference}.json"):
        if candidate.is_file():
            return None, candidate
    if path.is_dir():
        raise UserError(f"{reference}: is a folder; name a JSON file in it")
    close = difflib.get_close_matches(reference, known_curves(), n=3)
    hint = f"; is it {' or '.join(close)}?" if close else "; --list shows the curves in results/"
    raise UserError(f"{reference}: there is no such file, nor a curve of that name{hint}")


def known_curves() -> list[str]:
    """Names of the curves in results/, such as "kodak/vtm"; other JSON files there are passed over."""
    return [name for path in sorted(RESULTS.glob("*/**/*.json")) if (name := _name_if_curve(path))]


def _name_if_curve(path: Path) -> str | None:
    try:
        read_results(path)
    except UserError:
        return None
    return path.relative_to(RESULTS).with_suffix("").as_posix()


def describe_curves() -> str:
    """A line a curve in results/: its name, metrics and source."""
    sources = {name: read_results(RESULTS / f"{name}.json").get("source", "") for name in known_curves()}
    return "\n".join(f"{name:32} {' '.join(metrics_of(name)):13} {source}".rstrip() for name, source in sources.items())


def metrics_of(reference: str) -> list[str]:
    """Those of METRICS that a curve's file has a column of. Raises UserError where there is no such file."""
    columns = read_results(resolve(reference)[1])["results"]
    return [metric for metric, keys in COLUMNS.items() if any(key in columns for key in keys)]


def _points(content: dict[str, Any], metric: str, path: Path) -> list[tuple[float | None, float | None]]:
    """(bpp, dB) of every point in the file; None where the file has null."""
    columns = content["results"]
    for key in COLUMNS[metric]:
        if isinstance(columns.get(key), list):
            return list(
                zip(_numbers(columns["bpp"], "bpp", path), _decibels(_numbers(columns[key], key, path), metric))
            )
    found = ", ".join(key for key in columns if key != "bpp")
    raise UserError(f"{path}: has no {COLUMNS[metric][0]}; it has {found or 'nothing but bpp'}")


def _numbers(values: Sequence[Any], key: str, path: Path) -> list[float | None]:
    """The values, None for those that are infinite or not defined.

    Raises UserError, naming the file, where one is neither a number nor null.
    """
    for value in values:
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise UserError(f'{path}: "{key}" holds {json.dumps(value)[:40]}, which is no number; put a number or null')
    return [value if value is not None and abs(value) < LARGEST else None for value in values]


def _decibels(values: Sequence[float | None], metric: str) -> list[float | None]:
    """MS-SSIM in 0..1 to dB, unless some are above 1 and therefore all are dB; PSNR as it is."""
    known = [value for value in values if value is not None]
    if metric == "psnr" or max(known, default=0) > 1:
        return list(values)
    return [None if value in (None, 1) else ms_ssim_db(value) for value in values]


def _rising(curve: Curve, points: Sequence[tuple[float, float]]) -> Curve:
    """The curve through `points` (in order of rate) without those that an earlier one equals or beats, with a note."""
    kept: list[tuple[float, float]] = []
    for rate, quality in points:
        if kept and rate == kept[-1][0]:
            kept.pop()  # of two points at one rate the second, being sorted, is the better
        if not kept or quality > kept[-1][1]:
            kept.append((rate, quality))
    notes = curve.notes
    if len(kept) < len(points):
        notes += (f"{curve.name}: {len(points) - len(kept)} point(s) left out that cost no less than better ones",)
    bpp, quality = zip(*kept) if kept else ((), ())
    return replace(curve, bpp=bpp, quality=quality, notes=notes)
