"""The two bytes by which a file that is not portable names the machine that wrote it."""

from __future__ import annotations

import platform
import re

import torch

from utils.inference.products import WAYS

DEVICES = ("cpu", "cuda", "another device")
PROCESSORS = {"x86_64": 0, "amd64": 0, "aarch64": 1, "arm64": 1}
PROCESSOR_NAMES = {0: "x86-64", 1: "arm64"}


def current_environment(device: str, way: str = "torch") -> bytes:
    """Two bytes: way to multiply, device kind and processor; major and minor version of torch.

    `device` is "cpu", "cuda:1" or so; `way` is one of WAYS.
    """
    device = device.partition(":")[0]
    kind = DEVICES.index(device) if device in DEVICES else 2
    processor = PROCESSORS.get(platform.machine().lower(), 15)
    major, minor = (int(part) for part in re.match(r"(\d+)\.(\d+)", torch.__version__).groups())
    return bytes([WAYS.index(way) << 6 | kind << 4 | processor, (major & 7) << 5 | minor & 31])


def foreign_environment(environment: bytes | None, here: bytes) -> str | None:
    """Where a fast file was written, in words, if that is not an environment like `here`; None otherwise."""
    return None if environment in (None, here) else describe_environment(environment)


def describe_environment(environment: bytes) -> str:
    """Those two bytes in words; of a CPU also the flag that lets another one multiply in the same way."""
    kind, processor, way = environment[0] >> 4 & 3, environment[0] & 15, environment[0] >> 6
    device = DEVICES[min(kind, 2)]
    name = PROCESSOR_NAMES.get(processor, "another processor")
    products = f" and --products {WAYS[way]}" if device == "cpu" and way < len(WAYS) else ""
    return f"{device} on {name} with torch {environment[1] >> 5}.{environment[1] & 31}{products}"
