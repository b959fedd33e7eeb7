"""`capaft predict`: rows from a file, from stdin or from the command line, and their records on the way out."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from capaft.config.open_options import PredictOptions
from capaft.data.load import Say
from capaft.inference.lines import line_source
from capaft.inference.opened import opened
from capaft.inference.record_file import record_output
from capaft.inference.rows import (
    RowSource,
    check_columns,
    check_kept,
    find_inputs,
    input_names,
    load_rows,
    windows_of,
)
from capaft.inference.values import rows_of_values
from capaft.inference.written import Answers, answered, record_fields
from capaft.support.activity import activity
from capaft.support.errors import UsageError
from capaft.tasks.base.task import Task
from capaft.tasks.base.task_answers import ERROR
from capaft.training.memory_guard import memory_guard
from capaft.training.record.saved_run import SavedRun
from capaft.training.scoring import changed_task

if TYPE_CHECKING:
    from rich.console import Console

STDIN = "-"


@dataclass
class Predicted:
    """What has been answered.

    Attributes:
        rows: number of rows.
        errors: number of those without an answer.
        first_error: the first of them, and its reason; empty if there is none.
    """

    rows: int = 0
    errors: int = 0
    first_error: str = ""


def predict_run(saved: SavedRun, options: PredictOptions, *, say: Say, console: Console) -> Predicted:
    """Answer rows and write the records.

    Args:
        saved: the opened run.
        options: the rows, the records, and changes to the task.
        say: called with a line for each decision about the data.
        console: where a bar shows how far it is.

    Raises:
        UsageError: the options contradict one another, or the rows cannot be read.
        TrainingError: the records cannot be written, or memory ran out.
    """
    task = changed_task(saved.task, None, options.task_options)
    run = opened(replace(saved, task=task))
    answerer = run.answerer(top=options.top, batch_size=options.batch_size)
    if options.top is not None and not _lists(task, options.top):
        say(f"--top has no effect with {task.name}, which lists no classes here, and is ignored")
    source = _source(run.saved, options, say)
    return Predicted() if source is None else write_answers(answerer, source, options, say=say, console=console)


def write_answers(
    answerer: Answers, source: RowSource, options: PredictOptions, *, say: Say, console: Console
) -> Predicted:
    """Answer the rows of a source and write the records.

    Args:
        answerer: what answers them.
        source: the rows.
        options: the columns to pass on, and the file to write to.
        say: called with a line if the writing breaks off.
        console: where a bar shows how far it is.

    Raises:
        TrainingError: the records cannot be written, or memory ran out.
    """
    result = Predicted()
    fields = record_fields(answerer, source, options.kept)

    def interrupted(part: object) -> None:
        say(f"stopped after {result.rows} rows; their records are in {part}")

    with (
        memory_guard(),
        record_output(options.output, fields, interrupted) as write,
        activity(console, "predicting", total=source.total) as advance,
    ):
        for records in answered(answerer, source, options.kept, advance):
            write(records)
            for at, record in enumerate(records, start=result.rows + 1):
                if ERROR in record:
                    result.errors += 1
                    result.first_error = result.first_error or f"row {at}: {record[ERROR]}"
            result.rows += len(records)
    return result


def check_rows(options: PredictOptions) -> None:
    """Make sure that the options name one source of rows.

    Raises:
        UsageError: they name several, or half a pair.
    """
    if options.data is not None and options.text is not None:
        raise UsageError("--data and --text both name rows; drop one of them")
    texts, pairs = len(options.text or ()), len(options.pair_text or ())
    if pairs and pairs != texts:
        raise UsageError(f"--pair-text is given {pairs} times and --text {texts} times; give each text its second one")
    if options.data in (None, STDIN) and options.split is not None:
        raise UsageError("--split needs a data set with splits; name it with --data")


def _source(saved: SavedRun, options: PredictOptions, say: Say) -> RowSource | None:
    """The rows that the options name; None for a stream without any.

    Raises:
        UsageError: they cannot be read, or there are none where somebody expects some.
    """
    if options.text is not None:
        check_columns(options.columns, "--text")
        values = [*zip(options.text, options.pair_text, strict=True)] if options.pair_text else [*options.text]
        names = input_names(saved, paired=bool(options.pair_text))
        rows, faults = rows_of_values(values, names, getattr(saved.task, "medium", None))
    elif options.data in (None, STDIN):
        check_columns(options.columns, "stdin")
        if sys.stdin.isatty():
            say("a text a line; Ctrl-D ends")
        source = line_source(saved, sys.stdin.buffer, say)
        if source is None and options.data is None:
            raise UsageError("there are no rows; name a file with --data, a text with --text, or pipe lines to stdin")
        if source is not None:
            _check_names(options, source)
        return source
    else:
        rows, faults = load_rows(str(options.data), options.split, say)
    check_kept(options.kept, rows)
    rows, columns = find_inputs(saved, rows, options.columns, say)
    return RowSource(columns, windows_of(rows, faults), tuple(rows.column_names), len(rows))


def _check_names(options: PredictOptions, source: RowSource) -> None:
    for name in options.kept or ():
        if name not in source.names:
            raise UsageError(f"--keep {name}: stdin has no such column, only {', '.join(source.names)}")


def _lists(task: Task, top: int) -> bool:
    """True if the answers list the likeliest of something."""
    fields = task.answer_fields(top)
    return "probabilities" in fields or fields != task.answer_fields(None)
