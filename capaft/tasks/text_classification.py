"""Text classification: a text or a pair of texts to one of several classes, to any number of them, or to a number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from capaft.config.choices import MISSING_VALUES
from capaft.config.parts.task import TaskSettings
from capaft.model.load import BaseModel
from capaft.support.errors import UsageError
from capaft.tasks.base.columns import (
    Columns,
    ask_for_column,
    cell_kind,
    column_values,
    filled_rows,
    find_column,
    is_id,
    is_text,
    plain_name,
    row_texts,
    value_counts,
)
from capaft.tasks.base.doubts import refuse_doubtful_text, refuse_headless
from capaft.tasks.base.features import Batch, Features
from capaft.tasks.base.missing import BLANK
from capaft.tasks.base.task import Task
from capaft.tasks.labels.glue import official_metric
from capaft.tasks.labels.multi_label import MultiLabel
from capaft.tasks.labels.numbers import is_number, is_whole, plain_number
from capaft.tasks.labels.problem import MAX_CLASSES, Problem
from capaft.tasks.labels.regression import Regression
from capaft.tasks.labels.single_label import SingleLabel, check_scoring
from capaft.tasks.labels.spelling import label_finder
from capaft.tasks.language.framing import frame
from capaft.tasks.language.plain_text import end_of_text_token, surrounding_tokens
from capaft.tasks.language.text_pairs import recognise_text_pairs
from capaft.tasks.language.token_limit import token_limit

if TYPE_CHECKING:
    from datasets import Dataset

    from capaft.tasks.base.evidence import Evidence

# Names are compared in lower case without punctuation. Earlier pairs and groups are preferred to later ones; within a
# group no name is better than another.
_PAIRS = (
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("text1", "text2"),
    ("texta", "textb"),
    ("1string", "2string"),
    ("query", "passage"),
    ("question", "passage"),
    ("question", "answer"),
    ("question", "context"),
    ("query", "document"),
    ("query", "text"),
    ("text", "response"),
    ("context", "response"),
)
# Second texts that may be the label themselves, where no other column is called one.
_REPLIES = ("answer", "response")
_TEXTS = (
    ("sentence", "text"),
    ("review", "content", "tweet", "comment", "utterance", "message", "document", "post", "body"),
    ("reviewtext", "commenttext", "headline", "question", "query", "description", "abstract", "title"),
)
_LABELS = (
    ("label", "labels"),
    ("class", "category", "target", "intent", "sentiment", "topic", "y", "goldlabel", "isduplicate"),
    ("classes", "categories", "topics", "genres", "emotions", "score", "similarityscore", "rating", "stars"),
)
# A column of this name can hold nothing but labels.
_SURE = ("label", "labels")
_LONGEST_CLASS_NAME = 60
# Share of the texts in a column of numbers that are numbers at least.
_MOSTLY = 0.75
# Never classes, whatever they look like, unless the user says so.
_NO_LABELS = ("timestamp", "time", "date", "datetime", "createdat", "created", "url", "uri", "link")
# Columns of this name ask for a text in the column of its usual pair.
_PROMPTS = ("prompt", "instruction")
# With fewer rows, a number may be the only one of its class by chance.
_FEWEST_NUMBERS = 20


@dataclass(frozen=True)
class TextClassification(Task):
    """The task.

    Attributes:
        problem: kind of the labels: `single`, `multi` or `regression`.
        label_separator: text between the labels of a row, if `multi` has them in one text.
        positive_label: label of `single` whose F1, precision and recall are scored; without one F1 is the macro mean.
        normalise_labels: labels that differ only in their spelling are one class.
    """

    name: ClassVar[str] = "text-classification"
    summary: ClassVar[str] = "A text or a pair of texts to one class, to any number of classes, or to a number."
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    metrics: ClassVar[tuple[str, ...]] = tuple(
        dict.fromkeys(SingleLabel.metrics + MultiLabel.metrics + Regression.metrics)
    )

    precedence: ClassVar[int] = 50
    is_fallback: ClassVar[bool] = True

    problem: str = "single"
    label_separator: str = ""
    positive_label: str = ""
    normalise_labels: bool = False

    def __post_init__(self) -> None:
        if self.problem not in ("single", "multi", "regression"):
            raise UsageError(f"--problem must be single, multi or regression, got {self.problem}")
        names = self._problem.metrics
        object.__setattr__(self, "metric", self.metric or names[0])
        if self.metric not in names:
            raise UsageError(
                f"--metric must be one of {', '.join(names)} for {self.name} (--problem {self.problem}), "
                f"got {self.metric}"
            )
        if self.positive_label and self.problem != "single":
            raise UsageError("--positive-label needs rows with one label of several; drop it, or set --problem single")
        check_scoring(self.metric, self.labels, self.positive_label)

    @property
    def _problem(self) -> Problem:
        match self.problem:
            case "multi":
                return MultiLabel(self.label_separator, self.normalise_labels)
            case "regression":
                return Regression()
            case _:
                return SingleLabel(self.normalise_labels, self.positive_label)

    @classmethod
    def is_certain(cls, rows: Dataset, evidence: Evidence) -> bool:
        """True if the user set an option that no other task has."""
        return evidence.classify

    @classmethod
    def claims(cls, rows: Dataset, evidence: Evidence) -> bool:
        """True for texts with labels, unless the labels are only notes on the texts of a usual pair.

        Raises:
            UsageError: the columns cannot be determined.
        """
        return _is_target(rows, evidence, cls.recognise(rows, evidence.named).label)

    @classmethod
    def doubt(cls, rows: Dataset, evidence: Evidence) -> None:
        """See `Task.doubt`."""
        columns = cls.recognise(rows, evidence.named)
        if evidence.named.get("text") is None and columns.pair is None:
            refuse_doubtful_text(rows, columns.text, cls.name, plain=False)

    @classmethod
    def recognise(cls, rows: Dataset, named: Mapping[str, str | None]) -> Columns:
        """Find the columns by name, then by type. A named text without a named pair is single.

        Several labels with a column of 0 and 1 each are given by the names of these columns: `a,b,c`.
        """
        text, pair, label = named.get("text"), named.get("pair"), named.get("label")
        choices = _choices(rows, label)
        if choices:
            for choice in choices:
                find_column(rows, "label", choice, (), _is_flag, "0 or 1", (text, pair))
            label = None
        else:
            label = find_column(
                rows, "label", label, _LABELS, _is_label, "a label, labels or a number a row", (text, pair)
            )
        taken = (label, *choices)
        text = find_column(rows, "text", text, (), is_text, "text", taken)
        pair = find_column(rows, "pair", pair, (), is_text, "text", (*taken, text))
        if text is None:
            taken = (*taken, pair)
            words = [n for n, feature in rows.features.items() if is_text(feature) and n not in taken and not is_id(n)]
            unsure = label is None and not choices
            sure = [n for n in words if not (unsure and plain_name(n) in _REPLIES and _like_classes(rows, n))]
            text, pair = _pair_by_name(sure, pair)
            text = text or find_column(rows, "text", None, _TEXTS, is_text, "text", taken) or _text_by_type(rows, words)
        if label is None and not choices:
            label = _label_by_type(rows, (text, pair))
            refuse_headless(rows, text, [label])
        return Columns(text, pair, label, choices)

    @classmethod
    def decide(cls, rows: Dataset, columns: Columns, settings: TaskSettings, data: str = "") -> Self:
        """See `Task.decide`; the labels decide the problem if no setting does; GLUE has metrics of its own.

        GLUE scores MRPC and QQP by the F1 of their second class, the pairs that mean the same.
        """
        problem = _problem_of(rows, columns) if settings.problem == "auto" else settings.problem
        plain = replace(settings, metric=None, problem=problem, positive_label="")
        task = super().decide(rows, columns, plain, data)
        labels = task._problem.classes(rows, columns)
        positive = label_finder(labels, normalise=task.normalise_labels)(settings.positive_label)
        positive = settings.positive_label if positive is None else positive
        official = official_metric(data)
        if official == "f1" and len(labels) == 2 and problem == "single":
            positive = positive or labels[1]
        metric = settings.metric or (official if official in task._problem.metrics else "")
        return replace(task, labels=labels, metric=metric, positive_label=positive)

    @classmethod
    def missing_texts(cls, rows: Dataset, columns: Columns, settings: TaskSettings) -> dict[str, frozenset[str]]:
        """See `Task.missing_texts`; where labels stand in one text, a blank one means that none applies."""
        missing = super().missing_texts(rows, columns, settings)
        if settings.problem == "multi" and columns.label is not None:
            missing[columns.label] -= BLANK
        return missing

    @classmethod
    def usable(cls, rows: Dataset, columns: Columns, settings: TaskSettings) -> NDArray[np.bool_]:
        """See `Task.usable`; the problem decides what a missing label is."""
        labelled = cls._problem_for(rows, columns, settings).labelled(rows, columns)
        return filled_rows(rows, columns.text, columns.pair) & labelled

    @classmethod
    def faults(cls, rows: Dataset, columns: Columns, settings: TaskSettings) -> Mapping[int, str]:
        """See `Task.faults`: a label that is no number among numbers."""
        return cls._problem_for(rows, columns, settings).faults(rows, columns)

    @classmethod
    def _problem_for(cls, rows: Dataset, columns: Columns, settings: TaskSettings) -> Problem:
        """The problem that settings name, or else the labels stand for."""
        problem = _problem_of(rows, columns) if settings.problem == "auto" else settings.problem
        if problem == "multi":
            missing = frozenset(settings.missing_values)
            return MultiLabel(settings.label_separator or "", settings.normalise_labels, missing)
        return cls(problem=problem)._problem

    def check_labels(self, rows: Dataset, columns: Columns) -> None:
        """See `Task.check_labels`."""
        self._problem.encode(rows, columns, self.labels)

    def classes_of(self, rows: Dataset, columns: Columns) -> Sequence[int] | None:
        """See `Task.classes_of`."""
        return self._problem.encode(rows, columns, self.labels).tolist() if self.problem == "single" else None

    def label_counts(self, rows: Dataset, columns: Columns) -> Mapping[str, int]:
        """See `Task.label_counts`."""
        return self._problem.counts(rows, columns)

    def class_of_label(self, label: str) -> str | None:
        """See `Task.class_of_label`."""
        return label_finder(self.labels, normalise=self.normalise_labels)(label)

    def score_name(self, score: str) -> str:
        """See `Task.score_name`."""
        return self._problem.score_name(score)

    def model_config(self) -> dict[str, Any]:
        """A number is one output without a name."""
        outputs = super().model_config() if self.labels else {"num_labels": 1}
        return {**outputs, "problem_type": self._problem.problem_type}

    def features(self, base: BaseModel, rows: Dataset, columns: Columns, *, training: bool) -> Features:
        """Tokenise a split. References are the targets, `(rows, ...)`; sources the texts, by `text` and `pair`."""
        targets = self._problem.encode(rows, columns, self.labels)
        first, second = row_texts(rows, columns)
        tokenizer = base.processor
        around = frame(tokenizer, *surrounding_tokens(tokenizer))
        first, notes = around.strip_all(first)
        second = None if second is None else around.strip_all(second)[0]
        limit = token_limit(base, self.max_length)
        encoded = tokenizer(first, second, truncation=True, max_length=limit, return_attention_mask=False)
        # Without special tokens an empty text has no token for the model to read.
        for row in (row for row, ids in enumerate(encoded["input_ids"]) if not ids):
            for name, column in encoded.items():
                column[row] = [end_of_text_token(tokenizer) if name == "input_ids" else 0]
        lengths = np.array([len(ids) for ids in encoded["input_ids"]], dtype=np.int64)
        at_limit = np.flatnonzero(lengths >= limit).tolist()
        truncated = 0
        if at_limit:
            again = tokenizer(
                [first[i] for i in at_limit], [second[i] for i in at_limit] if second else None, verbose=False
            )
            truncated = sum(len(ids) > limit for ids in again["input_ids"])
        sources = [{"text": text} for text in first]
        if second:
            sources = [{"text": text, "pair": pair} for text, pair in zip(first, second, strict=True)]
        return Features(dict(encoded), lengths, targets, truncated, sources, notes=notes)

    def collate(self, base: BaseModel, features: Features, indices: Sequence[int], *, training: bool) -> Batch:
        """Inputs `(batch, tokens)`, padded to the longest, and `labels`, `(batch, ...)`."""
        picked = {name: [column[i] for i in indices] for name, column in features.inputs.items()}
        padded = base.processor.pad(picked, return_tensors="pt")
        targets = torch.from_numpy(features.references[list(indices)])
        return Batch(dict(padded), {"labels": targets}, len(indices))

    def idle_options(self, base: BaseModel) -> dict[str, str]:
        """See `Task.idle_options`."""
        idle = {
            "single": ("label_separator",),
            "regression": ("label_separator", "normalise_labels", "label_smoothing"),
        }
        return dict.fromkeys(idle.get(self.problem, ()), f"--problem {self.problem}")

    def loss(self, outputs: Any, targets: Mapping[str, Tensor], smoothing: float) -> Tensor:
        """The problem's loss, whose terms are examples."""
        return self._problem.loss(outputs.logits.float(), targets["labels"], smoothing)

    def predict(
        self, base: BaseModel, model: nn.Module, features: Features, indices: Sequence[int], batch: Batch, outputs: Any
    ) -> list[Any]:
        """The logits of each example, `(outputs,)`."""
        return list(outputs.logits.float().cpu().numpy())

    def score(self, features: Features, predictions: Sequence[Any]) -> dict[str, float]:
        """The problem's scores, from the logits of all examples."""
        logits = np.stack(predictions)
        problem = self._problem
        truth, predicted = features.references, problem.predicted(logits)
        scores = problem.scores(truth, predicted, logits.shape[1]) | problem.ranking(truth, logits)
        if isinstance(problem, SingleLabel):
            scores |= problem.positive_scores(truth, predicted, self.labels)
        return scores

    def report(self, features: Features, predictions: Sequence[Any]) -> list[dict[str, Any]]:
        """The texts of each row, its label, and the one predicted."""
        predicted = self._problem.predicted(np.stack(predictions))
        return [
            {**source, "label": self._named(truth), "predicted": self._named(answer)}
            for source, truth, answer in zip(features.sources, features.references, predicted, strict=True)
        ]

    def show(self, base: BaseModel, features: Features, index: int) -> str:
        """The text as the model reads it, and its label."""
        text = base.processor.decode(features.inputs["input_ids"][index])
        return f"{text} -> {self._named(features.references[index])}"

    def _named(self, target: Any) -> Any:
        return self._problem.named(target, self.labels)


