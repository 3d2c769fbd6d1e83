"""Checkpoint files as people save them, read without running what they hold.

torch.load with `weights_only=True` reads nearly all. What it refuses, arguments of the command line, paths, counters,
whole modules, is read by an unpickler that looks up no class and no function but the few that tensors are made of:
all else becomes a `StandIn`, which keeps what it is given and does nothing. safetensors files hold tensors and text.
"""

from __future__ import annotations

import collections
import json
import pickle
import tarfile
import types
import warnings
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

PLAIN = (bool, bytearray, bytes, complex, dict, float, frozenset, int, list, range, set, slice, str, tuple)
REBUILD = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter", "_rebuild_parameter_with_state")
PROGRAMS = frozenset(
    ("builtins", "code", "codeop", "ctypes", "importlib", "marshal", "multiprocessing", "nt", "os", "posix", "pty")
    + ("runpy", "shutil", "signal", "socket", "subprocess", "sys", "webbrowser")
)  # of what these offer, only PLAIN has a place in a checkpoint
PART = "|"  # in a safetensors file: between the name of a weight that is kept as integers and that of a part of it
OLD_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # as pickles up to protocol 2 call them


class CheckpointError(ValueError):
    """Why a file gives no model: one line that names the file and the way out."""


def read_content(path: str | Path) -> dict[Any, Any]:
    """What a checkpoint file holds, on the CPU; of a safetensors file {"state_dict"} and, if it is recorded, "model".

    Raises CheckpointError, naming the file, where it is missing, truncated or no checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder; name a file in it" if path.is_dir() else "there is no such checkpoint file"
        raise CheckpointError(f"{path}: {what}")
    try:
        with path.open("rb") as file:
            head = file.read(512)
        content = _read_safetensors(path) if _is_safetensors(path, head) else _read_pickled(path, head)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    if isinstance(content, list | tuple) and any(isinstance(part, dict) for part in content):
        return dict(enumerate(content))
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a checkpoint")
    return content


def _read_pickled(path: Path, head: bytes) -> Any:
    """What torch.save wrote."""
    try:
        other = _other_kind(path, head)
        if other:
            raise CheckpointError(f"{path}: {other}")
        return _load(path)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        reason = f" ({error})" if isinstance(error, ProgramError) else ""
        raise CheckpointError(f"{path}: not a checkpoint, or not one that can be read safely{reason}") from error
    except OSError:
        raise
    except Exception as error:  # torch and pickle raise nearly everything over damaged bytes
        if "allocate memory" in str(error) or isinstance(error, MemoryError):
            raise CheckpointError(f"{path}: not enough memory to read this checkpoint") from error
        raise CheckpointError(f"{path}: damaged or truncated checkpoint; fetch or copy it again") from error


def _load(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            return torch.load(path, map_location="cpu", weights_only=False, pickle_module=_RESTRICTED)


def _other_kind(path: Path, head: bytes) -> str | None:
    """What a file is that torch.save did not write, and the way out; None where it may be a checkpoint."""
    if not head:
        return "is empty; fetch or copy it again"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "is a web page, not a checkpoint; open it in a browser and follow its link to the file"
    if head.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, not the checkpoint; run: git lfs pull"
    if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"Rar!")):
        return "is a packed archive; unpack it and name the checkpoint in it"
    if head[257:262] == b"ustar":
        with tarfile.open(path) as archive:
            return f"is a tar archive of {few(archive.getnames())}; unpack it and name the checkpoint in it"
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any(name.endswith("/constants.pkl") for name in names):
            return "is a TorchScript program, not a checkpoint; save the model's state_dict()"
        if not any(name.split("/")[-1] == "data.pkl" for name in names):
            return f"is a zip archive of {few(names)}; unpack it and name the checkpoint in it"
    elif not head.startswith((b"PK", b"\x80")):
        return "not a checkpoint: torch.save and safetensors write files that begin otherwise"
    return None


def few(names: list[str], most: int = 3) -> str:
    """The first of them, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


# ---- safetensors ---------------------------------------------------------------------------------------------------


def _is_safetensors(path: Path, head: bytes) -> bool:
    """The file begins with the length of a JSON header, 8 bytes, little-endian, and that header."""
    length = int.from_bytes(head[:8], "little")
    return path.suffix == ".safetensors" or (head[8:9] == b"{" and 8 + length <= path.stat().st_size)


