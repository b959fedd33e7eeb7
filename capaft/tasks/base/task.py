"""The base class of all tasks: the rows that a task reads, its model, its batches, its loss, and its scores.

The training loop knows no task by name. It sorts examples by `Features.lengths`, has `collate` make batches of them,
adds up `loss`, and has `score` compare the predictions with the truth. A new task is one new file in `capaft/tasks/`,
named as the task, with `_` for `-`.
"""

from __future__ import annotations

import dataclasses
import typing
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from capaft.config.choices import MAX_LENGTH
from capaft.config.parts.model import ModelSettings
from capaft.config.parts.task import TaskSettings
from capaft.model.load import BaseModel, load_base_model, load_configuration
from capaft.model.vocabulary import check_tokenizer, resize_embeddings, rows_needed
from capaft.support.errors import UsageError
from capaft.tasks.base.columns import Columns
from capaft.tasks.base.features import Batch, Features
from capaft.tasks.base.options import parse_task_options
from capaft.tasks.base.padding import ensure_padding
from capaft.tasks.base.task_answers import TaskAnswers
from capaft.tasks.base.task_rows import TaskRows
from capaft.tasks.base.uncertainty import Resampler, feature_resampler

if TYPE_CHECKING:
    from datasets import Dataset

# Scores of which less is better; of all others more is.
LOWER_IS_BETTER = frozenset({"loss", "perplexity", "mse", "mae", "wer", "cer"})
# Error rates where nothing is right.
_ALL_WRONG = {"wer": 1.0, "cer": 1.0}
# Fields that every task has; its further fields are its own options.
_COMMON = ("labels", "max_length", "metric")
_SETTINGS = frozenset(field.name for field in dataclasses.fields(TaskSettings))


