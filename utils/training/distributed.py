"""Several processes as one: joined by torchrun's environment, failing together, sharing gradients and sums."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from utils.cli import UserError
from utils.devices import choose_device
from utils.processes import connected, process_share

Result = TypeVar("Result")
TIME_TO_SPEAK = 3.0  # seconds
PATIENCE = timedelta(hours=2)  # while the first process looks through a large dataset, the others wait for it


@dataclass(frozen=True)
class Processes:
    """Which of how many processes this is."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0


@contextmanager
def joined_processes(cuda: bool) -> Iterator[Processes]:
    """Within the block, the processes that torchrun started know each other: NCCL on GPUs, gloo on CPUs.

    Raises UserError where they cannot meet or have no GPU, and where one is left behind by another that ended.
    """
    processes = Processes(*process_share())
    try:
        own_device(cuda)
        require_free_port(processes)
    except UserError:
        leave_it_to_the_first()
        raise
    if processes.count == 1:
        yield processes
        return
    with connected("nccl" if cuda else "gloo", PATIENCE):
        try:
            yield processes
        except RuntimeError as error:
            if not is_of_connection(error):
                raise
            way_out = "see what it said, and go on with --resume"
            raise UserError(f"another process of this run has ended; {way_out}") from error


def own_device(cuda: bool) -> torch.device:
    """The CPU or, with `cuda`, the GPU of this process among those of its machine, made torch's current one.

    Raises UserError where there is no GPU, or none left for a process.
    """
    device = choose_device(None, cuda)
    if device.type == "cuda":
        count, wanted = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        if wanted > count:
            raise UserError(f"--nproc_per_node={wanted}: there are only {count} GPUs; start one process for each")
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)  # NCCL's exchange of objects goes through the current one
    return device


def is_of_connection(error: RuntimeError) -> bool:
    """Whether an exchange failed because its other end is gone: NCCL has classes for that, gloo only words."""
    return isinstance(error, distributed.DistError) or "gloo" in str(error).lower()


def require_free_port(processes: Processes) -> None:
    """Raise UserError where the first process cannot open the port at which the processes meet.

    torchrun opens it itself, and says so in the environment.
    """
    if processes.count == 1 or not processes.first or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return
    port = os.environ.get("MASTER_PORT", "")
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", int(port)))
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(f"--master_port {port}: not a free port ({error}); choose another") from error


def alike(processes: Processes, function: Callable[[], Result]) -> Result:
    """Call `function` on every process; a UserError of one ends them all, and the first process tells it."""
    result, problem = None, None
    try:
        result = function()
    except UserError as error:
        problem = str(error)
    problems = [text for text in gathered(processes, [problem]) if text]
    if problems:
        raise end_of(processes, problem or problems[0])
    return result


def on_first(processes: Processes, function: Callable[[], Result]) -> Result:
    """Call `function` on the first process and give its result to all; its UserError ends them all."""
    if processes.count == 1:
        return function()
    box: list[Any] = [None, None]
    if processes.first:
        try:
            box[0] = function()
        except UserError as error:
            box[1] = str(error)
    distributed.broadcast_object_list(box)
    if box[1]:
        raise end_of(processes, box[1])
    return box[0]


def leave_it_to_the_first() -> None:
    """Before an error that all processes meet alike, and have not met each other yet: all but the first leave.

    They wait, because the launcher ends the others as soon as one has left, and the first may not have spoken.
    """
    if process_share()[0]:
        time.sleep(TIME_TO_SPEAK)
        raise SystemExit(2)


def end_of(processes: Processes, problem: str) -> UserError | SystemExit:
    """What a process raises when all end for the same reason: one of them says which, all have the same status."""
    return UserError(problem) if processes.first else SystemExit(2)


def gathered(processes: Processes, items: list[Any]) -> list[Any]:
    """The lists of all processes, one after another, on every process."""
    if processes.count == 1:
        return items
    parts: list[Any] = [None] * processes.count
    distributed.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def mean_over(processes: Processes, values: Tensor) -> Tensor:
    """The mean of a tensor, of any shape, over the processes."""
    if processes.count > 1:
        distributed.all_reduce(values)
    return values / processes.count


def any_of(processes: Processes, flag: bool, device: torch.device) -> bool:
    """Whether the flag is set on any process."""
    return bool(mean_over(processes, torch.tensor(float(flag), device=device)) > 0)


def share_gradients(
    processes: Processes, model: nn.Module, local: Iterable[nn.Parameter], device: torch.device
) -> nn.Module:
    """The model behind DDP, which averages gradients over the processes; as it is where there is only one.

    `local` parameters stay outside: the quantiles' loss depends on the weights alone, so it is the same everywhere.
    """
    if processes.count == 1:
        return model
    outside = {id(parameter) for parameter in local}
    names = [name for name, parameter in model.named_parameters() if id(parameter) in outside]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, names)
    ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False)
