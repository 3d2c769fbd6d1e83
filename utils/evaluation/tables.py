"""The records of utils/evaluation/evaluation.py as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from utils.evaluation.evaluation import Record
from utils.metrics import MS_SSIM_SMALLEST
from utils.tables import format_number, format_table

Column = tuple[str, str, int]  # heading, key, decimals

DISTORTION: list[Column] = [
    ("PSNR dB", "psnr", 3),
    ("MS-SSIM", "ms_ssim", 5),
    ("MS-SSIM dB", "ms_ssim_db", 3),
    ("float PSNR", "psnr_float", 3),
    ("float MS-SSIM", "ms_ssim_float", 5),
]
ESTIMATED: list[Column] = [
    *[("bpp", "bpp", 4), ("y", "bpp_y", 4), ("z", "bpp_z", 4)],
    *DISTORTION,
    ("forward ms", "forward_ms", 1),
]
REAL: list[Column] = [
    *[("bytes", "bytes", 0), ("bpp", "bpp", 4), ("y", "bpp_y", 4), ("z", "bpp_z", 4), ("header", "bpp_header", 4)],
    ("excess %", "excess_percent", 2),
    *DISTORTION,
    *[("encode ms", "encode_ms", 1), ("decode ms", "decode_ms", 1)],
]
SEARCHED: list[Column] = [("won %", "won_percent", 2), ("lambda", "lambda", 4)]


def _columns(average: Record, real: bool) -> list[Column]:
    if not real:
        return ESTIMATED
    return REAL if average["won_percent"] is None else REAL + SEARCHED


def format_point(records: Sequence[Record], average: Record, real: bool) -> str:
    """A row an image and their average, with what needs saying about averages below."""
    columns = _columns(average, real)
    header = ["image", "size", *(heading for heading, _, _ in columns)]
    rows = [[record["name"], f"{record['width']}x{record['height']}", *_cells(record, columns)] for record in records]
    table = format_table(header, rows, [f"mean of {len(rows)}", "", *_cells(average, columns)])
    return "\n".join([table, *_remarks(records, average)])


def _cells(record: Record, columns: Sequence[Column]) -> list[str]:
    return [format_number(record[key], decimals) for _, key, decimals in columns]


def _remarks(records: Sequence[Record], average: Record) -> list[str]:
    psnr, similarity = average["psnr_of_mean_mse"], average["ms_ssim_db_of_mean"]
    lines = [
        "Distortion is of 8-bit pixels; float: before rounding. Means are of the images' values. Averaged otherwise:",
        f"PSNR of the mean MSE {format_number(psnr, 3)} dB, mean MS-SSIM in dB {format_number(similarity, 3)}.",
    ]
    small = average["images"] - average["images_with_ms_ssim"]
    if small:
        lines.append(f"MS-SSIM: n/a for {small} image(s) with a side under {MS_SSIM_SMALLEST} pixels, not in its mean.")
    if (average["excess_percent"] or 0) < -0.5:
        lines.append(
            "Files smaller than estimated: to many symbols the model gives less than the entropy coder's 2^-16,"
        )
        lines.append("as untrained weights do, and weights of a very different kind of image.")
    if any(record.get("source") == "slope" for record in records):
        lines.append("lambda is an estimate from each image; where it is known, say it with --lambda.")
    return lines


def format_curve(labels: Sequence[str], averages: Sequence[Record], real: bool) -> str:
    """A row a checkpoint and quality: the averages alone."""
    columns = [column for column in _columns(averages[0], real) if "float" not in column[0]]
    header = ["point", *(heading for heading, _, _ in columns)]
    return format_table(header, [[label, *_cells(average, columns)] for label, average in zip(labels, averages)])
