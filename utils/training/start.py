"""Where a training run starts: fresh weights, given weights, or the state in which a run was left."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models import MODELS, build_model, default_config
from utils.cli import UserError
from utils.codec.checkpoint import load_model, newest_checkpoint, other_checkpoints, read_checkpoint
from utils.training.distributed import Processes, gathered
from utils.training.flags import requested_options

if TYPE_CHECKING:
    from models.base import SliceCompressionModel
    from utils.training.run_state import RunState

LATEST, BEST = "latest.pt", "best.pt"
TRAINING_STATE = ("optimizer", "aux_optimizer", "scaler", "ema", "rng", "step", "flags")
BUILD_NAMES = {"tcm": "tcm-large", "dcae-global-tokens": "dcae-ablation-global-tokens"}  # others are named as built


@dataclass
class Start:
    """A model under the name build_model knows, the checkpoint to go on with if any, and what to say about it."""

    name: str
    model: SliceCompressionModel
    state: dict[str, Any] | None
    text: str


def find_start(args: argparse.Namespace, folder: Path | None) -> Start:
    """What the flags ask for. Raises UserError where a file does not fit them or the folder holds another run."""
    newest = newest_checkpoint(folder) if folder else None
    if newest and not (args.resume or args.continue_train):
        raise UserError(
            f"--save_path {folder}: holds a run already; --resume goes on with it, or choose another folder"
        )
    if args.resume and newest:
        start = go_on(args, newest)
        return start if newest.name == LATEST else replace(start, text=f"there is no {LATEST}; {start.text}")
    if args.continue_train:
        start = go_on(args, args.checkpoint)
        if folder is None or folder.resolve() != args.checkpoint.parent.resolve():
            start.state |= {"best": None, "validated": -1}  # best.pt and the log's validations stay where they are
        return start
    none = f"there is nothing to resume in {folder}; " if args.resume else ""
    start = from_weights(args) if args.checkpoint else grown(args) if args.grow else fresh(args)
    return Start(start.name, start.model, None, none + start.text)


def fresh(args: argparse.Namespace) -> Start:
    """A new model."""
    name = args.model or "dcae"
    return Start(name, build(name, requested_options(args, name)), None, f"starting {name} with fresh weights")


def grown(args: argparse.Namespace) -> Start:
    """A new model, as large as --grow's file but for what the flags say; utils/training/growth.py fills it."""
    source = load_model(args.grow)
    if source.model_name != "dcae":
        raise UserError(f"--grow {args.grow}: holds a {source.model_name}; only a dcae can be grown")
    if source.variable_rate and not args.variable_rate:
        raise UserError(f"--grow {args.grow}: holds a variable-rate model; add --variable-rate")
    same = {"feature_channels": source.features, "answer_channels": source.answers}  # not M, which may grow
    config = {**source.config, **same, **requested_options(args, "dcae")}
    return Start("dcae", build("dcae", config), None, f"growing {args.grow}, with new channels and fresh optimizers")


def build(name: str, options: dict[str, Any]) -> SliceCompressionModel:
    """build_model, with sizes that do not go together as a UserError."""
    try:
        return build_model(name, **options)
    except (ValueError, TypeError, RuntimeError, ZeroDivisionError) as error:
        raise UserError(f"--model {name} with {options}: these sizes do not go together: {error}") from error


def go_on(args: argparse.Namespace, path: Path) -> Start:
    """The model and the whole state of a checkpoint that train.py wrote."""
    content = read_state(path)
    name, config = content["model"]["name"], content["model"]["config"]
    check_model(args, path, name, config)
    if bool(content["ema"]) != bool(args.ema):
        raise UserError(f"--ema {args.ema}: {path} was trained with --ema {content['flags']['ema']}; give the same")
    for flag, default in (("optimizer", "adam"), ("train", "all")):  # older checkpoints do not say it
        was, value = content["flags"].get(flag, default), getattr(args, flag)
        if value != was:
            way_out = f"give the same, or start anew from its weights, elsewhere, with --checkpoint {path} alone"
            raise UserError(f"--{flag} {value}: {path} was trained with --{flag} {was}; {way_out}")
    text = f"going on with {path} after step {content['step']}"
    return Start(name, build_model(name, **config), content, text)


