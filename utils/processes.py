"""Which of torchrun's processes this is, and how they meet."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from utils.cli import UserError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def process_share() -> tuple[int, int]:
    """(rank, number of processes) under torchrun; (0, 1) otherwise."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


@contextmanager
def connected(backend: str, to_meet: timedelta, to_wait: timedelta | None = None) -> Iterator[ProcessGroup]:
    """Within the block, the processes can exchange what they have, in the group that this gives.

    They wait so long for each other to meet, and `to_wait`, or as long, in each exchange. Raises UserError where they
    cannot meet.
    """
    import torch.distributed as distributed  # here, because it takes a while

    try:
        distributed.init_process_group(backend, timeout=to_meet)
        group = distributed.new_group(timeout=to_wait, backend=backend) if to_wait else distributed.group.WORLD
    except (RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"--master_port: the processes cannot meet ({reason}); try another") from error
    try:
        yield group
    finally:
        distributed.destroy_process_group()
