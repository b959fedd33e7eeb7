"""Extractive question answering: the span of a context that answers a question, or nothing (SQuAD v1 and v2).

A model gives every token a logit as the answer's start and one as its end. Long contexts are cut into windows
(`capaft.tasks.spans.windows`); if a window lacks the answer, both point at its null token, [CLS].
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from capaft.config.choices import MAX_ANSWER_LENGTH, N_BEST, NO_ANSWER_THRESHOLD, QUESTION_MAX_LENGTH, STRIDE
from capaft.config.parts.task import TaskSettings
from capaft.data.lazy import ColumnValues, Derived, batches
from capaft.data.spool import lengths_of, stored_columns
from capaft.model.load import BaseModel
from capaft.support.counting import agreeing
from capaft.support.errors import UsageError
from capaft.tasks.base.columns import (
    Columns,
    ask_for_column,
    filled_rows,
    find_column,
    is_text,
    row_numbers,
    text_values,
)
from capaft.tasks.base.features import Batch, Features
from capaft.tasks.base.task import Task
from capaft.tasks.base.task_answers import Record
from capaft.tasks.base.uncertainty import Resampler, mean_resampler
from capaft.tasks.language.token_limit import token_limit
from capaft.tasks.spans import squad_metrics
from capaft.tasks.spans.answers import Answer, has_answers, holds_answers, locate_answer, read_answers
from capaft.tasks.spans.best_span import Span, best_span
from capaft.tasks.spans.likeliest_answers import Candidates, answer_record, candidates
from capaft.tasks.spans.windows import Window, tokenise_rows

if TYPE_CHECKING:
    from datasets import Dataset

    from capaft.tasks.base.evidence import Evidence

_QUESTIONS = (("question",), ("query",))
_CONTEXTS = (("context",), ("passage", "paragraph"), ("document", "article"))
_ANSWERS = (("answers",), ("answer",))
# The position of an answer that is not found in the context: no term of the loss.
_UNKNOWN = -100
# Columns that a window is made of.
_WINDOW = ("input_ids", "token_type_ids", "places", "characters")


@dataclass(frozen=True)
class Asked:
    """The truth that predictions are compared with, by row, and the windows that the rows are cut into.

    Attributes:
        windows: of all rows.
        ids: from the column `id`, or else the numbers of the rows from 1.
        questions: of each row.
        contexts: of each row.
        references: texts of each row's answers; empty if its context has no answer.
    """

    windows: Sequence[Window]
    ids: Sequence[str]
    questions: Sequence[str]
    contexts: Sequence[str]
    references: Sequence[list[str]]


@dataclass(frozen=True)
class QuestionAnswering(Task):
    """The task. Scores are fractions in [0, 1].

    Attributes:
        stride: tokens of the context that neighbouring windows share.
        n_best: candidates for start and for end that are combined.
        max_answer_length: largest number of tokens in an answer.
        no_answer_threshold: margin by which no answer must outscore every answer to be predicted.
        no_answer: True if some questions have no answer (SQuAD v2).
    """

    name: ClassVar[str] = "question-answering"
    summary: ClassVar[str] = "a question and a context in, the part of the context that answers it out"
    auto_class: ClassVar[str] = "AutoModelForQuestionAnswering"
    shares: ClassVar[frozenset[str]] = frozenset({"exact_match"})
    metrics: ClassVar[tuple[str, ...]] = (
        "f1",
        "exact_match",
        "f1_answerable",
        "exact_match_answerable",
        "no_answer_accuracy",
    )
    inferred: ClassVar[tuple[str, ...]] = ("no_answer",)
    precedence: ClassVar[int] = 60
    input_names: ClassVar[tuple[str, ...]] = ("question", "context")

    max_length: int = QUESTION_MAX_LENGTH
    stride: int = STRIDE
    n_best: int = N_BEST
    max_answer_length: int = MAX_ANSWER_LENGTH
    no_answer_threshold: float = NO_ANSWER_THRESHOLD
    no_answer: bool = False

    @classmethod
    def is_certain(cls, rows: Dataset, evidence: Evidence) -> bool:
        """True if a column holds answers with their starts."""
        return any(map(holds_answers, rows.features.values()))

    @classmethod
    def recognise(cls, rows: Dataset, named: Mapping[str, str | None]) -> Columns:
        """Find the questions (`text`), the contexts (`pair`) and the answers (`label`) by name.

        Raises:
            UsageError: a named column is missing or not usable, or another one cannot be determined.
        """
        label = named.get("label")
        label = find_column(rows, "label", label, _ANSWERS, holds_answers, "answers (text and answer_start)")
        columns = _inputs(rows, named, label)
        if label is None:
            ask_for_column(rows, "label", "no column of a usual name holds answers with their starts")
        return dataclasses.replace(columns, label=label)

    @classmethod
    def missing_texts(cls, rows: Dataset, columns: Columns, settings: TaskSettings) -> dict[str, frozenset[str]]:
        """See `Task.missing_texts`; an answer is a part of its context, whatever it says."""
        return super().missing_texts(rows, dataclasses.replace(columns, label=None), settings)

    @classmethod
    def usable(cls, rows: Dataset, columns: Columns, settings: TaskSettings) -> NDArray[np.bool_]:
        """See `Task.usable`; an empty list of answers is a label, a missing one is not."""
        labelled = map(has_answers, ColumnValues(rows, str(columns.label)))
        return filled_rows(rows, columns.text, columns.pair) & np.fromiter(labelled, np.bool_, len(rows))

    @classmethod
    def decide(cls, rows: Dataset, columns: Columns, settings: TaskSettings, data: str = "") -> Self:
        """See `Task.decide`; a training row without an answer makes it SQuAD v2."""
        task = super().decide(rows, columns, settings, data)
        return dataclasses.replace(task, no_answer=not all(read_answers(rows, str(columns.label))))

    def check_labels(self, rows: Dataset, columns: Columns) -> None:
        """Make sure that every row has an answer if every training row had one.

        Raises:
            UsageError: a row has none; names the first.
        """
        if self.no_answer:
            return
        answers = read_answers(rows, str(columns.label))
        if not all(answers):
            raise UsageError(
                f"row {row_numbers(rows)[answers.index([])]}: there is no answer in column {columns.label!r}, but "
                "every training row has one; fill it in or drop the row"
            )

    def model_config(self) -> dict[str, Any]:
        """Two logits a token, also for a checkpoint with more classes."""
        return {"num_labels": 2}

    def features(self, base: BaseModel, rows: Dataset, columns: Columns, *, training: bool) -> Features:
        """Windows of all rows, with the first and last token of each row's first answer.

        Training rows whose answer is not in the context are left out, and reported; in evaluation such rows are scored
        by the text of the answer, and left out of the loss.

        Raises:
            UsageError: a value is missing or cannot be used (names the row), or the metric does not apply to the rows.
        """
        if columns.label is not None:
            self.check_labels(rows, columns)
        questions, contexts = text_values(rows, columns)
        assert contexts is not None, "recognise() found them"
        answers = [[]] * len(rows) if columns.label is None else read_answers(rows, columns.label)
        numbers = row_numbers(rows)
        lost: list[int] = []
        limit = token_limit(base, self.max_length)

        def windows() -> Iterator[tuple[Window, tuple[int, int]]]:
            tokenised = tokenise_rows(base.processor, questions, contexts, limit, numbers)
            for row, context, of_row in zip(tokenised, contexts, answers, strict=True):
                place = _place(context, of_row)
                tokens = place and row.tokens(*place)
                is_lost = bool(of_row) and place is None
                if is_lost:
                    lost.append(row.row)
                for window in row.windows(limit, self.stride, f"row {numbers[row.row]}"):
                    if not (is_lost and training):
                        unknown = (_UNKNOWN, _UNKNOWN) if is_lost else (window.null, window.null)
                        yield window, window.shifted(tokens) or unknown

        stored = stored_columns(_columns(some) for some in batches(windows(), lambda pair: len(pair[0].input_ids)))
        left_out = ""
        if training:
            left_out = _left_out([numbers[row] for row in lost], len(rows))
        elif columns.label is not None:
            self._check_metric(answers)
        names = ["input_ids", "start", "end", *(["token_type_ids"] if _takes_token_types(base) else [])]
        ids = Derived(str, ColumnValues(rows, "id") if "id" in rows.column_names else numbers)
        references = Derived(lambda of_row: [answer.text for answer in of_row], answers)
        return Features(
            {name: stored[name] for name in names},
            lengths_of(stored["input_ids"]),
            Asked(Derived(_window, *(stored[name] for name in _WINDOW)), ids, questions, contexts, references),
            left_out=left_out,
            rows=len(rows) - len(lost) if training else len(rows),
        )

    def collate(self, base: BaseModel, features: Features, indices: Sequence[int], *, training: bool) -> Batch:
        """Inputs `(batch, tokens)`; targets `start` and `end`, `(batch,)`, and `mask`, False for padding."""
        names = [name for name in ("input_ids", "token_type_ids") if name in features.inputs]
        chosen = {name: [features.inputs[name][index] for index in indices] for name in names}
        padded = dict(base.processor.pad(chosen, return_attention_mask=True, return_tensors="pt"))
        mask = padded["attention_mask"].bool()
        targets = {"mask": mask}
        for name in ("start", "end"):
            positions = torch.tensor([features.inputs[name][index] for index in indices], device="cpu")
            targets[name] = torch.where(positions < 0, positions, positions + _padding(mask))
        return Batch(padded, targets, int((targets["start"] >= 0).sum()))

    def idle_options(self, base: BaseModel) -> dict[str, str]:
        """See `Task.idle_options`."""
        return {} if self.no_answer else {"no_answer_threshold": "questions that all have answers"}

    def loss(self, outputs: Any, targets: Mapping[str, Tensor], smoothing: float) -> Tensor:
        """The mean of the cross-entropies of start and end, summed over windows.

        Padding is no class, so a window's loss is the same in any batch.
        """
        start = _cross_entropy(outputs.start_logits, targets["start"], targets["mask"], smoothing)
        end = _cross_entropy(outputs.end_logits, targets["end"], targets["mask"], smoothing)
        return (start + end) / 2

    def predict(
        self, base: BaseModel, model: nn.Module, features: Features, indices: Sequence[int], batch: Batch, outputs: Any
    ) -> list[Span]:
        """The best answer in each window, and the score of its null token."""
        windows = [features.references.windows[index] for index in indices]
        start, end = outputs.start_logits.float().cpu(), outputs.end_logits.float().cpu()
        padding = _padding(batch.inputs["attention_mask"].cpu()).tolist()
        return [
            best_span(start[row, shift:], end[row, shift:], window, self.n_best, self.max_answer_length)
            for row, (window, shift) in enumerate(zip(windows, padding, strict=True))
        ]

    def score(self, features: Features, predictions: Sequence[Span]) -> dict[str, float]:
        """`f1` and `exact_match`; with SQuAD v2 also those of answerable questions, and the accuracy on the others."""
        return {name: float(values.mean()) for name, values in self._values(features, predictions).items()}

    def resampler(self, features: Features, predictions: Sequence[Span]) -> Resampler | None:
        """See `Task.resampler`; examples are questions, of which windows are parts."""
        values = self._values(features, predictions).get(self.metric)
        return None if values is None else mean_resampler(values)

    def _values(self, features: Features, predictions: Sequence[Span]) -> dict[str, NDArray[np.float64]]:
        """Each score as its values for the questions that it is the mean of."""
        asked: Asked = features.references
        pairs = list(zip(self._answers(asked, predictions), asked.references, strict=True))
        exact = np.array([squad_metrics.exact_match(*pair) for pair in pairs])
        f1 = np.array([squad_metrics.f1(*pair) for pair in pairs])
        values = {"f1": f1, "exact_match": exact}
        answerable = np.array([bool(texts) for texts in asked.references])
        if self.no_answer and answerable.any():
            values |= {"f1_answerable": f1[answerable], "exact_match_answerable": exact[answerable]}
        if self.no_answer and not answerable.all():
            values["no_answer_accuracy"] = exact[~answerable]
        return values

    def report(self, features: Features, predictions: Sequence[Span]) -> list[dict[str, Any]]:
        """The id, the question, the predicted answer and the reference answers of each row."""
        asked: Asked = features.references
        names = ("id", "question", "predicted", "references")
        columns = (asked.ids, asked.questions, self._answers(asked, predictions), asked.references)
        return [dict(zip(names, record, strict=True)) for record in zip(*columns, strict=True)]

    def find_inputs(self, rows: Dataset, named: Mapping[str, str | None]) -> Columns:
        """See `TaskAnswers.find_inputs`: questions and contexts."""
        return _inputs(rows, named, None)

    def answer_fields(self, top: int | None = None) -> tuple[str, ...]:
        """The answer, its score, and its place in the context; and the `top` best answers, likewise."""
        fields = ("answer", "score", "start", "end")
        return fields if top is None else (*fields, "answers")

    def answer_batch(
        self, base: BaseModel, model: nn.Module, features: Features, indices: Sequence[int], batch: Batch
    ) -> list[Candidates]:
        """The candidates in each window."""
        outputs = model(**batch.inputs)
        start, end = outputs.start_logits.float().cpu(), outputs.end_logits.float().cpu()
        padding = _padding(batch.inputs["attention_mask"].cpu()).tolist()
        return [
            candidates(
                start[row, shift:],
                end[row, shift:],
                features.references.windows[at],
                self.n_best,
                self.max_answer_length,
            )
            for row, (at, shift) in enumerate(zip(indices, padding, strict=True))
        ]

    def answer(self, features: Features, predictions: Sequence[Any], top: int | None = None) -> list[Record]:
        """See `answer_record`; a row's windows follow one another."""
        asked: Asked = features.references
        margin = self.no_answer_threshold if self.no_answer else None
        rows = groupby(zip(asked.windows, predictions, strict=True), key=lambda pair: pair[0].row)
        return [answer_record(asked.contexts[row], list(windows), margin, top) for row, windows in rows]

    def show(self, base: BaseModel, features: Features, index: int) -> str:
        """The decoded window, and the answer from start to end."""
        ids, start, end = (features.inputs[name][index] for name in ("input_ids", "start", "end"))
        answer = base.processor.decode(ids[start : end + 1]) if start >= 0 else "(unknown)"
        return f"{base.processor.decode(ids)} -> {answer}"

    def _check_metric(self, answers: Sequence[Sequence[Answer]]) -> None:
        """Refuse a metric of questions that do not occur."""
        if self.metric == "no_answer_accuracy" and all(answers):
            raise UsageError(f"--metric {self.metric} needs questions without an answer, and every question has one")
        if self.metric.endswith("_answerable") and not (self.no_answer and any(answers)):
            raise UsageError(f"--metric {self.metric} needs questions of both kinds, with an answer and without")

    def _answers(self, asked: Asked, predictions: Sequence[Span]) -> list[str]:
        """The answer to each row: that of its best window, or "" if the null token of every window scores higher.

        As in run_squad.py of BERT (Devlin et al. 2019), the null score of a row is the lowest of its windows.
        """
        best: dict[int, tuple[float, str]] = {}
        null: dict[int, float] = {}
        for window, span in zip(asked.windows, predictions, strict=True):
            row = window.row
            null[row] = min(null.get(row, np.inf), span.null)
            if row not in best or span.score > best[row][0]:
                text = window.text(asked.contexts[row], span.first, span.last) if np.isfinite(span.score) else ""
                best[row] = (span.score, text)
        silent = {row for row in best if self.no_answer and null[row] - best[row][0] > self.no_answer_threshold}
        return ["" if row in silent else best[row][1] for row in sorted(best)]


