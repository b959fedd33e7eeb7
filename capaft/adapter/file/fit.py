"""The adapter of a file on a model: whether they fit, and what has to stand in the model's place if not all does."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from capaft.adapter.file.adapter_file import AdapterFile
from capaft.adapter.file.fingerprint import base_samples, head_samples
from capaft.adapter.file.header import HeadRecord
from capaft.adapter.file.other_head import HEAD, drawn_head, stored_parameters
from capaft.adapter.file.samples import Agreement, compare_samples
from capaft.adapter.file.site_list import SiteList
from capaft.adapter.plan import Placement, Plan, make_plan
from capaft.model.labels import PROBLEM_TYPES, Labels
from capaft.model.names import base_parameters, canonical_name, in_head
from capaft.support.errors import AdapterFileError, UsageError


def plan_on(
    model: nn.Module, file: AdapterFile, rename: dict[str, str] | None, shapes: Mapping[str, torch.Size]
) -> Plan:
    """The plan of a file's adapter on a model.

    Raises:
        AdapterFileError: the adapter does not fit the model.
    """
    header = file.header
    try:
        plan = make_plan(model, header.method, replace(_placement(file, rename), shapes=shapes))
    except (UsageError, ValueError) as error:
        raise AdapterFileError(
            f"{file.path} does not fit {type(model).__name__}: {error}; pass the --model it was trained on"
        ) from None
    if difference := header.sites.difference(SiteList.of(plan)):
        raise AdapterFileError(
            f"{file.path} was trained on other sites than {type(model).__name__} has for {header.targets}: "
            f"{difference}; pass the --model it was trained on, or --rename old=new if modules were renamed"
        )
    if HeadRecord.of(plan.head, header.head.weights if header.head else None) != header.head:
        raise AdapterFileError(
            _other_labels(model, file)
            or f"{file.path} was trained with a head of other shapes than {type(model).__name__} has; pass the --model "
            "it was trained on"
        )
    return plan


def _other_labels(model: nn.Module, file: AdapterFile) -> str:
    """The line about a model with another number of labels than a file; empty if they have the same number."""
    current = Labels.of(model)
    counts = {first for first, _ in (file.header.head.parameters.values() if file.header.head else ())}
    if file.header.save_dtype not in ("int8", "int4"):
        counts |= {len(values) for key, values in file.tensors.items() if key.startswith(HEAD) and values.ndim}
    names = file.task.labels if file.task else ()
    count = len(names) or (counts.pop() if len(counts) == 1 else 0)
    if current is None or count in (0, len(current.id2label)):
        return ""
    return (
        f"{file.path}: the file has {count} labels, the model {len(current.id2label)}; load the model with "
        f"num_labels={count} and the head that it was trained with"
    )


def check_head(
    model: nn.Module, file: AdapterFile, rename: dict[str, str] | None, shapes: Mapping[str, torch.Size]
) -> None:
    """Refuse a model whose head is not that of a file, and cannot be made it.

    Raises:
        AdapterFileError: the head has another number of outputs, or is another one altogether.
    """
    parameters = base_parameters(model)
    heads = {canonical_name(model, name, rename): p.shape for name, p in parameters.items()} | dict(shapes)
    stored = [key for key in stored_parameters(file.tensors) if key.startswith(HEAD)]
    if file.header.save_dtype not in ("int8", "int4"):
        for name, shape in ((key.removeprefix(HEAD), file.tensors[key].shape) for key in stored):
            if name in heads and heads[name] != shape:
                raise AdapterFileError(
                    _other_labels(model, file)
                    or f"{file.path} holds {name} as {tuple(shape)}, and {type(model).__name__} has it as "
                    f"{tuple(heads[name])}; pass the --model it was trained on"
                )
    # A head with as many outputs as the model's own has to be one of the file's labels.
    if not shapes and file.task and file.task.labels and (line := _other_labels(model, file)):
        outputs = len((Labels.of(model) or Labels.numbered(0)).id2label)
        layers = {name.rpartition(".")[0]: p.shape[0] for name, p in parameters.items() if p.ndim}
        if any(count == outputs and in_head(model, path) for path, count in layers.items() if path):
            raise AdapterFileError(line)


def _placement(file: AdapterFile, rename: dict[str, str] | None) -> Placement:
    header = file.header
    placement = Placement(
        targets=header.targets,
        seed=header.seed,
        trained=[key.removeprefix(HEAD) for key in stored_parameters(file.tensors) if key.startswith(HEAD)],
        rename=rename,
    )
    if header.head is None:
        return placement
    if header.head.k == 0:
        return replace(placement, head=header.head.parameters, head_mode="frozen")
    return replace(placement, head=header.head.parameters, head_mode="nola", head_k=header.head.k)


def check_sizes(file: AdapterFile, plan: Plan) -> None:
    """Compare the sizes of the file's parameters with what the header and the model imply, before drawing anything."""
    counts = {key: file.tensors[key].numel() for key in stored_parameters(file.tensors)}
    bounds = plan.bounds()
    if {key for key in counts if not key.startswith(HEAD)} != set(bounds):
        raise AdapterFileError(f"{file.path} is damaged: its tensors are not those of its method")
    for role, (low, high) in bounds.items():
        stored = counts[role] * (2 if file.header.save_dtype == "int4" else 1)
        if not low <= stored <= high + 1:
            raise AdapterFileError(f"{file.path} is damaged: {role} has {stored} values, not {low} to {high}")


