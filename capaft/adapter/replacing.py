"""Refuse what would part an adapter from its layers: other libraries' wrappers around them, and other layers.

Both happen in code that knows nothing of capaft, but whatever puts a module into another one passes torch's hook on the
registration of modules, before anything has changed. Code that goes around it is found out at the next forward.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from capaft.adapter.hooks import SiteAdapter
from capaft.adapter.module import Adapter
from capaft.model.other_adapters import library_of
from capaft.support.errors import UsageError


@cache
def watch_registrations() -> None:
    """From now on, refuse modules that would take the place of adapted ones, and other libraries' adapters on them."""
    register_module_module_registration_hook(_check)


def _check(parent: nn.Module, name: str, child: Any) -> None:
    """See `register_module_module_registration_hook`.

    Raises:
        UsageError: an adapter would be parted from its layers.
    """
    if not isinstance(child, nn.Module):
        return
    before = parent._modules.get(name)
    if before is not None and _is_adapted(before) and not _holds(child, before) and not _holds(before, child):
        raise UsageError(
            f"{name} ({type(before).__name__}) has a capaft adapter, which its replacement by {type(child).__name__} "
            "would lose; detach or merge the adapter first"
        )
    kind: Any = type(parent)
    if (library := library_of(kind)) and _is_adapted(child):
        if hasattr(child, "_hf_peft_config_loaded") and not hasattr(child, "peft_config"):
            # `add_adapter` of transformers sets this before it asks PEFT.
            vars(child)["_hf_peft_config_loaded"] = False
        raise UsageError(
            f"{library} cannot be put on a model that has a capaft adapter; detach or merge the capaft adapter first"
        )


def _holds(module: nn.Module, other: nn.Module) -> bool:
    """True if a module is another one, or a wrapper that has it inside."""
    return any(inner is other for inner in module.modules())


def _is_adapted(module: nn.Module) -> bool:
    return any(isinstance(child, (Adapter, SiteAdapter)) for child in module.modules())
