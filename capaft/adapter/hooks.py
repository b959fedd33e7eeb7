"""Modules that an adapter adds beside base modules, with hooks on their inputs and outputs.

The base module stays unchanged under its own name and gets a child that hooks its input and output; or, where code
reads a weight without calling the module, a child that changes the value read.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from capaft.adapter.bystander import Bystander
from capaft.adapter.flow import Factors
from capaft.adapter.module import Adapter
from capaft.adapter.parametrise import add_parametrisation, remove_parametrisation
from capaft.methods.host import Host
from capaft.model.site import Site
from capaft.support.errors import UsageError


def parametrised(host: Host, site: Site) -> bool:
    """True if a host changes the site's weight as the model reads it, and False if it changes an input or output."""
    return site.parametrised or (bool(site.parameter) and site.kind not in (*host.kinds, "bias"))


def adapted_output(
    host: Host, site: Site, module: nn.Module, inputs: Tensor, output: Tensor, factors: Factors
) -> Tensor:
    """A module's output with the part of one of its sites.

    Args:
        host: the method.
        site: the site, of the whole module or of some rows of a fused projection.
        module: the base module.
        inputs: what the site takes, in the output's dtype unless they are indices.
        output: the module's output so far.
        factors: the site's factors.
    """
    if site.rows is None:
        return host.forward(site, module, inputs, output, factors)
    part = host.forward(site, module, inputs, site.rows.take(output, -1), factors)
    if site.rows.groups == 1:
        return output.slice_scatter(part, -1, site.rows.start, site.rows.start + site.rows.block)
    rows = site.rows
    runs = output.unflatten(-1, (rows.groups, rows.stride))
    part = part.unflatten(-1, (rows.groups, rows.block))
    return runs.slice_scatter(part, -1, rows.start, rows.start + rows.block).flatten(-2)


class SiteAdapter(Bystander):
    """A child of one base module that changes its input, its output, or its weight as it is read.

    Its parameters are those of the adapter. The hooks are bound methods, not closures, so that copies of a model hook
    themselves and not the original.
    """

    def __init__(self, adapter: Adapter, index: int) -> None:
        super().__init__()
        # In a tuple, since as a submodule the adapter would become its own descendant.
        self.owner = (adapter,)
        self.index = index
        self.host, self.site = adapter.plan.placed[index]
        self.handles: list[Any] = []
        # Of packed matrices a site has only its own, as `alone` sees it.
        self.layer = self.site.index
        self.alone = replace(self.site, index=None)

    @property
    def parametrises(self) -> str:
        """The parameter that it changes while the model reads it; empty if it hooks the module instead."""
        return self.site.parameter if parametrised(self.host, self.site) else ""

    def install(self, module: nn.Module, source: nn.Module | None) -> None:
        """Hook or parametrise a module.

        Args:
            module: the base module.
            source: the module whose input the host takes, if not the base module's.
        """
        if self.parametrises:
            add_parametrisation(module, self.parametrises)
            return
        if source is not None:
            self.handles.append(source.register_forward_pre_hook(self.keep_input, with_kwargs=True))
        if self.site.scales == "input" or self.site.normalises:
            self.handles.append(module.register_forward_pre_hook(self.before, with_kwargs=True))
        self.handles.append(module.register_forward_hook(self.after, with_kwargs=True))

    def remove(self, module: nn.Module) -> None:
        """Undo `install`."""
        for handle in self.handles:
            handle.remove()
        remove_parametrisation(module)

    def keep_input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep the source's input for this site; a pre-hook of the source."""
        self.owner[0].flow.inputs[self.index] = args[0] if args else next(iter(kwargs.values()))

    def before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Change the base module's input; a pre-hook of it."""
        adapter = self.owner[0]
        if not adapter.enabled:
            return None
        inputs = args[0] if args else next(iter(kwargs.values()))
        changed = self.host.before(self.site, module, inputs, self.factors(inputs))
        return ((changed, *args[1:]), kwargs) if args else (args, kwargs | {next(iter(kwargs)): changed})

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Change the base module's output; a forward hook of it."""
        adapter = self.owner[0]
        source_input = adapter.flow.inputs.pop(self.index, None) if self.site.source else None
        if not adapter.enabled:
            return output
        if not isinstance(output, Tensor):
            first, others = output[0], output[1:]
            return type(output)((self.adapted(module, args, kwargs, first, source_input), *others))
        return self.adapted(module, args, kwargs, output, source_input)

    def adapted(
        self,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Tensor,
        source_input: Tensor | None,
    ) -> Tensor:
        """The module's output with the adapter's part."""
        site = self.site
        if site.source and source_input is None:
            raise UsageError(f"{site.module} was called without {site.source}, whose input its adapter takes")
        inputs = source_input if source_input is not None else args[0] if args else next(iter(kwargs.values()))
        factors = self.factors(output)
        if inputs.is_floating_point():
            inputs = inputs.to(output.dtype)
            if (dropout := self.owner[0].dropout) and module.training:
                inputs = nn.functional.dropout(inputs, dropout)
        return adapted_output(self.host, site, module, inputs, output, factors)

    def changed(self, weight: Tensor) -> Tensor:
        """The value that the model reads for a parameter, or for the site's own matrix of packed ones."""
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
    """A child of an attention that takes part in it; see `Participant`."""

    def install(self, module: nn.Module, source: nn.Module | None) -> None:
        """See `SiteAdapter.install`: the attention calls its children, so there is nothing to hook."""

    def attend(self, function: Any, module: nn.Module, query: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The attention of a module, with the adapter's part."""
        if not self.owner[0].enabled:
            return function(module, query, *args, **kwargs)
        return self.host.attend(self.factors(query), function, module, query, *args, **kwargs)
