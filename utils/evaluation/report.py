"""The page of eval.py --report: a folder to open in a browser, with no need of a network or a server.

    DIR/index.html                    page, style, program and numbers in one file
    DIR/images/001/original.png       the first image as it was evaluated: upright, 8-bit sRGB
    DIR/images/001/1.png              its reconstruction at the first point
    DIR/images/001/1_bits.png         the bits at each position of y there, one pixel a position

Reconstructions are written while the evaluation goes on, the page after it. It shows of each image

    {"name", "width", "height", "original": path, "views": {point's place in the curve: view}}
    view: {"decoded", "bits": paths, "map": {"width", "height"} in positions, "box": [left, top, width, height] of the
           image in the padded map in percent, "top": bits at the bright end of the scale, "text", "mapText"}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models import STRIDE_Y
from utils.cli import UserError
from utils.data.images import read_image, write_png
from utils.data.reconstructions import EVALUATED, ImageFile
from utils.evaluation.curve import Point
from utils.evaluation.evaluation import Record
from utils.evaluation.report_page import render_page
from utils.evaluation.report_pictures import DrawnCurve, colour_map
from utils.files import atomic_write, require_writable
from utils.tables import format_number
from utils.text import printable


def require_report_folder(folder: Path, images: Sequence[ImageFile], overwrite: bool) -> None:
    """Raise UserError unless a report can be written to `folder` without harm to anything; asked before long work."""
    require_writable(folder / "index.html", "--report")
    inside = [image.path for image in images if folder.resolve() in image.path.resolve().parents]
    if inside:
        raise UserError(f"--report {folder}: holds {inside[0].name}, which is to be evaluated; choose another folder")
    if not overwrite and any(folder.iterdir()):
        raise UserError(f"--report {folder}: is not empty; choose another folder, or add --overwrite")


class ReportFolder:
    """Collects what `evaluate_point` makes of `images` into `folder`, and writes the page about it."""

    def __init__(self, folder: Path, images: Sequence[ImageFile]) -> None:
        self.folder, self.images = folder, images
        self.places = {image.path: f"images/{number:03d}" for number, image in enumerate(images, 1)}
        self.watchers: dict[str, PointWatcher] = {}  # by the label of their points

    def watch(self, point: Point) -> PointWatcher:
        """To be told about every image of this point."""
        self.watchers[point.label] = PointWatcher(self.folder, self.places, len(self.watchers) + 1, {})
        return self.watchers[point.label]

    def write(self, curve: dict[str, Any], published: Sequence[DrawnCurve] = ()) -> None:
        """Write maps and page for `curve`, see utils/evaluation/results.py. Raises UserError where that is
        impossible."""
        try:
            shown = [self.show(image, curve["points"]) for image in self.images]
            page = render_page(curve, [image for image in shown if image["views"]], published)
            with atomic_write(self.folder / "index.html") as file:
                file.write(printable(page).encode())
        except OSError as error:
            raise UserError(f"--report {self.folder}: cannot be written ({error.strerror})") from error

    def show(self, image: ImageFile, points: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """What the page shows of one image; original and maps, of all points on one scale, are written here."""
        name, original = printable(image.name.as_posix()), f"{self.places[image.path]}/original.png"
        records = [{record["name"]: record for record in point["images"]}.get(name) for point in points]
        found = {place: record for place, record in enumerate(records) if record}
        watchers = {place: self.watchers[points[place]["label"]] for place in found}
        top = max((watcher.bits[image.path].max() for watcher in watchers.values()), default=0.0)
        views = {place: watchers[place].view(image.path, record, top) for place, record in found.items()}
        if not views:
            return {"name": name, "views": views}
        pixels = read_image(image.path)[0]
        write_png(self.folder / original, pixels)
        size = {"width": pixels.shape[1], "height": pixels.shape[0]}
        return {"name": name, **size, "original": original, "views": views}


@dataclass
class PointWatcher:
    """Writes the images of one point, the `number`-th; `places`: folder of each image; `bits`: maps so far."""

    folder: Path
    places: dict[Path, str]
    number: int
    bits: dict[Path, np.ndarray]

    def keep(self, path: Path, pixels: np.ndarray) -> None:
        """Write a reconstruction, uint8 (H, W, 3)."""
        write_png(self.folder / self.places[path] / f"{self.number}.png", pixels, comment=EVALUATED)

    def keep_bits(self, path: Path, bits: np.ndarray) -> None:
        """Remember a map, float64 (h, w)."""
        self.bits[path] = bits

    def view(self, path: Path, record: Record, top: float) -> dict[str, Any]:
        """The page's view of one image; its map, from 0 to `top` bits, is written here."""
        bits, base = self.bits[path], f"{self.places[path]}/{self.number}"
        write_png(self.folder / f"{base}_bits.png", colour_map(bits, top))
        return {
            "decoded": f"{base}.png",
            "bits": f"{base}_bits.png",
            "map": {"width": bits.shape[1], "height": bits.shape[0]},
            "box": box_in_map(record, bits.shape),
            "top": f"{top:.1f}",
            "text": describe_record(record),
            "mapText": describe_map(record, bits),
        }


def box_in_map(record: Record, shape: Sequence[int]) -> list[float]:
    """Left, top, width and height of an image in its padded map (h, w), in percent."""
    padded = [STRIDE_Y * positions for positions in shape]
    sides = [record["height"], record["width"]]
    first = [100 * ((whole - side) // 2) / whole for whole, side in zip(padded, sides)]  # as pad_centred does
    share = [100 * side / whole for whole, side in zip(padded, sides)]
    return [first[1], first[0], share[1], share[0]]


def describe_record(record: Record) -> str:
    """Rate and distortion of one image in a line."""
    source = "estimated" if record["bytes"] is None else f"{record['bytes']:,} bytes"
    similarity = f"MS-SSIM {format_number(record['ms_ssim'], 5)} ({format_number(record['ms_ssim_db'], 2)} dB)"
    return f"{record['bpp']:.4f} bpp ({source}), PSNR {format_number(record['psnr'], 2)} dB, {similarity}"


def describe_map(record: Record, bits: np.ndarray) -> str:
    """What a map of bits (h, w) adds up to, in words."""
    height, width = (STRIDE_Y * positions for positions in bits.shape)
    padded = (height, width) != (record["height"], record["width"])
    frame = f" Dashed: the image in its padding to {width} × {height}." if padded else ""
    share = bits.sum() / (record["height"] * record["width"])
    return (
        f"Mean {bits.mean():.1f}, largest {bits.max():.1f} bits; {bits.sum():,.0f} bits in all, {share:.4f} bpp.{frame}"
    )
