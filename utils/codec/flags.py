"""The command line of `compress_and_decompress.py`: flags, defaults, and which of them exclude each other."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models import MODELS
from models.layers.gain import DEFAULT_QUALITY, QUALITY_MAX, QUALITY_MIN, is_quality
from utils.cli import UserError
from utils.codec.targets import KINDS, Target
from utils.codec.trade_off import EFFORTS, TradeOff
from utils.data.padding import DEFAULT_PADDING, PADDINGS
from utils.inference.memory import add_inference_flags


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The flags of the papers' program, and ours."""
    parser = argparse.ArgumentParser(description="Images to .bin files and back.", allow_abbrev=False)
    add = parser.add_argument
    add("--mode", choices=("compress", "decompress"), required=True)
    add("--data", type=Path, required=True, metavar="DIR_OR_FILE", help="images, or .bin files")
    add("--save_path", type=Path, required=True, metavar="DIR", help="where the results go; of one file also its name")
    add("--checkpoint", type=Path, metavar="FILE", help="the model's weights (default: of assets, that of the file)")
    add("--model", choices=MODELS, metavar="NAME", help="check that the checkpoint is this model: " + ", ".join(MODELS))
    add("--random-weights", type=int, metavar="SEED", help="instead of a checkpoint: untrained weights, for trials")
    add("--cuda", action="store_true", help="work on the GPU")
    add("--device", metavar="NAME", help="cpu, cuda or cuda:N (default: cpu)")
    add("--threads", type=int, metavar="N", help="CPU threads (default: torch's choice)")
    add("--jobs", type=int, default=1, metavar="N", help="N files at once share the threads; on CPUs: portable files")
    add("--recursive", action="store_true", help="also the files in folders below; their structure is kept")
    add("--overwrite", action="store_true", help="replace outputs that exist; otherwise they are kept")
    add_compressing_flags(parser)
    add(
        "--arithmetic", choices=("fp64", "fp32"), help="fp64: decodes on any machine (default); fp32: faster, here only"
    )
    add_inference_flags(parser)
    add("--json", action="store_true", help="print the summary as JSON")
    add("--debug", action="store_true", help="show where an error happened")
    args = parser.parse_args(argv)
    if args.format == "official" and args.arithmetic == "fp64":
        parser.error("--format official is read in fp32 by its program; leave out --arithmetic fp64")
    if args.threads is not None and args.threads < 1:
        parser.error("--threads must be at least 1")
    if args.random_weights is not None and args.checkpoint:
        parser.error("--random-weights and --checkpoint each give the weights; leave one of them out")
    check_effort(args, parser)
    check_decompressing(args, parser)
    args.format, args.padding = args.format or "bin", args.padding or DEFAULT_PADDING
    check_jobs(args, parser)
    args.target = requested_target(args, parser)
    return args


def require_quality(quality: float, asked: str = "--quality") -> None:
    """Raise UserError, naming where it was asked for, for a quality that no model has."""
    if not is_quality(quality):
        raise UserError(f"{asked} {quality:g} is outside {QUALITY_MIN:g}..{QUALITY_MAX:g}; choose another")


def add_compressing_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that --mode decompress refuses."""
    add = parser.add_argument
    add("--quality", type=float, metavar="Q", help=f"1..100, for variable-rate models (default: {DEFAULT_QUALITY:g})")
    for kind, metavar, what in (
        ("bpp", "R", "bits per pixel of the whole file"),
        ("size", "BYTES", "bytes of the file, never exceeded"),
        ("psnr", "DB", "PSNR in dB"),
    ):
        add(f"--target-{kind}", type=float, metavar=metavar, help=f"search the quality that gives this: {what}")
    add_effort_flags(parser)
    add("--format", choices=("bin", "official"), help="official: the published program's layout (default: bin)")
    add("--padding", choices=PADDINGS, help=f"what fills up the sides (default: {DEFAULT_PADDING})")
    add("--verify", action="store_true", help="decode each file after writing it, in another order of summation")


def add_effort_flags(parser: argparse.ArgumentParser) -> None:
    """--effort and --lambda."""
    add = parser.add_argument
    add(
        "--effort",
        type=int,
        choices=EFFORTS,
        default=0,
        metavar="0..9",
        help="search for smaller files: docs/effort.md",
    )
    add("--lambda", type=float, dest="weight", metavar="L", help="of --effort, if the checkpoint's name lacks it")


def check_effort(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Refuse --effort and --lambda where nothing is searched."""
    if args.weight is not None and not args.effort:
        parser.error("--lambda is for --effort 1 to 9; leave it out or say how much effort")
    if args.weight is not None and not 0 < args.weight < math.inf:
        parser.error(f"--lambda {args.weight:g}: must be a number above 0")
    if args.effort and getattr(args, "mode", "") == "decompress":
        parser.error(f"--effort {args.effort} is for compressing; every file decodes at the same speed")


def check_decompressing(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Refuse, beside --mode decompress, the flags that a file has the answer to."""
    names = ("quality", *(f"target_{kind}" for kind in KINDS), "format", "padding", "verify")
    given = [name for name in names if getattr(args, name) is not None and getattr(args, name) is not False]
    if args.mode == "decompress" and given:
        parser.error(f"--{given[0].replace('_', '-')} is for compressing; a file says how it decodes; leave it out")


def effort_options(args: argparse.Namespace) -> dict[str, Any]:
    """What the flags say, as arguments of Codec. A lambda from 1 up is one for MS-SSIM."""
    given = TradeOff(args.weight, "mse" if args.weight < 1 else "ms-ssim", "--lambda") if args.weight else None
    return {"effort": args.effort, "trade_off": given}


def check_jobs(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Refuse --jobs beside what only one file at a time can have.

    In float32 a CPU's sums depend on how many threads share them, and so do the files that a decoder can read.
    """
    if args.jobs < 1:
        parser.error("--jobs must be at least 1")
    on_cpu = not args.cuda and (args.device or "cpu").startswith("cpu")
    alone = {
        "--verify": args.verify,
        "--max-memory": args.max_memory is not None,
        "--compile": args.compile,
        "--arithmetic fp32": args.arithmetic == "fp32" and on_cpu,
        "--format official": args.format == "official" and on_cpu,
    }
    given = [flag for flag, value in alone.items() if value]
    if args.jobs > 1 and given:
        parser.error(f"--jobs {args.jobs}: {given[0]} is for one file at a time; leave one of them out")


def requested_target(args: argparse.Namespace, parser: argparse.ArgumentParser) -> Target | None:
    """The one of --target-bpp, --target-size and --target-psnr that is given, if any."""
    given = [Target(kind, value) for kind in KINDS if (value := getattr(args, f"target_{kind}")) is not None]
    flags = " and ".join([f"--target-{target.kind}" for target in given] + ["--quality"] * (args.quality is not None))
    if given and " and " in flags:
        parser.error(f"{flags} each decide the quality; give one of them")
    if given and args.format == "official":
        parser.error(f"{flags}: --format official has no quality; leave it out")
    for target in given:
        if not 0 < target.value < math.inf:
            parser.error(f"{flags} {target.value:g}: must be a number above 0")
    return given[0] if given else None
