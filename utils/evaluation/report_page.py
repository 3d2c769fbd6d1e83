"""The HTML of a report: what utils/evaluation/report.py collected, put into the page of assets/report."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from models import STRIDE_Y
from utils.evaluation.curve import checkpoint_stem
from utils.evaluation.evaluation import Record
from utils.evaluation.report_pictures import COLOURS, DrawnCurve, rd_plot
from utils.evaluation.tables import ESTIMATED, REAL, Column
from utils.tables import format_number

TEMPLATES = Path(__file__).parents[2] / "assets" / "report"
DISTORTIONS = {"PSNR (dB)": "psnr", "MS-SSIM (dB)": "ms_ssim_db"}


def render_page(curve: dict[str, Any], images: Sequence[dict[str, Any]], published: Sequence[DrawnCurve] = ()) -> str:
    """The page of a curve (see utils/evaluation/results.py).

    Args:
        images: what the viewer shows of each image, see utils/evaluation/report.py; rows of the table refer to it by
        name. published: curves of PSNR to draw beside the measured ones.
    """
    points = curve["points"]
    columns = columns_of(points)
    parts = {
        "title": escape(curve["name"]),
        "description": escape(curve["description"]),
        "style": read_template("page.css"),
        "script": read_template("page.js"),
        "plots": render_plots(points, published),
        "averages": render_averages(points, columns),
        "table": render_table(points, columns, [image["name"] for image in images]),
        "failures": render_failures(points),
        "colours": ", ".join(COLOURS),
        "stride": str(STRIDE_Y),
        "data": script_json({"points": [point["label"] for point in points], "images": images}),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], read_template("page.html"))


def read_template(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def script_json(value: Any) -> str:
    """JSON that cannot end the script element around it, whatever file names it holds."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def columns_of(points: Sequence[dict[str, Any]]) -> list[Column]:
    """The columns of the terminal's table but those of unrounded pixels."""
    columns = REAL if points[0]["rate"] == "real" else ESTIMATED
    return [column for column in columns if "float" not in column[0]]


# ---- plots ---------------------------------------------------------------------------------------------------------


def render_plots(points: Sequence[dict[str, Any]], published: Sequence[DrawnCurve]) -> str:
    """A plot for each measure of distortion that the points have; published curves are of PSNR."""
    plots = [
        rd_plot(measured_curves(points, key) + (list(published) if key == "psnr" else []), unit)
        for unit, key in DISTORTIONS.items()
    ]
    return "\n".join(f"<div>{plot}</div>" for plot in plots if plot)


def measured_curves(points: Sequence[dict[str, Any]], key: str) -> list[DrawnCurve]:
    """A curve a model; checkpoints of several qualities have one each."""
    curves: dict[tuple[str, str], list[tuple[float, float, str]]] = {}
    for point in points:
        average = point["average"]
        if average[key] is not None and average[key] != float("inf"):
            group = (point["model"], "" if point["quality"] is None else point["checkpoint"])
            curves.setdefault(group, []).append((average["bpp"], average[key], point["label"]))
    return [
        DrawnCurve(checkpoint_stem(Path(file)) if file else model, found) for (model, file), found in curves.items()
    ]


# ---- tables --------------------------------------------------------------------------------------------------------


def render_averages(points: Sequence[dict[str, Any]], columns: Sequence[Column]) -> str:
    """A row a point with the means over its images."""
    heads = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in ("point", *(c[0] for c in columns)))
    rows = [
        f'<tr><th scope="row">{escape(point["label"])}</th>{number_cells(point["average"], columns)}</tr>'
        for point in points
    ]
    counts = sorted({point["average"]["images"] for point in points})
    caption = f"Means over {' to '.join(map(str, counts))} image(s)"
    return f"<table><caption>{caption}</caption><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def render_table(points: Sequence[dict[str, Any]], columns: Sequence[Column], names: Sequence[str]) -> str:
    """A row an image and point, with the numbers it is sorted by; data-image and data-point tell the viewer."""
    headings = ["image", "point", "size", *(column[0] for column in columns)]
    heads = "".join(f'<th scope="col"><button type="button">{escape(heading)}</button></th>' for heading in headings)
    index = {name: number for number, name in enumerate(names)}
    rows = [
        f'<tr data-image="{index[record["name"]]}" data-point="{number}">{image_cells(record, point["label"])}'
        f"{number_cells(record, columns)}</tr>"
        for number, point in enumerate(points)
        for record in point["images"]
    ]
    return f'<table id="images"><thead><tr>{heads}</tr></thead><tbody>{chr(10).join(rows)}</tbody></table>'


def image_cells(record: Record, label: str) -> str:
    """Name, point and size."""
    width, height = record["width"], record["height"]
    return (
        f'<td><button type="button">{escape(record["name"])}</button></td><td>{escape(label)}</td>'
        f'<td data-value="{width * height}">{width}&times;{height}</td>'
    )


def number_cells(record: Record, columns: Sequence[Column]) -> str:
    """The rounded number to read and the exact one to sort by, empty where there is none."""
    values = [(record[key], decimals) for _, key, decimals in columns]
    return "".join(
        f'<td data-value="{"" if value is None else value_for_script(value)}">{format_number(value, decimals)}</td>'
        for value, decimals in values
    )


def value_for_script(value: float) -> str:
    """A number as JavaScript reads it."""
    return "Infinity" if value == float("inf") else repr(value)


def render_failures(points: Sequence[dict[str, Any]]) -> str:
    """What could not be evaluated, and why."""
    reasons = [f"<li>{escape(failure['reason'])}</li>" for point in points for failure in point["failed"]]
    return f"<h3>Could not be evaluated</h3><ul>{''.join(reasons)}</ul>" if reasons else ""
