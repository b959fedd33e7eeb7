"""Running statistics that stand still while a model carries adapters, whoever calls `train()`.

No adapter file holds them, so an adapter trained beside moving statistics would not fit the base model again. Modules
that only evaluation mode keeps still read as being in that mode. For all others, the first forwards show which buffers
change; from then on those change in a copy.
"""

from __future__ import annotations

from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn

from capaft.adapter.bystander import Bystander
from capaft.adapter.parametrise import evaluate_only, is_evaluated_only, release_training
from capaft.model.names import CHILD_PREFIX, base_modules
from capaft.model.statistics import possible_statistics, runs_statistics

NAME = f"{CHILD_PREFIX}#statistics"


def hold_statistics(model: nn.Module) -> None:
    """Keep a model's running statistics as they are, until `release_statistics`; a second call does nothing."""
    if NAME not in model._modules:
        held = HeldStatistics()
        model.add_module(NAME, held)
        held.hold(model)
        held.handles = [
            model.register_forward_pre_hook(held.before_forward, prepend=True),
            model.register_forward_hook(held.after_forward, always_call=True),
        ]


def release_statistics(model: nn.Module) -> None:
    """Undo `hold_statistics`; modules are in the mode that was last asked of them."""
    held = model._modules.pop(NAME, None)
    if isinstance(held, HeldStatistics):
        held.release()


class HeldStatistics(Bystander):
    """The statistics of one model; its child, so that copies of the model hold their own."""

    def __init__(self) -> None:
        super().__init__()
        self.handles: list[Any] = []
        # In lists of tuples, since as submodules they would be in the model twice.
        self.evaluated: list[tuple[nn.Module]] = []
        self.moving: list[tuple[nn.Module, str, Tensor]] = []
        self.tried: set[bool] = set()
        # Forwards under way, and the buffers that wait for the last of them to end.
        self.depth = 0
        self.aside: list[tuple[nn.Module, str, Tensor]] = []
        self.lock = RLock()

    def hold(self, model: nn.Module) -> None:
        """Put every module that runs statistics into evaluation mode, to stay."""
        for _, module in base_modules(model):
            if runs_statistics(module) and not is_evaluated_only(module):
                evaluate_only(module)
                self.evaluated.append((module,))

    def release(self) -> None:
        """Undo all."""
        for handle in self.handles:
            handle.remove()
        self.handles = []
        with torch.no_grad():
            for module, name, value in self.moving:
                module._buffers[name].copy_(value)  # type: ignore[union-attr]
        for (module,) in self.evaluated:
            release_training(module)

    def before_forward(self, model: nn.Module, args: Any) -> None:
        """Put copies in the place of buffers that change, or may; a root hook."""
        if torch.compiler.is_compiling() or (not self.moving and model.training in self.tried):
            return
        with self.lock, torch.no_grad():
            self.depth += 1
            if self.depth > 1:
                return
            if model.training not in self.tried:
                self.hold(model)
            for module, name, value in self.moving:
                # A block that autograd ran again has met the buffer itself.
                module._buffers[name].copy_(value)  # type: ignore[union-attr]
            known = {(id(module), name) for module, name, _ in self.moving}
            for module, name, buffer in possible_statistics(model):
                if (id(module), name) in known or model.training not in self.tried:
                    self.aside.append((module, name, buffer))
                    module._buffers[name] = buffer.clone()

    def after_forward(self, model: nn.Module, args: Any, output: Any) -> None:
        """Put the buffers back, and note those that would have changed; a root hook."""
        if torch.compiler.is_compiling() or not self.depth:
            return
        with self.lock, torch.no_grad():
            self.depth -= 1
            if self.depth:
                return
            known = {(id(module), name) for module, name, _ in self.moving}
            for module, name, buffer in self.aside:
                copy, module._buffers[name] = module._buffers.get(name), buffer
                if (id(module), name) not in known and not (copy is not None and torch.equal(copy, buffer)):
                    self.moving.append((module, name, buffer.clone()))
            self.aside = []
            if output is not None:
                self.tried.add(model.training)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "lock"} | {"depth": 0, "aside": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.lock = RLock()
