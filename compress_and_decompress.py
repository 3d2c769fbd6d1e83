"""Images to .bin files and back.

    python compress_and_decompress.py --mode compress --data photos --save_path bins --checkpoint dcae_0.0130.pth.tar
    python compress_and_decompress.py --mode decompress --data bins --save_path out --checkpoint dcae_0.0130.pth.tar
    torchrun --nproc_per_node=4 compress_and_decompress.py ...             # processes share the files of a folder

photo.jpg becomes photo.bin, or photo.jpg.bin where another image of the folder is called photo too; photo.bin becomes
photo.png. Of one file, --save_path may name the file to write: a.bin, a.png. The format is described in
docs/bitstream.md. Leaves with status 2 if any file failed.
"""

from __future__ import annotations

if __name__ == "__main__":
    from utils.cli import speak_while_loading

    speak_while_loading()

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from models import build_model, default_config
from models.layers.gain import DEFAULT_QUALITY
from utils.cli import UserError, run_program
from utils.codec.bitstream import BitstreamError, is_compressed, unpack
from utils.codec.checkpoint import DEFAULT_CHECKPOINT, load_model
from utils.codec.environment import foreign_environment
from utils.codec.flags import effort_options, parse_arguments, require_quality
from utils.codec.folders import (
    Job,
    Outcome,
    Stages,
    format_summary,
    gather,
    joined_processes,
    kept,
    leave_if_stopped,
    run_jobs,
    summarise,
)
from utils.codec.targets import compress_to_target
from utils.data.formats import SUFFIXES
from utils.data.images import read_image, to_tensor, to_uint8, write_png
from utils.data.listing import LeftOut, Listing, left_out_line, list_files, list_images
from utils.data.reconstructions import DECODED, is_reconstruction, output_names
from utils.devices import choose_device
from utils.files import atomic_write, from_pipe, require_writable
from utils.inference.memory import engine_options, keep_memory
from utils.processes import process_share
from utils.text import printable, to_json

if TYPE_CHECKING:
    from models.base import SliceCompressionModel
    from utils.codec.codec import Codec

Coded = tuple[Any, Outcome]  # what is written to a file, and what is said about it


