"""The adapter that a run carries on (`--init-from`): what it is, and the labels that it knows."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from capaft.adapter.file.adapter_file import AdapterFile, read
from capaft.config.open_options import OpenOptions
from capaft.config.train_config import TrainConfig
from capaft.model.labels import Labels
from capaft.support.console import say_nothing
from capaft.support.errors import UsageError
from capaft.tasks.base.columns import Columns
from capaft.tasks.base.task import Task
from capaft.training.record.found_run import find_peft
from capaft.training.record.run_directory import RunDirectory, started_config
from capaft.training.record.saved_run import AdapterOfRun, open_run, read_run, settings_of_run
from capaft.training.setup.carried_settings import carried_settings

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Predecessor:
    """A trained adapter whose parameters a run starts from.

    Attributes:
        name: the user's name for it.
        file: the adapter file, read and verified.
        config: the settings of its run, if it lies in a run directory.
    """

    name: str
    file: AdapterFile
    config: TrainConfig | None = None

    @property
    def digest(self) -> str:
        """The digest of the file's header, which has one of the tensors in it: the same for the same adapter."""
        return self.file.header.digest.header

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of its outputs; none if it has none, or only numbers by transformers, where nobody named them."""
        labels = self.file.task.labels if self.file.task else ()
        return () if labels == Labels.numbered(len(labels)).names else labels

    def does(self, task: Task | type[Task]) -> bool:
        """True if it was trained for a task, or for none that is known."""
        return self.file.task is None or self.file.task.name in ("", task.name)

    def labelled(self, task: Task, rows: Dataset, columns: Columns) -> Task:
        """The task of the training rows with the predecessor's labels first, which keep their places.

        They stay if no row has them, since the new run would forget them; new ones follow. If none of the rows' labels
        is among them, nothing of them is of use.

        Args:
            task: the task, with the labels of the rows.
            rows: the training rows.
            columns: their columns.
        """
        if not self.does(task) or not self.labels or not task.labels:
            return task
        with suppress(UsageError):
            known = replace(task, labels=self.labels)
            # As they are read wherever the predecessor is scored: integers may be places.
            known.check_labels(rows, columns)
            return known
        new = [label for label in task.labels if label not in self.labels]
        return task if len(new) == len(task.labels) else replace(task, labels=(*self.labels, *new))


def with_predecessor(
    config: TrainConfig, chosen: Collection[str], say: Callable[[str], None] = say_nothing
) -> tuple[TrainConfig, Predecessor | None]:
    """The settings of a run with those of its predecessor filled in, and the predecessor; None if it has none.

    A run that is resumed has its own copy, and its settings are complete.

    Args:
        config: the resolved settings.
        chosen: names of the settings that the user set.
        say: called with a line for what the predecessor's files name.

    Raises:
        UsageError: there is no such run, the settings contradict it, or a resumed run started from another.
    """
    if config.resume and (begun := started_config(config.output)):
        return config, _resumed(config, RunDirectory(begun.parent), chosen)
    if (name := config.init_from) is None:
        return config, None
    if find_peft(name):
        # It becomes an adapter of capaft on its base model only.
        permitted = OpenOptions(
            model=config.model, trust_remote_code=config.trust_remote_code, resize_embeddings=config.resize_embeddings
        )
        saved = open_run(name, permitted, say)
        config, adapter = replace(config, model=saved.settings.model), AdapterOfRun(saved.file)
    else:
        adapter = read_run(name, say)
    return carried_settings(config, adapter, chosen, say), Predecessor(name, adapter.file, adapter.config)


def _resumed(config: TrainConfig, run: RunDirectory, chosen: Collection[str]) -> Predecessor | None:
    """The predecessor of a run that goes on, from the copy in its directory.

    Raises:
        UsageError: the copy is missing, or the user names another.
    """
    named = config.init_from if "init_from" in chosen else None
    if not run.start.is_file():
        if settings_of_run(run.config).init_from:
            raise UsageError(f"--resume: {run.start} is missing; restore it, or start anew in another --output")
        if named:
            raise UsageError(f"--resume: {run.path} was started without --init-from; drop it")
        return None
    predecessor = Predecessor(config.init_from or str(run.start), read(run.start))
    if named and (other := _found(named)) and other.header.digest != predecessor.file.header.digest:
        raise UsageError(
            f"--resume: {run.path} was started from another adapter than --init-from {named} is now; drop it, or start "
            "anew in another --output"
        )
    return predecessor


def _found(name: str) -> AdapterFile | None:
    """The adapter of a run; None if it is gone, which a run that has a copy does not mind."""
    try:
        return read_run(name).file
    except UsageError:
        return None
