"""Crops of reconstructions side by side, with rate and PSNR: Figures 7, 11 and 12 of the paper of models/dcae.py.

    python scripts/compare_crops.py --data kodim04.png --crop 300 100 160 120 --output crops.png \
        Ours=dcae_0.0130.pth.tar jpeg:20 webp:30 avif:45 VTM=vtm_reconstructions
    python scripts/compare_crops.py --data photos --same-bytes --output crops.pdf model.pt:30 jpeg avif

Sources are codecs at a setting, checkpoints (at a quality), and images or folders that other programs made; see
utils/figures/side_by_side.py. With --same-bytes the first is taken as it is, and the others at the setting that comes
closest to its bytes, image by image. Bits per pixel and PSNR are those of whole images. Left: the image and where the
crop lies.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import project_root  # noqa: F401

from utils.cli import UserError, run_program
from utils.data.images import read_image, to_tensor
from utils.data.listing import find_images
from utils.devices import choose_device
from utils.figures.plots import check_format, save_figure
from utils.figures.side_by_side import Reconstruction, Source, parse_source
from utils.files import require_writable
from utils.metrics import bpp, psnr
from utils.tables import format_number, format_table
from utils.text import printable

HEIGHT = 2.2  # inches of a crop
FAR_OFF = 0.05  # relative difference of sizes that is worth a warning


@dataclass(frozen=True)
class Row:
    """An image, uint8 (H, W, 3), where the crop lies in it (left, top, width, height), and what the sources gave."""

    path: Path
    pixels: np.ndarray
    crop: tuple[int, int, int, int]
    results: list[Reconstruction]

    def cut(self, pixels: np.ndarray) -> np.ndarray:
        """(H, W, 3) -> the crop (height, width, 3)."""
        left, top, width, height = self.crop
        return pixels[top : top + height, left : left + width]

    def rate(self, result: Reconstruction) -> float | None:
        return None if result.bytes is None else bpp(8 * result.bytes, *self.pixels.shape[:2])

    def quality(self, result: Reconstruction) -> float:
        return psnr(to_tensor(self.pixels), to_tensor(result.pixels))

    def caption(self, result: Reconstruction) -> str:
        rate = self.rate(result)
        return ("" if rate is None else f"{rate:.3f} bpp, ") + f"{self.quality(result):.2f} dB"


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("sources", nargs="+", metavar="SOURCE", help="CODEC:SETTING, CHECKPOINT[:QUALITY], image or folder; LABEL=...")
    add("--data", type=Path, required=True, metavar="DIR", help="folder of images, or one image")
    add("--output", type=Path, required=True, metavar="FILE", help=".png, .svg or .pdf")
    add("--crop", type=int, nargs=4, metavar=("X", "Y", "W", "H"), help="in pixels (default: a fifth, from the middle)")
    add("--same-bytes", action="store_true", help="all in the bytes of the first")
    add("--images", type=int, default=4, metavar="N", help="how many of the folder (default: 4)")
    add("--cuda", action="store_true", help="work on the GPU")
    add("--device", metavar="NAME", help="cpu, cuda or cuda:N (default: cpu)")
    add("--debug", action="store_true", help="show where an error happened")
    args = parser.parse_args(argv)
    check_format(args.output)
    if args.images < 1:
        raise UserError(f"--images {args.images}: has to be 1 or more")
    require_writable(args.output, "--output")
    return args


def place_of_crop(shape: tuple[int, ...], wanted: Sequence[int] | None, path: Path) -> tuple[int, int, int, int]:
    """Left, top, width, height. Raises UserError where that does not lie inside the image."""
    height, width = shape[:2]
    if wanted is None:
        side = max(1, height // 5), max(1, width // 5)
        return (width - side[1]) // 2, (height - side[0]) // 2, side[1], side[0]
    left, top, across, down = wanted
    if min(left, top) < 0 or min(across, down) < 1 or left + across > width or top + down > height:
        raise UserError(f"--crop {left} {top} {across} {down}: does not lie inside {path}, which is {width}x{height}")
    return left, top, across, down


def make_row(path: Path, sources: Sequence[Source], args: argparse.Namespace) -> Row:
    """Everything about one image."""
    pixels, results = read_image(path)[0], []
    crop = place_of_crop(pixels.shape, args.crop, path)
    for source in sources:
        size = results[0].bytes if results and args.same_bytes else None
        if results and args.same_bytes and size is None:
            raise UserError(f"--same-bytes: {sources[0].label} does not say how many bytes; name another one first")
        results.append(source.reconstruct(path, pixels, size))
        if size and results[-1].bytes and abs(results[-1].bytes / size - 1) > FAR_OFF:
            text = f"{results[-1].bytes} bytes are the closest it comes to {size}"
            print(f"warning: {path.name}: {source.label}: {text}", file=sys.stderr)
    return Row(path, pixels, crop, results)


def draw(rows: Sequence[Row], labels: Sequence[str]):
    """The figure: an image a row, the whole with a frame around the crop, then crops of original and sources."""
    from matplotlib.figure import Figure  # here, because it takes a second
    from matplotlib.patches import Rectangle

    shapes = [rows[0].pixels.shape] + [(rows[0].crop[3], rows[0].crop[2])] * (1 + len(labels))
    ratios = [shape[1] / shape[0] for shape in shapes]
    figure = Figure(figsize=(HEIGHT * sum(ratios), (HEIGHT + 0.45) * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), len(shapes), squeeze=False, width_ratios=ratios)
    for line, row in zip(axes, rows):
        left, top, width, height = row.crop
        crops = [row.cut(result.pixels) for result in row.results]
        for place, pixels in zip(line, (row.pixels, row.cut(row.pixels), *crops)):
            place.imshow(pixels, interpolation="nearest" if pixels.shape != row.pixels.shape else "antialiased")
            place.set(xticks=[], yticks=[])
        line[0].add_patch(Rectangle((left, top), width, height, fill=False, edgecolor="red", linewidth=1.2))
        captions = [printable(row.path.stem), "original", *map("{}\n{}".format, labels, map(row.caption, row.results))]
        for place, caption in zip(line, captions):
            place.set_xlabel(caption, fontsize="small")
    return figure


def format_rows(rows: Sequence[Row], labels: Sequence[str]) -> str:
    """The numbers as a table."""
    lines = []
    for row in rows:
        for label, result in zip(labels, row.results):
            size = "n/a" if result.bytes is None else str(result.bytes)
            numbers = (size, format_number(row.rate(result), 4), format_number(row.quality(result), 2))
            lines.append((printable(row.path.name), label, result.setting, *numbers))
    return format_table(("image", "source", "setting", "bytes", "bpp", "PSNR dB"), lines)


def main(argv: Sequence[str]) -> None:
    args = parse_arguments(argv)
    device, paths = choose_device(args.device, args.cuda), find_images(args.data)[: args.images]
    sources = [parse_source(text, device) for text in args.sources]
    labels = [source.label for source in sources]
    rows = [make_row(path, sources, args) for path in paths]
    save_figure(draw(rows, labels), args.output)
    print(format_rows(rows, labels))


if __name__ == "__main__":
    run_program(main)
