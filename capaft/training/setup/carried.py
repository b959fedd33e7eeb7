"""The trained parameters of an adapter as the start of a run's own, its head's outputs by the names of their labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from capaft.adapter.file import save_load
from capaft.adapter.file.adapter_file import AdapterFile
from capaft.adapter.file.encoding import SCALE
from capaft.adapter.file.fingerprint import streams_digest
from capaft.adapter.file.fit import plan_on
from capaft.adapter.file.other_head import HEAD, stored_parameters
from capaft.adapter.file.site_list import SiteList
from capaft.adapter.install import detach
from capaft.adapter.plan import Plan
from capaft.methods.head import HEAD_ROLE
from capaft.model.load import BaseModel
from capaft.support.errors import AdapterFileError, UsageError
from capaft.tasks.base.task import Task
from capaft.training.setup.predecessor import Predecessor

_NAME = "predecessor"


@dataclass(frozen=True)
class Carried:
    """What a run takes over from its predecessor.

    Attributes:
        predecessor: the adapter.
        values: start of each trainable parameter that has another than a new adapter's, by name in the adapter file.
        known: labels that the predecessor has an output for.
        new: labels whose outputs are new.
        has_head: True if the head starts from the predecessor's, or there is none.
        modules_to_save: modules beside head and adapter that the predecessor trains.
    """

    predecessor: Predecessor
    values: Mapping[str, Tensor]
    known: tuple[str, ...]
    new: tuple[str, ...]
    has_head: bool
    modules_to_save: str | None = None

    def fill(self, trained: Mapping[str, nn.Parameter]) -> None:
        """Give trainable parameters their start.

        Args:
            trained: those of the run, by name in the adapter file.
        """
        with torch.no_grad():
            for name, values in self.values.items():
                trained[name].copy_(values)


def carry_parameters(
    predecessor: Predecessor, base: BaseModel, plan: Plan, task: Task, *, allow_base_mismatch: bool
) -> Carried:
    """Read the start of a run's trainable parameters off its predecessor, put on the run's own base model.

    Args:
        predecessor: the adapter.
        base: the base model, with a head for the task, which is left as it was.
        plan: the plan of the run's adapter.
        task: the task, with its labels.
        allow_base_mismatch: take it although the base weights differ.

    Raises:
        UsageError: it does not fit the base model, or its head cannot start this one.
    """
    file, name = predecessor.file, predecessor.name
    if difference := file.header.sites.difference(SiteList.of(plan)):
        raise UsageError(
            f"--init-from {name}: it is on other layers than this run adapts: {difference}; leave --target-modules, "
            "--exclude-modules and --layers to it, and pass the --model it was trained on"
        )
    outputs = _Outputs.of(predecessor, task)
    if not outputs.continue_head and plan.stack.method == "full":
        raise UsageError(
            f"--init-from {name}: its head is of no use here, and --method full has no other part; merge it with "
            "capaft merge, and train from the merged model"
        )
    try:
        old = _read_off(base, file if outputs.continue_head else _headless(file, base), allow_base_mismatch)
    except AdapterFileError as error:
        raise UsageError(f"--init-from {name}: {error}") from None
    _check_saved_modules(old, base, plan, name)
    values = _start(base, plan, old, outputs, name)
    has_head = outputs.continue_head or not base.head
    modules = saved_modules(predecessor, base)
    return Carried(predecessor, values, outputs.known, outputs.new, has_head, modules)


def saved_modules(predecessor: Predecessor, base: BaseModel) -> str | None:
    """The modules beside head and adapter that a predecessor trains, as `--modules-to-save` names them.

    Args:
        predecessor: the adapter.
        base: the run's base model.
    """
    if predecessor.file.header.method.method == "full":
        return None
    stored = {key.removeprefix(HEAD) for key in stored_parameters(predecessor.file.tensors) if key.startswith(HEAD)}
    names = (stored & base.named_parameters().keys()) - set(base.head)
    return ",".join(sorted({name.rpartition(".")[0] for name in names})) or None


@dataclass(frozen=True)
class _Outputs:
    """The outputs of two heads: a predecessor's and a run's.

    Attributes:
        old: labels of the predecessor's.
        now: labels of the run's.
        continue_head: True if the run's head starts from the predecessor's.
    """

    old: tuple[str, ...]
    now: tuple[str, ...]
    continue_head: bool

    @staticmethod
    def of(predecessor: Predecessor, task: Task) -> _Outputs:
        """The outputs of a predecessor and of a task; a file without labels has the task's, in their order."""
        same = predecessor.does(task)
        old = (predecessor.labels or task.labels) if same else ()
        return _Outputs(old, task.labels, same and bool(old) == bool(set(old) & set(task.labels)))

    @property
    def known(self) -> tuple[str, ...]:
        """Labels that both have."""
        return tuple(label for label in self.now if label in self.old)

    @property
    def new(self) -> tuple[str, ...]:
        """Labels that only the run has."""
        return tuple(label for label in self.now if label not in self.old)

    def joined(self, before: Tensor, now: Tensor) -> Tensor | None:
        """The start of a parameter of the head: rows of known labels as they were; None if it starts anew.

        Args:
            before: the predecessor's.
            now: a new head's.
        """
        if self.old != self.now and before.ndim and now.shape == (len(self.now), *before.shape[1:]):
            if len(before) != len(self.old):
                return None
            start = now.detach().clone()
            for label in self.known:
                start[self.now.index(label)] = before[self.old.index(label)]
            return start
        return before if before.shape == now.shape else None


