"""Which device a program works on, from its flags."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from pathlib import Path

import torch

from utils.cli import UserError

_INSTRUCTIONS = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 with bf16", "avx512f": "AVX-512", "avx2": "AVX2"}


def choose_device(name: str | None = None, cuda: bool = False) -> torch.device:
    """The device of `--device name` ("cpu", "cuda", "cuda:1") or of `--cuda`; the CPU if neither is given.

    Raises UserError, naming the flag, for no such device, one that is not there, or flags that contradict each other.
    """
    flag = f"--device {name}" if name else "--cuda"
    try:
        device = torch.device(name or ("cuda" if cuda else "cpu"))
    except RuntimeError as error:
        raise UserError(f"{flag}: no such device; choose cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"{flag}: no such device; choose cpu, cuda or cuda:N")
    if cuda and device.type != "cuda":
        raise UserError(f"--cuda and --device {name} contradict each other; leave out one of them")
    if device.type == "cuda":
        _require_gpu(device, flag)
    return device


def usable_cores() -> int:
    """How many processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_device(device: torch.device) -> str:
    """What times were measured on: the GPU's name, or the number of CPU threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


def _require_gpu(device: torch.device, flag: str) -> None:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        raise UserError(f"{flag}: this machine has no usable CUDA GPU; leave the flag out to work on the CPU")
    if device.index is not None and device.index >= count:
        raise UserError(f"{flag}: there are only {count} GPUs, the first is cuda:0")


def processor() -> str:
    """The CPU's name, if the system says it, and on x86 its instructions for products: virtual ones share a name."""
    name = _cpuinfo("model name") or platform.processor() or platform.machine()
    features = {*_cpuinfo("flags").split()}
    found = [label for flag, label in _INSTRUCTIONS.items() if flag in features]
    return f"{name} ({found[0]})" if found else name


def lacks_bfloat16() -> bool:
    """Whether the CPU is known to have no instructions for products in bfloat16; False where the system is silent."""
    features = (_cpuinfo("flags") or _cpuinfo("Features")).split()  # x86, Arm
    return bool(features) and not {"avx512_bf16", "amx_bf16", "bf16"} & {*features}


def precisions_here(names: Iterable[str]) -> list[str]:
    """`names` without "bf16" where the CPU has no instructions for it: it works there, but measures nothing."""
    return [name for name in names if name != "bf16" or not lacks_bfloat16()]


def _cpuinfo(key: str) -> str:
    """What Linux says of the first processor, or nothing."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    values = [line.split(":", 1)[1].strip() for line in lines if line.split(":")[0].strip() == key]
    return values[0] if values else ""
