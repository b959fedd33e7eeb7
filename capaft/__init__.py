"""Fine-tune any Hugging Face checkpoint with adapters of a few kilobytes.

    import capaft

    adapter = capaft.attach(model, "nola", k=1024, rank=8)
    ...
    capaft.save(model, "adapter.safetensors")

Nothing heavy is imported before it is used, so that the command line can answer at once.
"""

from __future__ import annotations

from importlib import import_module
from types import FunctionType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from capaft.adapter.activation import disabled, switch
    from capaft.adapter.attach import attach
    from capaft.adapter.file.adapter_file import AdapterFile, read
    from capaft.adapter.file.average import average
    from capaft.adapter.file.save_load import load, save
    from capaft.adapter.install import detach
    from capaft.adapter.merge import merge
    from capaft.adapter.module import Adapter, adapters
    from capaft.exchange.gguf_export import export_gguf
    from capaft.exchange.hub_upload import Pushed
    from capaft.exchange.peft_export import export_peft
    from capaft.exchange.peft_import import import_peft
    from capaft.inference.bank.bank import Bank
    from capaft.inference.opened import Opened, open
    from capaft.inference.trained import Trained, train
    from capaft.methods.stack import Stack
    from capaft.support.errors import AdapterFileError, CapaftError, Interrupted, TrainingError, UsageError
    from capaft.training.record.push import push

__version__ = "0.1.0"

_HOME = {
    "Adapter": "adapter.module",
    "AdapterFile": "adapter.file.adapter_file",
    "AdapterFileError": "support.errors",
    "Bank": "inference.bank.bank",
    "CapaftError": "support.errors",
    "Interrupted": "support.errors",
    "Opened": "inference.opened",
    "Pushed": "exchange.hub_upload",
    "Stack": "methods.stack",
    "Trained": "inference.trained",
    "TrainingError": "support.errors",
    "UsageError": "support.errors",
    "adapters": "adapter.module",
    "attach": "adapter.attach",
    "average": "adapter.file.average",
    "detach": "adapter.install",
    "disabled": "adapter.activation",
    "export_gguf": "exchange.gguf_export",
    "export_peft": "exchange.peft_export",
    "import_peft": "exchange.peft_import",
    "load": "adapter.file.save_load",
    "merge": "adapter.merge",
    "open": "inference.opened",
    "push": "training.record.push",
    "read": "adapter.file.adapter_file",
    "save": "adapter.file.save_load",
    "switch": "adapter.activation",
    "train": "inference.trained",
}
__all__ = [
    "Adapter",
    "AdapterFile",
    "AdapterFileError",
    "Bank",
    "CapaftError",
    "Interrupted",
    "Opened",
    "Pushed",
    "Stack",
    "Trained",
    "TrainingError",
    "UsageError",
    "__version__",
    "adapters",
    "attach",
    "average",
    "detach",
    "disabled",
    "export_gguf",
    "export_peft",
    "import_peft",
    "load",
    "merge",
    "open",
    "push",
    "read",
    "save",
    "switch",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'capaft' has no attribute {name!r}")
    value = getattr(import_module(f"capaft.{_HOME[name]}"), name)
    if isinstance(value, FunctionType):
        from capaft.support.errors import in_python

        value = in_python(value)
        # Pickle must look it up here: in its own module the name is that of the undecorated function.
        value.__module__ = __name__
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
