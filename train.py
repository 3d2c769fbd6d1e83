"""Train a model on a folder of images, on one CPU or on many GPUs.

    python train.py -d photos --cuda                                              # the paper's recipe, into runs/
    python train.py -d photos --model tcm-small --lambda 0.05 --save_path small    # another model and trade-off
    python train.py -d photos --model tcm-small --lambda 0.05 --save_path small --resume      # after any kind of end
    python train.py -d photos --checkpoint runs/a/best.pt --type ms-ssim            # fine-tune
    torchrun --nproc_per_node=4 train.py -d photos --cuda                           # batch size is per process

--save_path gets latest.pt, best.pt, log.jsonl (see utils/training/log.py) and tensorboard/. One run at a time owns it.
"""

from __future__ import annotations

if __name__ == "__main__":
    from utils.cli import speak_while_loading

    speak_while_loading()

import argparse
import math
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from utils.cli import UserError, run_program
from utils.codec.checkpoint import load_model, remove_unfinished, save_checkpoint
from utils.data.datasets import Crops, ImageFiles, Sampling, batch_positions, in_one_line, make_loader
from utils.data.survey import Survey, hold_images, survey_images
from utils.devices import describe_device
from utils.files import require_writable
from utils.training.distributed import Processes, alike, any_of, joined_processes, on_first, own_device, share_gradients
from utils.training.flags import check_flags, parse_arguments, settings
from utils.training.log import Interval, TrainLog, format_line, gpu_memory
from utils.training.optimization import Average, Schedule, freeze_all_but_decoder, make_optimizers, quantiles_of
from utils.training.pca_start import start_as_pca
from utils.training.run_folder import owned
from utils.training.run_state import RunState, images_seen
from utils.training.start import BEST, LATEST, Start, changes, find_start, require_same_start, same_validation
from utils.training.step import Recipe, train_step
from utils.training.stopping import StopRequest, stop_requests
from utils.training.validation import describe_left_out, format_validation, lambdas_to_validate, validate

PCA_CROPS = 256  # that --start pca looks at
SHOWN_IMAGES = 3  # reconstructions that TensorBoard gets


def main(argv: Sequence[str]) -> None:
    """One run, from where the flags let it start to its last step or to a signal."""
    args = parse_arguments(argv)
    with stop_requests() as stop, joined_processes(args.cuda) as processes, ExitStack() as held:
        alike(processes, lambda: check_flags(args))
        device = own_device(args.cuda)
        folder = alike(processes, lambda: folder_of(args))
        alike(processes, lambda: held.enter_context(owned(folder)) if folder and processes.first else None)
        torch.manual_seed(args.seed)  # the same on all processes: their weights are equal and they share their noise
        survey = on_first(processes, lambda: survey_images(args))
        start = alike(processes, lambda: find_start(args, folder))
        alike(processes, lambda: require_same_start(start, folder, processes))
        course = plan_steps(args, survey, processes, start)
        alike(processes, lambda: check_patch(args, start))
        if args.start == "pca" and not start.state:
            alike(processes, lambda: start_as_pca(start.model, start_images(args, survey, PCA_CROPS), args.weight))
        if args.grow and not start.state:
            alike(processes, lambda: grow_from_file(args, start, survey))
        if folder and processes.first:
            remove_unfinished(folder)
        state = make_state(args, start, course, survey, device, processes)
        where = folder if processes.first else None
        log = TrainLog(where, processes.first, state.step, args.max_steps, args.tensorboard, state.validated)
        introduce(log, args, start, survey, state, device, processes)
        network = prepare_network(args, state.model, processes, device)
        batches = open_batches(args, survey, state, device, processes)
        stopped = run(args, state, network, batches, survey, log, stop, device, processes, folder)
        log.say(survey.closing(log.undecoded, log.unvalidated))
        log.say(farewell(state, stop if stopped else None, folder, argv, processes))
        log.close()


