"""What a task is: which columns it wants, what it makes of them, its loss, and how its results are scored.

The training loop knows no task. It sorts examples by `Features.lengths`, has `collate` make batches of them, adds up
`loss`, and has `score` compare what `predict` gave. A new task is one new file beside this one.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from capaft.config.train_config import TrainConfig
from capaft.model.load import BaseModel, load_base_model
from capaft.support.errors import UsageError
from capaft.tasks.base.columns import Columns, filled_rows

if TYPE_CHECKING:
    from datasets import Dataset
from capaft.tasks.base.features import Batch, Features

# Scores of which less is better; of all others more is.
LOWER_IS_BETTER = frozenset({"loss", "perplexity", "mse", "mae"})
# What the fields of every task are; a task's further fields are its own options.
_COMMON = ("labels", "max_length", "metric")


@dataclass(frozen=True)
class Task(ABC):
    """Base of all tasks. Its fields are its options, and an adapter file records them.

    Attributes:
        labels: class names, in the order of the model's outputs; empty where there are no classes.
        max_length: tokens that longer inputs are cut to.
        metric: name of the score that picks the best adapter.
    """

    name: ClassVar[str]
    """What `--task` calls it; the hub's name for the pipeline."""
    summary: ClassVar[str]
    """One line for people: what goes in and what comes out."""
    auto_class: ClassVar[str]
    """The transformers auto class that loads a model for it."""
    processor: ClassVar[str] = "AutoTokenizer"
    """The transformers auto class of what prepares its inputs."""
    metrics: ClassVar[tuple[str, ...]]
    """Names of its scores, the default first."""
    cut_by: ClassVar[str] = "--max-length"
    """The flags that say how much of an example is kept."""
    own_head: ClassVar[bool] = True
    """Whether the model's head belongs to the task and is trained even if the checkpoint brought one."""

    labels: tuple[str, ...] = ()
    max_length: int = 128
    metric: str = ""

    def __post_init__(self) -> None:
        if not self.metric:
            object.__setattr__(self, "metric", self.metrics[0])
        if self.metric not in self.metrics:
            raise UsageError(f"--metric must be one of {', '.join(self.metrics)} for {self.name}, got {self.metric}")

    @classmethod
    @abstractmethod
    def recognise(cls, rows: Dataset, given: Mapping[str, str | None]) -> Columns:
        """Find the columns of a split.

        Args:
            rows: the split.
            given: the columns that the user named, by role: `text`, `pair`, `label`.

        Raises:
            UsageError: a given column is not there, or one that is not given cannot be told.
        """

    @classmethod
    def usable(cls, rows: Dataset, columns: Columns, config: TrainConfig) -> NDArray[np.bool_]:
        """Which rows have what goes in and what should come out, `(rows,)`: no others are trained on or scored.

        They are left out before anything is decided by them, so that nothing else need mind a missing value.
        """
        return filled_rows(rows, columns.text, columns.label)

    @classmethod
    def classes(cls, rows: Dataset, columns: Columns) -> tuple[str, ...]:
        """The class names that training rows have; none by default."""
        return ()

    @classmethod
    def decide(cls, rows: Dataset, columns: Columns, config: TrainConfig) -> Self:
        """The task that training rows and a configuration describe: options go by the names of settings."""
        own = {each.name for each in dataclasses.fields(cls)} - {"labels"}
        chosen = {name: getattr(config, name) for name in own if getattr(config, name, None) is not None}
        return cls(labels=cls.classes(rows, columns), **chosen)

    def check_labels(self, rows: Dataset, columns: Columns) -> None:
        """Make sure that rows have no labels but the task's, before minutes of loading.

        Raises:
            UsageError: names the first row that has another.
        """
        self.classes_of(rows, columns)

    def classes_of(self, rows: Dataset, columns: Columns) -> Sequence[int] | None:
        """The class of each row, `(rows,)`; None where a row has no class, or several.

        Raises:
            UsageError: a row has no label, or one that is none of the task's.
        """
        return None

    def options(self) -> dict[str, Any]:
        """The task's own options, as an adapter file records them."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in _COMMON}

    @property
    def more_is_better(self) -> bool:
        """Whether the metric is one of which more is better."""
        return self.metric not in LOWER_IS_BETTER

    def model_config(self) -> dict[str, Any]:
        """Configuration entries that the model is loaded with."""
        if not self.labels:
            return {}
        return {
            "num_labels": len(self.labels),
            "id2label": dict(enumerate(self.labels)),
            "label2id": {label: index for index, label in enumerate(self.labels)},
        }

    def load_model(self, name: str | None, **options: Any) -> BaseModel:
        """The base model with the task's head; see `load_base_model` for the options."""
        import transformers

        loaded = load_base_model(
            getattr(transformers, self.auto_class),
            name,
            processor_class=getattr(transformers, self.processor),
            own_head=self.own_head,
            **options,
            **self.model_config(),
        )
        if self.processor == "AutoTokenizer":
            _ensure_padding(loaded)
        return loaded

    @abstractmethod
    def features(self, base: BaseModel, rows: Dataset, columns: Columns, *, training: bool) -> Features:
        """Prepare a split.

        Args:
            base: the base model, for its processor and configuration.
            rows: the split.
            columns: its columns.
            training: for training, not for evaluation, where they differ.

        Raises:
            UsageError: a value is missing or cannot be used; names the row.
        """

    @abstractmethod
    def collate(self, base: BaseModel, features: Features, indices: Sequence[int], *, training: bool) -> Batch:
        """One batch, padded to its longest feature.

        What is random in it in training (masked tokens, augmentation) comes from torch's global generator, which the
        loop seeds for every batch; in evaluation nothing is random.
        """

    @abstractmethod
    def loss(self, outputs: Any, targets: Mapping[str, Tensor], smoothing: float) -> Tensor:
        """The SUM of the loss over the batch's terms, float32, so that sums over parts of a batch add up exactly.

        Args:
            outputs: what the model returned.
            targets: the batch's.
            smoothing: share of the target that is spread over all classes, where there are classes.
        """

    @abstractmethod
    def predict(
        self, base: BaseModel, model: nn.Module, features: Features, indices: Sequence[int], batch: Batch, outputs: Any
    ) -> list[Any]:
        """What is kept of each feature of an evaluation batch for `score`: small, on the CPU, and picklable.

        Args:
            base: the base model.
            model: what to call, or to have generate.
            features: all features.
            indices: those in the batch.
            batch: the batch, on the model's device.
            outputs: what the model returned for it.
        """

    @abstractmethod
    def score(self, features: Features, predictions: Sequence[Any]) -> dict[str, float]:
        """All of the task's scores, from the predictions of all features in their order."""

    def report(self, features: Features, predictions: Sequence[Any]) -> list[dict[str, Any]]:
        """What a person would read of the predictions, one record a row; none by default."""
        return []

    def show(self, base: BaseModel, features: Features, index: int) -> str:
        """A feature as a person reads it: the decoded input, and the label, or which tokens count in the loss."""
        return features.sources[index] if index < len(features.sources) else f"example {index}"


def _ensure_padding(loaded: BaseModel) -> None:
    """Let a tokenizer without a padding token pad with its end-of-text token; attention masks hide it."""
    tokenizer, config = loaded.processor, loaded.model.config
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token_id is None:
        raise UsageError("the tokenizer has neither a padding nor an end-of-text token; add one to the checkpoint")
    # Heads of decoders read the last token that is not the configuration's padding.
    for each in (config, config.get_text_config()):
        each.pad_token_id = tokenizer.pad_token_id