def _is_flag(feature: Any) -> bool:
    return cell_kind(feature) in ("integer", "bool", "float", "class")


def _is_label(feature: Any) -> bool:
    return cell_kind(feature) != "other"


def _choices(rows: Dataset, label: str | None) -> tuple[str, ...]:
    """The columns that a list of names stands for, if it is one and not itself the name of a column."""
    if label is None or "," not in label or label in rows.column_names:
        return ()
    return tuple(dict.fromkeys(name.strip() for name in label.split(",")))


def _problem_of(rows: Dataset, columns: Columns) -> Literal["single", "multi", "regression"]:
    """The problem that a column of labels stands for.

    Raises:
        UsageError: the labels are texts, some of them fractions, and many of them words or in an odd notation.
    """
    if columns.label is None or cell_kind(rows.features[columns.label]) == "list":
        return "multi"
    if cell_kind(rows.features[columns.label]) == "float":
        # NaN is not greater than 0, and reported as a missing label later.
        fractions = (value % 1 > 0 for value in column_values(rows, columns.label) if value is not None)
        return "regression" if any(fractions) else "single"
    if is_text(rows.features[columns.label]):
        return _problem_of_texts(columns.label, value_counts(rows, columns.label))
    return "single"


def _problem_of_texts(name: str, counts: Counter[str]) -> Literal["single", "regression"]:
    """The problem that labels which are texts stand for: most of them numbers, some with a fraction, or classes."""
    numbers = {text: count for text, count in counts.items() if is_number(text)}
    fraction = next((text for text in numbers if not is_whole(text)), None)
    if fraction is None:
        return "single"
    if sum(numbers.values()) >= _MOSTLY * counts.total():
        if sum(counts[text] for text in numbers if plain_number(text) is not None) >= _MOSTLY * counts.total():
            return "regression"
        odd = next(text for text in numbers if plain_number(text) is None)
        raise UsageError(
            f"column {name!r} holds numbers such as {odd!r}, which may be read in several ways; write them as 1250.5, "
            "or choose --problem single, by which every text is a class"
        )
    word = next(text for text in counts if text not in numbers)
    raise UsageError(
        f"column {name!r} holds numbers such as {fraction!r} and words such as {word!r}; choose --problem regression "
        "(and drop the words) or --problem single, by which every text is a class"
    )


