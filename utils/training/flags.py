"""The flags of train.py, their defaults and what is wrong with some combinations of them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from models import MODELS, default_config
from utils.cli import UserError
from utils.devices import usable_cores
from utils.metrics import MS_SSIM_SMALLEST
from utils.training.distributed import leave_it_to_the_first
from utils.training.losses import DEFAULT_LAMBDA, METRICS
from utils.training.optimization import OPTIMIZERS, SCHEDULES
from utils.training.step import PRECISIONS

NOT_SETTINGS = ("debug", "resume", "local_rank")  # they do not change what is trained


class Parser(argparse.ArgumentParser):
    """Of several processes that got the same wrong flags, the first one says so."""

    def error(self, message: str) -> NoReturn:
        leave_it_to_the_first()
        super().error(message)


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The flags of the papers' program, and ours. Defaults are the paper's recipe (DCAE, Section 4.1)."""
    parser = Parser(description="Train a model on a folder of images.", allow_abbrev=False)
    for add in (add_model, add_data, add_recipe, add_machine, add_records):
        add(parser.add_argument_group(add.__doc__).add_argument)
    args = parser.parse_args(argv)
    args.weight = DEFAULT_LAMBDA[args.type] if args.weight is None and not args.variable_rate else args.weight
    args.model_option = dict(args.model_option)
    return args


def add_model(add) -> None:
    """model"""
    add("--model", choices=MODELS, help="default: the checkpoint's if one is given, else dcae")
    add("--N", type=positive, help="channels of z (dcae) or half those of the transforms (tcm, icwem)")
    add("--M", type=positive, help="channels of y")
    add("--model-option", nargs="*", type=option, default=[], metavar="KEY=VALUE", action="extend",
        help="any other argument of the model's constructor, e.g. depths=[0,0,4]")  # fmt: skip
    add("--variable-rate", action="store_true", help="one model for every rate: lambda is drawn for each image")
    add("--start", choices=("random", "pca"), default="random",
        help="fresh transforms: pca starts them as principal components of the images (default: random)")  # fmt: skip
    add("--checkpoint", type=Path, metavar="FILE", help="start from the weights of this file")
    add(
        "--grow", type=Path, metavar="FILE", help="start as the narrower dcae in this file, and widen it to these sizes"
    )
    add("--continue_train", action="store_true", help="go on with the whole state of --checkpoint")


def add_data(add) -> None:
    """data"""
    add("-d", "--dataset", type=Path, required=True, metavar="DIR", help="with train/ and test/, or images to divide")
    add("--val-share", type=fraction, help="held back from training where there is no test/ (default: 0.02)")
    add("--val-images", type=positive, help="validate at most so many (default: 24, or all of test/)")
    add("--patch-size", type=positive, nargs="+", default=[256], help="side of the crops in pixels (default: 256)")
    add("--downscale", type=fraction, default=0.0, help="share of crops from images reduced down to half (default: 0)")
    add("--recolor", type=fraction, default=0.0, help="share of crops with other colours (default: 0)")
    add("--cache", choices=("none", "ram", "device"), default="none", help="keep the decoded images there")
    add("-n", "--num-workers", type=natural, help="processes that read images (default: up to 8, 0 with --cache)")


def add_recipe(add) -> None:
    """recipe"""
    add("--type", choices=METRICS, default="mse", help="distortion (default: mse)")
    add("--lambda", type=positive_float, dest="weight", help="of the distortion (default: 0.013; 8.73 for ms-ssim)")
    add("-e", "--epochs", type=positive, default=100, help="default: 100")
    add("--max-steps", type=positive, help="instead of --epochs")
    add("--batch-size", type=positive, default=16, help="images a process and pass (default: 16)")
    add("--train", choices=("all", "decoder"), default="all", help="decoder: synthesis and residuals alone")
    add("--accumulate", type=positive, default=1, help="passes a step (default: 1)")
    add("--optimizer", choices=OPTIMIZERS, default="adam", help="default: adam, the papers'; soap needs fewer steps")
    add("-lr", "--learning-rate", type=positive_float, default=1e-4, help="default: 1e-4")
    add("--schedule", choices=SCHEDULES, default="step", help="of the learning rate (default: step)")
    add("--cooldown", type=fraction, default=0.4, help="last share of a linear schedule: down to 0 (default: 0.4)")
    add("--lr_epoch", type=positive, nargs="+", help="epochs after which the rate falls tenfold (default: after 80%%)")
    add("--warmup", type=natural, default=0, help="steps in which the rate rises (default: 0)")
    add("--aux-learning-rate", type=positive_float, default=1e-3, help="of the quantiles (default: 1e-3)")
    add("--clip_max_norm", type=float, default=1.0, help="of the gradient, 0 for no limit (default: 1)")
    add("--ema", type=fraction, default=0.0, metavar="DECAY", help="average the weights, e.g. 0.999 (default: 0, off)")
    add("--seed", type=natural, default=0, help="default: 0")


