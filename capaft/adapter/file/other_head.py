"""A file's head on a model that has another one: of other labels, or drawn from another seed."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from capaft.adapter.file.adapter_file import AdapterFile
from capaft.adapter.file.encoding import SCALE
from capaft.adapter.plan import Plan
from capaft.model.labels import Labels
from capaft.model.names import base_parameters, canonical_name
from capaft.model.new_head import initial_values
from capaft.support.errors import AdapterFileError

HEAD = "head:"


def stored_parameters(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the stored parameters: all tensors but block scales."""
    return [key for key in tensors if not key.startswith(SCALE)]


def head_shapes(model: nn.Module, file: AdapterFile, rename: dict[str, str] | None) -> dict[str, torch.Size]:
    """Shapes of the parameters of a file's head that are not the model's, by canonical name.

    Only the number of labels may differ, the first side of a parameter; all of them have to agree on it.

    Raises:
        AdapterFileError: they do not agree, or the file names a parameter that the model does not have.
    """
    base = {canonical_name(model, name, rename): p.shape for name, p in base_parameters(model).items()}
    of_file = [key.removeprefix(HEAD) for key in file.tensors if key.startswith(HEAD)]
    for name in (*of_file, *(file.header.head.parameters if file.header.head else ())):
        if name not in base:
            raise AdapterFileError(
                f"{file.path} does not fit {type(model).__name__}, which has no parameter {name}; pass the --model it "
                "was trained on"
            )
    rows: dict[str, set[int]] = {}
    for key in stored_parameters(file.tensors):
        name = key.removeprefix(HEAD)
        if key.startswith(HEAD) and len(shape := base.get(name, torch.Size())) > 0:
            rows[name] = _stored_rows(file.tensors[key], shape, file.header.save_dtype)
    for name, (first, others) in (file.header.head.parameters if file.header.head else {}).items():
        shape = base.get(name, torch.Size())
        rows[name] = {first} if shape and others == shape[1:].numel() else set()
    other = {name: counts for name, counts in rows.items() if base.get(name) and base[name][0] not in counts}
    if not other:
        return {}
    current = Labels.of(model)
    labels = {len(current.id2label)} if current else {base[name][0] for name in other}
    common = set.intersection(*other.values())
    # A file asks for no more than what it holds or the model has.
    limit = sum(shape.numel() for shape in base.values()) + file.size
    if len(labels) > 1 or any(base[name][0] not in labels for name in other) or len(common) != 1:
        return {}
    (count,) = common
    shapes = {name: torch.Size([count, *base[name][1:]]) for name in other}
    if count < 1 or sum(shape.numel() for shape in shapes.values()) > limit:
        raise AdapterFileError(f"{file.path} has a head of {count} outputs, too many for {type(model).__name__}")
    return shapes


def _stored_rows(stored: Tensor, shape: torch.Size, dtype: str) -> set[int]:
    """The first sides that a stored parameter can have if the others are those of a shape."""
    if dtype not in ("int8", "int4"):
        return {stored.shape[0]} if stored.ndim == len(shape) and stored.shape[1:] == shape[1:] else set()
    counts = {stored.numel()} if dtype == "int8" else {2 * stored.numel(), 2 * stored.numel() - 1}
    width = shape[1:].numel()
    return {count // width for count in counts if width and count % width == 0}


def drawn_head(model: nn.Module, plan: Plan, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """The values that a new head would have in the parameters that a file does not store, by canonical name."""
    base = {canonical_name(model, name, plan.rename): p.shape for name, p in base_parameters(model).items()}
    names = [f"{site.path}.{site.parameter}".removeprefix(".") for site in plan.head.parameters]
    drawn = {name: initial_values(name, shapes.get(name, base[name]), plan.seed) for name in names}
    return {name: values for name, values in drawn.items() if values is not None}