def folder_of(args: argparse.Namespace) -> Path | None:
    """Where checkpoints and logs go. Raises UserError where nothing can be written there."""
    if not args.save:
        return None
    model = args.model or (args.checkpoint.stem if args.checkpoint else "dcae")
    rate = "variable" if args.variable_rate else f"{args.weight:g}"
    folder = args.save_path or Path("runs") / f"{model}-{args.type}-{rate}"
    require_writable(folder / LATEST, "--save_path")
    return folder


def check_patch(args: argparse.Namespace, start: Start) -> None:
    """Raise UserError where the patch would have to be padded: the rate would count what is no image."""
    side, multiple = args.patch_size[0], start.model.size_multiple
    if side % multiple:
        raise UserError(f"--patch-size {side}: {start.name} works on multiples of {multiple}; choose one of them")


def grow_from_file(args: argparse.Namespace, start: Start, survey: Survey) -> None:
    """Give the fresh model what the narrower one of --grow has learned."""
    from utils.training.growth import FOR_BYPASS, FOR_NORMS, grow  # here, as CompressAI takes seconds to load

    images = start_images(args, survey, FOR_BYPASS if start.model.bypass else FOR_NORMS)
    grow(start.model, load_model(args.grow), images, args.weight)


def start_images(args: argparse.Namespace, survey: Survey, count: int) -> torch.Tensor:
    """Crops of the training images (count, 3, P, P) in [0, 1]."""
    crops = Crops(ImageFiles(survey.images.paths), Sampling(args.seed, len(survey.images.paths), 1), args.patch_size[0])
    return torch.stack([crops[i][0] for i in range(count)]).permute(0, 3, 1, 2).float() / 255


def plan_steps(args: argparse.Namespace, survey: Survey, processes: Processes, start: Start) -> float:
    """Turn epochs into steps: max_steps, val_every and milestones; returns how many the whole run is.

    Its progress is the images seen. Where steps had another size before, `milestones` and the result are in steps of
    the present size, and max_steps is what the counter of steps, which goes on, will have reached.
    """
    args.processes = processes.count
    images, batch = len(survey.images.paths), images_a_step(args)
    step, seen = (start.state["step"], images_seen(start.state, processes.count)) if start.state else (0, 0)
    args.max_steps = args.max_steps or step + max(0, math.ceil((args.epochs * images - seen) / batch))
    total = seen / batch + args.max_steps - step
    args.val_every = math.ceil(images / batch) if args.val_every is None else args.val_every
    args.milestones = [round(e * images / batch) for e in args.lr_epoch] if args.lr_epoch else [round(0.8 * total)]
    return total


def images_a_step(args: argparse.Namespace) -> int:
    """Of all processes."""
    return args.batch_size * args.accumulate * args.processes


def make_state(
    args: argparse.Namespace, start: Start, course: float, survey: Survey, device: torch.device, processes: Processes
) -> RunState:
    """Model, optimizers and all that changes while training, fresh or as a checkpoint left them."""
    from utils.training.noise import share_noise  # here, as CompressAI takes seconds to load

    model = start.model.to(device).train()
    if args.train == "decoder":
        freeze_all_but_decoder(model)
    share_noise(model, processes)
    milestones = tuple(args.milestones)
    schedule = Schedule(args.schedule, args.learning_rate, args.warmup, course, milestones, args.cooldown)
    scaler = torch.amp.GradScaler(device.type, enabled=args.precision == "fp16")
    average = Average(model, args.ema) if args.ema else None
    aux_rate = args.aux_learning_rate if args.train == "all" else 0.0
    optimizers = make_optimizers(model, args.learning_rate, aux_rate, args.optimizer)
    state = RunState(start.name, model, *optimizers, scaler, schedule, average, settings(args), survey.identity)
    state.batch = images_a_step(args)
    if start.state:
        state.restore(start.state)
        state.best = state.best if same_validation(start.state, state) else None
    return state


