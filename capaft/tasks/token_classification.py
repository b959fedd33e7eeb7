"""Token classification: every word of a text to one of several tags, such as named entities or parts of speech."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from capaft.config.parts.task import TaskSettings
from capaft.data.lazy import ColumnValues, Derived
from capaft.data.spool import lengths_of, stored_columns
from capaft.data.tag_scheme import are_chunk_tags
from capaft.model.load import BaseModel
from capaft.support.errors import UsageError
from capaft.tasks.base.columns import (
    Columns,
    ask_for_column,
    cell_kind,
    describe_row,
    find_column,
    is_text,
    list_columns,
)
from capaft.tasks.base.features import Batch, Features
from capaft.tasks.base.task import Task
from capaft.tasks.base.task_answers import Record
from capaft.tasks.labels.problem import MAX_CLASSES, class_positions, unknown_label
from capaft.tasks.labels.tagged_spans import as_iobes, read_words, tagged_words
from capaft.tasks.labels.word_tags import is_tag, tag_faults, tag_feature, tag_names, words_of
from capaft.tasks.language.cut_words import CutWords
from capaft.tasks.language.plain_text import recognise_plain_text
from capaft.tasks.language.token_limit import token_limit
from capaft.tasks.language.token_loss import IGNORED, summed_loss

if TYPE_CHECKING:
    from datasets import Dataset

    from capaft.tasks.base.evidence import Evidence

# In lower case without punctuation. In a corpus tagged several times, such as CoNLL-2003, the entities come first.
_WORDS = (("tokens",), ("words",), ("token", "word", "form", "text", "sentence"))
_TAGS = (
    ("nertags",),
    ("tags",),
    ("labels", "label"),
    ("ner", "nerlabels", "iobtags", "biotags", "entities", "spans", "ents"),
    ("tag",),
    ("upos", "upostags"),
    ("postags", "pos"),
    ("xpos",),
    ("chunktags",),
)
# The class predicted for a word that the model has not read.
_NONE = -1


@dataclass(frozen=True)
class TokenClassification(Task):
    """A word's first token carries its tag; the model's outputs for its other tokens are ignored.

    Scores: `accuracy` is the share of words whose tag is right. If all labels belong to a chunking scheme (IOB1, IOB2,
    IOE, IOBES, BILOU, BMEWO), `precision`, `recall` and `f1` are those of whole entities of all types together, as
    conlleval counts them (Tjong Kim Sang and De Meulder, 2003; seqeval's default). Otherwise, as for parts of speech or
    tags without names, they are the unweighted means over the tags that occur.

    All words are scored. A word without a token, because its row was cut or the tokenizer leaves it out, counts as
    predicted "O" if that is a label, and as wrong if it is not.

    A word whose tag is missing, or a negative number such as -100, is read, but neither learnt nor scored.
    """

    name: ClassVar[str] = "token-classification"
    summary: ClassVar[str] = "The words of a text to a tag each: named entities, parts of speech."
    auto_class: ClassVar[str] = "AutoModelForTokenClassification"
    metrics: ClassVar[tuple[str, ...]] = ("f1", "precision", "recall", "accuracy")
    precedence: ClassVar[int] = 30

    @classmethod
    def claims(cls, rows: Dataset, evidence: Evidence) -> bool:
        """True if rows have lists of words and of tags."""
        return cls.has_columns(rows, evidence)

    @classmethod
    def recognise(cls, rows: Dataset, named: Mapping[str, str | None]) -> Columns:
        """Find the words and their tags: by name, else each as the only column of its kind."""
        if named.get("pair"):
            raise UsageError(f"--pair-column {named['pair']}: {cls.name} takes no second text; drop it")
        label = named.get("label")
        text = _column(rows, "text", named.get("text"), _WORDS, _holds_words, "lists of words", label)
        label = _column(rows, "label", label, _TAGS, _holds_tags, "lists of tags", text)
        return Columns(text, None, label)

    @classmethod
    def missing_texts(cls, rows: Dataset, columns: Columns, settings: TaskSettings) -> dict[str, frozenset[str]]:
        """See `Task.missing_texts`; among words "null" is a word, and among tags "NA" a tag."""
        return {}

    @classmethod
    def usable(cls, rows: Dataset, columns: Columns, settings: TaskSettings) -> NDArray[np.bool_]:
        """See `Task.usable`; a row needs one word with a tag, and no gap among its words."""
        words = [bool(texts) and None not in texts for texts in ColumnValues(rows, columns.text)]
        tags = [any(map(is_tag, of_row or ())) for of_row in ColumnValues(rows, str(columns.label))]
        return np.array(words, dtype=np.bool_) & np.array(tags, dtype=np.bool_)

    @classmethod
    def faults(cls, rows: Dataset, columns: Columns, settings: TaskSettings) -> Mapping[int, str]:
        """See `Task.faults`: rows in which words and tags do not go together."""
        return tag_faults(rows, columns)

    @classmethod
    def classes(cls, rows: Dataset, columns: Columns) -> tuple[str, ...]:
        """The tags: a `ClassLabel` keeps its order, integers ascend, others are sorted as text.

        Raises:
            UsageError: a row cannot be used, or the rows do not have from two to `MAX_CLASSES` tags.
        """
        feature = tag_feature(rows, columns)
        tags = tag_names(rows, columns)
        present = {name for row in tags for name in row if name is not None}
        if not 2 <= len(present) <= MAX_CLASSES:
            raise UsageError(
                f"column {columns.label!r} has {len(present)} different tags, and {cls.name} needs 2 to "
                f"{MAX_CLASSES}; choose another with --label-column among {list_columns(rows)}"
            )
        if isinstance(feature, datasets.ClassLabel):
            return tuple(feature.names)
        return tuple(sorted(present, key=int if cell_kind(feature) == "integer" else None))

    def check_labels(self, rows: Dataset, columns: Columns) -> None:
        """See `Task.check_labels`; each row has as many tags as words."""
        self._encoded(rows, columns)

    def label_counts(self, rows: Dataset, columns: Columns) -> Mapping[str, int]:
        """See `Task.label_counts`."""
        tags = tag_names(rows, columns)
        return Counter(tag for of_row in tags for tag in of_row if tag is not None)

    def score_name(self, score: str) -> str:
        """See `Task.score_name`."""
        if score not in ("f1", "precision", "recall"):
            return score
        mean, units = ("micro", "entities") if self._has_entities else ("macro", "tags")
        return f"{mean} {'F1' if score == 'f1' else score} of {units}"

    @property
    def _has_entities(self) -> bool:
        """True if all labels belong to a chunking scheme."""
        return are_chunk_tags(self.labels)

    def features(self, base: BaseModel, rows: Dataset, columns: Columns, *, training: bool) -> Features:
        """Tokenise word by word.

        Inputs are those of the model, the `labels` of its tokens, and as `tagged` the places in the row of the words
        that have a token and a tag. References are the classes of all words, `(words,)` a row; -100 for no tag.

        Raises:
            UsageError: a row has no words, not as many tags as words, a tag that the task does not have, or no word
                with a token; or the tokenizer does not know the words of its tokens.
        """
        words = words_of(rows, columns)
        features, classes = self._tokenised(base, rows, columns, zip(words, self._encoded(rows, columns), strict=True))
        references = Derived(lambda of_row: np.array(of_row, dtype=np.int32), classes)
        return replace(features, references=references, sources=Derived(lambda row: {"tokens": row}, words))

    def _tokenised(
        self, base: BaseModel, rows: Dataset, columns: Columns, words: Iterable[tuple[list[str], list[int]]]
    ) -> tuple[Features, Sequence[Any]]:
        """Features of the words of each row with their classes, and the classes again.

        Raises:
            UsageError: as `features`.
        """
        tokenizer = base.processor
        if not tokenizer.is_fast:
            raise UsageError(
                f"--model {base.base.name}: {self.name} needs a fast tokenizer, which knows the word of each "
                f"token, and {type(tokenizer).__name__} is not one; choose another model"
            )
        cut = CutWords(tokenizer, token_limit(base, self.max_length))
        stored = stored_columns(cut.batches(words, lambda row: _no_token(rows, columns, row)))
        classes = stored.pop("classes")
        return Features(stored, lengths_of(stored["labels"]), truncated=cut.truncated), classes

    def collate(self, base: BaseModel, features: Features, indices: Sequence[int], *, training: bool) -> Batch:
        """Inputs `(batch, tokens)`, and `labels`, `(batch, tokens)`: -100 except at the first tokens of words."""
        names = features.inputs.keys() - {"labels", "tagged"}
        picked = {name: [features.inputs[name][index] for index in indices] for name in names}
        padded = base.processor.pad(picked, return_attention_mask=True, return_tensors="pt")
        labels = torch.full_like(padded["input_ids"], IGNORED)
        # Whichever side is padded, the mask is 1 at the tokens of a row, in their order.
        labels[padded["attention_mask"].bool()] = torch.tensor(
            [label for index in indices for label in features.inputs["labels"][index]], device=labels.device
        )
        return Batch(dict(padded), {"labels": labels}, int((labels != IGNORED).sum()))

    def loss(self, outputs: Any, targets: Mapping[str, Tensor], smoothing: float) -> Tensor:
        """The sum of the cross-entropy over the words that have a token."""
        return summed_loss(outputs.logits, targets["labels"], smoothing)

    def predict(
        self, base: BaseModel, model: nn.Module, features: Features, indices: Sequence[int], batch: Batch, outputs: Any
    ) -> list[NDArray[np.int32]]:
        """The classes of the words of each row, `(words,)`; that of "O", or -1, for a word without a token."""
        outside = self.labels.index("O") if "O" in self.labels else _NONE
        predictions = []
        for index, classes, labels in zip(indices, outputs.logits.argmax(-1), batch.targets["labels"], strict=True):
            prediction = np.full(len(features.references[index]), outside, dtype=np.int32)
            prediction[features.inputs["tagged"][index]] = classes[labels != IGNORED].cpu().numpy()
            predictions.append(prediction)
        return predictions

    def score(self, features: Features, predictions: Sequence[Any]) -> dict[str, float]:
        """See the class."""
        from sklearn.metrics import accuracy_score

        masks = [classes != IGNORED for classes in features.references]
        truth, predicted = (
            [row[mask] for row, mask in zip(rows, masks, strict=True)] for rows in (features.references, predictions)
        )
        precision, recall, f1 = (self._entities if self._has_entities else _means)(truth, predicted)
        accuracy = accuracy_score(np.concatenate(truth), np.concatenate(predicted))
        return {"f1": float(f1), "precision": float(precision), "recall": float(recall), "accuracy": float(accuracy)}

    def report(self, features: Features, predictions: Sequence[Any]) -> list[dict[str, Any]]:
        """The words of each row, their tags, and the predicted ones; None for a word without a token or a tag."""
        names = {**dict(enumerate(self.labels)), _NONE: None, IGNORED: None}
        report = []
        for source, truth, predicted in zip(features.sources, features.references, predictions, strict=True):
            scored = np.where(truth == IGNORED, IGNORED, predicted)
            rows = ([names[int(index)] for index in classes] for classes in (truth, scored))
            report.append({**source, **dict(zip(("label", "predicted"), rows, strict=True))})
        return report

    def find_inputs(self, rows: Dataset, named: Mapping[str, str | None]) -> Columns:
        """See `TaskAnswers.find_inputs`: lists of words, or texts."""
        if named.get("pair"):
            raise UsageError(f"--pair-column {named['pair']}: {self.name} takes no second text; drop it")
        text = find_column(rows, "text", named.get("text"), (), _holds_words_or_text, "lists of words, or text")
        if text is None and any(map(_holds_words, rows.features.values())):
            text = _column(rows, "text", None, _WORDS, _holds_words, "lists of words", None)
        return Columns(text) if text else recognise_plain_text(rows, {})

    def answer_fields(self, top: int | None = None) -> tuple[str, ...]:
        """The words, the tag of each, and the spans that the tags make."""
        return ("words", "tags", "spans")

    def answer_features(self, base: BaseModel, rows: Dataset, columns: Columns) -> Features:
        """See `TaskAnswers.answer_features`; sources are the words, and where they stand."""
        sources = read_words(rows, columns)
        # Any class would do: it shows which words have a token.
        words = ((source.words, [0] * len(source.words)) for source in sources)
        return replace(self._tokenised(base, rows, columns, words)[0], sources=sources)

    def answer_batch(
        self, base: BaseModel, model: nn.Module, features: Features, indices: Sequence[int], batch: Batch
    ) -> list[dict[int, tuple[str, float]]]:
        """The tag of each word that has a token, with its probability, by position."""
        logits = model(**batch.inputs).logits
        answers = []
        for index, row, labels in zip(indices, logits, batch.targets["labels"], strict=True):
            shares, classes = row[labels != IGNORED].float().softmax(-1).max(-1)
            tags = [self.labels[at] for at in classes.tolist()]
            answers.append(
                dict(zip(features.inputs["tagged"][index], zip(tags, shares.tolist(), strict=True), strict=True))
            )
        return answers

    def answer(self, features: Features, predictions: Sequence[Any], top: int | None = None) -> list[Record]:
        """See `tagged_words`."""
        return [
            tagged_words(source, tags, entities=self._has_entities)
            for source, tags in zip(features.sources, predictions, strict=True)
        ]

    def show(self, base: BaseModel, features: Features, index: int) -> str:
        """The tokens, and after a slash the tags of those that count."""
        tokens = base.processor.convert_ids_to_tokens(features.inputs["input_ids"][index])
        labels = features.inputs["labels"][index]
        return " ".join(
            token if label == IGNORED else f"{token}/{self.labels[label]}"
            for token, label in zip(tokens, labels, strict=True)
        )

    def _encoded(self, rows: Dataset, columns: Columns) -> Sequence[list[int]]:
        """The class of each word, by row."""
        index = class_positions(self.labels, integers=cell_kind(tag_feature(rows, columns)) == "integer")
        names = tag_names(rows, columns)
        for row, tags in enumerate(names):
            for tag in tags:
                if tag is not None and tag not in index:
                    raise unknown_label(rows, columns, row, tag, self.labels)
        return Derived(lambda tags: [IGNORED if tag is None else index[tag] for tag in tags], names)

    def _entities(self, truth: Sequence[Any], predictions: Sequence[Any]) -> tuple[float, float, float]:
        """Precision, recall and F1 of entities."""
        from seqeval.metrics.sequence_labeling import precision_recall_fscore_support

        names = {at: as_iobes(name) for at, name in enumerate(self.labels)} | {_NONE: "O"}
        tags, predicted = ([[names[int(index)] for index in row] for row in rows] for rows in (truth, predictions))
        return precision_recall_fscore_support(tags, predicted, average="micro", zero_division=0)[:3]


def _no_token(rows: Dataset, columns: Columns, row: int) -> NoReturn:
    raise UsageError(
        f"{describe_row(rows, columns, row)}: the tokenizer has no token for any word in column {columns.text!r}; drop "
        "the row"
    )


def _means(truth: Sequence[Any], predictions: Sequence[Any]) -> tuple[float, float, float]:
    """Precision, recall and F1, each the mean over the classes that occur."""
    from sklearn.metrics import precision_recall_fscore_support

    tags, predicted = np.concatenate(truth), np.concatenate(predictions)
    occurring = np.setdiff1d(np.union1d(tags, predicted), [_NONE])
    return precision_recall_fscore_support(tags, predicted, labels=occurring, average="macro", zero_division=0)[:3]


def _column(
    rows: Dataset,
    role: str,
    named: str | None,
    names: Sequence[Sequence[str]],
    fits: Callable[[Any], bool],
    what: str,
    taken: str | None,
) -> str:
    """The column of a role, by name or as the only one that fits; see `find_column`."""
    if column := find_column(rows, role, named, names, fits, what, (taken,)):
        return column
    fitting = [name for name, feature in rows.features.items() if fits(feature) and name != taken]
    if len(fitting) != 1:
        ask_for_column(rows, role, "several columns could be" if fitting else f"no column holds {what}")
    return fitting[0]


def _holds_words(feature: Any) -> bool:
    return cell_kind(feature) == "list" and is_text(feature.feature)


def _holds_words_or_text(feature: Any) -> bool:
    return _holds_words(feature) or is_text(feature)


def _holds_tags(feature: Any) -> bool:
    return cell_kind(feature) == "list" and cell_kind(feature.feature) in ("class", "integer", "text")
