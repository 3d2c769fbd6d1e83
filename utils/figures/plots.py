"""Figures of rate-distortion curves, without a display and the same bytes each time.

Matplotlib's Figure is used by itself: `pyplot` would keep state and look for a screen.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.cli import UserError
from utils.figures.rd_curves import METRICS, Curve
from utils.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("png", "svg", "pdf")
MARKERS = "osD^v<>phX*P"
CLASSICAL_STYLE, OTHER_STYLE = "--", "-"  # as in the field's papers: dashed lines are no neural networks


def check_format(path: Path, flag: str = "--output") -> None:
    """Raise UserError unless the name ends in one of FORMATS."""
    if path.suffix.lower().lstrip(".") not in FORMATS:
        raise UserError(f"{flag} {path}: the name has to end in {', '.join('.' + name for name in FORMATS)}")


def new_figure(title: str, x_label: str, y_label: str, size: tuple[float, float] = (8, 6)) -> tuple[Figure, Axes]:
    """An empty figure of `size` inches with one set of axes."""
    from matplotlib.figure import Figure  # here, because it takes a second

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot(title=title, xlabel=x_label, ylabel=y_label)
    axes.grid(True, alpha=0.3)
    return figure, axes


def draw_curves(axes: Axes, curves: Sequence[Curve]) -> None:
    """Draw each curve, the first one thicker and on top; classical codecs are dashed.

    Ten colours are as many as the eye tells apart: from the eleventh curve on they come again, with hollow markers.
    """
    from matplotlib import colormaps

    colours = colormaps["tab10"].colors
    for number, curve in enumerate(curves):
        axes.plot(
            curve.bpp,
            curve.quality,
            CLASSICAL_STYLE if curve.kind == "classical" else OTHER_STYLE,
            marker=MARKERS[number % len(MARKERS)],
            markersize=4,
            markerfacecolor=colours[number] if number < len(colours) else "white",
            linewidth=1.3 if number else 2.2,
            color=colours[number % len(colours)],
            label=curve.name,
            zorder=3 + (len(curves) - number) / len(curves),
        )
    axes.legend(fontsize="small", loc="lower right", ncols=1 + (len(curves) > 14))


def plot_curves(curves: Sequence[Curve], title: str, limits: tuple[float, float] | None = None) -> Figure:
    """A rate-distortion plot of curves of one metric; `limits`: of the rate axis, in bpp."""
    figure, axes = new_figure(title, "bits per pixel", METRICS[curves[0].metric])
    draw_curves(axes, curves)
    axes.locator_params("y", nbins=14, steps=(1, 2, 5, 10))
    if limits:
        axes.set_xlim(*limits)
        shown = [q for curve in curves for rate, q in curve.points if limits[0] <= rate <= limits[1]]
        if shown:
            margin = 0.05 * (max(shown) - min(shown)) + 0.01
            axes.set_ylim(min(shown) - margin, max(shown) + margin)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, SVG or PDF by the name's ending, complete or not at all, without a date in it.

    What is blank around it is cut off: pictures of a fixed shape do not fill their figure.
    """
    from matplotlib import rc_context

    kind = path.suffix.lower().lstrip(".")
    metadata = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[kind]
    with rc_context({"svg.hashsalt": "rd"}), atomic_write(path) as file:
        figure.savefig(file, format=kind, dpi=150, metadata=metadata, bbox_inches="tight", pad_inches=0.05)