def _inputs(rows: Dataset, named: Mapping[str, str | None], label: str | None) -> Columns:
    """The columns of the questions and the contexts, none of which is the label's.

    Raises:
        UsageError: a named column is missing or not usable, or another one cannot be determined.
    """
    text, pair = named.get("text"), named.get("pair")
    text = find_column(rows, "text", text, _QUESTIONS, is_text, "text", (pair, label))
    pair = find_column(rows, "pair", pair, _CONTEXTS, is_text, "text", (text, label))
    for role, name, what in (("text", text, "questions"), ("pair", pair, "contexts")):
        if name is None:
            ask_for_column(rows, role, f"no column of a usual name holds {what}")
    return Columns(str(text), pair)


def _place(context: str, answers: Sequence[Answer]) -> tuple[int, int] | None:
    """The characters of the first of a row's answers that is in the context."""
    return next((place for answer in answers if (place := locate_answer(context, answer))), None)


def _columns(windows: Sequence[tuple[Window, tuple[int, int]]]) -> dict[str, list[Any]]:
    """Windows and their targets of start and end, as columns."""
    cut = [window for window, _ in windows]
    return {
        "input_ids": [window.input_ids for window in cut],
        "token_type_ids": [window.token_type_ids.astype(np.int32) for window in cut],
        "start": [start for _, (start, _) in windows],
        "end": [end for _, (_, end) in windows],
        "places": [[window.row, window.null, window.first, window.begin, window.end] for window in cut],
        "characters": [window.characters.ravel() for window in cut],
    }


