"""The two bytes by which a file that is not portable names the machine that wrote it."""

from __future__ import annotations

import platform
import re

import torch

DEVICES = ("cpu", "cuda", "another device")
PROCESSORS = {"x86_64": 0, "amd64": 0, "aarch64": 1, "arm64": 1}
PROCESSOR_NAMES = {0: "x86-64", 1: "arm64"}


def current_environment(device: str) -> bytes:
    """Two bytes: device kind and processor; major and minor version of torch. `device` is "cpu", "cuda:1" or so."""
    device = device.partition(":")[0]
    kind = DEVICES.index(device) if device in DEVICES else 2
    processor = PROCESSORS.get(platform.machine().lower(), 15)
    major, minor = (int(part) for part in re.match(r"(\d+)\.(\d+)", torch.__version__).groups())
    return bytes([kind << 4 | processor, (major & 7) << 5 | minor & 31])


def foreign_environment(environment: bytes | None, device: str) -> str | None:
    """Where a fast file was written, in words, if that is not an environment like this one; None otherwise."""
    if environment is None or environment == current_environment(device):
        return None
    return describe_environment(environment)


def describe_environment(environment: bytes) -> str:
    """Those two bytes in words."""
    kind, processor = environment[0] >> 4, environment[0] & 15
    device = DEVICES[min(kind, 2)]
    name = PROCESSOR_NAMES.get(processor, "another processor")
    return f"{device} on {name} with torch {environment[1] >> 5}.{environment[1] & 31}"