def introduce(
    log: TrainLog, args: argparse.Namespace, start: Start, survey: Survey, state: RunState, device: torch.device,
    processes: Processes,
) -> None:  # fmt: skip
    """Say what will be done, with every setting in force."""
    log.say(survey.text)
    if start.state and start.state["data"]["hash"] != survey.identity["hash"]:
        log.say(f"note: the training images have changed since: {start.state['data']['images']} then")
    log.say(
        start.text
        + (changes(start.state["flags"], settings(args)) + resized(args, start.state, state) if start.state else "")
    )
    if start.state and state.best != start.state["best"]:
        log.say(f"note: validation losses cannot be compared with those before; {BEST} is chosen anew")
    parameters = sum(p.numel() for p in state.model.parameters())
    machine = {"device": describe_device(device), "parameters": parameters}
    config = {f"model.{key}": value for key, value in state.model.config.items()}
    in_force = {**settings(args), "model": state.name, **config, **machine}
    log.say("settings: " + " ".join(f"{key}={value}" for key, value in in_force.items()))
    log.event("start", state.step, {"settings": in_force})


def resized(args: argparse.Namespace, before: dict[str, Any], state: RunState) -> str:
    """In words, how far a run is whose steps had another size before."""
    if state.seen == state.batch * before["step"]:
        return ""
    return f"; {state.seen} images seen, {args.max_steps - state.step} steps of {state.batch} are left"


def prepare_network(
    args: argparse.Namespace, model: nn.Module, processes: Processes, device: torch.device
) -> nn.Module:
    """The model as it is trained: behind DDP where there are several processes, compiled where asked for."""
    torch.backends.cudnn.benchmark = True  # patches are all of one size
    network = share_gradients(processes, model, quantiles_of(model), device)
    return torch.compile(network) if args.compile else network


def open_batches(
    args: argparse.Namespace, survey: Survey, state: RunState, device: torch.device, processes: Processes
) -> Iterator:
    """The batches of this process that are still to come."""
    images = alike(processes, lambda: hold_images(args, survey.images, device, processes.first))
    sampling = Sampling(args.seed, len(images), state.batch, args.downscale, args.recolor)
    count = max(0, args.max_steps - state.step) * args.accumulate
    positions = batch_positions(0, count, args.batch_size, processes.rank, processes.count, state.seen)
    crops = Crops(images, sampling, args.patch_size[0])
    return in_one_line(make_loader(crops, positions, args.num_workers, pin=args.cuda and args.cache != "device"))


def run(
    args: argparse.Namespace, state: RunState, network: nn.Module, batches: Iterator, survey: Survey, log: TrainLog,
    stop: StopRequest, device: torch.device, processes: Processes, folder: Path | None,
) -> bool:  # fmt: skip
    """The steps, with what is due between them; returns whether a signal ended them early."""
    recipe = Recipe(args.type, args.weight, args.precision, args.accumulate, args.clip_max_norm, device, processes)
    interval, stopped = Interval(), False
    while True:
        if validation_is_due(args, state):
            with interval.paused():
                validate_now(args, state, survey, log, stop, device, processes, folder)
            stopped = stopped or any_of(processes, stop(), device)
        if state.step >= args.max_steps or stopped:
            break
        rate = state.schedule(state.progress)
        result = train_step(state, network, batches, recipe, stop())
        stopped, log.undecoded = result.stop, log.undecoded + result.passed_over
        interval.add(result.values, state.batch, result.waited, result.finite)
        log.advance()
        if state.step % args.log_every == 0 or state.step == args.max_steps:
            totals = {"not_finite": state.not_finite["total"], "passed_over": log.undecoded}
            values = {**interval.summary(), "rate": rate, "gpu_gib": gpu_memory(device), **totals}
            log.event("train", state.step, values)
            log.interval(format_line(state.step, args.max_steps, values))
            interval = Interval()
        if state.step % args.save_every == 0:
            save(state, folder, LATEST, log)
        if args.keep_every and state.step % args.keep_every == 0:
            save(state, folder, f"step_{state.step:07d}.pt", log)
    save(state, folder, LATEST, log, last=True)
    return state.step < args.max_steps or validation_is_due(args, state)


