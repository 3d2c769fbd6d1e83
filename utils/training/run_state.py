"""What a training run is made of at one moment, to a checkpoint and back.

A checkpoint's keys, read with utils/codec/checkpoint.py:

    format           1
    model            {"name", "config"}: build_model(name, **config) makes the model
    state_dict       the weights to use: their moving average where the run keeps one
    ema              None, or {"decay", "trained"}: the weights that are being trained
    optimizer, aux_optimizer, scaler     their state_dict()
    scheduler        the learning rate's schedule, for information: it is a function of the step
    step, seen, best, validated, not_finite    steps done, images seen, best validation loss, step of the last
                     validation, skipped steps {"in_row", "total"}
    rng              states of torch's generators
    flags, data      the command line's settings; {"images", "hash", "validation"}: how many images are trained on,
                     and hashes of their list and of that of the images to validate on
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from utils.training.optimization import Average, Schedule, set_rate

if TYPE_CHECKING:
    from models.base import SliceCompressionModel

FORMAT = 1


@dataclass
class RunState:
    """The parts of a run that change, and what is needed to describe them."""

    name: str
    model: SliceCompressionModel
    optimizer: torch.optim.Optimizer
    aux_optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    schedule: Schedule
    average: Average | None
    flags: dict[str, Any]
    data: dict[str, Any]
    batch: int = 1  # images that a step takes, of all processes
    step: int = 0
    seen: int = 0
    best: float | None = None
    validated: int = -1
    not_finite: dict[str, int] = field(default_factory=lambda: {"in_row": 0, "total": 0})

    @property
    def progress(self) -> float:
        """How many steps of the present size the images seen make: what the schedule counts in."""
        return self.seen / self.batch

    @property
    def usable(self) -> SliceCompressionModel:
        """The weights to validate and to use."""
        return self.average.model if self.average else self.model

    def to_checkpoint(self) -> dict[str, Any]:
        """Everything, as described above."""
        average = self.average and {"decay": self.average.decay, "trained": self.model.state_dict()}
        plain = ("step", "seen", "best", "validated", "not_finite", "flags", "data")
        return {
            "format": FORMAT,
            "model": {"name": self.name, "config": self.model.config},
            "state_dict": self.usable.state_dict(),
            "ema": average,
            "optimizer": self.optimizer.state_dict(),
            "aux_optimizer": self.aux_optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "scheduler": asdict(self.schedule),
            "rng": random_state(),
            **{key: getattr(self, key) for key in plain},
        }

    def restore(self, content: dict[str, Any]) -> None:
        """Go on where a checkpoint was written; settings are this run's own."""
        trained = content["ema"]["trained"] if content["ema"] else content["state_dict"]
        self.model.load_state_dict(trained)
        if self.average:
            self.average.model.load_state_dict(content["state_dict"])
        for part in ("optimizer", "aux_optimizer"):
            getattr(self, part).load_state_dict(content[part])
        set_rate(self.aux_optimizer, self.aux_optimizer.defaults["lr"])  # has no schedule that would set it
        if content["scaler"]:  # empty where the run so far was not in fp16
            self.scaler.load_state_dict(content["scaler"])
        for key in ("step", "best", "validated", "not_finite"):
            setattr(self, key, content[key])
        self.seen = images_seen(content, self.flags.get("processes", 1))
        set_random_state(content["rng"])


def images_seen(content: dict[str, Any], processes: int) -> int:
    """The images that a checkpoint's run has seen; older ones do not say it, and of them not all how many `processes`
    there were."""
    if "seen" in content:
        return content["seen"]
    flags = content["flags"]
    return content["step"] * flags["batch_size"] * flags["accumulate"] * flags.get("processes", processes)


def random_state() -> dict[str, Any]:
    """States of torch's generators: of the CPU, and of this process's GPU if there is one."""
    on_gpu = torch.cuda.get_rng_state() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    return {"cpu": torch.get_rng_state(), "cuda": on_gpu}


def set_random_state(state: dict[str, Any]) -> None:
    """The inverse of `random_state`, as far as this machine has the same generators."""
    torch.set_rng_state(state["cpu"].cpu())
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