def check_base(
    model: nn.Module, file: AdapterFile, plan: Plan, shapes: Mapping[str, torch.Size], allow_mismatch: bool
) -> dict[str, Tensor]:
    """Refuse a model whose weights differ from those that the adapter was trained on.

    Returns:
        Values of the head's parameters that are not stored, by canonical name, where they are not the model's: a new
        head was drawn from the seed, and is drawn again.

    Raises:
        AdapterFileError: they differ, or the file's samples cannot be read.
    """
    if plan.stack.method == "full":
        return {}
    if not _agree(file, file.header.base.weights, base_samples(model, plan)) and not allow_mismatch:
        named = f" (it names {file.base.name})" if file.base.name else ""
        raise AdapterFileError(
            f"{file.path} was trained on other base weights than these{named}; pass the --model it was trained on, or "
            "--allow-base-mismatch to use it anyway"
        )
    head = file.header.head
    if head is None:
        return {}
    drawn = drawn_head(model, plan, shapes)
    resized = {name: values for name, values in drawn.items() if name in shapes}
    for values in (resized, drawn):
        if _agree(file, head.weights, head_samples(model, plan, values)):
            return values
    if allow_mismatch:
        return resized
    raise AdapterFileError(
        _other_labels(model, file)
        or f"{file.path} was trained from other values of the head than this model's; load the model with the head it "
        f"had then (a new one was drawn from seed {plan.seed}), or pass --allow-base-mismatch to use it anyway"
    )


def labels_on(model: nn.Module, file: AdapterFile, shapes: Mapping[str, torch.Size]) -> Labels | None:
    """The labels of a file's head on a model; None if they are the model's.

    Raises:
        AdapterFileError: the file names another number of labels than its head has.
    """
    current, task = Labels.of(model), file.task
    if current is None:
        return None
    (count,) = {shape[0] for shape in shapes.values()} or {len(current.id2label)}
    names = task.labels if task else ()
    if shapes and names and len(names) != count:
        raise AdapterFileError(f"{file.path} is damaged: its head does not have an output for each of its labels")
    if task and len(names) == count and names != current.names:
        problem_type = task.options.get("problem_type")
        return Labels.named(names, problem_type if problem_type in PROBLEM_TYPES else None)
    return Labels.numbered(count) if shapes else None


def _agree(file: AdapterFile, stored: str | None, sampled: str | None) -> bool:
    """True if samples in a file are the model's, or, with a warning, if they cannot be compared."""
    if stored is None or sampled is None:
        warnings.warn(
            f"{file.path}: this base model cannot be compared with the one it was trained on: weights are quantised "
            "or trained directly",
            stacklevel=5,
        )
        return True
    try:
        agreement = compare_samples(stored, sampled)
    except ValueError:
        raise AdapterFileError(f"{file.path} is damaged: its base model's samples cannot be read") from None
    if agreement is Agreement.COARSE:
        warnings.warn(
            f"{file.path}: this base model, or the one it was trained on, was unpacked from a quantised copy; they are "
            "as near as copies of one model, but another fine-tune of it can be as near",
            stacklevel=5,
        )
    return agreement is not Agreement.OTHER
