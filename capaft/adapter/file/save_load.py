"""Write an adapter to a file, and attach the adapter of one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from capaft.adapter.activation import disabled, get_adapter, refuse_distributed
from capaft.adapter.file.adapter_file import AdapterFile, read
from capaft.adapter.file.canonical import canonical_json
from capaft.adapter.file.encoding import SAVE_DTYPES, decode_tensor, dtype_name, encode_tensor, encoded_layout
from capaft.adapter.file.envelope import seal
from capaft.adapter.file.fingerprint import WeightSamples, streams_digest, tensors_digest, weight_samples
from capaft.adapter.file.fit import check_base, check_head, check_sizes, labels_on, plan_on
from capaft.adapter.file.header import (
    FORMAT,
    BaseRecord,
    Digests,
    Header,
    HeadRecord,
    TaskRecord,
    check_writable,
)
from capaft.adapter.file.header_schema import wrong_ext
from capaft.adapter.file.other_head import head_shapes
from capaft.adapter.file.site_list import SiteList
from capaft.adapter.install import attach_plan, detach
from capaft.adapter.module import Adapter, carrier
from capaft.adapter.plan import Plan
from capaft.config.choices import SaveDtype
from capaft.config.local_paths import shared_name
from capaft.factors import rng
from capaft.model.labels import Labels
from capaft.model.names import check_renames
from capaft.model.origin import Origin
from capaft.support.errors import AdapterFileError, TrainingError, UsageError, check_type
from capaft.support.files import write_atomically


def save(
    model: nn.Module,
    path: str | Path,
    *,
    name: str = "default",
    base: Origin | None = None,
    task: TaskRecord | None = None,
    dtype: SaveDtype = "float32",
    samples: WeightSamples | None = None,
    ext: dict[str, Any] | None = None,
) -> int:
    """Write an adapter to a file, atomically.

    Args:
        model: the model that carries the adapter.
        path: the file to write.
        name: the adapter's name on the model.
        base: the base model's name and revision; by default the model's own `name_or_path`. A path is written without
            what lies above the working directory.
        task: the task that it was trained for; by default the labels of its head, if they are not the base model's.
        dtype: encoding of the stored parameters; `int8` and `int4` have one scale per 128 values.
        samples: sample weights of the base model, if it is sharded and can no longer be read.
        ext: an object of JSON values for your own use, of at most 64 KiB and 16 levels, which `read` gives
            as `header.ext`; capaft ignores it, and an adapter that is loaded and saved again has none.

    Returns:
        Bytes written.

    Raises:
        UsageError: there is no such adapter or dtype, or a file cannot hold the task or `ext`. Nothing was written.
        TrainingError: a parameter is not finite, or the file cannot be written.

    Example:
        >>> adapter = capaft.attach(model, "nola", k=16, rank=2, seed=7)
        >>> capaft.save(model, path) == path.stat().st_size
        True
    """
    check_type("path", path, str | os.PathLike, "a path")
    check_type("base", base, Origin | None, "an Origin")
    check_type("task", task, TaskRecord | None, "a TaskRecord")
    check_type("samples", samples, WeightSamples | None, "WeightSamples")
    if dtype not in SAVE_DTYPES:
        raise UsageError(f"--save-dtype must be one of {', '.join(SAVE_DTYPES)}, got {dtype}")
    if problem := wrong_ext(ext or {}):
        raise UsageError(f"{problem}; {path} was not written")
    adapter, model = get_adapter(model, name), carrier(model)
    base = base or Origin(getattr(model, "name_or_path", None) or None)
    base_name = None if base.name is None else shared_name(base.name)
    with disabled(model):
        task = task or _labels_record(model, adapter)
        check_writable(base, task)
        heads = adapter.substitutes.tensors(model)
        samples = samples or weight_samples(model, adapter.plan, heads)
    plan, tensors = adapter.plan, _encoded(adapter.trained(model), dtype, path)
    header = Header(
        base=BaseRecord(base_name, base.revision, samples.base),
        contract=rng.CONTRACT_VERSION,
        digest=Digests("", streams_digest(plan), tensors_digest(tensors)),
        ext=ext or {},
        format=FORMAT,
        head=HeadRecord.of(plan.head, samples.head),
        method=plan.stack,
        save_dtype=dtype,
        seed=plan.seed,
        sites=SiteList.of(plan),
        targets=plan.targets,
        task=task,
    )
    try:
        text = canonical_json(header.signed().record())
    except ValueError as error:
        raise UsageError(f"{error}; {path} was not written") from None
    content = seal(tensors, text)
    write_atomically(Path(path), content)
    return len(content)


def _encoded(parameters: dict[str, nn.Parameter], dtype: SaveDtype, path: str | Path) -> dict[str, Tensor]:
    """The stored tensors of all parameters.

    Raises:
        TrainingError: one of them is not finite, or is not once it is stored.
    """
    tensors: dict[str, Tensor] = {}
    for key, parameter in parameters.items():
        stored = encode_tensor(key, parameter, dtype)
        if not torch.isfinite(decode_tensor(key, stored, tuple(parameter.shape), dtype)).all():
            raise TrainingError(f"{key} holds numbers that are not finite as {dtype}; {path} was not written")
        tensors |= stored
    return tensors


def load(
    model: nn.Module,
    path: str | Path | AdapterFile,
    *,
    name: str = "default",
    rename: dict[str, str] | None = None,
    allow_base_mismatch: bool = False,
) -> Adapter:
    """Attach the adapter of a file to a model, after checking that it was trained on this model.

    It is active unless another adapter is. Its head and its labels may be other ones than the model's, of another
    number too: they take their place while the adapter is active.

    Args:
        model: the base model; changed in place only if every check holds.
        path: the file, a directory with one adapter file, or what `read` returned.
        name: the adapter's name on this model.
        rename: `{old: new}` pieces of module paths, if this model names its modules differently.
        allow_base_mismatch: attach even if the base weights differ from those it was trained on.

    Raises:
        AdapterFileError: the file is damaged, or belongs to another model.
        UsageError: the model already has an adapter of this name, a rename does not concern the model, or an argument
            is of the wrong type.

    Example:
        >>> adapter = capaft.attach(model, "nola", k=16, rank=2, seed=7)
        >>> size = capaft.save(model, path)
        >>> _ = capaft.detach(model)
        >>> capaft.load(model, path).plan.stack.method
        'lora+nola'
    """
    check_type("model", model, nn.Module, "a torch module")
    check_type("name", name, str, "a text")
    check_type("rename", rename, dict | None, "a dictionary")
    refuse_distributed(model, "load onto")
    file = path if isinstance(path, AdapterFile) else read(path)
    model = carrier(model)
    fit = fit_file(model, file, rename, allow_base_mismatch)
    adapter = attach_plan(model, fit.plan, name=name, start=fit.start, labels=fit.labels, trains=False)
    adapter.task = file.task
    try:
        _fill(adapter, model, file)
    except BaseException:
        detach(model, name)
        raise
    return adapter


class Fit(NamedTuple):
    """An adapter's file as it fits a model.

    Attributes:
        plan: every decision about the adapter.
        start: values of the head's parameters that are not the model's, by canonical name.
        labels: the labels of its head; None if they are the model's.
        shapes: shapes of the parameters of the head that are not the model's, by canonical name.
    """

    plan: Plan
    start: dict[str, Tensor]
    labels: Labels | None
    shapes: dict[str, torch.Size]


def fit_file(model: nn.Module, file: AdapterFile, rename: dict[str, str] | None, allow_base_mismatch: bool) -> Fit:
    """Check that an adapter was trained on a model, which is left as it is.

    Args:
        model: the model that would carry the adapter.
        file: the file, read.
        rename: `{old: new}` pieces of module paths, if this model names its modules differently.
        allow_base_mismatch: let the base weights differ from those it was trained on.

    Raises:
        AdapterFileError: the file is damaged, or belongs to another model.
        UsageError: a rename does not concern the model.
    """
    with disabled(model):
        check_renames(model, rename)
        shapes = head_shapes(model, file, rename)
        plan = plan_on(model, file, rename, shapes)
        check_sizes(file, plan)
        check_head(model, file, rename, shapes)
        start = {name: torch.zeros(shape) for name, shape in shapes.items() if name in plan.trained}
        start |= check_base(model, file, plan, shapes, allow_base_mismatch)
        labels = labels_on(model, file, shapes)
    if streams_digest(plan) != file.header.digest.streams:
        raise AdapterFileError(
            f"{file.path}: its random streams come out differently here than where it was written; the random "
            "generator of this installation is at fault, so the adapter cannot be used here"
        )
    return Fit(plan, start, labels, shapes)


def restore_parameters(model: nn.Module, path: str | Path, *, name: str = "default") -> None:
    """Restore an attached adapter's parameters from a file that was saved from it.

    Raises:
        AdapterFileError: the file is damaged, or is of another adapter.
    """
    file, adapter, model = read(path), get_adapter(model, name), carrier(model)
    if file.header.digest.streams != streams_digest(adapter.plan):
        raise AdapterFileError(f"{path} is not a file of the attached adapter")
    _fill(adapter, model, file)


def _fill(adapter: Adapter, model: nn.Module, file: AdapterFile) -> None:
    """Copy a file's parameters into an adapter, all or nothing."""
    trained = adapter.trained(model)
    stored = stored_values(file, {key: tuple(parameter.shape) for key, parameter in trained.items()})
    with torch.no_grad():
        for key, parameter in trained.items():
            parameter.copy_(stored[key])


