"""What stands beside one base module on behalf of an adapter, and how it has its say.

The base module stays as it is, under its own name. Beside it, as a child, stands a module with hooks on its input and
output; or, where code reads a weight without calling the module, one that changes what reading the weight gives.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from capaft.adapter.module import Adapter, Factors
from capaft.adapter.parametrise import add_parametrisation, remove_parametrisation


class SiteAdapter(nn.Module):
    """What stands beside one base module, and changes what it takes, gives, or holds as its weight.

    It holds no numbers; they are the adapter's. The hooks are bound methods, not closures, so that copies of a model
    hook themselves and not the original.
    """

    def __init__(self, adapter: Adapter, index: int) -> None:
        super().__init__()
        # In a tuple, since as a submodule the adapter would be its own descendant.
        self.owner = (adapter,)
        self.index = index
        # Where it stands, and the method that it carries out.
        self.host, self.site = adapter.plan.placed[index]
        self.handles: list[Any] = []
        self.taken: Tensor | None = None
        # Of packed matrices the site sees its own; without that, as it would see it alone.
        self.layer = self.site.index
        self.alone = replace(self.site, index=None)

    @property
    def parametrises(self) -> str:
        """The parameter that it changes while the model reads it; empty where it stands beside the module's output."""
        site = self.site
        changes = site.parametrised or (bool(site.parameter) and site.kind not in (*self.host.kinds, "bias"))
        return site.parameter if changes else ""

    def forward(self, *inputs: Any) -> Any:
        """Nothing; see `Adapter.forward`."""
        return inputs[0] if len(inputs) == 1 else inputs

    def install(self, module: nn.Module, source: nn.Module | None) -> None:
        """Take up its place beside a module.

        Args:
            module: the base module.
            source: the module whose input the host takes, if it is another.
        """
        if self.parametrises:
            add_parametrisation(module, self.parametrises)
            return
        if source is not None:
            self.handles.append(source.register_forward_pre_hook(self.take, with_kwargs=True))
        if self.site.scales == "input" or self.site.normalises:
            self.handles.append(module.register_forward_pre_hook(self.before, with_kwargs=True))
        self.handles.append(module.register_forward_hook(self.after, with_kwargs=True))

    def remove(self, module: nn.Module) -> None:
        """Leave the module as it was."""
        for handle in self.handles:
            handle.remove()
        remove_parametrisation(module)

    def take(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Pre-hook of the source: keep its input for this site."""
        self.taken = args[0] if args else next(iter(kwargs.values()))

    def before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Pre-hook of the base module, where a host changes its input."""
        adapter = self.owner[0]
        if not adapter.enabled:
            return None
        inputs = args[0] if args else next(iter(kwargs.values()))
        changed = self.host.before(self.site, module, inputs, self.factors(inputs))
        return ((changed, *args[1:]), kwargs) if args else (args, kwargs | {next(iter(kwargs)): changed})

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Forward hook of the base module."""
        adapter = self.owner[0]
        taken, self.taken = self.taken, None
        if not adapter.enabled:
            return output
        if not isinstance(output, Tensor):
            first, rest = output[0], output[1:]
            return type(output)((self.adapted(module, args, kwargs, first, taken), *rest))
        return self.adapted(module, args, kwargs, output, taken)

    def adapted(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor, taken: Tensor | None
    ) -> Tensor:
        """The module's output with the adapter's part."""
        site = self.site
        inputs = taken if taken is not None else args[0] if args else next(iter(kwargs.values()))
        factors = self.factors(output)
        if inputs.is_floating_point():
            inputs = inputs.to(output.dtype)
            if (dropout := self.owner[0].dropout) and module.training:
                inputs = nn.functional.dropout(inputs, dropout)
        if site.rows is None:
            return self.host.forward(site, module, inputs, output, factors)
        part = self.host.forward(site, module, inputs, site.rows.take(output, -1), factors)
        if site.rows.groups == 1:
            return output.slice_scatter(part, -1, site.rows.start, site.rows.start + site.rows.block)
        rows = site.rows
        runs = output.unflatten(-1, (rows.groups, rows.stride))
        part = part.unflatten(-1, (rows.groups, rows.block))
        return runs.slice_scatter(part, -1, rows.start, rows.start + rows.block).flatten(-2)

    def changed(self, weight: Tensor) -> Tensor:
        """A parameter, of packed ones the site's own matrix, as the model should read it."""
        if not self.owner[0].enabled:
            return weight
        with torch.autocast(weight.device.type, enabled=False):
            matrix, _ = self.host.merged(self.site, self.alone.matrix(weight), None, self.factors(weight))
            return self.alone.replaced(weight, matrix)

    def factors(self, like: Tensor) -> Factors:
        """The site's factors, in the dtype and on the device of a tensor."""
        factors = self.owner[0].factors_at(self.index, like.dtype)
        if factors[0].dtype != like.dtype or factors[0].device != like.device:
            return tuple(factor.to(like.device, like.dtype) for factor in factors)
        return factors


class AttentionAdapter(SiteAdapter):
    """What stands beside an attention, and takes part in it; see `Participant`."""

    def install(self, module: nn.Module, source: nn.Module | None) -> None:
        """See `SiteAdapter.install`: the attention asks its children, so there is nothing to hook."""

    def attend(self, function: Any, module: nn.Module, query: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The attention of a module, with the adapter's part."""
        if not self.owner[0].enabled:
            return function(module, query, *args, **kwargs)
        return self.host.attend(self.factors(query), function, module, query, *args, **kwargs)