def _window(ids: Any, types: Any, places: Sequence[int], characters: Any) -> Window:
    """A window from its columns."""
    row, null, first, begin, end = places
    return Window(
        row=row,
        input_ids=np.asarray(ids, dtype=np.int32),
        token_type_ids=np.asarray(types, dtype=np.int8),
        null=null,
        first=first,
        begin=begin,
        end=end,
        characters=np.asarray(characters, dtype=np.int32).reshape(-1, 2),
    )


def _left_out(lost: Sequence[int], rows: int) -> str:
    """A note on the rows that cannot be trained on; empty if all can.

    Args:
        lost: numbers of these rows.
        rows: number of all rows.

    Raises:
        UsageError: no row can be trained on.
    """
    if not lost:
        return ""
    are = agreeing(len(lost), "is", "are")
    note = f"{len(lost)} of {rows} training rows {are} left out, their answers are not in the context"
    if len(lost) == rows:
        raise UsageError(f"{note}; extractive question answering needs answers that are")
    return f"{note}: row {lost[0]}{' and others' if len(lost) > 1 else ''}"


def _takes_token_types(base: BaseModel) -> bool:
    # Tokenizers modelled on BERT's offer them to models without segments, too.
    offered = "token_type_ids" in base.processor.model_input_names
    return offered and "token_type_ids" in inspect.signature(base.model.forward).parameters


def _padding(mask: Tensor) -> Tensor:
    """Number of padding tokens at the start of each row of an attention mask, `(batch,)`."""
    return mask.int().argmax(-1)


def _cross_entropy(logits: Tensor, positions: Tensor, mask: Tensor, smoothing: float) -> Tensor:
    """The sum over the batch; the classes of each row are its tokens.

    Args:
        logits: `(batch, tokens)`.
        positions: `(batch,)`; rows below 0 do not count.
        mask: False for padding, `(batch, tokens)`.
        smoothing: share of the target that is spread evenly over a row's tokens.
    """
    negative = -logits.float().masked_fill(~mask, -torch.inf).log_softmax(-1)
    even = negative.masked_fill(~mask, 0.0).sum(-1) / mask.sum(-1)
    right = negative.gather(-1, positions.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    losses = (1 - smoothing) * right + smoothing * even
    return losses.masked_fill(positions < 0, 0.0).sum()