def _holds_numbers(rows: Dataset, name: str) -> bool:
    """True if most of the different texts of a column are numbers, missing values aside."""
    texts = [text for text in rows.unique(name) if text and text.strip() not in MISSING_VALUES]
    return bool(texts) and sum(map(is_number, texts)) >= _MOSTLY * len(texts)


def _pair_by_name(words: Sequence[str], pair: str | None) -> tuple[str | None, str | None]:
    """Both columns of a usual pair, or the first column that belongs to a named second one."""
    names = {plain_name(name): name for name in words}
    for first, second in _PAIRS:
        if first in names and (second == plain_name(pair) if pair else second in names):
            return names[first], pair or names[second]
    return None, pair


def _text_by_type(rows: Dataset, words: Sequence[str]) -> str:
    texts = list(words)
    if len(texts) > 1:
        texts = [name for name in texts if not _like_classes(rows, name) and not _holds_numbers(rows, name)]
    if len(texts) != 1:
        ask_for_column(rows, "text", "several columns could be" if words else "there is no column of text")
    return texts[0]


def _label_by_type(rows: Dataset, taken: Sequence[str | None]) -> str:
    kinds = {n: cell_kind(feature) for n, feature in rows.features.items() if n not in taken and not _is_note(n)}
    usual = ("class", "integer", "bool")
    labels = [n for n, kind in kinds.items() if kind in usual or (kind == "text" and _like_classes(rows, n))]
    labels = labels or [
        n for n, kind in kinds.items() if kind == "float" or (kind == "text" and _holds_numbers(rows, n))
    ]
    if len(labels) == 1 and kinds[labels[0]] == "integer" and _number_rows(rows, labels[0]):
        ask_for_column(rows, "label", f"{labels[0]!r} has a number of its own in most rows")
    if len(labels) != 1:
        ask_for_column(rows, "label", "several columns could be" if labels else "no column looks like one")
    return labels[0]