def _headless(file: AdapterFile, base: BaseModel) -> AdapterFile:
    """A file without its head, which is not that of the task, nor what else the model does not have."""
    of_body = {HEAD + name for name in base.named_parameters().keys() - set(base.head)}
    names = {key: key.removeprefix(SCALE) for key in file.tensors}
    kept = {key for key, name in names.items() if name in of_body or not (name == HEAD_ROLE or name.startswith(HEAD))}
    tensors = {key: values for key, values in file.tensors.items() if key in kept}
    bare = replace(file, header=replace(file.header, head=None, task=None), tensors=tensors)
    if file.header.head and file.header.head.k:
        # The digest of its streams is one of the head's, too.
        streams = streams_digest(plan_on(base.model, bare, None, {}))
        bare = replace(bare, header=replace(bare.header, digest=replace(bare.header.digest, streams=streams)))
    return bare


def _read_off(base: BaseModel, file: AdapterFile, allow_base_mismatch: bool) -> dict[str, Tensor]:
    """The trained parameters of a file's adapter on a model, and the values of its head's that others move or freeze.

    Raises:
        AdapterFileError: it does not fit the model.
        UsageError: it cannot be attached.
    """
    model = base.model
    adapter = save_load.load(model, file, name=_NAME, allow_base_mismatch=allow_base_mismatch)
    try:
        values = {name: values.detach().clone() for name, values in adapter.trained(model).items()}
        for site in adapter.plan.head.parameters:
            name = f"{site.path}.{site.parameter}".removeprefix(".")
            values[HEAD + name] = getattr(model.get_submodule(site.module), site.parameter).detach().clone()
    finally:
        detach(model, _NAME)
    return values


def _check_saved_modules(old: Mapping[str, Tensor], base: BaseModel, plan: Plan, name: str) -> None:
    """Refuse to lose what a predecessor trained beside head and adapter.

    Raises:
        UsageError: this run does not train it.
    """
    kept = {HEAD + parameter for parameter in (*plan.trained, *base.head)}
    if lost := sorted(key for key in old if key.startswith(HEAD) and key not in kept):
        module = lost[0].removeprefix(HEAD).rpartition(".")[0]
        raise UsageError(
            f"--init-from {name}: it has trained {module}, which this run does not; add {module} to --modules-to-save"
        )


def _start(base: BaseModel, plan: Plan, old: Mapping[str, Tensor], outputs: _Outputs, name: str) -> dict[str, Tensor]:
    """The start of a run's trainable parameters, by their names in the adapter file.

    Raises:
        UsageError: the head moves along a basis for other outputs, or stays at other values.
    """
    values = {key: tensor for key, tensor in old.items() if not key.startswith(HEAD) and key != HEAD_ROLE}
    parameters = base.named_parameters()
    for key in plan.trained:
        before = old.get(HEAD + key)
        joined = None if before is None else outputs.joined(before, parameters[key])
        if joined is not None:
            values[HEAD + key] = joined
    if plan.head.k and HEAD_ROLE in old and outputs.continue_head:
        if outputs.old != outputs.now:
            raise UsageError(
                f"--init-from {name}: its head moves along a random basis for {len(outputs.old)} labels, and here are "
                f"{len(outputs.now)}; pass --head full, which trains it directly from where it is"
            )
        values[HEAD_ROLE] = old[HEAD_ROLE]
    for site in () if plan.head.k else plan.head.parameters:
        key = f"{site.path}.{site.parameter}".removeprefix(".")
        joined = outputs.joined(old[HEAD + key], parameters[key]) if HEAD + key in old else None
        if joined is not None and not torch.equal(joined.to(parameters[key].dtype), parameters[key]):
            raise UsageError(
                f"--init-from {name}: its head is frozen at other values than this model's has; pass --head full, "
                "which trains it directly from where it is"
            )
    return values
