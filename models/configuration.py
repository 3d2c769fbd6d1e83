"""A model's constructor arguments, recorded so that a checkpoint describes itself."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.base import SliceCompressionModel


def record(constructor: Callable) -> Callable:
    """Decorates the `__init__` of a model: its arguments, defaults included, become `config`, with tuples as lists."""

    @functools.wraps(constructor)
    def init(self: SliceCompressionModel, *args: Any, **options: Any) -> None:
        constructor(self, *args, **options)
        if type(self).__init__ is init:  # not that of a class above
            given = inspect.signature(constructor).bind(self, *args, **options).arguments
            rest = next((given.pop(name) for name in [*given] if isinstance(given[name], dict)), {})
            values = defaults_of(type(self)) | {k: v for k, v in given.items() if k != "self"} | rest
            self.config = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    return init


def defaults_of(model: type[SliceCompressionModel]) -> dict[str, Any]:
    """The arguments of a model's constructor with their defaults; `**` stands for those of the class above."""
    found: dict[str, Any] = {}
    for constructor in (vars(kind)["__init__"] for kind in model.__mro__ if "__init__" in vars(kind)):
        parameters = inspect.signature(constructor).parameters.values()
        found |= {p.name: p.default for p in parameters if p.default is not p.empty and p.name not in found}
        if all(p.kind is not p.VAR_KEYWORD for p in parameters):
            break
    return {name: value for name, value in found.items() if name not in model.fixed}
