"""What the dictionary attends to: Figures 8 and 10 of the paper of models/dcae.py, and how much its entries are used.

    python scripts/visualize_dictionary.py --checkpoint dcae_0.0130.pth.tar --data kodak --output dictionary
    python scripts/visualize_dictionary.py --data assets/samples --output dictionary --slice 2 --head 5 --entries 3 17

Writes entries.png (one entry over several images, Figure 8), heads.png (one entry over one image, by slice and head),
scales.png (by scale of the multi-scale aggregation, Figure 10) and usage.png, and prints how many entries are in use.
Use is counted over all images, of which --images are shown.
Without --entries those are shown whose attention differs most from place to place. Colours of maps that belong together
have one meaning, from no attention to what a hundredth of the places exceeds, which the title says.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import project_root  # noqa: F401
import torch
from torch import Tensor

from utils.cli import UserError, run_program
from utils.codec.checkpoint import DEFAULT_CHECKPOINT
from utils.data.images import read_image, to_tensor
from utils.data.listing import find_images
from utils.data.padding import padding_of
from utils.devices import choose_device
from utils.evaluation.curve import Point, load_for
from utils.evaluation.results import write_results
from utils.figures.dictionary_maps import Use, attention_maps, effective_number, most_telling, of_head
from utils.figures.plots import FORMATS, new_figure, save_figure
from utils.files import require_writable
from utils.tables import format_table
from utils.text import printable

if TYPE_CHECKING:
    from models.base import SliceCompressionModel

BEYOND = 0.01  # share of the places whose attention is beyond the end of the colours
LEAST = 0.01  # attention that colours tell from none
SIDE = 1.8  # inches of a picture


@dataclass(frozen=True)
class Shown:
    """An image, uint8 (H, W, 3), padded to a `multiple`, and its attention, (heads, h, w, entries) for every slice."""

    name: str
    pixels: np.ndarray
    maps: list[Tensor]
    multiple: int

    def draw(self, axes, values: Tensor | None, top: float = 1.0) -> None:
        """The image, or a map (h, w) of it whose colours end at `top`, without the padding."""
        height, width = self.pixels.shape[:2]
        if values is None:
            axes.imshow(self.pixels)
        else:
            (above, below), (left, right) = (padding_of(side, self.multiple) for side in (height, width))
            extent = (-left, width + right, height + below, -above)
            axes.imshow(values, extent=extent, vmin=0, vmax=top, cmap="viridis", interpolation="nearest")
        axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--checkpoint", type=Path, default=DEFAULT_CHECKPOINT, metavar="FILE", help="default: the model in assets")
    add("--quality", type=float, help="1..100, of variable-rate models (default: 50)")
    add("--data", type=Path, required=True, metavar="DIR", help="folder of images, or one image")
    add("--output", type=Path, required=True, metavar="DIR", help="where the figures go")
    add("--entries", type=int, nargs="+", metavar="N", help="of the dictionary, from 1 (default: four that tell most)")
    add("--slice", type=int, metavar="N", help="from 1 (default: the last, before which most is known)")
    add("--head", type=int, metavar="N", help="from 1 (default: mean over the heads)")
    add("--images", type=int, default=4, metavar="N", help="how many of them are shown (default: 4)")
    add("--format", choices=FORMATS, default="png", help="default: png")
    add("--cuda", action="store_true", help="work on the GPU")
    add("--device", metavar="NAME", help="cpu, cuda or cuda:N (default: cpu)")
    add("--debug", action="store_true", help="show where an error happened")
    args = parser.parse_args(argv)
    if args.images < 1:
        raise UserError(f"--images {args.images}: has to be 1 or more")
    return args


def check_numbers(args: argparse.Namespace, model: SliceCompressionModel, entries: int) -> None:
    """Fill in the default slice; raise UserError for a slice, head or entry that the model does not have."""
    heads, args.slice = model.dt_cross_attention[0].heads, model.slices if args.slice is None else args.slice
    given = [("--slice", args.slice, model.slices), ("--head", args.head, heads)]
    for flag, number, most in given + [("--entries", number, entries) for number in args.entries or []]:
        if number is not None and not 1 <= number <= most:
            raise UserError(f"{flag} {number}: the model has 1 to {most}")


def grid(rows: int, columns: int, shape: tuple[int, ...]):
    """A figure and its axes (rows, columns), for pictures of this shape (H, W, ...)."""
    from matplotlib.figure import Figure  # here, because it takes a second

    height = SIDE * min(2.0, max(0.5, shape[0] / shape[1]))
    figure = Figure(figsize=(SIDE * columns + 0.3, height * rows + 0.5), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def brightest(maps: Sequence[Tensor]) -> float:
    """Where the colours of maps (h, w) end: few places may lie beyond. What gets no attention stays dark."""
    return max(LEAST, torch.cat([m.flatten() for m in maps]).quantile(1 - BEYOND).item())


def entries_figure(images: Sequence[Shown], entries: Sequence[int], number: int, head: int | None):
    """Figure 8: images down, entries across; an entry has one range of colours in all images."""
    figure, axes = grid(len(images), 1 + len(entries), images[0].pixels.shape)
    maps = [of_head(image.maps[number], head) for image in images]
    tops = {entry: brightest([m[..., entry] for m in maps]) for entry in entries}
    for row, image, attention in zip(axes, images, maps):
        image.draw(row[0], None)
        for place, entry in zip(row[1:], entries):
            image.draw(place, attention[..., entry], tops[entry])
    for place, entry in zip(axes[0, 1:], entries):
        place.set_title(f"entry {entry + 1}, 0 to {tops[entry]:.2f}", fontsize="small")
    return figure


def heads_figure(image: Shown, entry: int, most: int = 10):
    """One entry by slice (down) and head (across, the first `most` of them), a range of colours for each slice."""
    heads = range(min(most, len(image.maps[0])))
    figure, axes = grid(len(image.maps), 1 + len(heads), image.pixels.shape)
    for number, (row, maps) in enumerate(zip(axes, image.maps), 1):
        row[0].axis("off")
        top = brightest([maps[list(heads), ..., entry]])
        row[1].set_ylabel(f"slice {number}, 0 to {top:.2f}", fontsize="small")
        for place, head in zip(row[1:], heads):
            image.draw(place, maps[head, ..., entry], top)
            place.set_title(f"head {head + 1}" if number == 1 else "", fontsize="small")
    image.draw(axes[0, 0], None)
    figure.suptitle(f"entry {entry + 1}", fontsize="medium")
    return figure


def scales_figure(images: Sequence[Shown], by_scale: Sequence[Sequence[Tensor]], entry: int):
    """Figure 10: images down; by_scale[i][s]: map of image i (h, w) with s + 1 scales left in, across."""
    figure, axes = grid(len(images), 1 + len(by_scale[0]), images[0].pixels.shape)
    top = brightest([m for maps in by_scale for m in maps])
    for row, image, maps in zip(axes, images, by_scale):
        image.draw(row[0], None)
        for place, attention in zip(row[1:], maps):
            image.draw(place, attention, top)
    for scale, place in enumerate(axes[0, 1:], 1):
        place.set_title(f"{scale} scale{'s' * (scale > 1)}", fontsize="small")
    figure.suptitle(f"entry {entry + 1}, 0 to {top:.2f}", fontsize="medium")
    return figure


def usage_figure(shares: Sequence[Tensor]):
    """Shares (entries,) of the attention, entries in order of use; a line for each slice."""
    figure, axes = new_figure(
        "use of the dictionary", "entries, the most used first", "share of the attention (%)", (7, 4)
    )
    for number, share in enumerate(shares, 1):
        axes.plot(range(1, len(share) + 1), 100 * share.sort(descending=True).values, label=f"slice {number}")
    axes.axhline(100 / len(shares[0]), color="grey", linestyle=":", label="all alike")
    axes.margins(x=0.02)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small")
    return figure


def summarise(images: Sequence[Sequence[Use]]) -> list[dict]:
    """A slice each: shares of its entries, their effective number over all places and at one place on average."""
    rows = []
    for number, uses in enumerate(zip(*images), 1):
        looks = sum(use.looks for use in uses)
        shares = sum(use.looks / looks * use.shares for use in uses)
        at_a_place = sum(use.looks / looks * use.effective for use in uses)
        numbers = {"effective": effective_number(shares).item(), "effective_at_a_place": at_a_place}
        rows.append({"slice": number, **numbers, "shares": shares.tolist()})
    return rows


def format_summary(rows: Sequence[dict]) -> str:
    """The table that is printed."""
    header = ("slice", "entries", "effective", "at a place", "half of it on", "most used")
    lines = []
    for row in rows:
        order = sorted(range(len(row["shares"])), key=lambda i: -row["shares"][i])
        half = int(np.searchsorted(np.cumsum([row["shares"][i] for i in order]), 0.5)) + 1
        numbers = [f"{row[key]:.1f}" for key in ("effective", "effective_at_a_place")]
        most = " ".join(str(i + 1) for i in order[:5])
        lines.append((str(row["slice"]), str(len(order)), *numbers, str(half), most))
    return format_table(header, lines)


def scale_maps(model, images: Sequence[Shown], quality, entry: int, args, device) -> list[list[Tensor]]:
    """Maps (h, w) of each image with one scale left in, with two, and so on."""
    count = len(model.dt_cross_attention[0].msa.dense.conv_layers) + 1
    head, result = args.head and args.head - 1, []
    for image in images:
        x = to_tensor(image.pixels).to(device)
        maps = [attention_maps(model, x, quality, scales)[args.slice - 1] for scales in range(1, count + 1)]
        result.append([of_head(m, head)[..., entry] for m in maps])
    return result


def main(argv: Sequence[str]) -> None:
    args = parse_arguments(argv)
    device, paths = choose_device(args.device, args.cuda), find_images(args.data)
    require_writable(args.output / "usage.json", "--output")
    model, quality = load_for(Point(args.checkpoint, args.quality, "", None), device)
    if not hasattr(model, "dt_cross_attention"):
        raise UserError(f"--checkpoint {args.checkpoint}: a {model.model_name} without a dictionary")
    images, uses = [], []
    for path in paths:
        pixels = read_image(path)[0]
        maps = attention_maps(model, to_tensor(pixels).to(device), quality)
        if not images:
            check_numbers(args, model, maps[0].shape[-1])
        uses.append([Use.of(m) for m in maps])
        if len(images) < args.images:
            images.append(Shown(printable(path.name), pixels, maps, model.size_multiple))
    number, head = args.slice - 1, args.head and args.head - 1
    chosen = [entry - 1 for entry in args.entries or []]
    chosen = chosen or most_telling([image.maps[number] for image in images], head, 4)
    summary = summarise(uses)
    figures = {"entries": entries_figure(images, chosen, number, head), "heads": heads_figure(images[0], chosen[0])}
    if model.dt_cross_attention[0].msa is not None:
        by_scale = scale_maps(model, images, quality, chosen[0], args, device)
        figures["scales"] = scales_figure(images, by_scale, chosen[0])
    figures["usage"] = usage_figure([torch.tensor(row["shares"]) for row in summary])
    for name, figure in figures.items():
        save_figure(figure, args.output / f"{name}.{args.format}")
    write_results(args.output / "usage.json", {"images": [path.name for path in paths], "slices": summary})
    print(format_summary(summary))


if __name__ == "__main__":
    run_program(main)
