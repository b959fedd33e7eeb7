"""Masked language modelling: words of a text are hidden, and the model predicts them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from capaft.config.choices import MLM_PROBABILITY, PACKING
from capaft.data.spool import lengths_of, stored_columns
from capaft.model.load import BaseModel
from capaft.model.vocabulary import rows_needed
from capaft.support.errors import UsageError
from capaft.tasks.base.columns import Columns
from capaft.tasks.base.doubts import refuse_doubtful_text, refuse_unread_columns
from capaft.tasks.base.features import Batch, Features
from capaft.tasks.base.task import Task
from capaft.tasks.base.task_answers import Record
from capaft.tasks.base.token_ids import check_tokens
from capaft.tasks.language.filled_masks import Filled, filled, filled_record, masked_texts
from capaft.tasks.language.framing import frame, tokenise_rows
from capaft.tasks.language.plain_text import (
    end_of_text_token,
    pack_blocks,
    recognise_plain_text,
    surrounding_tokens,
)
from capaft.tasks.language.token_limit import token_limit, vocabulary_size
from capaft.tasks.language.token_loss import (
    IGNORED,
    TOKEN_METRICS,
    Counted,
    loss_by_example,
    mark_tokens,
    pad_rows,
    score_tokens,
    summed_loss,
)

if TYPE_CHECKING:
    from datasets import Dataset

    from capaft.tasks.base.evidence import Evidence


@dataclass(frozen=True)
class MaskedLM(Task):
    """The task.

    Attributes:
        packing: join texts, with separators between, and cut them into blocks of the maximum length.
        mlm_probability: share of the tokens to predict.
    """

    name: ClassVar[str] = "masked-lm"
    pipeline_tag: ClassVar[str] = "fill-mask"
    summary: ClassVar[str] = "text with hidden words in, the words out"
    auto_class: ClassVar[str] = "AutoModelForMaskedLM"
    metrics: ClassVar[tuple[str, ...]] = TOKEN_METRICS
    own_head: ClassVar[bool] = False
    precedence: ClassVar[int] = 90

    packing: bool = PACKING
    mlm_probability: float = MLM_PROBABILITY

    @classmethod
    def claims(cls, rows: Dataset, evidence: Evidence) -> bool:
        """True for plain text, if the model predicts masked tokens.

        Raises:
            UsageError: it does, and the column of text cannot be determined.
        """
        return evidence.is_masked and evidence.agrees_with(cls.recognise(rows, evidence.named))

    @classmethod
    def doubt(cls, rows: Dataset, evidence: Evidence) -> None:
        """See `Task.doubt`; whatever has a text could be this, so any further column counts."""
        text = cls.recognise(rows, evidence.named).text
        if evidence.named.get("text") is None:
            refuse_doubtful_text(rows, text, cls.name, plain=True)
            refuse_unread_columns(rows, text, cls.name, scalars=True)

    @classmethod
    def recognise(cls, rows: Dataset, named: Mapping[str, str | None]) -> Columns:
        """The column of text."""
        return recognise_plain_text(rows, named)

    def features(self, base: BaseModel, rows: Dataset, columns: Columns, *, training: bool) -> Features:
        """Blocks or texts, between the tokenizer's special tokens; empty texts are left out.

        Raises:
            UsageError: a row has no text, the tokenizer has no mask token or more tokens than the model, or no word is
                masked in evaluation.
        """
        tokenizer = base.processor
        room = self._room(base)
        # Some words are replaced by any token.
        check_tokens(base, [rows_needed(tokenizer) - 1])
        before, after = surrounding_tokens(tokenizer)
        needed = None if self.packing else room
        whole, notes = tokenise_rows(tokenizer, rows, columns, frame(tokenizer, before, after), needed)
        truncated = 0
        parts: Iterable[list[int]]
        if self.packing:
            between = end_of_text_token(tokenizer)
            last = len(whole) - 1
            joined = (ids if row == last else [*ids, between] for row, ids in enumerate(whole))
            parts = (block.tolist() for block in pack_blocks(joined, room))
        else:
            truncated = int((lengths_of(whole) > room).sum())
            parts = (ids[:room] for ids in whole)
        inputs = stored_columns({"input_ids": [[*before, *part, *after]]} for part in parts)
        lengths = lengths_of(inputs["input_ids"])
        features = Features(inputs, lengths, truncated=truncated, rows=len(whole), notes=notes)
        targets = (self._masked(base, features, index, training=False)[1] for index in range(len(features)))
        if not training and all((labels == IGNORED).all() for labels in targets):
            raise UsageError("there are too few words to evaluate on: none is masked; add rows to the validation split")
        return features

    def collate(self, base: BaseModel, features: Features, indices: Sequence[int], *, training: bool) -> Batch:
        """Tokens `(batch, longest)`, some of them masked, and as `labels` the original tokens of these.

        In evaluation a feature's masks depend on its index alone.
        """
        if "masks" in features.inputs:
            # Rows to answer hide words of their own.
            return Batch(_padded(base, [features.inputs["input_ids"][i] for i in indices]), {}, len(indices))
        pairs = [self._masked(base, features, i, training=training) for i in indices]
        labels = pad_rows((targets for _, targets in pairs), IGNORED)
        return Batch(_padded(base, [ids for ids, _ in pairs]), {"labels": labels}, int((labels != IGNORED).sum()))

    def logits(self, base: BaseModel, features: Features) -> NDArray[np.int64] | None:
        """See `Task.logits`: those of all tokens, masked or not."""
        return features.lengths * vocabulary_size(base)

    def loss(self, outputs: Any, targets: Mapping[str, Tensor], smoothing: float) -> Tensor:
        """The sum of the cross-entropy over the masked tokens."""
        return summed_loss(outputs.logits, targets["labels"], smoothing)

    def predict(
        self, base: BaseModel, model: nn.Module, features: Features, indices: Sequence[int], batch: Batch, outputs: Any
    ) -> list[Counted]:
        """The loss of each feature, the number of its masked tokens, and the number of those that are right."""
        return loss_by_example(outputs.logits, batch.targets["labels"])

    def score(self, features: Features, predictions: Sequence[Counted]) -> dict[str, float]:
        """Perplexity, loss and accuracy of the masked tokens."""
        return score_tokens(predictions)

    def answer_fields(self, top: int | None = None) -> tuple[str, ...]:
        """The text with its masks filled, the tokens there with their probabilities, and the likeliest ones."""
        fields = ("text", "tokens", "probabilities")
        return fields if top is None else (*fields, "candidates")

    def answer_features(self, base: BaseModel, rows: Dataset, columns: Columns) -> Features:
        """See `masked_texts`: nothing is hidden but what the rows hide."""
        return masked_texts(base.processor, rows, columns, self._room(base))

    def answer_batch(
        self, base: BaseModel, model: nn.Module, features: Features, indices: Sequence[int], batch: Batch
    ) -> list[Filled]:
        """The likeliest tokens for the masks of each text."""
        logits = model(**batch.inputs).logits
        return [
            filled(base.processor, of_text[features.inputs["masks"][index]])
            for index, of_text in zip(indices, logits, strict=True)
        ]

    def answer(self, features: Features, predictions: Sequence[Any], top: int | None = None) -> list[Record]:
        """See `filled_record`."""
        return [
            filled_record(source, prediction, top)
            for source, prediction in zip(features.sources, predictions, strict=True)
        ]

    def _room(self, base: BaseModel) -> int:
        """Number of tokens of a text beside the special ones around it.

        Raises:
            UsageError: there is none, or nothing stands for a hidden word.
        """
        if base.processor.mask_token_id is None:
            raise UsageError("the tokenizer has no mask token, which masked-lm needs; try --task causal-lm")
        room = token_limit(base, self.max_length) - sum(map(len, surrounding_tokens(base.processor)))
        if room < 1:
            raise UsageError(f"--max-length {self.max_length} leaves no room for words beside special tokens; raise it")
        return room

    def show(self, base: BaseModel, features: Features, index: int) -> str:
        """The text, with ⟦brackets⟧ around the tokens that evaluation would mask."""
        _, targets = self._masked(base, features, index, training=False)
        return mark_tokens(base.processor, features.inputs["input_ids"][index], (targets != IGNORED).tolist())

    def _masked(self, base: BaseModel, features: Features, index: int, *, training: bool) -> tuple[Tensor, Tensor]:
        generator = None if training else torch.Generator("cpu").manual_seed(index)
        return mask(
            torch.tensor(features.inputs["input_ids"][index], device="cpu"),
            base.processor,
            self.mlm_probability,
            generator,
        )


def _padded(base: BaseModel, rows: Sequence[Any]) -> dict[str, Tensor]:
    return {
        "input_ids": pad_rows(rows, base.processor.pad_token_id),
        "attention_mask": pad_rows(([1] * len(ids) for ids in rows), 0),
    }


def mask(
    ids: Tensor, tokenizer: Any, probability: float, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Hide tokens (Devlin et al. 2018): of those drawn 80 % become the mask, 10 % any token, 10 % stay.

    Args:
        ids: the tokens, `(tokens,)`; special ones are not drawn.
        tokenizer: knows the special tokens.
        probability: share of the other tokens that is drawn.
        generator: of random numbers; None for torch's global one.

    Returns:
        The tokens with some hidden, and the original tokens where one was drawn, `IGNORED` elsewhere.
    """
    special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids, device=ids.device))
    drawn = (
        torch.rand(ids.shape, generator=generator, dtype=torch.float32, device=ids.device) < probability
    ) & ~special
    fate = torch.rand(ids.shape, generator=generator, dtype=torch.float32, device=ids.device)
    any_token = torch.randint(len(tokenizer), ids.shape, generator=generator, device=ids.device)
    hidden = torch.where(drawn & (fate < 0.8), tokenizer.mask_token_id, ids)
    hidden = torch.where(drawn & (fate >= 0.9), any_token, hidden)
    return hidden, torch.where(drawn, ids, IGNORED)
