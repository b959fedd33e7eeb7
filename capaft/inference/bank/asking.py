"""`capaft predict --bank`: a directory's adapters on one base model, and the answers to rows that name them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from datasets import Dataset

from capaft.adapter.file.adapter_file import AdapterFile, read
from capaft.config.open_options import OpenOptions, PredictOptions
from capaft.config.train_config import TrainConfig
from capaft.data.load import Say
from capaft.inference.answers import Advance, Answerer
from capaft.inference.bank.bank import Bank
from capaft.inference.bank.directory import BankDirectory
from capaft.inference.bank.tasks import JointTask, joint_key
from capaft.inference.opened import opened
from capaft.inference.predicting import STDIN, Predicted, write_answers
from capaft.inference.rows import RowSource, check_kept, find_inputs, load_rows, takes_pairs, windows_of
from capaft.support.activity import activity
from capaft.support.errors import UsageError, did_you_mean
from capaft.tasks.base.columns import Columns, list_columns
from capaft.tasks.base.task import Task
from capaft.tasks.base.task_answers import ERROR, Record
from capaft.training.record.saved_run import AdapterOfRun, SavedRun, open_base, task_of_record

if TYPE_CHECKING:
    from rich.console import Console


@dataclass
class OpenBank:
    """A base model with a bank of adapters from a directory.

    Attributes:
        directory: the directory.
        saved: the base model and the task of one of the adapters, the lead, which is not on it.
        bank: the adapters that have been asked for.
        autocast: makes the context that forwards run in.
    """

    directory: BankDirectory
    saved: SavedRun
    bank: Bank
    autocast: Callable[[], AbstractContextManager[Any]]

    def __post_init__(self) -> None:
        # Tasks by the identity of their records, which thousands of adapters share.
        self._tasks: dict[int, Task] = {}
        self._answerers: dict[tuple[Any, ...], Answerer] = {}

    @staticmethod
    def of(
        directory: BankDirectory,
        lead: AdapterFile,
        options: OpenOptions,
        say: Say,
        check: Callable[[Task], str | None] = lambda task: None,
    ) -> OpenBank:
        """Load the base model that an adapter names.

        Args:
            directory: the directory.
            lead: one of its adapters.
            options: see `open_run`.
            say: see `open_run`.
            check: gives the reason why a task cannot be used here; None if it can.

        Raises:
            UsageError: the base model cannot be loaded, or the adapter has no task that can be used.
        """
        if (reason := check(task_of_record(lead.task, lead.path))) is not None:
            raise UsageError(f"{lead.path}: {reason}")
        task, base, settings = open_base(AdapterOfRun(lead), options, say)
        task.check_answers()
        base.model.eval()
        run = opened(SavedRun(lead, None, None, task, base, settings))
        bank = Bank(run.model, rename=options.renames, allow_base_mismatch=options.allow_base_mismatch)
        return OpenBank(directory, run.saved, bank, run.autocast)

    def task_of(self, name: str) -> Task:
        """The task of an adapter in the bank.

        Raises:
            UsageError: its file has none, or one that cannot be used.
        """
        record = self.bank.task(name)
        if id(record) not in self._tasks:
            self._tasks[id(record)] = task_of_record(record, self.directory.file(name))
        return self._tasks[id(record)]

    def take_in(self, name: str, file: AdapterFile | None = None, *, replace: bool = False) -> str | None:
        """Add the adapter of a file to the bank; the reason if it cannot be used.

        Args:
            name: its name.
            file: the file, if it has been read.
            replace: take the place of an adapter of that name; otherwise one that is there stays.
        """
        if name in self.bank and not replace:
            return None
        try:
            self.bank.add(name, file or read(self.directory.file(name)), replace=replace)
            self.task_of(name).check_answers()
        except UsageError as error:
            if name in self.bank:
                self.bank.remove(name)
            return str(error)
        return None

    def answerers(self, names: Sequence[str], column: str, top: int | None, size: int | None) -> dict[str, Answerer]:
        """What answers the rows of each adapter: the same for those whose rows go through the model together."""
        size = size or TrainConfig().eval_batch_size
        chosen = {}
        for name in names:
            task = self.task_of(name)
            key = (*joint_key(task), column, top, size)
            if key not in self._answerers:
                together = cast(Task, JointTask(self.bank, column, self.task_of, task))
                answerer = Answerer(together, self.saved.base, self.saved.model, size, top, self.autocast)
                self._answerers[key] = answerer
            chosen[name] = self._answerers[key]
        return chosen


@dataclass(frozen=True)
class BankAnswers:
    """What answers rows that name their adapters.

    Attributes:
        column: the column with the names.
        answerers: what answers the rows of each adapter.
        problems: the reason why an adapter cannot answer, by name.
    """

    column: str
    answerers: Mapping[str, Answerer]
    problems: Mapping[str, str]

    def fields(self) -> tuple[str, ...]:
        """See `Answers.fields`."""
        return tuple(dict.fromkeys(field for answerer in self.answerers.values() for field in answerer.fields()))

    def answer(self, rows: Dataset, columns: Columns, first: int, advance: Advance) -> list[Record]:
        """See `Answerer.answer`."""
        records: list[Record] = [{} for _ in range(len(rows))]
        parts: dict[int, list[int]] = {}
        by_id = {id(answerer): answerer for answerer in self.answerers.values()}
        for at, name in enumerate(_names(rows, self.column)):
            if name in self.answerers:
                parts.setdefault(id(self.answerers[name]), []).append(at)
            else:
                records[at] = {ERROR: self.problems[name] if name else f"there is nothing in column {self.column!r}"}
                advance(1)
        for number, places in parts.items():
            answerer, asked = by_id[number], rows.select(places)
            if columns.pair is not None and not takes_pairs(answerer.task, asked, columns.text, columns.pair):
                reason = f"{answerer.task.name} takes one input a row, and these rows have two"
                answers: list[Record] = [{ERROR: reason} for _ in places]
                advance(len(places))
            else:
                answers = answerer.answer(asked, columns, first, advance)
            for at, answer in zip(places, answers, strict=True):
                records[at] = answer
        return records


def predict_bank(options: PredictOptions, *, say: Say, console: Console) -> Predicted:
    """Answer the rows of a file, each by the adapter that it names, and write the records.

    Args:
        options: the bank, the rows and the records.
        say: called with a line for each decision.
        console: where a bar shows how far it is.

    Raises:
        UsageError: the options contradict one another, the rows cannot be read, or none of them names an adapter that
            can be used.
        TrainingError: the records cannot be written, or memory ran out.
    """
    assert options.bank is not None
    if options.data in (None, STDIN) or options.text is not None:
        raise UsageError("--bank answers rows that name their adapters; name a file with --data, in which they do")
    if options.set:
        raise UsageError("--set changes one task, and the adapters of a bank have each their own; drop it")
    directory = BankDirectory(options.bank)
    files = directory.files()
    rows, faults = load_rows(str(options.data), options.split, say)
    check_kept(options.kept, rows)
    column = options.adapter_column
    if column not in rows.column_names:
        hint = did_you_mean(column, rows.column_names)
        raise UsageError(
            f"--adapter-column {column}: there is no such column; the columns are {list_columns(rows)}{hint}"
        )
    wanted = sorted({name for name in _names(rows, column) if name})
    problems = {name: f"{directory.path} has no adapter {name}" for name in wanted if name not in files}
    with activity(console, "loading the base model"):
        bank = _opened(directory, [name for name in wanted if name in files], problems, options, say)
    with activity(console, "reading adapters", total=len(wanted)) as advance:
        for name in wanted:
            if name not in problems and (problem := bank.take_in(name)) is not None:
                problems[name] = problem
            advance(1)
    good = [name for name in wanted if name not in problems]
    inputs, columns = find_inputs(bank.saved, rows.remove_columns(column), options.columns, say)
    if inputs.features != rows.remove_columns(column).features:
        rows = rows.cast(type(rows.features)({**rows.features, **inputs.features}))
    answers = BankAnswers(column, bank.answerers(good, column, options.top, options.batch_size), problems)
    source = RowSource(columns, windows_of(rows, faults), tuple(rows.column_names), len(rows))
    return write_answers(answers, source, options, say=say, console=console)


def _opened(
    directory: BankDirectory, names: Sequence[str], problems: dict[str, str], options: OpenOptions, say: Say
) -> OpenBank:
    """The base model of the first adapter whose file is intact.

    Raises:
        UsageError: none is, or the base model cannot be loaded.
    """
    for name in names:
        try:
            lead = read(directory.file(name))
        except UsageError as error:
            problems[name] = str(error)
            continue
        return OpenBank.of(directory, lead, options, say)
    reason = next(iter(problems.values()), "no row names one")
    raise UsageError(f"no adapter can answer these rows: {reason}")


def _names(rows: Dataset, column: str) -> list[str]:
    """The name in each row; empty where there is none."""
    return ["" if name is None else str(name).strip() for name in rows[column]]
