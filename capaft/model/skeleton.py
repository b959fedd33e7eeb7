"""Models whose weights stay on disk: their modules and shapes are there, and values only where they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook
from torch import nn

from capaft.config.parts.model import ModelSettings
from capaft.model.names import base_modules, canonical_path


class NeedsWeights(Exception):  # noqa: N818 - not an error: the model is loaded as a whole then
    """A reason why a model has to be loaded with its weights."""


@dataclass(frozen=True)
class SkeletonSettings(ModelSettings):
    """Settings of a base model whose weights stay on disk.

    Attributes:
        device_map: places of its modules: `meta` for those without values, `disk` for those that are read as they are
            called, `cpu` for those in memory.
        offload: the directory in which weights are put that are not on disk as the model has them.
    """

    device_map: Mapping[str, str] = field(default_factory=lambda: {"": "meta"})
    offload: str | None = None


def skeleton_options(settings: ModelSettings) -> dict[str, Any]:
    """Options of `from_pretrained` for the places of the weights; none for a model in memory."""
    if not isinstance(settings, SkeletonSettings):
        return {}
    return {"device_map": dict(settings.device_map), "offload_folder": settings.offload}


def runs_from_disk(model: nn.Module, in_memory: Collection[str]) -> dict[str, str]:
    """The places of modules of which all are on disk but some.

    Args:
        model: the model.
        in_memory: paths of the others.
    """
    places: dict[str, str] = {}

    def place(path: str, module: nn.Module) -> None:
        prefix = f"{path}." if path else ""
        if path in in_memory:
            places[path] = "cpu"
        elif any(other.startswith(prefix) for other in in_memory):
            for name, child in module.named_children():
                place(prefix + name, child)
        else:
            places[path] = "disk"

    place("", model)
    return places


def give_memory(model: nn.Module, names: Collection[str]) -> None:
    """Give parameters of a skeleton zeros as values, and memory to hold others.

    Args:
        model: the skeleton.
        names: canonical names of the parameters.
    """
    memory: dict[nn.Parameter, nn.Parameter] = {}
    for path, module in base_modules(model):
        for leaf, parameter in module._parameters.items():
            name = canonical_path(model, f"{path}.{leaf}" if path else leaf)
            if parameter is not None and parameter.is_meta and name in names:
                values = torch.zeros(parameter.shape, dtype=parameter.dtype, device="cpu")
                memory.setdefault(parameter, nn.Parameter(values))
    for _, module in base_modules(model):
        for leaf, parameter in module._parameters.items():
            if parameter in memory:
                setattr(module, leaf, memory[parameter])


@contextmanager
def readable(model: nn.Module, look: Callable[[str], Any]) -> Iterator[None]:
    """Lets the values of a skeleton be read for a while, a module at a time, with `align_module_device`.

    Args:
        model: the skeleton.
        look: gives the values of a tensor by its name in the model, None if there are none.
    """
    # The model's own tells on which device it would run.
    modules = [(path, module) for path, module in base_modules(model) if module._parameters or not path]
    for path, module in modules:
        module._hf_hook = _Reader(f"{path}." if path else "", look)
    try:
        yield
    finally:
        for _, module in modules:
            vars(module).pop("_hf_hook", None)


class _Reader(AlignDevicesHook):
    """A hook in the place where accelerate looks for it, which puts values into a module and takes them out again."""

    def __init__(self, prefix: str, look: Callable[[str], Any]) -> None:
        super().__init__(execution_device="cpu", offload=True)
        self.prefix = prefix
        self.look = look
        self.kept: dict[str, Any] = {}

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        for leaf, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta and (values := self.look(self.prefix + leaf)) is not None:
                self.kept[leaf] = parameter
                module._parameters[leaf] = values
        return args, kwargs

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        module._parameters.update(self.kept)
        self.kept = {}
        return output
