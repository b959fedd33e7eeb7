"""Text classification: one sentence or a pair of sentences to one of several classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from capaft.base_model import BaseModel, load
from capaft.columns import Columns, encode_labels
from capaft.columns import texts as column_texts
from capaft.errors import UsageError

Labels = NDArray[np.int64]


def accuracy(truth: Labels, predicted: Labels) -> float:
    """Share of examples whose class is right."""
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(truth, predicted))


def f1(truth: Labels, predicted: Labels) -> float:
    """F1 of class 1 for two classes (as GLUE scores MRPC), the unweighted mean over classes for more."""
    from sklearn.metrics import f1_score

    average = "binary" if max(truth.max(), predicted.max()) <= 1 else "macro"
    return float(f1_score(truth, predicted, average=average, zero_division=0))


def matthews(truth: Labels, predicted: Labels) -> float:
    """Matthews correlation coefficient (as GLUE scores CoLA)."""
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(truth, predicted))


METRICS: dict[str, Callable[[Labels, Labels], float]] = {"accuracy": accuracy, "f1": f1, "matthews": matthews}


@dataclass(frozen=True)
class Features:
    """A tokenised data set.

    Attributes:
        input_ids: token ids of each example.
        token_type_ids: segment ids of each example, or None where the tokenizer has none.
        labels: class of each example, `(examples,)`.
        truncated: how many examples were cut to the maximum length.
    """

    input_ids: list[list[int]]
    token_type_ids: list[list[int]] | None
    labels: Labels
    truncated: int

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens in each example."""
        return np.array([len(ids) for ids in self.input_ids], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True)
class TextClassification:
    """The task.

    Attributes:
        labels: class names, in the order of the model's outputs.
        max_length: tokens that longer texts are cut to.
        metric: name of the score that evaluation gives.
    """

    name: ClassVar[str] = "text-classification"

    labels: tuple[str, ...]
    max_length: int
    metric: str = "accuracy"

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise UsageError(f"--metric must be one of {', '.join(METRICS)}, got {self.metric}")

    def load_model(self, name: str | None, **options: Any) -> BaseModel:
        """The base model with a classification head; see :func:`capaft.base_model.load` for the options."""
        from transformers import AutoModelForSequenceClassification

        loaded = load(
            AutoModelForSequenceClassification,
            name,
            num_labels=len(self.labels),
            id2label=dict(enumerate(self.labels)),
            label2id={label: index for index, label in enumerate(self.labels)},
            problem_type="single_label_classification",
            **options,
        )
        tokenizer, config = loaded.tokenizer, loaded.model.config
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        if tokenizer.pad_token_id is None:
            raise UsageError("the tokenizer has neither a padding nor an end-of-text token; add one to the checkpoint")
        if getattr(config, "pad_token_id", None) is None:
            config.pad_token_id = tokenizer.pad_token_id
        return loaded

    def features(self, tokenizer: Any, rows: Any, columns: Columns) -> Features:
        """Tokenise a data set.

        Raises:
            UsageError: a text or a label is missing, or a label is none of the task's.
        """
        labels = encode_labels(rows, columns, list(self.labels))
        texts, pairs = column_texts(rows, columns)
        limit = min(self.max_length, tokenizer.model_max_length)
        encoded = tokenizer(texts, pairs, truncation=True, max_length=limit, return_attention_mask=False)
        ids = encoded["input_ids"]
        at_limit = [i for i, tokens in enumerate(ids) if len(tokens) >= limit]
        truncated = 0
        if at_limit:
            again = tokenizer(
                [texts[i] for i in at_limit], [pairs[i] for i in at_limit] if pairs else None, verbose=False
            )
            truncated = sum(len(tokens) > limit for tokens in again["input_ids"])
        return Features(ids, encoded.get("token_type_ids"), np.array(labels, dtype=np.int64), truncated)

    def collate(self, tokenizer: Any, features: Features, indices: Sequence[int]) -> dict[str, Tensor]:
        """One batch, padded to its longest example: the model's inputs, `(batch, tokens)`, and `labels`, `(batch,)`."""
        batch = {"input_ids": [features.input_ids[i] for i in indices]}
        if features.token_type_ids is not None:
            batch["token_type_ids"] = [features.token_type_ids[i] for i in indices]
        padded = tokenizer.pad(batch, return_tensors="pt")
        return {**padded, "labels": torch.from_numpy(features.labels[list(indices)])}

    def score(self, logits: Tensor, labels: Labels) -> float:
        """The metric, from logits `(examples, classes)`."""
        return METRICS[self.metric](labels, logits.argmax(-1).numpy())
