"""Layers that another library has wrapped in adapters of its own."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn

from capaft.model.names import base_modules
from capaft.support.errors import UsageError

# Prefixes of the names of the modules that define such layers. The package `adapters` is named more closely, since
# others call a file of their own that.
LIBRARIES = {
    "peft.": "PEFT",
    "loralib.": "loralib",
    "adapters.methods.": "adapters",
    "adapters.models.": "adapters",
    "adapters.model_mixin": "adapters",
}


@cache
def library_of(kind: Any) -> str:
    """Name of the adapter library that defines a class of modules or a parent of it; empty if none does."""
    names = [f"{cls.__module__}." for cls in kind.__mro__]
    return next((LIBRARIES[start] for start in LIBRARIES for name in names if name.startswith(start)), "")


def refuse_other_adapters(model: nn.Module) -> None:
    """Refuse a model that carries another library's adapters, which would be adapted as if they were layers.

    Raises:
        UsageError: it does.
    """
    for path, module in base_modules(model):
        kind: Any = type(module)
        if library := library_of(kind):
            where = f"at {path}" if path else "around it"
            raise UsageError(
                f"the model has an adapter of {library} {where}; merge it or take it off first (in PEFT: "
                "merge_and_unload() or unload())"
            )
