"""`make demo`: the sample images to .bin files and back with the shipped model, and a picture to judge it by.

    python scripts/demo.py [flags of compress_and_decompress.py, such as --quality 30]

Flags that are for compressing go to the first step alone, the others to both.

demo/bins/ holds the files, demo/images/ what comes back, and demo/*.png crops of the original, of this codec, of JPEG
and of AVIF in equal bytes.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from project_root import ROOT

import compress_and_decompress
from scripts import compare_crops
from utils.cli import run_program
from utils.codec.checkpoint import DEFAULT_CHECKPOINT
from utils.codec.flags import add_compressing_flags

SAMPLES, DEMO = ROOT / "assets" / "samples", ROOT / "demo"
COMPARED = ("city", (250, 230, 200, 150)), ("girl", (320, 130, 200, 150)), ("flowers", (210, 220, 200, 150))
LOW_QUALITY = 15  # where codecs differ to the eye


def main(argv: Sequence[str]) -> int:
    work = [("compress", SAMPLES, DEMO / "bins", argv), ("decompress", DEMO / "bins", DEMO / "images", for_both(argv))]
    for mode, data, save_path, more in work:
        flags = [f"--mode={mode}", f"--data={local(data)}", f"--save_path={local(save_path)}", "--overwrite", *more]
        if status := run(compress_and_decompress.main, "compress_and_decompress.py", flags):
            return status
    shipped = local(DEFAULT_CHECKPOINT)
    sources = [f"{DEFAULT_CHECKPOINT.stem}={shipped}:{LOW_QUALITY}", "JPEG=jpeg-420", "AVIF=avif"]
    for name, crop in COMPARED:
        flags = [f"--data={local(SAMPLES / name)}.png", f"--output={local(DEMO)}/{name}.png", "--same-bytes"]
        run(compare_crops.main, "scripts/compare_crops.py", [*sources, *flags, "--crop", *map(str, crop)])
    print(f"\nfiles: {local(DEMO)}/bins; images: {local(DEMO)}/images; side by side: {local(DEMO)}/*.png")
    return 0


def for_both(argv: Sequence[str]) -> list[str]:
    """The flags without those that are for compressing."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_compressing_flags(parser)
    return parser.parse_known_args(argv)[1]


def local(path: Path) -> str:
    """As a user would write it."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def run(program: Callable[[Sequence[str]], int | None], name: str, flags: Sequence[str]) -> int:
    """Print the command and run it here."""
    print(f"\n$ python {name} {shlex.join(flags)}", flush=True)
    return program(flags) or 0


if __name__ == "__main__":
    run_program(main)
