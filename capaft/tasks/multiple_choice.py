"""Multiple choice: a context, and several endings or answers, one of which is right."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise, repeat
from operator import itemgetter
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from capaft.config.parts.task import TaskSettings
from capaft.data.lazy import Derived
from capaft.data.spool import stored_columns
from capaft.model.load import BaseModel
from capaft.support.errors import UsageError
from capaft.tasks.base.columns import (
    Columns,
    describe_row,
    filled_rows,
    text_values,
)
from capaft.tasks.base.features import Batch, Features
from capaft.tasks.base.missing import BLANK
from capaft.tasks.base.task import Task
from capaft.tasks.base.task_answers import Record
from capaft.tasks.choices.columns import recognise_choices, recognise_undecided
from capaft.tasks.choices.labels import are_texts, count_from_one, labels_of, place_of
from capaft.tasks.choices.rows import choices_of, fault_of, listed_choices
from capaft.tasks.labels.problem import missing_label, rounded
from capaft.tasks.language.token_limit import token_limit
from capaft.tasks.language.truncation import CutRows, Inputs

if TYPE_CHECKING:
    from datasets import Dataset

    from capaft.tasks.base.evidence import Evidence


# Values of a missing label.
_WITHHELD = (None, "", -1, "-1")
# Rows that are tokenised at a time, with all their choices.
_ROWS = 250


@dataclass(frozen=True)
class MultipleChoice(Task):
    """The model reads the context with each choice in turn and scores it; a softmax over the choices of a row follows.

    After the context comes the choice, or the start that all choices share (SWAG's `sent2`, a question) and then the
    choice. Rows may have different numbers of choices. The score is `accuracy`.

    A label is the number of a choice, a letter from A, or the name that the row gives the choice (ARC). Numbers count
    from 0, unless the training rows show that they count from 1: none is 0, and none exceeds the number of choices. If
    every label of the training rows is the text of one of its row's choices, labels are such texts.

    Attributes:
        one_based: True if numbers count from 1.
        by_text: True if labels that are texts are the texts of choices.
    """

    name: ClassVar[str] = "multiple-choice"
    summary: ClassVar[str] = "A context and several endings or answers to the right one."
    # The hub has no such task.
    pipeline_tag: ClassVar[str] = ""
    auto_class: ClassVar[str] = "AutoModelForMultipleChoice"
    metrics: ClassVar[tuple[str, ...]] = ("accuracy",)
    shares: ClassVar[frozenset[str]] = frozenset({"accuracy"})
    inferred: ClassVar[tuple[str, ...]] = ("one_based", "by_text")
    precedence: ClassVar[int] = 40

    one_based: bool = False
    by_text: bool = False

    @classmethod
    def claims(cls, rows: Dataset, evidence: Evidence) -> bool:
        """True if rows have a context, choices and a label."""
        return cls.has_columns(rows, evidence)

    @classmethod
    def recognise(cls, rows: Dataset, named: Mapping[str, str | None]) -> Columns:
        """See `recognise_choices`."""
        return recognise_choices(rows, named)

    @classmethod
    def missing_texts(cls, rows: Dataset, columns: Columns, settings: TaskSettings) -> dict[str, frozenset[str]]:
        """See `Task.missing_texts`; only a blank choice is missing, and labels are left to `usable`."""
        missing = super().missing_texts(rows, dataclasses.replace(columns, label=None), settings)
        return missing | dict.fromkeys(columns.choices, BLANK)

    @classmethod
    def usable(cls, rows: Dataset, columns: Columns, settings: TaskSettings) -> NDArray[np.bool_]:
        """See `Task.usable`; a label is missing if it is blank, or the text of a missing value but of no choice."""
        labels = labels_of(rows, columns)
        usable = filled_rows(rows, columns.text, columns.pair)
        usable &= np.array([label not in _WITHHELD for label in labels], dtype=np.bool_)
        missing = BLANK.union(settings.missing_values)
        spelt = [row for row in np.flatnonzero(usable).tolist() if str(labels[row]).strip() in missing]
        for row, choices in zip(spelt, listed_choices(rows.select(spelt), columns) if spelt else (), strict=True):
            usable[row] &= any(labels[row] in texts for texts in choices)
        return usable

    @classmethod
    def faults(cls, rows: Dataset, columns: Columns, settings: TaskSettings) -> dict[int, str]:
        """See `Task.faults`: a row that lacks a choice."""
        choices = enumerate(listed_choices(rows, columns))
        return {row: fault for row, (texts, _) in choices if (fault := fault_of(columns, texts))}

    @classmethod
    def decide(cls, rows: Dataset, columns: Columns, settings: TaskSettings, data: str = "") -> Self:
        """See `Task.decide`; the training rows decide whether labels are texts, and where their numbers start.

        Raises:
            UsageError: a row has fewer than two choices, or lacks one; or labels may be texts as well as numbers.
        """
        task = super().decide(rows, columns, settings, data)
        if are_texts(rows, columns):
            return dataclasses.replace(task, by_text=True)
        return dataclasses.replace(task, one_based=count_from_one(rows, columns, warn=True))

    def check_labels(self, rows: Dataset, columns: Columns) -> None:
        """As `Task.check_labels`: every label is one of its row's choices."""
        self._encoded(rows, columns)

    def features(self, base: BaseModel, rows: Dataset, columns: Columns, *, training: bool) -> Features:
        """Tokenise each row's context with each of its choices; if both are too long, the longer is cut.

        Inputs are lists of a row's choices; the row's length is that of its longest. References are the indices of the
        right choices.

        Raises:
            UsageError: a row has no context, fewer than two choices, or a label that is none of them.
        """
        labels = None if columns.label is None else self._encoded(rows, columns)
        contexts, starts = text_values(rows, columns)
        choices = Derived(itemgetter(0), choices_of(rows, columns))
        cut = CutRows(base.processor, token_limit(base, self.max_length))
        firsts = repeat("", len(rows)) if starts is None else (f"{start} " for start in starts)
        texts = (
            [(context, first + text) for text in of_row]
            for context, first, of_row in zip(contexts, firsts, choices, strict=True)
        )
        inputs = stored_columns(_by_row(cut, texts))
        # A row is cut if one of its choices is.
        sizes = np.fromiter(map(len, choices), dtype=np.int64, count=len(rows))
        is_cut = np.logical_or.reduceat(np.frombuffer(cut.is_cut, dtype=np.bool_), np.cumsum(sizes) - sizes)
        parts = {"context": contexts, "choices": choices} | ({} if starts is None else {"start": starts})
        sources = Derived(lambda *values: dict(zip(parts, values, strict=True)), *parts.values())
        lengths = np.fromiter((max(map(len, row)) for row in inputs["input_ids"]), dtype=np.int64, count=len(rows))
        return Features(inputs, lengths, labels, int(is_cut.sum()), sources)

    def collate(self, base: BaseModel, features: Features, indices: Sequence[int], *, training: bool) -> Batch:
        """Inputs `(batch, choices, tokens)`, `labels`, `(batch,)`, and `present`, a mask `(batch, choices)`.

        A row with fewer choices than another repeats its first one in place of the missing ones.
        """
        sizes = [len(features.inputs["input_ids"][index]) for index in indices]
        most = max(sizes)
        flat: dict[str, list[Any]] = {name: [] for name in features.inputs}
        for name, rows in features.inputs.items():
            for index in indices:
                flat[name] += rows[index] + rows[index][:1] * (most - len(rows[index]))
        padded = base.processor.pad(flat, return_attention_mask=True, return_tensors="pt")
        inputs = {name: tensor.view(len(indices), most, -1) for name, tensor in padded.items()}
        present = torch.arange(most, device="cpu") < torch.tensor(sizes, device="cpu")[:, None]
        targets = {"present": present}
        if features.references is not None:
            targets["labels"] = torch.tensor([features.references[index] for index in indices], device="cpu")
        return Batch(inputs, targets, len(indices))

    def loss(self, outputs: Any, targets: Mapping[str, Tensor], smoothing: float) -> Tensor:
        """The sum of the cross-entropy over the rows; smoothing spreads over the choices of a row."""
        present = targets["present"]
        log_probabilities = _among(outputs.logits, present).log_softmax(-1).masked_fill(~present, 0.0)
        right = log_probabilities.gather(-1, targets["labels"][:, None]).squeeze(-1)
        mean = log_probabilities.sum(-1) / present.sum(-1)
        return -((1 - smoothing) * right + smoothing * mean).sum()

    def predict(
        self, base: BaseModel, model: nn.Module, features: Features, indices: Sequence[int], batch: Batch, outputs: Any
    ) -> list[int]:
        """The index of the choice with the largest logit."""
        return _among(outputs.logits, batch.targets["present"]).argmax(-1).tolist()

    def score(self, features: Features, predictions: Sequence[Any]) -> dict[str, float]:
        """The share of rows whose predicted choice is right."""
        from sklearn.metrics import accuracy_score

        return {"accuracy": float(accuracy_score(features.references, predictions))}

    def report(self, features: Features, predictions: Sequence[Any]) -> list[dict[str, Any]]:
        """The texts of each row, its right choice, and the predicted one."""
        return [
            {**source, "label": source["choices"][truth], "predicted": source["choices"][predicted]}
            for source, truth, predicted in zip(features.sources, features.references, predictions, strict=True)
        ]

    def find_inputs(self, rows: Dataset, named: Mapping[str, str | None]) -> Columns:
        """See `recognise_undecided`."""
        return recognise_undecided(rows, named)

    def answer_fields(self, top: int | None = None) -> tuple[str, ...]:
        """The likeliest choice, its place among the row's from 0, its probability, and those of all choices."""
        return ("choice", "index", "probability", "probabilities")

    def answer_batch(
        self, base: BaseModel, model: nn.Module, features: Features, indices: Sequence[int], batch: Batch
    ) -> list[list[float]]:
        """The probability of each choice of a row."""
        present = batch.targets["present"]
        shares = _among(model(**batch.inputs).logits, present).softmax(-1)
        return [row[mask].tolist() for row, mask in zip(shares.cpu(), present.cpu(), strict=True)]

    def answer(self, features: Features, predictions: Sequence[Any], top: int | None = None) -> list[Record]:
        """The choice of each row, and the probabilities in the order of its choices."""
        answers = []
        for source, shares in zip(features.sources, predictions, strict=True):
            best = int(np.argmax(shares))
            numbers = [rounded(share) for share in shares]
            fields = (source["choices"][best], best, numbers[best], numbers)
            answers.append(dict(zip(self.answer_fields(), fields, strict=True)))
        return answers

    def show(self, base: BaseModel, features: Features, index: int) -> str:
        """Each choice as the model reads it, on a line of its own; a star marks the right one."""
        texts = map(base.processor.decode, features.inputs["input_ids"][index])
        return "\n".join(f"{'*' if at == features.references[index] else '-'} {text}" for at, text in enumerate(texts))

    def _encoded(self, rows: Dataset, columns: Columns) -> list[int]:
        """The index of each row's right choice."""
        return [
            self._index(rows, columns, row, label, *choices)
            for row, (label, choices) in enumerate(
                zip(labels_of(rows, columns), choices_of(rows, columns), strict=True)
            )
        ]

    def _index(
        self, rows: Dataset, columns: Columns, row: int, label: Any, choices: Sequence[str], names: Sequence[str]
    ) -> int:
        """The index of the choice that a label means."""
        if label in _WITHHELD:
            raise missing_label(rows, columns, row)
        by_text = self.by_text and isinstance(label, str)
        if str(label) in names:
            index = names.index(str(label))
        elif by_text:
            index = choices.index(label) if choices.count(label) == 1 else -1
        else:
            index = place_of(label, self.one_based)
        if not 0 <= index < len(choices):
            first, last = int(self.one_based), len(choices) - 1
            usual = f"{first} to {first + last} or A to {chr(ord('A') + last)}"
            listed = ", ".join(choices if by_text else names) or usual
            raise UsageError(
                f"{describe_row(rows, columns, row)}: the label {label!r} is none of the row's choices, which "
                f"are {listed}; correct it or drop the row"
            )
        return index


def _among(logits: Tensor, present: Tensor) -> Tensor:
    """Logits `(batch, choices)` in float32, minus infinity for choices that a row lacks."""
    return logits.float().masked_fill(~present, -torch.inf)


def _by_row(cut: CutRows, texts: Iterable[list[tuple[str, str]]]) -> Iterator[Inputs]:
    """The inputs of rows of several pairs of texts, each entry a list with those of a row's pairs."""
    texts = iter(texts)
    while rows := list(islice(texts, _ROWS)):
        flat: Inputs = {}
        for batch in cut.batches(pair for row in rows for pair in row):
            for name, column in batch.items():
                flat.setdefault(name, []).extend(column)
        ends = np.cumsum([0, *map(len, rows)]).tolist()
        yield {name: [column[start:end] for start, end in pairwise(ends)] for name, column in flat.items()}