def _read_safetensors(path: Path) -> dict[str, Any]:
    """The tensors, and what scripts/export_checkpoint.py recorded: model, lambda and metric."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            recorded = file.metadata() or {}
            record = {key: json.loads(recorded[key]) for key in ("model", "flags") if key in recorded}
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged or truncated safetensors file; fetch or copy it again") from error
    integers: dict[str, dict[str, torch.Tensor]] = {}
    for name in [name for name in tensors if PART in name]:
        weight, _, part = name.partition(PART)
        integers.setdefault(weight, {})[part] = tensors.pop(name)
    return {"state_dict": tensors, **({"integers": integers} if integers else {}), **record}


# ---- pickles -------------------------------------------------------------------------------------------------------


class ProgramError(pickle.UnpicklingError):
    """The file asks for something that has no place in a checkpoint."""


class StandIn(dict):
    """An object of a class that is not looked up. What the file says it holds can be seen as a dictionary."""

    def __new__(cls, *_args: Any, **_options: Any) -> StandIn:
        return dict.__new__(cls)

    def __init__(self, *_args: Any, **_options: Any) -> None:
        dict.__init__(self)

    def __setstate__(self, state: Any) -> None:
        for part in state if isinstance(state, tuple) else (state,):  # (__dict__, slots)
            self.update(part if isinstance(part, dict) else {})

    def _nothing(self, *_args: Any, **_options: Any) -> StandIn:
        return StandIn()

    __call__ = append = extend = add = _nothing
    __hash__, __eq__ = object.__hash__, object.__eq__  # some are keys


def _stand_in(*_args: Any) -> type[StandIn]:
    """For what pickles of nested classes call: any of them."""
    return StandIn


def _rebuilt(cls: type, *_rest: Any) -> Any:
    """copyreg._reconstructor of a class that is not looked up."""
    return cls() if isinstance(cls, type) and issubclass(cls, StandIn) else StandIn()


def _rebuilt_plainly(rebuild: Any, _kind: Any, arguments: tuple, _state: Any) -> Any:
    """A tensor that somebody has given attributes or a class of its own, without them."""
    return rebuild(*arguments)


_KNOWN: dict[tuple[str, str], Any] = {
    **{("builtins", kind.__name__): kind for kind in PLAIN},
    **{("collections", kind.__name__): kind for kind in (collections.OrderedDict, collections.Counter)},
    ("collections", "defaultdict"): collections.defaultdict,
    **{("torch._utils", name): getattr(torch._utils, name) for name in REBUILD if hasattr(torch._utils, name)},
    **{("torch", name): kind for name, kind in vars(torch).items() if isinstance(kind, torch.dtype)},
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuilt_plainly,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("torch.storage", "UntypedStorage"): torch.UntypedStorage,
    ("torch.nn.parameter", "Parameter"): torch.nn.Parameter,
    ("copyreg", "_reconstructor"): _rebuilt,
    ("builtins", "object"): StandIn,
    ("builtins", "xrange"): range,
    ("builtins", "getattr"): _stand_in,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """What the file calls `name`, if tensors need it, else a stand-in; nothing is imported."""
        module = OLD_MODULES.get(module, module)
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        if module.split(".")[0] in PROGRAMS or (module, name) == ("torch.storage", "_load_from_bytes"):
            raise ProgramError(f"it asks to run {module}.{name}")
        return type(name, (StandIn,), {})


def _load_pickle(file: BinaryIO, **options: Any) -> Any:
    return _Unpickler(file, **options).load()


_RESTRICTED = types.SimpleNamespace(__name__=__name__, Unpickler=_Unpickler, load=_load_pickle)


def module_state(content: dict[Any, Any], prefix: str = "") -> dict[str, Any]:
    """The state_dict() of a whole module as it was pickled; empty for anything else."""
    if not {"_parameters", "_buffers", "_modules"} <= set(content):
        return {}
    own = {**content["_parameters"], **content["_buffers"]}
    skipped = content.get("_non_persistent_buffers_set") or ()
    state = {prefix + name: value for name, value in own.items() if name not in skipped}
    for name, child in content["_modules"].items():
        state |= module_state(child, f"{prefix}{name}.") if isinstance(child, dict) else {}
    return state
