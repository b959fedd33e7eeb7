"""The hooks of a bank: one object for each base module that some adapter acts at.

They are hooks only: no module, parameter or buffer of the model is added, renamed or exchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from capaft.adapter.hooks import adapted_output
from capaft.inference.bank.examples import apply_to_examples, split_examples
from capaft.inference.bank.family import Family
from capaft.inference.bank.frame import CurrentFrame, Frame, Group
from capaft.inference.bank.probe import example_axis
from capaft.support.errors import UsageError

Args = tuple[Any, ...]
Kwargs = dict[str, Any]


class Place:
    """A base module, and what the adapters of a bank do there.

    Args:
        path: the module's path in the model.
        current: the frame of the thread that calls.

    Attributes:
        sites: of each family, the places of its plan whose site is this module.
        sources: of each family, the places that take this module's input.
        head: of each family, the module's parameters that its adapters have their own of, by canonical name.
    """

    def __init__(self, path: str, current: CurrentFrame) -> None:
        self.path = path
        self._current = current
        self.sites: WeakKeyDictionary[Family, list[int]] = WeakKeyDictionary()
        self.sources: WeakKeyDictionary[Family, list[int]] = WeakKeyDictionary()
        self.head: WeakKeyDictionary[Family, dict[str, str]] = WeakKeyDictionary()

    def __deepcopy__(self, memo: object) -> Place:
        # A copied model goes on with the same bank.
        return self

    def install(self, module: nn.Module) -> list[Any]:
        """Hook a module; the handles."""
        return [
            module.register_forward_pre_hook(self.before, with_kwargs=True),
            module.register_forward_hook(self.after, with_kwargs=True),
        ]

    def before(self, module: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs] | None:
        """Keep the module's input for others, and change it where a site says so; a pre-hook."""
        frame = self._current.get()
        if frame is None or frame.probed_axes is not None:
            return None
        inputs: Any = args[0] if args else next(iter(kwargs.values()), None)
        changed = inputs
        for group in frame.groups:
            for index in self.sources.get(group.family, ()):
                frame.inputs[group.family, index] = inputs
            for index in self.sites.get(group.family, ()):
                host, site = group.family.plan.placed[index]
                if site.scales == "input" or site.normalises:

                    def change(x: Tensor, *factors: Tensor, host: Any = host, site: Any = site) -> Tensor:
                        return host.before(site, module, x, factors)

                    factors, axes = group.factors(index, changed)
                    changed = self._applied(frame, group, change, changed, (changed,), factors, axes)
        if changed is inputs:
            return None
        return ((changed, *args[1:]), kwargs) if args else (args, kwargs | {next(iter(kwargs)): changed})

    def after(self, module: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """Change the module's output; a forward hook."""
        frame = self._current.get()
        if frame is None:
            return output
        first = output if isinstance(output, Tensor) else output[0]
        if frame.probed_axes is not None:
            frame.probed_axes[self.path] = example_axis(first)
            return output
        inputs: Any = args[0] if args else next(iter(kwargs.values()), None)
        changed = first
        for group in frame.groups:
            for index in self.sites.get(group.family, ()):
                if (unfired := group.family.unfired) is not None:
                    unfired.discard(index)
                changed = self._adapted(frame, group, index, module, inputs, changed)
        if any(group.family in self.head for group in frame.groups):
            changed = self._with_heads(frame, module, args, kwargs, changed)
        return changed if isinstance(output, Tensor) else type(output)((changed, *output[1:]))

    def _adapted(
        self, frame: Frame, group: Group, index: int, module: nn.Module, inputs: Tensor, output: Tensor
    ) -> Tensor:
        """The output with the part of one site."""
        host, site = group.family.plan.placed[index]
        if site.source:
            if (group.family, index) not in frame.inputs:
                raise UsageError(f"{site.module} was called without {site.source}, whose input its adapter takes")
            inputs = frame.inputs.pop((group.family, index))
        if inputs.is_floating_point():
            inputs = inputs.to(output.dtype)

        def adapt(x: Tensor, y: Tensor, *factors: Tensor) -> Tensor:
            return adapted_output(host, site, module, x, y, factors)

        factors, axes = group.factors(index, output)
        return self._applied(frame, group, adapt, output, (inputs, output), factors, axes)

    def _applied(
        self,
        frame: Frame,
        group: Group,
        function: Callable[..., Tensor],
        whole: Tensor,
        tensors: tuple[Tensor, ...],
        factors: tuple[Tensor, ...],
        axes: tuple[int | None, ...],
    ) -> Tensor:
        """A tensor with the rows of a group's examples replaced by what a function gives for them."""
        if group.is_single and group.rows is None:
            return function(*tensors, *factors)
        axis, rows = self._axis(frame), group.rows
        result = apply_to_examples(function, tensors, factors, axes, axis=axis, count=frame.count, rows=rows)
        if rows is not None:
            examples = split_examples(whole, axis, frame.count)
            result = examples.index_copy(axis, rows.to(whole.device), result.to(whole.dtype))
        return result.flatten(axis, axis + 1)

    def _axis(self, frame: Frame) -> int:
        """The axis of the examples.

        Raises:
            UsageError: it is not known.
        """
        axis = frame.axes.get(self.path)
        if axis is None:
            raise UsageError(
                f"{self.path} does not give one row after the other for each example, or was called without the whole "
                "model; use one adapter at a time"
            )
        return axis

    def _with_heads(self, frame: Frame, module: nn.Module, args: Args, kwargs: Kwargs, output: Tensor) -> Tensor:
        """The output of a module of the head, of each example by the parameters of its own adapter.

        Outputs of fewer labels than the most are filled up with minus infinity.
        """
        (single, *others) = frame.groups
        if not others and single.is_single and single.rows is None:
            return _called(
                module, {leaf: single.head(name)[0] for name, leaf in self.head[single.family].items()}, args, kwargs
            )
        axis = self._axis(frame)
        inputs = args[0] if args else next(iter(kwargs.values()))
        results: list[tuple[Tensor | None, Tensor]] = []
        for group in frame.groups:
            if not (names := self.head.get(group.family)):
                continue
            values, axes = zip(*(group.head(name) for name in names), strict=True)

            def call(x: Tensor, *values: Tensor, names: dict[str, str] = names) -> Tensor:
                given = ((x, *args[1:]), kwargs) if args else (args, kwargs | {next(iter(kwargs)): x})
                return _called(module, dict(zip(names.values(), values, strict=True)), *given)

            results.append(
                (
                    group.rows,
                    apply_to_examples(call, (inputs,), values, axes, axis=axis, count=frame.count, rows=group.rows),
                )
            )
        return _joined(output, axis, frame.count, results)


def _joined(output: Tensor, axis: int, count: int, results: Sequence[tuple[Tensor | None, Tensor]]) -> Tensor:
    """The output of a batch from those of its groups, and from the base model's own for examples of no group."""
    if results[0][0] is None:
        return results[0][1].flatten(axis, axis + 1)
    widths = [result.shape[-1] for _, result in results]
    covered = sum(result.shape[axis] for _, result in results)
    if covered < count:
        widths.append(output.shape[-1])
    examples = split_examples(output, axis, count)
    if max(widths) < output.shape[-1]:
        examples = examples[..., : max(widths)]
    examples = _widened(examples, max(widths))
    for rows, result in results:
        assert rows is not None
        rows = rows.to(output.device)
        examples = examples.index_copy(axis, rows, _widened(result.to(output.dtype), max(widths)))
    return examples.flatten(axis, axis + 1)


def _widened(output: Tensor, width: int) -> Tensor:
    return F.pad(output, (0, width - output.shape[-1]), value=-torch.inf)


def _called(module: nn.Module, parameters: dict[str, Tensor], args: Args, kwargs: Kwargs) -> Tensor:
    """What a module without children gives with other parameters; itself unchanged, since other threads may call it."""
    shadow = module.__class__.__new__(module.__class__)
    vars(shadow).update(vars(module))
    # The model may have been cast since.
    cast = {
        leaf: values if (value := module._parameters[leaf]) is None else values.to(value.device, value.dtype)
        for leaf, values in parameters.items()
    }
    vars(shadow)["_parameters"] = module._parameters | cast
    return shadow.forward(*args, **kwargs)
