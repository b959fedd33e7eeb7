"""The task of a PEFT LoRA, which its directory does not name as capaft does, and its labels."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch

from capaft.adapter.file.header import TaskRecord
from capaft.config.choices import TASKS
from capaft.config.open_options import ImportOptions
from capaft.exchange.peft_directory import PeftDirectory
from capaft.model.checkpoint_config import MOST_LABELS
from capaft.model.load_errors import explaining_load_errors
from capaft.model.names import canonical_path
from capaft.support.errors import AdapterFileError, UsageError
from capaft.tasks.base.registry import task_class
from capaft.tasks.base.task import Task

# The tasks that a name of PEFT's may mean, the likeliest first.
_BY_TYPE = {
    "SEQ_CLS": ("text-classification", "image-classification", "audio-classification"),
    "TOKEN_CLS": ("token-classification",),
    "QUESTION_ANS": ("question-answering",),
    "CAUSAL_LM": ("causal-lm",),
    "SEQ_2_SEQ_LM": ("seq2seq", "speech-recognition"),
}
_LABELLED = frozenset({"text-classification", "token-classification", "image-classification", "audio-classification"})
# A number of labels that no other side of a model has.
_PROBE = 7919
_PROBLEMS = {
    "multi_label_classification": "multi",
    "regression": "regression",
    "single_label_classification": "single",
}


def task_of_peft(
    peft: PeftDirectory, config: Any, wish: ImportOptions, *, trust_remote_code: bool = False
) -> tuple[Task, str]:
    """The task of a PEFT LoRA, and a line that says what of it is assumed.

    Args:
        peft: the directory.
        config: the configuration of the base model.
        wish: what the user says of it.
        trust_remote_code: the base model may run code of its own.

    Raises:
        UsageError: nothing tells the task, or the labels that the user names are not as many as the head has.
    """
    name, reason = (wish.task, "") if wish.task != "auto" else _inferred(peft, config)
    kind = task_class(name)
    if name not in _LABELLED:
        if wish.labels:
            raise UsageError(f"--labels: {name} has none; drop it")
        return kind(), f"task {name}{reason}"
    count = _label_count(peft, kind, config, trust_remote_code)
    labels, whence = _labels(count, config, wish.labels or ())
    options = _problem(kind, config, wish, len(labels))
    if options.get("problem") == "regression":
        if len(labels) > 1:
            raise UsageError(f"{peft.path} predicts {len(labels)} numbers at once, and no task of capaft does")
        return kind(**options), f"task {name}{reason}, a number"
    shown = ", ".join(labels[:6]) + (", ..." if len(labels) > 6 else "")
    several = "any number of " if options.get("problem") == "multi" else ""
    return kind(labels, **options), f"task {name}{reason}, with {several}the labels {shown} ({whence})"


def record_of(task: Task) -> TaskRecord:
    """A task as an adapter file records it."""
    return TaskRecord(task.name, task.labels, task.max_length, task.metric, task.options())


def _inferred(peft: PeftDirectory, config: Any) -> tuple[str, str]:
    """The task that task type, class or base model tell, and what told it.

    Raises:
        UsageError: none does.
    """
    kind = peft.config.task_type
    if kind in _BY_TYPE:
        fitting = [name for name in _BY_TYPE[kind] if _is_mapped(name, config)]
        return [*fitting, *_BY_TYPE[kind]][0], f", since its task_type is {kind}"
    candidates = [peft.config.model_class, *(getattr(config, "architectures", None) or [])]
    for architecture in filter(None, candidates):
        if names := [name for name in TASKS if architecture in _classes(name, config)]:
            return names[0], f", since its base is a {architecture}"
    raise UsageError(f"{peft.path} does not tell its task; name it with capaft import {peft.path} --task")


def _auto_classes(name: str, config: Any) -> list[Any]:
    import transformers

    kind = task_class(name)
    names = {kind.auto_class}
    if name == "speech-recognition":
        names |= {"AutoModelForCTC"}
    return [getattr(transformers, auto) for auto in sorted(names)]


def _is_mapped(name: str, config: Any) -> bool:
    """True if transformers has a class of the base model for a task."""
    return any(type(config) in auto._model_mapping for auto in _auto_classes(name, config))


def _classes(name: str, config: Any) -> set[str]:
    """Names of the classes that transformers has for a task and the base model."""
    mappings = (auto._model_mapping for auto in _auto_classes(name, config))
    classes = [mapping[type(config)] for mapping in mappings if type(config) in mapping]
    return {kind.__name__ for kinds in classes for kind in (kinds if isinstance(kinds, tuple) else (kinds,))}


def _label_count(peft: PeftDirectory, kind: type[Task], config: Any, trust_remote_code: bool) -> int | None:
    """The number of outputs of the head that the directory has a copy of; None if it has none.

    Raises:
        AdapterFileError: its parts do not agree, or it has more outputs than memory should hold.
    """
    import transformers

    probe = copy.deepcopy(config)
    probe.num_labels = _PROBE
    auto = getattr(transformers, kind.auto_class)
    with explaining_load_errors(peft.config.base or "the base model", peft.config.base or ""), torch.device("meta"):
        model = auto.from_config(probe, trust_remote_code=trust_remote_code)
    names = {canonical_path(model, name) for name, p in model.named_parameters() if _PROBE in p.shape[:1]}
    stored = {canonical_path(model, name): tensor for name, tensor in peft.parameters.items()}
    counts = {stored[name].shape[0] for name in names if name in stored and stored[name].shape}
    if len(counts) > 1 or any(count > MOST_LABELS for count in counts):
        raise AdapterFileError(
            f"{peft.path}: its head has {' and '.join(map(str, sorted(counts)))} outputs; get it again"
        )
    return next(iter(counts), None)


def _labels(count: int | None, config: Any, named: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """The labels of a head with that many outputs, and where their names are from."""
    id2label = getattr(config, "id2label", None) or {}
    names = tuple(str(id2label[index]) for index in sorted(id2label))
    count = len(names) if count is None else count
    if named:
        if len(named) != count:
            raise UsageError(f"--labels names {len(named)} labels, and the head has {count} outputs")
        return tuple(named), "as --labels says"
    if count == len(names) and names != tuple(f"LABEL_{index}" for index in range(count)):
        return names, "those of the base's config.json"
    return tuple(f"LABEL_{index}" for index in range(count)), "PEFT keeps no names; --labels gives some"


def _problem(kind: type[Task], config: Any, wish: ImportOptions, count: int) -> dict[str, Any]:
    """The option of a task for the kind of its labels, if it has one."""
    if "problem" not in {field.name for field in fields(kind)}:
        return {}
    told = wish.problem if wish.problem != "auto" else _PROBLEMS.get(getattr(config, "problem_type", None) or "")
    return {"problem": told or ("regression" if count == 1 else "single")}