def add_machine(add) -> None:
    """machine"""
    add("--cuda", action="store_true", help="train on the GPU")
    add("--precision", choices=PRECISIONS, default="fp32", help="of the transforms (default: fp32)")
    add("--compile", action="store_true", help="compile the model with torch.compile")
    add("--test-batch-size", type=positive, default=1, help="1: whole images are validated one at a time")
    add("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)  # from torch.distributed.launch
    add("--debug", action="store_true", help="show the traceback of an error")


def add_records(add) -> None:
    """records"""
    add("--save", action=argparse.BooleanOptionalAction, default=True, help="write checkpoints and logs (default: yes)")
    add("--save_path", type=Path, metavar="DIR", help="where to (default: runs/MODEL-TYPE-LAMBDA)")
    add("--resume", action="store_true", help="go on with the run in --save_path, if there is one")
    add("--save-every", type=positive, default=1000, metavar="STEPS", help="latest.pt (default: 1000)")
    add("--keep-every", type=natural, default=0, metavar="STEPS", help="keep step_N.pt (default: 0, none)")
    add("--val-every", type=natural, metavar="STEPS", help="validate (default: each epoch; 0: never)")
    add("--log-every", type=positive, default=100, metavar="STEPS", help="default: 100")
    add("--tensorboard", action=argparse.BooleanOptionalAction, default=True, help="default: yes")


def positive(text: str) -> int:
    return number(int, text, lambda value: value > 0, "a whole number above 0")


def natural(text: str) -> int:
    return number(int, text, lambda value: 0 <= value < 2**63, "a whole number from 0 up")


def positive_float(text: str) -> float:
    return number(float, text, lambda value: 0 < value < float("inf"), "a number above 0")


def fraction(text: str) -> float:
    return number(float, text, lambda value: 0 <= value < 1, "a number from 0 to below 1")


def number(kind, text: str, right, wanted: str):
    """`text` as a number, or argparse's error with what is wanted."""
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not right(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
    return value


def option(text: str) -> tuple[str, Any]:
    """KEY=VALUE with a JSON value."""
    key, equals, value = text.partition("=")
    try:
        return key, json.loads(value if equals else "")
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE with a number, list, true or false") from None


def check_flags(args: argparse.Namespace) -> None:
    """Raise UserError, naming the flag, for what contradicts itself or cannot be honoured."""
    problems = (
        (args.variable_rate and args.weight is not None, "--lambda: --variable-rate draws it; leave out one of them"),
        (args.variable_rate and args.type != "mse", "--variable-rate: its range of lambda is for --type mse"),
        (args.type == "ms-ssim" and args.patch_size[0] < MS_SSIM_SMALLEST,
         f"--patch-size {args.patch_size[0]}: MS-SSIM needs {MS_SSIM_SMALLEST} pixels or more; use 256"),
        (len(args.patch_size) > 2 or len(set(args.patch_size)) > 1, "--patch-size: patches are square; give one"),
        (args.test_batch_size > 1, "--test-batch-size: whole images differ in size, so only 1 is possible"),
        (args.continue_train and not args.checkpoint, "--continue_train: give the file to go on with as --checkpoint"),
        (args.start == "pca" and args.checkpoint, "--start pca: --checkpoint brings weights; leave out one of them"),
        (args.grow and args.checkpoint, "--grow: --checkpoint brings weights, too; leave out one of them"),
        (args.grow and args.start == "pca", "--grow: brings weights; leave out --start pca"),
        (args.grow and args.model not in (None, "dcae"), f"--grow: is for dcae; leave out --model {args.model}"),
        (args.resume and args.continue_train, "--resume and --continue_train name two states; choose one"),
        (args.resume and not args.save, "--resume: with --no-save there is nothing to go on with"),
        (args.keep_every and not args.save, "--keep-every: --no-save keeps nothing; leave out one of them"),
        (args.save_path and not args.save, "--save_path: --no-save writes nothing; leave out one of them"),
        (args.lr_epoch and args.schedule != "step", f"--lr_epoch: has no meaning with --schedule {args.schedule}"),
        (args.cache == "device" and args.num_workers, "--num-workers: --cache device takes the crops on the device"),
        (args.cache == "device" and args.downscale, "--downscale: not possible with --cache device; use --cache ram"),
        (args.precision == "fp16" and not args.cuda, "--precision fp16: for GPUs (--cuda); use bf16 on a CPU"),
        (not args.clip_max_norm >= 0, "--clip_max_norm: give 0 or more"),  # nan as well
    )  # fmt: skip
    for wrong, message in problems:
        if wrong:
            raise UserError(message)
    if args.num_workers is None:
        args.num_workers = 0 if args.cache != "none" else min(8, usable_cores())


def requested_options(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """The constructor arguments that the flags ask for. Raises UserError where the model has no such argument."""
    given = {"N": args.N, "M": args.M, "variable_rate": args.variable_rate or None}
    given = {key: value for key, value in given.items() if value is not None}
    if "variable_rate" in args.model_option:
        raise UserError("--model-option variable_rate: the loss depends on it; use --variable-rate")
    twice = set(given) & set(args.model_option)
    if twice:
        raise UserError(f"--model-option {', '.join(sorted(twice))}: there is a flag of its own for that, too; use one")
    given |= args.model_option
    known = default_config(name)
    flags = {"N": "--N", "M": "--M", "variable_rate": "--variable-rate"}
    for key in given:
        if key not in known:
            flag = flags.get(key, f"--model-option {key}")
            raise UserError(f"{flag}: {name} has nothing of that kind; it has {', '.join(known)}")
    return given


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """All settings in force under their flags' names, as plain values for logs and checkpoints."""
    values = {("lambda" if key == "weight" else key): value for key, value in vars(args).items()}
    plain = {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}
    return {key: value for key, value in plain.items() if key not in NOT_SETTINGS}