def share_threads(args: argparse.Namespace, portable: bool = True) -> None:
    """With --jobs, give this thread's file its share of the threads, or all where sums depend on how many they are."""
    if args.jobs > 1:
        torch.get_num_threads()  # a thread's first use of torch takes the number that any thread set last
        torch.set_num_threads(max(1, args.threads // args.jobs) if portable else args.threads)


def get_model(args: argparse.Namespace, device: torch.device) -> SliceCompressionModel:
    """The model of --checkpoint, of --model with --random-weights, or the default one. Raises UserError."""
    if args.random_weights is not None:
        torch.manual_seed(args.random_weights)
        model = build_model(args.model or "dcae")
        model.update()
        print("warning: these weights are random; the images will be useless", file=sys.stderr)
        return model.to(device).eval()
    path = args.checkpoint or DEFAULT_CHECKPOINT
    model = load_model(path, device)
    if args.model and default_config(args.model) != model.config:
        raise UserError(
            f"--model {args.model}: {path} is not {args.model}; name another --checkpoint, or leave --model out"
        )
    return model


def make_codec(args: argparse.Namespace, model: SliceCompressionModel, device: torch.device) -> Codec:
    """The model as the flags want it used. Raises UserError where that cannot be."""
    from utils.codec.codec import Codec  # here, as CompressAI takes seconds to load

    arithmetic = "published" if args.format == "official" else args.arithmetic or "fp64"
    return Codec(model, arithmetic, args.padding, **effort_options(args), **engine_options(args, device))


def check_quality(model: SliceCompressionModel, quality: float | None) -> float | None:
    """The quality in force. Raises UserError where the model has no such quality."""
    if quality is not None and not model.variable_rate:
        raise UserError("--quality: this model has one quality; leave the flag out or use a variable-rate model")
    if quality is not None:
        require_quality(quality)
    return (quality or DEFAULT_QUALITY) if model.variable_rate else None


def list_bin_files(data: Path, recursive: bool) -> Listing:
    """The .bin files of a folder, or the one file that `data` is. Raises UserError where there is none."""
    found = list_files(data, (".bin",), recursive)
    if not found.paths:
        hint = "" if recursive else "; --recursive looks into subfolders"
        left = f"; {left_out_line(found.left_out)}" if found.left_out else ""
        raise UserError(f"--data {data}: holds no .bin files{hint}{left}")
    return found


def plan(args: argparse.Namespace) -> tuple[list[Job], LeftOut]:
    """What is read and written, with the folder structure kept, and what was left out."""
    compressing = args.mode == "compress"
    listing = (list_images if compressing else list_bin_files)(args.data, args.recursive)
    sources = listing.paths
    single = one_file(args, ".bin" if compressing else ".png")
    if single:
        return [Job(printable(sources[0].name), sources[0], single)], listing.left_out
    names = [source.relative_to(args.data if args.data.is_dir() else args.data.parent) for source in sources]
    targets = output_names(names, ".bin" if compressing else ".png")
    jobs = [Job(printable(str(n)), source, args.save_path / t) for n, source, t in zip(names, sources, targets)]
    return jobs, listing.left_out


def one_file(args: argparse.Namespace, suffix: str) -> Path | None:
    """The file that --save_path names for the one file of --data; None where it names a folder.

    Raises UserError for a name of another kind of file than is written.
    """
    path = args.save_path
    if args.data.is_dir() or path.is_dir() or path.suffix.lower() not in (".bin", *SUFFIXES):
        return None
    if path.suffix.lower() != suffix:
        raise UserError(f"--save_path {path}: --mode {args.mode} writes {suffix}; name such a file, or a folder")
    return path


def refuse_overwriting(jobs: Sequence[Job], mode: str) -> None:
    """Raise UserError where --overwrite would replace what is to be read, or what no program of ours wrote."""
    sources = {job.source.resolve() for job in jobs}
    for job in jobs:
        if is_foreign(job.target, mode) or job.target.resolve() in sources:
            raise UserError(
                f"--overwrite: {job.target} may be an original, it was not written by --mode {mode};"
                " choose another --save_path, or move it away"
            )


def is_foreign(target: Path, mode: str) -> bool:
    """Whether there is a PNG that no .bin file gave, or a .bin file of another kind; of empty files nothing is lost."""
    if mode == "decompress":
        return target.exists() and not is_reconstruction(target)
    if not target.is_file() or not target.stat().st_size:
        return False
    with target.open("rb") as file:
        return not is_compressed(file.read(3)) and not is_compressed(target.read_bytes())


def compress(job: Job, content: tuple, codec: Codec, args: argparse.Namespace, said: set) -> Coded:
    """One image, as `read_image` gives it, to the bytes of its file."""
    share_threads(args, portable=not args.effort)
    pixels, notes = content
    say_once(job, notes, said)
    tries = args.effort or args.target and args.target.kind == "psnr"
    codec.prepare(*pixels.shape[:2], *(("analysis", "synthesis") if tries else ("analysis",)))
    start = time.perf_counter()
    x, quality = to_tensor(pixels).to(codec.device), args.quality
    with step_bar(job, args) as progress:
        if args.target:
            found = compress_to_target(codec, x, args.target, args.effort, progress)
        elif args.effort:
            found = codec.search(x, quality, args.effort, progress)
        else:
            found = codec.compress(x, quality)
    data, quality = (found, quality) if isinstance(found, bytes) else (found.data, found.quality)
    milliseconds = 1000 * (time.perf_counter() - start)
    outcome = Outcome(job.name, "done", pixels.shape[0] * pixels.shape[1], len(data), milliseconds, quality)
    if args.effort:
        outcome.effort, outcome.won_percent = args.effort, found.won_percent
        outcome.trade_off = found.trade_off.described()
    coded = data, outcome
    if not args.verify:
        return coded
    outcome = write_bytes(job, coded, args.overwrite)
    if outcome.status == "done":
        verify(job, codec)
    return data, outcome


@contextmanager
def step_bar(job: Job, args: argparse.Namespace) -> Iterator[Callable[[int, int], None]]:
    """Shows the steps of a search that takes longer than two seconds, on a terminal; of one file at a time."""
    if not args.effort or args.jobs > 1 or process_share()[0]:
        yield leave_if_stopped
        return
    with tqdm(desc=job.name, unit="step", leave=False, delay=2, disable=None) as bar:

        def show(done: int, steps: int) -> None:
            bar.total = steps
            bar.update(done - bar.n)

        yield show


def verify(job: Job, codec: Codec) -> None:
    """Decode the file that was written, as another machine might. Raises UserError, naming it, where that fails."""
    try:
        codec.verify(job.target.read_bytes())
    except BitstreamError as error:
        raise UserError(f"{job.target}: written, but --verify failed: {error}") from error


def write_bytes(job: Job, coded: Coded, overwrite: bool) -> Outcome:
    """A coded image to its file; one that another program has written by now is kept."""
    try:
        with atomic_write(job.target, overwrite) as file:
            file.write(coded[0])
    except FileExistsError:
        return kept(job)
    return coded[1]


def decompress(job: Job, data: bytes, codec: Codec, args: argparse.Namespace, said: set) -> Coded:
    """One file to its pixels."""
    stream = unpack(data)
    share_threads(args, stream.portable)
    if args.checkpoint is None and args.random_weights is None:
        from utils.codec.shipped import codec_of  # here, as CompressAI takes seconds to load

        codec = codec_of(stream, codec)
    written = foreign_environment(stream.environment, codec.environment)
    if written:
        say_once(job, [f"written by {written}; decoding it elsewhere may fail"], said)
    if args.compile:
        codec.open(data)  # a forged size would be compiled for
        codec.prepare(stream.height, stream.width, "synthesis")
    start = time.perf_counter()
    pixels = to_uint8(codec.decompress(data))
    milliseconds = 1000 * (time.perf_counter() - start)
    return pixels, Outcome(job.name, "done", pixels.shape[0] * pixels.shape[1], len(data), milliseconds)


def write_image(job: Job, decoded: Coded, overwrite: bool) -> Outcome:
    """Pixels to their PNG; one that another program has written by now is kept."""
    try:
        write_png(job.target, decoded[0], overwrite, DECODED)
    except FileExistsError:
        return kept(job)
    return decoded[1]


def say_once(job: Job, notes: Sequence[str], said: set) -> None:
    """Tell on stderr what reading a file changed, each kind of note once."""
    for note in notes:
        if note not in said:
            said.add(note)
            print(f"note: {job.source}: {note} (said once)", file=sys.stderr)


def main(argv: Sequence[str]) -> int:
    args = parse_arguments(argv)
    if args.max_memory is None:
        keep_memory()
    if args.threads:
        torch.set_num_threads(args.threads)
    args.threads, args.data = torch.get_num_threads(), from_pipe(args.data)
    jobs, left_out = plan(args)
    if args.overwrite:
        refuse_overwriting(jobs, args.mode)
    require_writable(jobs[0].target, "--save_path")
    device = choose_device(args.device, args.cuda)
    if device == torch.device("cuda") and process_share()[1] > 1:
        device = torch.device("cuda", process_share()[0] % torch.cuda.device_count())
    model = get_model(args, device)
    if args.mode == "compress":
        args.quality = check_quality(model, args.quality)
        if args.target and not model.variable_rate:
            raise UserError(f"--target-{args.target.kind}: this model has one quality; use a variable-rate model")
    known = {"codec": make_codec(args, model, device), "args": args, "said": set()}
    writing = {"overwrite": args.overwrite}
    if args.mode == "compress":
        write = (
            (lambda job, coded: coded[1]) if args.verify else partial(write_bytes, **writing)
        )  # to verify, `compress` wrote it
        stages = Stages(lambda job: read_image(job.source), partial(compress, **known), write)
    else:
        stages = Stages(
            lambda job: job.source.read_bytes(),
            partial(decompress, **known),
            partial(write_image, **writing),
        )
    with joined_processes() as group:
        outcomes = gather(run_jobs(jobs, stages, args.overwrite, args.mode, args.jobs), group)
    if outcomes is None:
        return 0
    summary = summarise(outcomes, left_out)
    print(to_json({"mode": args.mode, **summary}) if args.json else format_summary(summary))
    return 2 if summary["total"]["failed"] else 0


if __name__ == "__main__":
    run_program(main)