def _is_note(name: str) -> bool:
    return is_id(name) or plain_name(name) in _NO_LABELS


def _number_rows(rows: Dataset, name: str) -> bool:
    """True if a column has a different integer in most rows, like a time or a key."""
    return len(rows) >= _FEWEST_NUMBERS and len(rows.unique(name)) > len(rows) // 2


def _is_target(rows: Dataset, evidence: Evidence, label: str | None) -> bool:
    """True if the label is the target, and not a note beside a usual pair of source and target.

    For a model that writes, the pair outweighs topics and numbers of tokens. Decoders are often used to classify, so
    for them a column called `label` is the target. A model of masked tokens cannot write: for it a label that the user
    named, or that is called so, holds classes whatever it looks like.
    """
    is_sure = plain_name(label or "") in _SURE
    is_named = bool(evidence.named.get("label"))
    if evidence.is_masked and (is_named or is_sure):
        return True
    if not _has_classes(rows, label) or _is_written(rows, evidence, label):
        return False
    if is_named or evidence.is_masked or (is_sure and not evidence.is_encoder_decoder):
        return True
    try:
        pair = recognise_text_pairs(rows, evidence.named)
    except UsageError:
        return True
    if pair is None or pair.label in (None, label):
        return True
    # Targets of few values are classes as well; those of translations are not columns, and references not texts.
    return is_text(rows.features.get(pair.label)) and _has_classes(rows, pair.label)


def _is_written(rows: Dataset, evidence: Evidence, label: str | None) -> bool:
    """True if a label is what a prompt asks for and the model can write it, however few different ones there are."""
    if evidence.is_masked or label is None:
        return False
    try:
        pair = recognise_text_pairs(rows, evidence.named)
    except UsageError:
        return False
    return pair is not None and pair.label == label and plain_name(pair.text) in _PROMPTS


def _has_classes(rows: Dataset, label: str | None) -> bool:
    """True if a label holds classes or numbers, and not a different text in each row."""
    if label is None or not is_text(rows.features[label]):
        return True
    return len(rows.unique(label)) <= len(rows) // 2 or _holds_numbers(rows, label)


def _like_classes(rows: Dataset, name: str) -> bool:
    """True if a column of text holds few different values, each twice on average, and none of them long."""
    distinct = rows.unique(name)
    few = len(distinct) <= min(MAX_CLASSES, len(rows) // 2)
    return few and all(len(value or "") <= _LONGEST_CLASS_NAME for value in distinct)
