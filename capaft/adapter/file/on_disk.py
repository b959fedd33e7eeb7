"""An adapter put on a base model whose weights stay on disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from capaft.adapter.activation import activate
from capaft.adapter.file.adapter_file import AdapterFile
from capaft.adapter.file.other_head import HEAD
from capaft.adapter.file.save_load import load
from capaft.config.open_options import OpenOptions
from capaft.config.parts.model import ModelSettings
from capaft.model.checkpoint_tensors import checkpoint_tensors
from capaft.model.load import BaseModel
from capaft.model.names import base_parameters, canonical_name, canonical_path
from capaft.model.origin import Origin
from capaft.model.skeleton import NeedsWeights, SkeletonSettings, give_memory, readable
from capaft.model.stored_dtypes import stored_dtypes
from capaft.model.stored_form import StoredForm
from capaft.tasks.base.task import Task


def keep_exact(model: nn.Module, names: Iterable[str]) -> None:
    """Hold parameters in float32 that an adapter trained directly, beside a base of fewer bits.

    Args:
        model: the model.
        names: canonical names of the parameters; others are passed over.
    """
    parameters = {canonical_path(model, name): parameter for name, parameter in model.named_parameters()}
    for name in names:
        if name in parameters:
            parameters[name].data = parameters[name].data.float()


def skeleton_of(task: Task, settings: ModelSettings, file: AdapterFile) -> tuple[BaseModel, StoredForm]:
    """The base model without its weights, and the tensors of its checkpoint.

    Raises:
        NeedsWeights: it has to be loaded with its weights, or they cannot be read tensor by tensor.
    """
    if file.header.method.method == "full":
        raise NeedsWeights("the adapter has values for all of it")
    if settings.base_dtype in ("8bit", "4bit"):
        raise NeedsWeights("it is quantised as it is loaded")
    origin = Origin(settings.model, settings.revision)
    stored = stored_dtypes(origin)
    tensors = None if stored is None else checkpoint_tensors(origin)
    if stored is None or tensors is None:
        raise NeedsWeights("its weights are not in safetensors files")
    if stored.has_codes:
        raise NeedsWeights("its weights are quantised")
    base = task.load_model(SkeletonSettings(**vars(settings)), seed=file.header.seed)
    return base, StoredForm.of(base.model, tensors)


def attach_on_disk(form: StoredForm, file: AdapterFile, options: OpenOptions, adapter: str) -> None:
    """Attach the adapter of a file to a model whose weights are on disk.

    What the adapter trains directly is in memory from then on.

    Args:
        form: the model and the tensors of its checkpoint.
        file: the adapter.
        options: how it is opened.
        adapter: its name on the model.

    Raises:
        AdapterFileError: the file belongs to another model.
    """
    model = form.model
    names = {canonical_name(model, name, options.renames): name for name in base_parameters(model)}
    keys = (key.removeprefix(HEAD) for key in file.tensors if key.startswith(HEAD))
    heads = {names[key] for key in (*keys, *(file.header.head.parameters if file.header.head else ())) if key in names}
    heads = {name for name in heads if model.get_parameter(name).is_meta}
    give_memory(model, {canonical_path(model, name) for name in heads})
    with torch.no_grad():
        for name in heads:
            if (values := form.look(name)) is not None:
                model.get_parameter(name).copy_(values)
    keep_exact(model, (key.removeprefix(HEAD) for key in file.tensors))
    with readable(model, form.look):
        load(model, file, name=adapter, rename=options.renames, allow_base_mismatch=options.allow_base_mismatch)


def activate_together(model: nn.Module, names: Sequence[str]) -> None:
    """Make several adapters the active ones, with the head of the first on the model."""
    # What becomes active last has its head there.
    activate(model, names[1:])
    activate(model, names)


def runnable(
    task: Task,
    settings: ModelSettings,
    files: Mapping[str, AdapterFile],
    options: OpenOptions,
    places: Mapping[str, str],
    scratch: str,
) -> Any:
    """A base model with adapters that runs while its weights are on disk: each is read when its module is called.

    Args:
        task: the task, which loads it.
        settings: those of the base model.
        files: the adapters by name; all are active, and the first has its head on the model.
        options: how they are opened.
        places: of its modules; see `runs_from_disk`.
        scratch: a directory for what the checkpoint stores in another form.

    Raises:
        UsageError: it cannot be loaded.
    """
    seed = next(iter(files.values())).header.seed
    base = task.load_model(SkeletonSettings(**vars(settings), device_map=places, offload=scratch), seed=seed)
    for name, file in files.items():
        keep_exact(base.model, (key.removeprefix(HEAD) for key in file.tensors))
        load(base.model, file, name=name, rename=options.renames, allow_base_mismatch=options.allow_base_mismatch)
    activate_together(base.model, list(files))
    return base.model.eval()
