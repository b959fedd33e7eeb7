"""Scoring a saved adapter: on the validation split it was chosen by, or on other data."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from rich.console import Console

from capaft.config.open_options import EvalOptions
from capaft.config.parts.task import TaskSettings
from capaft.config.settings import check_range
from capaft.config.train_config import TrainConfig
from capaft.config.values import parse_value
from capaft.data.load import Say, load_evaluation_data
from capaft.data.sampling import sample_rows
from capaft.data.splits import WantedSplits
from capaft.support import strict_json
from capaft.support.activity import activity
from capaft.support.errors import UsageError, did_you_mean
from capaft.support.files import write_atomically
from capaft.tasks.base.columns import MissingLabelsError
from capaft.tasks.base.features import Features
from capaft.tasks.base.task import Task
from capaft.tasks.base.token_ids import check_token_ids
from capaft.tasks.base.uncertainty import interval_method
from capaft.tasks.language.generation import GENERATION_OPTIONS, Generation
from capaft.tasks.language.text_scores import TEXT_METRICS
from capaft.training.accelerator import move_model
from capaft.training.evaluate import Evaluation, evaluate
from capaft.training.memory_guard import memory_guard
from capaft.training.parallel.processes import Processes
from capaft.training.placement import Placement
from capaft.training.record.named import report_named
from capaft.training.record.next_commands import command_to_predict
from capaft.training.record.saved_run import SavedRun
from capaft.training.setup.selection import load_splits, select_for_scoring, select_for_training
from capaft.training.setup.usable_rows import Selection


@dataclass(frozen=True)
class Scores:
    """The scores of a saved adapter; without targets there are none, and only predictions are written.

    Attributes:
        metric: name of the task's metric.
        value: its score; None without targets.
        loss: mean loss; None without targets.
        scores: all scores by name.
        examples: number of examples that were scored.
        score_names: names for people of scores whose own name leaves open what they are averaged over.
        interval: lower and upper end of the 95 % interval of `value`; None if it cannot be told.
        interval_method: `binomial` or `bootstrap`; None without an interval.
    """

    metric: str
    value: float | None
    loss: float | None
    scores: dict[str, float | None]
    examples: int
    score_names: dict[str, str] = field(default_factory=dict)
    interval: list[float] | None = None
    interval_method: str | None = None


def score_run(
    saved: SavedRun, options: EvalOptions | None = None, *, say: Say, console: Console | None = None
) -> Scores:
    """Score a saved adapter.

    Args:
        saved: the opened run.
        options: the data and changes to the task; by default the run's validation split.
        say: called with a line for each decision about the data.
        console: where a bar shows how far it is; by default nowhere.

    Raises:
        UsageError: there is no data to score on, it does not fit the task, or there is nothing to compare or to write.
    """
    options = options or EvalOptions()
    # Mistakes in the options are reported before any data are read.
    config = saved.config or TrainConfig()
    task = changed_task(saved.task, options.metric, options.task_options)
    predictions, max_examples = options.predictions, options.max_examples
    if predictions and not task.reports:
        raise UsageError(
            f"--predictions cannot be used with {task.name} with --metric {task.metric}, which writes no predictions; "
            "drop it or choose another metric"
        )
    if options.data is None and saved.config is None:
        raise UsageError("an adapter file alone does not name its data; pass --data")
    if options.data is None and saved.run:
        report_named("data", config.data, saved.run.config, say)

    # The examples, and their targets, are checked before the forwards, which take long.
    if options.data is None and options.split is None:
        max_examples = max_examples or config.max_eval_examples
    try:
        selection = _selected(saved, options, say)
    except MissingLabelsError as error:
        if options.data is None or not task.answer_fields():
            raise
        path = saved.run.path if saved.run else saved.file.path
        predict = command_to_predict(str(path), options.data, options)
        raise UsageError(f"{error}; to answer rows without labels: {predict}") from None
    rows = selection.rows
    if max_examples and max_examples < len(rows):
        rows = sample_rows(rows, max_examples, config.seed)
    features = task.features(saved.base, rows, selection.columns, training=False)
    check_token_ids(saved.base, features)
    for note in features.notes:
        say(note)
    if not predictions:
        _check_targets(task, features)
    for line in _idle(task, saved, options, selection):
        say(f"{line} and is ignored")

    placement = Placement.of(saved)
    console = console or Console(quiet=True)
    with memory_guard(), activity(console, "scoring", total=len(features)) as advance:
        result = evaluate(
            task,
            saved.base,
            move_model(saved.model, placement.device),
            features,
            config.eval_batch_size,
            processes=Processes.here(config.timeout),
            autocast=placement.autocast(),
            advance=advance,
        )
    if predictions:
        records = task.report(features, result.predictions)
        write_atomically(predictions, strict_json.lines(records))
    return _scores_of(task, features, result)


def _check_targets(task: Task, features: Features) -> None:
    """Make sure that there is something to compare with.

    Raises:
        UsageError: the model is to write texts, and none has a target.
    """
    if not _has_targets(task, features):
        also = "" if task.generates else f" and --metric {TEXT_METRICS[0]}"
        raise UsageError(
            "there are no targets to compare with; name their column with --label-column, or write the texts with "
            f"--predictions FILE{also}"
        )


def _has_targets(task: Task, features: Features) -> bool:
    return not isinstance(task, Generation) or task.has_targets(features)


def _scores_of(task: Task, features: Features, result: Evaluation) -> Scores:
    """The scores of an evaluation: without targets none, since the loss of a text is then a sum of no terms."""
    if not _has_targets(task, features):
        return Scores(task.metric, None, None, {}, features.examples)
    scores, interval = result.scores, result.interval
    return Scores(
        metric=task.metric,
        value=scores.get(task.metric),
        loss=scores.get("loss"),
        scores=dict(scores),
        examples=features.examples,
        score_names=task.score_names(scores),
        interval=None if interval is None else list(interval),
        interval_method=None if interval is None else interval_method(task),
    )


def _idle(task: Task, saved: SavedRun, options: EvalOptions, selection: Selection) -> Iterator[str]:
    """The options that have no effect on the scores, each with the cause."""
    idle = task.idle_options(saved.base)
    if isinstance(task, Generation) and not task.generates:
        idle |= dict.fromkeys(GENERATION_OPTIONS, f"--metric {task.metric}")
    if task.processor != "AutoTokenizer":
        idle["max_length"] = task.name
    for name in options.task_options:
        if cause := idle.get(name.replace("-", "_")):
            yield f"--set {name} has no effect with {cause}"
    columns = selection.columns
    if options.pair_column not in (None, columns.pair):
        yield f"--pair-column has no effect with {task.name}"
    if options.label_column is not None and columns.label is None and not columns.choices:
        yield f"--label-column has no effect with {task.name}"


def _selected(saved: SavedRun, options: EvalOptions, say: Say) -> Selection:
    """The rows to score: the run's own validation rows, unless other data or another split is named."""
    config, split = saved.config or TrainConfig(), options.split
    if options.data is None and split is None:
        columns: dict[str, Any] = {f"{role}_column": name for role, name in options.columns.items() if name}
        config = replace(config, **columns)
        return select_for_training(type(saved.task), load_splits(config, say), config, say, saved.task).validation
    if options.data is None:
        source = load_splits(replace(config, eval_split=split), say)
    else:
        source = load_evaluation_data(options.data, WantedSplits(evaluation=split), say=say, strict=config.strict)
    return select_for_scoring(saved.task, source, config, options.columns, say, is_requested=split is not None)


def changed_task(task: Task, metric: str | None, options: Mapping[str, str]) -> Task:
    """The task with another metric, or other options, parsed from text.

    Raises:
        UsageError: it has no such option, or the value does not fit.
    """
    kinds = typing.get_type_hints(type(task))
    names = [*task.options(), "max_length"]
    changed: dict[str, Any] = {"metric": metric} if metric else {}
    for name, text in options.items():
        key = name.replace("-", "_")
        if key not in names:
            raise UsageError(f"--set {name}: {task.name} has no option {name}{did_you_mean(key, names)}")
        try:
            changed[key] = parse_value(kinds[key], text)
            check_range(TaskSettings, key, changed[key], text)
        except ValueError as error:
            raise UsageError(f"--set {name} {error}") from None
    return replace(task, **changed)