def require_same_start(start: Start, folder: Path | None, processes: Processes) -> None:
    """Raise UserError where the processes have found different states, as on machines that do not share the folder."""
    steps = gathered(processes, [start.state["step"] if start.state else 0])
    if len(set(steps)) > 1:
        found = ", ".join(map(str, steps))
        raise UserError(f"--save_path {folder}: the processes would start at steps {found}; name a folder they share")


def same_validation(before: dict[str, Any], now: RunState) -> bool:
    """Whether validation losses of a checkpoint's run and those to come can be compared."""
    loss = all(before["flags"].get(name) == now.flags[name] for name in ("lambda", "type"))
    return loss and before["data"].get("validation") in (None, now.data["validation"])


def read_state(path: Path) -> dict[str, Any]:
    """A checkpoint to go on with. Raises UserError, naming others of the run where this one cannot be used."""
    other = next(iter(other_checkpoints(path)), None)
    way_out = f"; to go on with the newest: --checkpoint {other} --continue_train" if other else ""
    try:
        content = read_checkpoint(path)
    except UserError as error:
        raise UserError(f"{error}{way_out}") from error
    missing = [key for key in TRAINING_STATE if key not in content]
    if missing:
        raise UserError(f"{path}: holds weights but no training state ({', '.join(missing)}); use --checkpoint alone")
    from models.checkpoints.loading import not_finite  # here, as CompressAI takes seconds to load

    broken = not_finite(content["state_dict"]) or not_finite((content["ema"] or {}).get("trained", {}))
    if broken:
        raise UserError(f"{path}: holds numbers that are not finite (NaN or Inf) in {broken}{way_out}")
    return content


def changes(before: dict[str, Any], now: dict[str, Any]) -> str:
    """In words, what is set differently from when the checkpoint was written."""
    names = [name for name in now if name in before and before[name] != now[name]]
    return "".join(f"; {name} was {before[name]} and is {now[name]}" for name in names)


def check_model(args: argparse.Namespace, path: Path, name: str, config: dict[str, Any]) -> None:
    """Raise UserError where the flags name another model or size than the checkpoint holds."""
    full = default_config(name) | config
    if full.get("variable_rate") and not args.variable_rate:
        raise UserError(f"{path}: holds a variable-rate model; add --variable-rate")
    wanted = requested_options(args, args.model or name)
    if args.model:
        if MODELS[args.model][0] != MODELS[name][0]:  # of different classes
            raise UserError(f"--model {args.model}: {path} holds a {name}; leave out --model, or choose another file")
        wanted = {key: default_config(args.model)[key] for key in MODELS[args.model][1]} | wanted
    for key, value in wanted.items():
        if full[key] != value:
            raise UserError(f"{path}: its model has {key} = {full[key]}, the flags ask for {value}; change one of them")


def from_weights(args: argparse.Namespace) -> Start:
    """The weights of a file of any origin; optimizers start fresh. Gain units are added where --variable-rate asks."""
    source = load_model(args.checkpoint)
    name = BUILD_NAMES.get(source.model_name, source.model_name)
    added = args.variable_rate and not source.variable_rate
    config = {**source.config, "variable_rate": source.variable_rate or args.variable_rate}
    check_model(args, args.checkpoint, name, config)
    model = build_model(name, **config)
    from models.checkpoints.loading import TABLES  # here, as CompressAI takes seconds to load

    # entropy tables are left out: training makes them stale
    weights = {key: value for key, value in source.state_dict().items() if not TABLES.search(key)}
    model.load_state_dict(weights, strict=False)
    gains = " and new gain units" if added else ""
    text = f"starting from the weights of {args.checkpoint}{gains}, with fresh optimizers, schedule and step count"
    return Start(name, model, None, text)
