"""Fine-tune any Hugging Face checkpoint with adapters of a few kilobytes.

    import capaft

    adapter = capaft.attach(model, "nola", k=1024, rank=8)
    ...
    capaft.save(model, "adapter.safetensors")

Nothing heavy is imported until it is used, so that the command line can answer at once.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from capaft.adapter import adapters
    from capaft.adapter_file import load, save
    from capaft.attach import attach, detach, disabled, switch
    from capaft.merge import merge

__version__ = "0.1.0"

_HOME = {
    "adapters": "adapter",
    "attach": "attach",
    "detach": "attach",
    "disabled": "attach",
    "load": "adapter_file",
    "merge": "merge",
    "save": "adapter_file",
    "switch": "attach",
}
__all__ = ["__version__", "adapters", "attach", "detach", "disabled", "load", "merge", "save", "switch"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'capaft' has no attribute {name!r}")
    return getattr(import_module(f"capaft.{_HOME[name]}"), name)


class _Package(ModuleType):
    """Keeps `capaft.attach` and `capaft.merge` the functions, though submodules have the same names."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