def validation_is_due(args: argparse.Namespace, state: RunState) -> bool:
    """Every val_every steps and at the end, once."""
    if not args.val_every or not state.step or state.validated == state.step:
        return False
    return state.step % args.val_every == 0 or state.step >= args.max_steps


def validate_now(
    args: argparse.Namespace, state: RunState, survey: Survey, log: TrainLog, stop: StopRequest, device: torch.device,
    processes: Processes, folder: Path | None,
) -> None:  # fmt: skip
    """Validate whole images, log the result and keep the weights if they are the best so far."""
    lambdas = lambdas_to_validate(state.model, args.weight)
    shown = survey.validation[:: processes.count][:SHOWN_IMAGES]  # among those that the first process validates

    def keep(path: Path, pixels: np.ndarray) -> None:
        if path in shown:
            log.image(f"validation/{path.name}", pixels, state.step)

    values = validate(state.usable, survey.validation, lambdas, args.type, processes, device, stop, keep)
    if values is None:
        return
    state.validated, left_out = state.step, values.pop("left_out_why")
    log.event("validation", state.step, values)
    log.unvalidated = len(left_out)
    if left_out:
        log.say_once(f"validation leaves out {describe_left_out(left_out, len(survey.validation))}")
    for line in format_validation(values):
        log.say(f"validation at step {state.step}: {line}")
    keep_if_best(state, values["loss"], folder, log)


def keep_if_best(state: RunState, loss: float | None, folder: Path | None, log: TrainLog) -> None:
    """Save the weights if their validation loss is a number and the lowest so far."""
    if loss is None or not math.isfinite(loss) or (state.best is not None and loss >= state.best):
        return
    before, state.best = state.best, loss
    if not save(state, folder, BEST, log):
        state.best = before


def save(state: RunState, folder: Path | None, name: str, log: TrainLog, last: bool = False) -> bool:
    """Write a checkpoint, on the first process; whether nothing was in the way.

    A disk that is full for a while ends no run: only of the `last` checkpoint a failure is a UserError.
    """
    if not (folder and log.first):
        return True
    begin = time.perf_counter()
    try:
        save_checkpoint(folder / name, state.to_checkpoint())
    except UserError as error:
        if last:
            raise
        log.say(f"error: {error}; the run goes on, {name} is as it was before step {state.step}")
        return False
    log.event("checkpoint", state.step, {"file": name, "seconds": time.perf_counter() - begin})
    return True


def farewell(
    state: RunState, stop: StopRequest | None, folder: Path | None, argv: Sequence[str], processes: Processes
) -> str:
    """The last line: what was reached and, after a signal, how to go on."""
    if stop is None:
        files = [str(folder / name) for name in (BEST, LATEST) if (folder / name).exists()] if folder else []
        scored = folder is None or state.validated < 0 or (folder / BEST).exists()
        why = "no validation image gave a number"
        if state.best is not None:
            why = f"it was taken away, and no validation loss since is below its {state.best:.4f}"
        files += [] if scored else [f"no {BEST}: {why}"]
        return f"finished at step {state.step}; " + (" and ".join(files) or "nothing was saved (--no-save)")
    if folder is None:
        return f"stopped at step {state.step}; nothing was saved (--no-save)"
    program = "python" if processes.count == 1 else f"torchrun --nproc_per_node={processes.count} --"
    dropped = ("--resume", "--continue_train", "--local-rank=", "--local_rank=")  # the last from torch's launcher
    flags = shlex.join([*(flag for flag in argv if not flag.startswith(dropped)), "--resume"])
    return f"stopped at step {state.step} and saved; go on with: {program} train.py {flags}"


if __name__ == "__main__":
    run_program(main)
