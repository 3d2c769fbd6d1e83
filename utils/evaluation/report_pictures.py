"""The pictures of a report: rate-distortion plots as SVG, maps of bits as pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

# Viridis (van der Walt and Smith, 2015) at nine even steps: as bright as the value is large, in grey as well.
COLOURS = ("#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725")
COLOUR_CLASSES = 6  # of curves, see --curve-N in assets/report/page.css

WIDTH, HEIGHT = 640, 400  # of a plot, in units of its own
LEFT, RIGHT, TOP, BOTTOM = 60, 12, 12, 48  # margins
MARKERS = ("M-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0z", "M-4,-4h8v8h-8z", "M0,-6L6,5H-6z", "M0,-6L6,0L0,6L-6,0z")


@dataclass(frozen=True)
class DrawnCurve:
    """Points (bits per pixel, distortion in dB, label) in order of rate; `published`: not measured here."""

    name: str
    points: Sequence[tuple[float, float, str]]
    published: bool = False


def colour_map(bits: np.ndarray, top: float) -> np.ndarray:
    """Bits (h, w) from 0 to `top` as colours, uint8 (h, w, 3)."""
    anchors = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in COLOURS], float)
    places = np.clip(bits / top if top > 0 else np.zeros_like(bits), 0, 1) * (len(COLOURS) - 1)
    channels = [np.interp(places, range(len(COLOURS)), anchors[:, i]) for i in range(3)]
    return np.stack(channels, -1).round().astype(np.uint8)


def nice_ticks(low: float, high: float, count: int = 6) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten apart) that enclose low..high, low < high."""
    power = 10 ** math.floor(math.log10((high - low) / count))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * count >= high - low)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def rd_plot(curves: Sequence[DrawnCurve], unit: str) -> str:
    """Distortion in `unit` over rate as an SVG element, with a tooltip a point; "" where there are no points."""
    points = [point for curve in curves for point in curve.points]
    if not points:
        return ""
    lowest, highest = min(y for _, y, _ in points), max(y for _, y, _ in points)
    x_ticks = nice_ticks(0, max(x for x, _, _ in points) or 1)
    y_ticks = nice_ticks(*((lowest, highest) if highest - lowest > 0.1 else (lowest - 0.5, highest + 0.5)))
    drawn = [_draw_curve(curve, index, x_ticks, y_ticks) for index, curve in enumerate(curves)]
    label = escape(f"{unit} over bits per pixel of {', '.join(curve.name for curve in curves)}")
    head = f'<svg role="img" aria-label="{label}" viewBox="0 0 {WIDTH} {HEIGHT}" xmlns="http://www.w3.org/2000/svg">'
    return "\n".join([head, _draw_axes(x_ticks, y_ticks, unit), *drawn, "</svg>"])


def _across(value: float, ticks: Sequence[float]) -> float:
    return LEFT + (value - ticks[0]) / (ticks[-1] - ticks[0]) * (WIDTH - LEFT - RIGHT)


def _down(value: float, ticks: Sequence[float]) -> float:
    return HEIGHT - BOTTOM - (value - ticks[0]) / (ticks[-1] - ticks[0]) * (HEIGHT - TOP - BOTTOM)


def _draw_axes(x_ticks: Sequence[float], y_ticks: Sequence[float], unit: str) -> str:
    bottom, middle = HEIGHT - BOTTOM, (TOP + HEIGHT - BOTTOM) / 2
    parts = []
    for tick in x_ticks:
        x = _across(tick, x_ticks)
        parts.append(f'<path class="grid" d="M{x:.1f},{TOP}V{bottom}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{tick:.6g}</text>')
    for tick in y_ticks:
        y = _down(tick, y_ticks)
        parts.append(f'<path class="grid" d="M{LEFT},{y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:.6g}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">bits per pixel</text>')
    parts.append(f'<text transform="translate(16,{middle}) rotate(-90)" text-anchor="middle">{escape(unit)}</text>')
    return "\n".join(parts)


def _draw_curve(curve: DrawnCurve, index: int, x_ticks: Sequence[float], y_ticks: Sequence[float]) -> str:
    """Line, markers with tooltips, and the legend's row: name and marker in the lower right corner."""
    colour, marker = f"var(--curve-{index % COLOUR_CLASSES})", MARKERS[index % len(MARKERS)]
    places = [(_across(x, x_ticks), _down(y, y_ticks)) for x, y, _ in curve.points]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    kind = "curve published" if curve.published else "curve"
    parts = [f'<polyline class="{kind}" style="stroke: {colour}" points="{line}"/>']
    for (x, y), (rate, distortion, label) in zip(places, curve.points):
        tip = escape(f"{label}: {rate:.4f} bpp, {distortion:.3f} dB")
        at = f"translate({x:.1f},{y:.1f})"
        parts.append(f'<path d="{marker}" transform="{at}" style="fill: {colour}"><title>{tip}</title></path>')
    right, row = WIDTH - RIGHT - 12, HEIGHT - BOTTOM - 14 - 20 * index
    parts.append(f'<path d="{marker}" transform="translate({right},{row})" style="fill: {colour}"/>')
    parts.append(f'<text x="{right - 12}" y="{row + 4}" text-anchor="end">{escape(curve.name)}</text>')
    return "\n".join(parts)
