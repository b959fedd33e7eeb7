"""The head that an adapter starts from, and its labels: copies of the model's, or new ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from capaft.adapter.plan import Placement, Plan
from capaft.model.labels import Labels
from capaft.model.names import base_parameters, canonical_name, in_head
from capaft.model.new_head import initial_values
from capaft.support.errors import UsageError


def new_labels(labels: int | Sequence[str]) -> Labels:
    """The labels that a caller names or counts.

    Raises:
        UsageError: they are something else.
    """
    if isinstance(labels, int) and not isinstance(labels, bool) and labels >= 1:
        return Labels.numbered(labels)
    if not isinstance(labels, Sequence) or isinstance(labels, str) or not _are_names(labels):
        raise UsageError(f"labels must be a number, or a list of names that differ, got {labels!r:.200}")
    return Labels.named(labels)


def _are_names(values: Sequence[object]) -> bool:
    return 0 < len(values) == len(set(map(str, values))) and all(isinstance(value, str) for value in values)


def new_head(model: nn.Module, placement: Placement, count: int) -> dict[str, torch.Tensor]:
    """Initial values of the parameters of a new head with that many outputs, by canonical name.

    Raises:
        UsageError: the placement names no parameter with one row for each of the model's labels.
    """
    names = {canonical_name(model, name, placement.rename): name for name in base_parameters(model)}
    current, values, resized = Labels.of(model), {}, False
    for name in sorted({canonical_name(model, name, placement.rename) for name in placement.head}):
        parameter = model.get_parameter(names[name])
        shape = parameter.shape
        if current and shape and shape[0] == len(current.id2label):
            shape, resized = torch.Size([count, *shape[1:]]), True
        if (drawn := initial_values(name, shape, placement.seed)) is not None:
            values[name] = drawn
    if not resized:
        raise UsageError("labels needs the parameters of a head with one output for each label; name them in head")
    return values


def own_tensors(model: nn.Module, plan: Plan, start: Mapping[str, torch.Tensor]) -> dict[str, nn.Parameter]:
    """The adapter's tensors in place of the model's own: those that it trains, and those that start elsewhere."""
    parameters: dict[str, nn.Parameter] = {}
    names = {canonical_name(model, name, plan.rename): name for name in base_parameters(model)}
    for name in (*plan.trained, *sorted(start.keys() - set(plan.trained))):
        base = model.get_parameter(names[name])
        values = start[name] if name in start else base.detach().clone(memory_format=torch.preserve_format)
        parameters[name] = nn.Parameter(values.to(base.device, base.dtype), requires_grad=name in plan.trained)
    return parameters


def own_labels(model: nn.Module, plan: Plan, labels: Labels | None) -> Labels | None:
    """The labels of an adapter: those that are given, or a copy of the model's if it trains or moves the head."""
    current = Labels.of(model)
    names = {canonical_name(model, name, plan.rename): name for name in base_parameters(model)}
    moved = {f"{site.module}.{site.parameter}" for site in plan.head.parameters}
    heads = {names[name] for name in plan.trained} | moved
    if current is None or not any(in_head(model, name.rpartition(".")[0]) for name in heads):
        return None
    return labels or current.copy()