def stored_values(file: AdapterFile, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The float32 values of a file's parameters of these shapes, by name.

    Raises:
        AdapterFileError: the file holds others, or numbers that are not finite.
    """
    dtype = file.header.save_dtype
    expected: dict[str, Any] = {}
    for key, shape in shapes.items():
        expected |= encoded_layout(key, shape, dtype)
    if expected != {key: (dtype_name(t), tuple(t.shape)) for key, t in file.tensors.items()}:
        raise AdapterFileError(f"{file.path} is damaged: its tensors are not what its header describes")
    stored = {key: decode_tensor(key, file.tensors, shape, dtype) for key, shape in shapes.items()}
    if not all(torch.isfinite(values).all() for values in stored.values()):
        raise AdapterFileError(f"{file.path} is damaged: it holds numbers that are not finite")
    return stored


def _labels_record(model: nn.Module, adapter: Adapter) -> TaskRecord | None:
    """The labels of an adapter's head if they are not the base model's, in the task that they were loaded with."""
    current = Labels.of(model)
    if adapter.labels is None or current is None or adapter.labels.agrees(current):
        return None
    if adapter.task is not None:
        return replace(adapter.task, labels=adapter.labels.names)
    return TaskRecord("", adapter.labels.names, 0, "", {"problem_type": adapter.labels.problem_type})
