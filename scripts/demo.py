"""`make demo`: the sample images to .bin files and back, the table, and a picture of before and after in demo/."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import compress_and_decompress  # noqa: E402
from utils.cli import run_program  # noqa: E402

SAMPLES, DEMO = ROOT / "assets" / "samples", ROOT / "demo"
SEED = "0"


def main(argv: Sequence[str]) -> int:
    shipped = compress_and_decompress.DEFAULT_CHECKPOINT.is_file()
    if not shipped:
        print("No trained model is shipped yet: the weights are drawn from a seed, so the images below are noise.")
        print("Give a checkpoint of the papers' authors to see real ones: --checkpoint FILE\n")
    weights = [] if shipped or "--checkpoint" in argv else ["--model", "dcae-ablation", "--random-weights", SEED]
    common = [*weights, "--overwrite", *argv]
    status = run("compress", SAMPLES, DEMO / "bins", common) or run(
        "decompress", DEMO / "bins", DEMO / "images", common
    )
    if not status:
        picture = side_by_side(DEMO / "side_by_side.png")
        print(f"\noriginals and decoded images side by side: {picture.relative_to(ROOT)}")
    return status


def run(mode: str, data: Path, save_path: Path, flags: Sequence[str]) -> int:
    print(f"python compress_and_decompress.py --mode {mode} --data {data.relative_to(ROOT)} ...")
    return compress_and_decompress.main(["--mode", mode, "--data", str(data), "--save_path", str(save_path), *flags])


def side_by_side(path: Path, height: int = 256) -> Path:
    """Originals above, decoded images below, with their bits per pixel."""
    names = [p.stem for p in sorted(SAMPLES.glob("*.png"))]
    columns = []
    for name in names:
        original, decoded = (
            Image.open(SAMPLES / f"{name}.png").convert("RGB"),
            Image.open(DEMO / "images" / f"{name}.png"),
        )
        bpp = 8 * (DEMO / "bins" / f"{name}.bin").stat().st_size / (original.width * original.height)
        columns.append((original, decoded, f"{name}: {bpp:.3f} bpp"))
    widths = [round(height * o.width / o.height) for o, _, _ in columns]
    canvas = Image.new("RGB", (sum(widths), 2 * height + 16), "white")
    left = 0
    for (original, decoded, label), width in zip(columns, widths):
        canvas.paste(original.resize((width, height)), (left, 0))
        canvas.paste(decoded.resize((width, height)), (left, height))
        ImageDraw.Draw(canvas).text((left + 4, 2 * height + 2), label, fill="black")
        left += width
    canvas.save(path)
    return path


if __name__ == "__main__":
    run_program(main)