@dataclass(frozen=True)
class Task(TaskRows, TaskAnswers):
    """Base of all tasks. Its fields are its options, and an adapter file records them.

    An option is a number, a text or a truth value. It is set by the flag of its name, or where `capaft train` has none
    by `--task-option`.

    Attributes:
        labels: class names, in the order of the model's outputs; empty where there are no classes.
        max_length: tokens that longer inputs are cut to.
        metric: name of the score that picks the best adapter.
    """

    name: ClassVar[str]
    """Its name on the command line, as `--task` takes it."""
    pipeline_tag: ClassVar[str]
    """The hub's name for it; by default its own, and empty if the hub has none."""
    summary: ClassVar[str]
    """One line for people: the input and the output."""
    auto_class: ClassVar[str]
    """The transformers auto class that loads a model for it."""
    processor: ClassVar[str] = "AutoTokenizer"
    """The transformers auto class that loads the tokenizer or processor of its inputs."""
    metrics: ClassVar[tuple[str, ...]]
    """Names of its scores, the default first."""
    shares: ClassVar[frozenset[str]] = frozenset()
    """Those of its scores that are the share of examples which are right."""
    cut_by: ClassVar[str] = "--max-length"
    """The flags that limit the length of an example."""
    own_head: ClassVar[bool] = True
    """True if the model's head belongs to the task and is trained even if the checkpoint brought one."""
    inferred: ClassVar[tuple[str, ...]] = ()
    """Options that `decide` infers from the training rows, and that no user sets."""
    precedence: ClassVar[int] = 100
    """Place in the order in which tasks are asked whether rows are theirs; the lowest is asked first."""
    is_fallback: ClassVar[bool] = False
    """True for the one task that takes rows which no task claims and none objects to."""

    labels: tuple[str, ...] = ()
    max_length: int = MAX_LENGTH
    metric: str = ""

    def __init_subclass__(cls) -> None:
        if not hasattr(cls, "pipeline_tag") and hasattr(cls, "name"):
            cls.pipeline_tag = cls.name

    def __post_init__(self) -> None:
        if not self.metric:
            object.__setattr__(self, "metric", self.metrics[0])
        if self.metric not in self.metrics:
            raise UsageError(f"--metric must be one of {', '.join(self.metrics)} for {self.name}, got {self.metric}")

    @classmethod
    def check_model(cls, config: Any) -> None:
        """Make sure that a model can do the task; by default any can.

        Args:
            config: the model's configuration, as transformers has it.

        Raises:
            UsageError: it cannot.
        """

    @classmethod
    def decide(cls, rows: Dataset, columns: Columns, settings: TaskSettings, data: str = "") -> Self:
        """The task that training rows and settings describe: options take the values of settings of their name.

        Args:
            rows: the training rows.
            columns: their columns.
            settings: those of the task.
            data: the user's name for the data set; some are scored by metrics of their own.

        Raises:
            UsageError: an entry of `--task-option` is not an option of the task, or its value does not fit.
        """
        names = ({field.name for field in dataclasses.fields(cls)} & _SETTINGS) - {"labels"}
        options = {name: getattr(settings, name) for name in names if getattr(settings, name, None) is not None}
        types = typing.get_type_hints(cls)
        kinds = {name: types[name] for name in cls.options_without_flag()}
        options |= parse_task_options(cls.name, kinds, settings.task_option or ())
        return cls(labels=cls.classes(rows, columns), **options)

    @classmethod
    def options_without_flag(cls) -> tuple[str, ...]:
        """Names of the options that `capaft train` has no flag for, and that `--task-option` sets."""
        names = (field.name for field in dataclasses.fields(cls))
        return tuple(name for name in names if name not in _SETTINGS.union(_COMMON, cls.inferred))

    def score_name(self, score: str) -> str:
        """The name of a score for people, which says what it is averaged over; by default the score's own."""
        return score

    def score_names(self, scores: Iterable[str]) -> dict[str, str]:
        """The names for people of scores that have another name for them."""
        return {score: name for score in scores if (name := self.score_name(score)) != score}

    def options(self) -> dict[str, Any]:
        """The task's own options, as an adapter file records them."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in _COMMON}

    def idle_options(self, base: BaseModel) -> dict[str, str]:
        """The options, and settings of the loss, that have no effect on this task as it is, each with the cause.

        Args:
            base: the base model.
        """
        return {}

    @property
    def reports(self) -> bool:
        """True if `report` gives the predictions; by default if a task has its own."""
        return type(self).report is not Task.report

    @property
    def generates(self) -> bool:
        """True if evaluation has the model write, token by token; by default it only classifies."""
        return False

    @property
    def more_is_better(self) -> bool:
        """True if a larger value of the metric is better."""
        return self.metric not in LOWER_IS_BETTER

    @property
    def worst_score(self) -> float | None:
        """The score of the metric where no example scores: no text alike, no word right; None if there is none."""
        return 0.0 if self.more_is_better else _ALL_WRONG.get(self.metric)

    def model_config(self) -> dict[str, Any]:
        """Configuration entries that the model is loaded with."""
        if not self.labels:
            return {}
        return {
            "num_labels": len(self.labels),
            "id2label": dict(enumerate(self.labels)),
            "label2id": {label: index for index, label in enumerate(self.labels)},
        }

    def auto_class_for(self, config: Any) -> str:
        """The transformers auto class that loads a model; one class for all, by default.

        Args:
            config: the model's configuration, as transformers has it.
        """
        return self.auto_class

    def load_model(self, settings: ModelSettings, *, seed: int) -> BaseModel:
        """The base model with the task's head.

        Args:
            settings: the model and how it is loaded.
            seed: of a new head.

        Raises:
            UsageError: the model does not exist, or cannot do the task.
        """
        import transformers

        loaded = load_base_model(
            getattr(transformers, self.auto_class_for(load_configuration(settings))),
            settings,
            seed=seed,
            processor_class=getattr(transformers, self.processor),
            own_head=self.own_head,
            **self.model_config(),
        )
        if self.processor == "AutoTokenizer":
            check_tokenizer(loaded.processor, loaded.base.name or "")
            ensure_padding(loaded)
            if settings.resize_embeddings:
                resize_embeddings(loaded.model, rows_needed(loaded.processor), seed)
        return loaded

    @abstractmethod
    def features(self, base: BaseModel, rows: Dataset, columns: Columns, *, training: bool) -> Features:
        """Prepare a split.

        Args:
            base: the base model, for its processor and configuration.
            rows: the split.
            columns: its columns; where a task answers rows, they may have no label, and the features no references.
            training: prepare it for training, not for evaluation.

        Raises:
            UsageError: a value is missing or cannot be used; names the row.
        """

    @abstractmethod
    def collate(self, base: BaseModel, features: Features, indices: Sequence[int], *, training: bool) -> Batch:
        """One batch, padded to its longest feature; without references it has no targets.

        Randomness in training (masked tokens, augmentation) comes from torch's global generator, which the loop seeds
        for every batch; in evaluation nothing is random.
        """

    @abstractmethod
    def loss(self, outputs: Any, targets: Mapping[str, Tensor], smoothing: float) -> Tensor:
        """The SUM of the loss over the batch's terms, float32, so that sums over parts of a batch add up exactly.

        Args:
            outputs: of the model.
            targets: of the batch.
            smoothing: share of the target that is spread over all classes, if there are classes.
        """

    def logits(self, base: BaseModel, features: Features) -> NDArray[np.int64] | None:
        """Number of logits that the model computes for each feature, `(features,)`; None, by default, if they are few.

        Evaluation makes smaller batches where they are many.

        Args:
            base: the base model.
            features: all features.
        """
        return None

    def evaluate_batch(
        self, base: BaseModel, model: nn.Module, features: Features, indices: Sequence[int], batch: Batch
    ) -> tuple[Tensor, list[Any]]:
        """The loss and the predictions of an evaluation batch; see `loss` and `predict`.

        Args:
            base: the base model.
            model: the model to call.
            features: all features.
            indices: those in the batch.
            batch: the batch, on the model's device.
        """
        outputs = model(**batch.inputs)
        loss = self.loss(outputs, batch.targets, 0.0)
        return loss, self.predict(base, model, features, indices, batch, outputs)

    @abstractmethod
    def score(self, features: Features, predictions: Sequence[Any]) -> dict[str, float]:
        """All of the task's scores, from the predictions of all features in their order."""

    def resampler(self, features: Features, predictions: Sequence[Any]) -> Resampler | None:
        """The metric over some of the examples, which tells its uncertainty; None if they cannot be told apart."""
        return feature_resampler(self, features, predictions)

    def report(self, features: Features, predictions: Sequence[Any]) -> list[dict[str, Any]]:
        """The predictions as a person reads them, one record a row; none by default."""
        return []

    def show(self, base: BaseModel, features: Features, index: int) -> str:
        """A feature as a person reads it: the decoded input, and the label or marks on the tokens of the loss."""
        return features.sources[index] if index < len(features.sources) else f"example {index}"
