"""Base of the tasks whose model writes text: how it generates, and how the text is scored."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from capaft.config.choices import (
    GENERATION_MAX_LENGTH,
    LENGTH_PENALTY,
    MAX_NEW_TOKENS,
    NO_REPEAT_NGRAM_SIZE,
    NUM_BEAMS,
)
from capaft.config.parts.task import TaskSettings
from capaft.model.load import BaseModel
from capaft.support.errors import UsageError, one_line
from capaft.tasks.base.columns import Columns, cell_kind
from capaft.tasks.base.features import Batch, Features
from capaft.tasks.base.task import Task
from capaft.tasks.base.task_answers import Record
from capaft.tasks.base.uncertainty import Resampler
from capaft.tasks.language.text_scores import TEXT_METRICS, score_texts, text_resampler
from capaft.tasks.language.token_limit import vocabulary_size
from capaft.tasks.language.token_loss import Counted, loss_by_example, score_tokens, summed_loss
from capaft.tasks.language.words import check_language

if TYPE_CHECKING:
    from datasets import Dataset

Prediction = tuple[float, int, int, str | None]
"""For one feature: the summed loss, the number of tokens that count, how many are right, and any generated text."""

GENERATION_OPTIONS = ("max_new_tokens", "num_beams", "length_penalty", "no_repeat_ngram_size", "language")
"""Options of writing texts."""


@dataclass(frozen=True)
class Generation(Task):
    """Base of these tasks. They generate only if the metric compares texts, since each token takes a forward pass.

    Attributes:
        source_prefix: put before each source, such as "summarize: ".
        max_new_tokens: maximum number of generated tokens.
        num_beams: beams of the search; 1 is greedy. Nothing is ever sampled.
        length_penalty: of beam search; above 0 longer texts are preferred.
        no_repeat_ngram_size: groups of this many tokens occur at most once; 0 allows repeats.
        language: of the texts, a code such as `zh`; if empty, the script decides what a word is in the scores.
    """

    shares: ClassVar[frozenset[str]] = frozenset({"exact_match"})

    max_length: int = GENERATION_MAX_LENGTH
    source_prefix: str = ""
    max_new_tokens: int = MAX_NEW_TOKENS
    num_beams: int = NUM_BEAMS
    length_penalty: float = LENGTH_PENALTY
    no_repeat_ngram_size: int = NO_REPEAT_NGRAM_SIZE
    language: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_language(self.language)

    @classmethod
    def missing_texts(cls, rows: Dataset, columns: Columns, settings: TaskSettings) -> dict[str, frozenset[str]]:
        """See `Task.missing_texts`; a source that is a list, such as triples, has texts that are all values."""
        missing = super().missing_texts(rows, columns, settings)
        if cell_kind(rows.features.get(columns.text)) == "list":
            del missing[columns.text]
        return missing

    @property
    def generates(self) -> bool:
        """See `Task.generates`; only some metrics compare texts."""
        return self.metric in TEXT_METRICS

    @property
    def reports(self) -> bool:
        """See `Task.reports`; only texts are reported."""
        return self.generates

    def idle_options(self, base: BaseModel) -> dict[str, str]:
        """See `Task.idle_options`; a metric that needs no texts is no cause, since a later evaluation may need some."""
        return {"length_penalty": "--num-beams 1"} if self.num_beams == 1 else {}

    def loss(self, outputs: Any, targets: Mapping[str, Tensor], smoothing: float) -> Tensor:
        """The sum of the cross-entropy over the tokens that count."""
        return summed_loss(outputs.logits, targets["labels"], smoothing)

    def logits(self, base: BaseModel, features: Features) -> NDArray[np.int64] | None:
        """See `Task.logits`: those of all tokens, although a model may be told to leave some out."""
        return features.lengths * vocabulary_size(base)

    def evaluate_batch(
        self, base: BaseModel, model: nn.Module, features: Features, indices: Sequence[int], batch: Batch
    ) -> tuple[Tensor, list[Prediction]]:
        """See `Task.evaluate_batch`; the logits are gone before the model writes."""
        outputs = model(**batch.inputs)
        loss = self.loss(outputs, batch.targets, 0.0)
        losses = loss_by_example(outputs.logits, batch.targets["labels"])
        del outputs
        return loss, self._with_texts(losses, base, model, features, indices, batch)

    def predict(
        self, base: BaseModel, model: nn.Module, features: Features, indices: Sequence[int], batch: Batch, outputs: Any
    ) -> list[Prediction]:
        """The loss of each feature, and the model's text if the metric needs one.

        Raises:
            UsageError: the model's own settings do not let it write.
        """
        losses = loss_by_example(outputs.logits, batch.targets["labels"])
        return self._with_texts(losses, base, model, features, indices, batch)

    def _with_texts(
        self,
        losses: Sequence[Counted],
        base: BaseModel,
        model: nn.Module,
        features: Features,
        indices: Sequence[int],
        batch: Batch,
    ) -> list[Prediction]:
        """Each loss with the model's text, if the metric needs one.

        Raises:
            UsageError: the model's own settings do not let it write.
        """
        with refusing_to_write(base, "check its generation_config.json, or choose a --metric that needs no texts"):
            texts = self.written(base, model, features, indices, batch) if self.generates else [None] * len(losses)
        return [(*loss, text) for loss, text in zip(losses, texts, strict=True)]

    def answer_fields(self, top: int | None = None) -> tuple[str, ...]:
        """The text that the model writes."""
        return ("text",)

    def unanswerable(self, rows: Dataset, columns: Columns) -> Mapping[int, str]:
        """See `TaskAnswers.unanswerable`; the further text of a source may be missing."""
        return super().unanswerable(rows, dataclasses.replace(columns, pair=None))

    def answer_features(self, base: BaseModel, rows: Dataset, columns: Columns) -> Features:
        """See `prompts`."""
        return self.prompts(base, rows, columns)

    def answer_batch(
        self, base: BaseModel, model: nn.Module, features: Features, indices: Sequence[int], batch: Batch
    ) -> list[str]:
        """The texts.

        Raises:
            UsageError: the model's own settings do not let it write.
        """
        with refusing_to_write(base, "check its generation_config.json"):
            return self.written(base, model, features, indices, batch)

    def answer(self, features: Features, predictions: Sequence[Any], top: int | None = None) -> list[Record]:
        """The text of each row."""
        return [{"text": text} for text in predictions]

    def prompts(self, base: BaseModel, rows: Dataset, columns: Columns) -> Features:
        """Rows to write from, put as in the training; `prompt_inputs` makes batches of them.

        Args:
            base: the base model.
            rows: prompts, whatever else they hold.
            columns: their columns; a label is not read.

        Raises:
            UsageError: a row has no prompt.
        """
        writing = dataclasses.replace(self, metric=TEXT_METRICS[0])
        return writing.features(base, rows, dataclasses.replace(columns, label=None), training=False)

    @abstractmethod
    def prompt_inputs(self, base: BaseModel, features: Features, indices: Sequence[int]) -> dict[str, Tensor]:
        """The model's inputs that it writes from, each `(batch, tokens)`."""

    def stops(self, base: BaseModel) -> set[int]:
        """Tokens that end a text, besides those of the checkpoint."""
        return set()

    @abstractmethod
    def new_tokens(self, base: BaseModel) -> int:
        """Maximum number of tokens to write: at most those that the model has positions for."""

    def written(
        self, base: BaseModel, model: nn.Module, features: Features, indices: Sequence[int], batch: Batch
    ) -> list[str]:
        """The model's texts for some features."""
        device = batch.inputs["input_ids"].device
        inputs = {name: tensor.to(device) for name, tensor in self.prompt_inputs(base, features, indices).items()}
        return self.generated(base, model, self.new_tokens(base), self.stops(base), **inputs)

    def generated(self, base: BaseModel, model: Any, new_tokens: int, ends: set[int], **inputs: Tensor) -> list[str]:
        """The model's continuations, or decoder outputs, of `input_ids` `(batch, tokens)`, without special tokens.

        Args:
            base: the base model, for its tokenizer.
            model: the model that generates.
            new_tokens: maximum number of new tokens.
            ends: tokens that end a text, besides the checkpoint's.
            **inputs: arguments of the model's forward.
        """
        tokens = model.generate(**inputs, **self.decoding(base, model, new_tokens, ends))
        start = 0 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
        return [decoded(base.processor, row) for row in tokens[:, start:].tolist()]

    def decoding(self, base: BaseModel, model: Any, new_tokens: int, ends: set[int]) -> dict[str, Any]:
        """Arguments of `generate`.

        The checkpoint's own generation settings (sampling, penalties, lengths) are switched off: only the task's fields
        decide.

        Args:
            base: the base model, for its tokenizer.
            model: the model that generates.
            new_tokens: maximum number of new tokens.
            ends: tokens that end a text, besides the checkpoint's.
        """
        checkpoint_ends = model.generation_config.eos_token_id
        stops = ends | set(checkpoint_ends if isinstance(checkpoint_ends, list) else [checkpoint_ends]) - {None}
        return {
            "do_sample": False,
            "temperature": None,
            "top_p": None,
            "top_k": None,
            "repetition_penalty": 1.0,
            "min_length": 0,
            "max_length": None,
            "max_new_tokens": new_tokens,
            "num_beams": self.num_beams,
            "length_penalty": self.length_penalty,
            "no_repeat_ngram_size": self.no_repeat_ngram_size,
            "eos_token_id": sorted(stops) or None,
            "pad_token_id": base.processor.pad_token_id,
        }

    def score(self, features: Features, predictions: Sequence[Prediction]) -> dict[str, float]:
        """Perplexity, loss and accuracy of the tokens, and the text scores if there are texts and references."""
        scores = score_tokens(prediction[:3] for prediction in predictions)
        texts = [text for *_, text in predictions if text is not None]
        is_comparable = texts and self.has_targets(features)
        return scores | (score_texts(texts, features.references, self.language) if is_comparable else {})

    def resampler(self, features: Features, predictions: Sequence[Prediction]) -> Resampler | None:
        """See `Task.resampler`; plain text is drawn in the blocks that it is cut into."""
        texts = [text for *_, text in predictions if text is not None]
        if self.generates:
            is_comparable = len(texts) == len(predictions) and self.has_targets(features)
            return text_resampler(self.metric, texts, features.references, self.language) if is_comparable else None
        counted = [prediction[:3] for prediction in predictions]

        def score(rows: NDArray[np.int64]) -> float:
            return score_tokens(counted[row] for row in rows).get(self.metric, float("nan"))

        return Resampler(len(counted), score)

    def has_targets(self, features: Features) -> bool:
        """True if there is something to compare with: plain text is its own target, other rows need references."""
        return features.references is None or all(features.references)

    def report(self, features: Features, predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
        """Source, prediction and references of the features for which the model wrote a text."""
        if not features.references:
            return []
        return [
            {"source": source, "prediction": text, "references": list(references)}
            for source, (*_, text), references in zip(features.sources, predictions, features.references, strict=True)
            if text is not None
        ]


def decoded(tokenizer: Any, tokens: Sequence[int]) -> str:
    """The text of new tokens: without special ones, and without the white space around it."""
    text = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return str(text).strip()


@contextmanager
def refusing_to_write(base: BaseModel, advice: str) -> Iterator[None]:
    """Turns what transformers says of a checkpoint's own settings into one line.

    Raises:
        UsageError: they do not let the model write.
    """
    try:
        yield
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        raise UsageError(f"--model {base.base.name} cannot write texts ({one_line(error)}); {advice}") from error
