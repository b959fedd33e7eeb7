"""A finished adapter in Python: opened in one line, asked in another."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from numbers import Integral
from typing import Any, get_args

from torch import nn

from capaft.config.choices import BaseDtype
from capaft.config.generate_options import GenerateOptions
from capaft.config.open_options import OpenOptions
from capaft.config.train_config import TrainConfig
from capaft.inference.answers import Answerer
from capaft.inference.aside import quiet_libraries
from capaft.inference.passed_rows import is_table, rows_of_table
from capaft.inference.rows import RowSource, check_kept, find_inputs, input_names, windows_of
from capaft.inference.values import rows_of_values
from capaft.inference.written import answered
from capaft.support.console import say_nothing
from capaft.support.errors import UsageError, in_python
from capaft.support.listing import listed
from capaft.tasks.base.task import Task
from capaft.tasks.base.task_answers import Record
from capaft.training.accelerator import move_model
from capaft.training.memory_guard import memory_guard
from capaft.training.placement import Placement
from capaft.training.record.saved_run import SavedRun, open_run

_OPENING = frozenset({"base", "compare", *(option.name for option in fields(OpenOptions))})
"""Options of `capaft generate` that `Opened.generate` does not take: they choose what is opened, and what is shown."""


@dataclass(frozen=True)
class Opened:
    """A finished adapter on its base model, ready to be asked; `capaft.open` makes one.

    Attributes:
        saved: its file, its run and their settings.
        model: the transformers model with the adapter attached, in evaluation mode, on the accelerator if there is one.
        autocast: makes the context that forwards run in.
    """

    saved: SavedRun
    model: nn.Module
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext

    @property
    def task(self) -> Task:
        """The task that the adapter was trained for, with its labels and options."""
        return self.saved.task

    @property
    def processor(self) -> Any:
        """The tokenizer, image processor or feature extractor of the inputs."""
        return self.saved.base.processor

    @in_python
    def predict(
        self,
        inputs: Any,
        *,
        top: int | None = None,
        batch_size: int | None = None,
        keep: str | Sequence[str] | None = (),
        text_column: str | None = None,
        pair_column: str | None = None,
    ) -> list[Record]:
        """The answers to some inputs, one record each, in their order.

        A record has the fields of the task: `label` and `probability`, `labels` and `probabilities`, `value`, ...; one
        that cannot be answered has `error`.

        Args:
            inputs: texts; tuples of two texts for pairs; images and recordings as paths, bytes, PIL images or arrays;
                mappings from columns to values; or a table: a `datasets.Dataset`, a `pandas.DataFrame` or a
                `pyarrow.Table`. A single one counts as a list of one.
            top: list this many of the likeliest classes, with their probabilities.
            batch_size: examples in a forward at most; by default as in the run's evaluations.
            keep: columns of mappings and data sets that the records hold; None for all, by default none.
            text_column: column of the input, if it is not that of the training.
            pair_column: column of the second input, if it is not that of the training.

        Raises:
            UsageError: the inputs are of no such form, or their columns cannot be determined.
            TrainingError: memory ran out.

        Example:
            m = capaft.open("runs/reviews")
            m.predict(["What a film!"])  # [{"label": "good", "probability": 0.98}]
        """
        _check_count("top", top)
        _check_count("batch-size", batch_size)
        keep = [keep] if isinstance(keep, str) else keep
        named = {"text": text_column, "pair": pair_column}
        source = self._source(inputs, named, keep)
        if source is None:
            return []
        answerer = self.answerer(top=top, batch_size=batch_size)
        with memory_guard():
            return [record for records in answered(answerer, source, keep) for record in records]

    @in_python
    def generate(
        self,
        prompt: str | Sequence[Mapping[str, str]],
        *,
        adapted: bool = True,
        show: Callable[[str], None] | None = None,
        **options: Any,
    ) -> str:
        """What the model writes after a prompt, which is put as the run's training data were.

        Args:
            prompt: a text, or the messages of a chat as `{"role", "content"}`.
            adapted: leave the adapter on.
            show: called with each piece of the text as soon as it is written.
            **options: those of `capaft generate`, by transformers' names: `max_new_tokens`, `do_sample`, `temperature`,
                `top_p`, `num_beams`, `seed`, `system`, ...

        Raises:
            UsageError: the task writes no texts, or an option is unknown or out of range.
            TrainingError: memory ran out.

        Example:
            m = capaft.open("runs/chat")
            m.generate("Who are you?", do_sample=True, temperature=0.7, seed=1)
        """
        from capaft.inference.prompts import user_message
        from capaft.inference.writing import Writer

        if known := _OPENING & options.keys():
            raise UsageError(f"{min(known)}: this is not for generate; adapted=False leaves the adapter off")
        writer = Writer(self.saved, GenerateOptions.of(options))
        messages = [user_message(prompt)] if isinstance(prompt, str) else _messages(prompt)
        return writer.answer([*writer.opening(), *messages], adapted=adapted, show=show).text

    def answerer(self, *, task: Task | None = None, top: int | None = None, batch_size: int | None = None) -> Answerer:
        """What answers the rows of this adapter.

        Args:
            task: the task, if it is not the trained one as it is.
            top: as in `predict`.
            batch_size: as in `predict`.

        Raises:
            UsageError: the task does not answer rows.
        """
        task = task or self.task
        task.check_answers()
        size = batch_size or (self.saved.config or TrainConfig()).eval_batch_size
        return Answerer(task, self.saved.base, self.model, size, top, self.autocast)

    def _source(self, inputs: Any, named: Mapping[str, str | None], keep: Sequence[str] | None) -> RowSource | None:
        """The rows that inputs stand for; None for no inputs."""
        has_pairs = False
        faults: Mapping[int, str] = {}
        if is_table(inputs):
            rows = rows_of_table(inputs)
        else:
            values = _listed(inputs)
            has_pairs = any(isinstance(value, tuple) for value in values)
            names = input_names(self.saved, paired=has_pairs)
            rows, faults = rows_of_values(values, names, getattr(self.task, "medium", None))
        if not len(rows):
            return None
        check_kept(keep, rows)
        rows, columns = find_inputs(self.saved, rows, named, say_nothing, paired=has_pairs)
        return RowSource(columns, windows_of(rows, faults), tuple(rows.column_names), len(rows))


def _messages(prompt: Any) -> list[dict[str, Any]]:
    """The messages of a chat.

    Raises:
        UsageError: it is none.
    """
    is_list = isinstance(prompt, Sequence) and len(prompt) > 0
    if not is_list or not all(isinstance(message, Mapping) and "content" in message for message in prompt):
        raise UsageError('prompt must be a text, or a list of messages such as {"role": "user", "content": "Hello"}')
    return [dict(message) for message in prompt]


def _listed(inputs: Any) -> list[Any]:
    """The inputs as a list; a text, a path, an image, a mapping or a tuple is one of them.

    Raises:
        UsageError: they are several splits.
    """
    if isinstance(inputs, Mapping) and any(map(is_table, inputs.values())):
        raise UsageError(f"these are the splits {listed([*map(str, inputs)])}; pass the rows of one")
    is_one = isinstance(inputs, str | bytes | os.PathLike | Mapping | tuple) or not isinstance(inputs, Iterable)
    return [inputs] if is_one or _is_image(inputs) else list(inputs)


def _is_image(value: Any) -> bool:
    """True for an image of PIL, and for an array `(height, width[, channels])` of values that are no texts."""
    if hasattr(value, "getbands"):
        return True
    return getattr(value, "ndim", 0) in (2, 3) and hasattr(value, "__array__")


def _check_count(name: str, value: int | None) -> None:
    """Make sure that a number that is given is a count.

    Raises:
        UsageError: it is none.
    """
    if value is not None and (isinstance(value, bool) or not isinstance(value, Integral) or value < 1):
        raise UsageError(f"--{name} must be a whole number of at least 1, got {value!r:.100}")


def open(
    run: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | None = None,
    rename: Mapping[str, str] | None = None,
    trust_remote_code: bool = False,
    allow_base_mismatch: bool = False,
    resize_embeddings: bool = False,
    base_dtype: BaseDtype | None = None,
) -> Opened:
    """Open a finished adapter on its base model, to predict with it or to use its model.

    Args:
        run: what the command line takes for a RUN: a run directory, an adapter file, or a directory with one.
        model: the base model, if it is not the one that the run or the file names.
        rename: modules that changed their names since training, as `{old: new}`.
        trust_remote_code: run Python code from the repository of the base model.
        allow_base_mismatch: use the adapter although the base weights differ.
        resize_embeddings: add rows to the embedding, if the run did not say so.
        base_dtype: dtype of the base weights; by default as in the run, else `float32`.

    Raises:
        UsageError: nothing is called so, or the base model cannot be loaded.
        AdapterFileError: the file is damaged, or belongs to another model.

    Example:
        >>> m = capaft.open("runs/reviews")  # doctest: +SKIP
        >>> m.predict(["What a film!"])  # doctest: +SKIP
        [{'label': 'good', 'probability': 0.9812}]
    """
    if base_dtype not in (None, *get_args(BaseDtype)):
        raise UsageError(f"--base-dtype must be one of {', '.join(get_args(BaseDtype))}, got {base_dtype!r:.100}")
    for name, value in (
        ("trust_remote_code", trust_remote_code),
        ("allow_base_mismatch", allow_base_mismatch),
        ("resize_embeddings", resize_embeddings),
    ):
        if not isinstance(value, bool):
            raise UsageError(f"{name} must be True or False, got {value!r:.100}")
    if rename is not None and not isinstance(rename, Mapping):
        raise UsageError(f'rename must be a mapping such as {{"old": "new"}}, got {rename!r:.100}')
    options = OpenOptions(
        model=None if model is None else os.fspath(model),
        rename=None if rename is None else tuple(f"{old}={new}" for old, new in rename.items()),
        trust_remote_code=trust_remote_code,
        allow_base_mismatch=allow_base_mismatch,
        resize_embeddings=resize_embeddings,
        base_dtype=base_dtype,
    )
    with quiet_libraries():
        return opened(open_run(os.fspath(run), options))


def opened(saved: SavedRun) -> Opened:
    """A run that `open_run` opened, on the accelerator.

    Raises:
        UsageError: the dtype of the base is not available here.
    """
    placement = Placement.of(saved)
    return Opened(saved, move_model(saved.model, placement.device), placement.autocast)
