"""Sequence to sequence: a text in, a text out, by an encoder and a decoder; the model's own head, frozen."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from capaft.config.choices import MAX_TARGET_LENGTH
from capaft.config.parts.task import TaskSettings
from capaft.data.lazy import Derived
from capaft.data.spool import lengths_of, stored_columns
from capaft.model.load import BaseModel
from capaft.support.errors import UsageError
from capaft.tasks.base.columns import Columns, list_columns, row_batches
from capaft.tasks.base.features import Batch, Features
from capaft.tasks.language.chat_columns import chat_columns
from capaft.tasks.language.framing import frame
from capaft.tasks.language.generation import Generation
from capaft.tasks.language.notes import Notes
from capaft.tasks.language.plain_text import recognise_plain_text, surrounding_tokens
from capaft.tasks.language.text_pairs import (
    Pair,
    are_summaries,
    check_pairs,
    read_pairs,
    recognise_source,
    recognise_text_pairs,
)
from capaft.tasks.language.text_scores import TEXT_METRICS
from capaft.tasks.language.token_limit import model_positions, token_limit, vocabulary_size
from capaft.tasks.language.token_loss import IGNORED, TOKEN_METRICS, pad_rows
from capaft.tasks.language.truncation import CutRows, Inputs

if TYPE_CHECKING:
    from datasets import Dataset

    from capaft.tasks.base.evidence import Evidence


@dataclass(frozen=True)
class Seq2Seq(Generation):
    """The task. The default metric is ROUGE-L where the targets are called summaries, BLEU otherwise.

    Attributes:
        max_target_length: tokens that longer targets are cut to.
    """

    name: ClassVar[str] = "seq2seq"
    pipeline_tag: ClassVar[str] = "text2text-generation"
    summary: ClassVar[str] = "a text in, a text out: summaries, translations, answers"
    auto_class: ClassVar[str] = "AutoModelForSeq2SeqLM"
    metrics: ClassVar[tuple[str, ...]] = TEXT_METRICS + TOKEN_METRICS
    cut_by: ClassVar[str] = "--max-length, --max-target-length"
    own_head: ClassVar[bool] = False
    precedence: ClassVar[int] = 70
    input_names: ClassVar[tuple[str, ...]] = ("source",)

    max_target_length: int = MAX_TARGET_LENGTH

    @classmethod
    def is_certain(cls, rows: Dataset, evidence: Evidence) -> bool:
        """True if a column holds chats and the model is an encoder with a decoder."""
        return evidence.is_encoder_decoder and bool(chat_columns(rows))

    @classmethod
    def claims(cls, rows: Dataset, evidence: Evidence) -> bool:
        """True for source and target, if the model is an encoder with a decoder.

        Raises:
            UsageError: it is, and the columns cannot be determined.
        """
        return evidence.is_encoder_decoder and evidence.agrees_with(cls.recognise(rows, evidence.named))

    @classmethod
    def recognise(cls, rows: Dataset, named: Mapping[str, str | None]) -> Columns:
        """Source and target, by name or by the keys of a column `translation`; a named source may be alone."""
        pair = recognise_text_pairs(rows, named)
        if pair is None and (named.get("text") is None or named.get("label") is not None):
            raise UsageError(
                f"cannot tell source and target; choose them with --text-column and --label-column among "
                f"{list_columns(rows)}"
            )
        return pair or recognise_plain_text(rows, named)

    def find_columns(self, rows: Dataset, named: Mapping[str, str | None]) -> Columns:
        """See `Task.find_columns`; a source may be alone."""
        return recognise_text_pairs(rows, named) or recognise_source(rows, named)

    @classmethod
    def decide(cls, rows: Dataset, columns: Columns, settings: TaskSettings, data: str = "") -> Self:
        """See `Task.decide`; the default metric is the one that suits the target."""
        usual = "rougeL" if are_summaries(columns) else "bleu"
        return super().decide(rows, columns, dataclasses.replace(settings, metric=settings.metric or usual), data)

    def check_labels(self, rows: Dataset, columns: Columns) -> None:
        """Make sure that rows have targets.

        Raises:
            UsageError: they do not.
        """
        check_pairs(rows, columns)

    def features(self, base: BaseModel, rows: Dataset, columns: Columns, *, training: bool) -> Features:
        """Sources and targets: in training one example for each reference; in evaluation the loss is of the first."""
        sources = CutRows(base.processor, token_limit(base, self.max_length))
        targets = CutRows(base.processor, token_limit(base, self.max_target_length))
        notes = Notes()

        def batches() -> Iterator[Inputs]:
            for part in row_batches(rows):
                pairs = read_pairs(part, columns, self.source_prefix, per_reference=training)
                pairs, lines = _unframed(base.processor, pairs)
                notes.add(lines, len(pairs))
                inputs: Inputs = {"input_ids": _ids(sources, "text", [pair.source for pair in pairs])}
                inputs["labels"] = [[IGNORED]] * len(pairs)
                if columns.label is not None:
                    inputs["labels"] = _ids(targets, "text_target", [pair.references[0] for pair in pairs])
                inputs["references"] = [pair.references for pair in pairs]
                inputs["sources"] = [pair.source for pair in pairs]
                yield inputs

        stored = stored_columns(batches())
        is_cut = np.frombuffer(sources.is_cut, dtype=np.bool_)
        if columns.label is not None:
            is_cut = is_cut | np.frombuffer(targets.is_cut, dtype=np.bool_)
        return Features(
            {name: stored[name] for name in ("input_ids", "labels")},
            lengths_of(stored["input_ids"]),
            Derived(tuple, stored["references"]),
            int(is_cut.sum()),
            stored["sources"],
            notes=notes.lines(),
        )

    def collate(self, base: BaseModel, features: Features, indices: Sequence[int], *, training: bool) -> Batch:
        """Sources `(batch, longest)`; targets `(batch, longest)`, which one place later are the decoder's inputs."""
        inputs = self.prompt_inputs(base, features, indices)
        labels = pad_rows((features.inputs["labels"][i] for i in indices), IGNORED)
        if hasattr(base.model, "prepare_decoder_input_ids_from_labels"):
            inputs["decoder_input_ids"] = base.model.prepare_decoder_input_ids_from_labels(labels=labels)
        else:
            # Some families, M2M-100 and NLLB among them, make decoder inputs of labels only in their forward.
            inputs["labels"] = labels
        return Batch(inputs, {"labels": labels}, int((labels != IGNORED).sum()))

    def logits(self, base: BaseModel, features: Features) -> NDArray[np.int64] | None:
        """See `Task.logits`: those of the targets' tokens."""
        targets = np.array([len(ids) for ids in features.inputs["labels"]], dtype=np.int64)
        return targets * vocabulary_size(base)

    def prompt_inputs(self, base: BaseModel, features: Features, indices: Sequence[int]) -> dict[str, Tensor]:
        """The sources, padded on the right."""
        ids = [features.inputs["input_ids"][i] for i in indices]
        return {
            "input_ids": pad_rows(ids, base.processor.pad_token_id),
            "attention_mask": pad_rows(([1] * len(tokens) for tokens in ids), 0),
        }

    def new_tokens(self, base: BaseModel) -> int:
        """See `Generation.new_tokens`; the decoder starts with a token of its own."""
        return min(self.max_new_tokens, model_positions(base) - 1)

    def show(self, base: BaseModel, features: Features, index: int) -> str:
        """The source, and the target in ⟦brackets⟧."""
        source, target = (
            base.processor.decode([token for token in features.inputs[name][index] if token != IGNORED])
            for name in ("input_ids", "labels")
        )
        return f"{source} ⟦{target}⟧"


def _unframed(tokenizer: Any, pairs: Sequence[Pair]) -> tuple[list[Pair], list[str]]:
    """Pairs without the special tokens that the tokenizer puts around texts, and a line on how many had some."""
    around = frame(tokenizer, *surrounding_tokens(tokenizer))
    around_target = frame(tokenizer, *surrounding_tokens(tokenizer, "text_target"))
    bare = [
        dataclasses.replace(
            pair, source=around.strip(pair.source), references=tuple(map(around_target.strip, pair.references))
        )
        for pair in pairs
    ]
    return bare, around_target.note(
        sum(one != other for one, other in zip(pairs, bare, strict=True)), len(bare), "rows"
    )


def _ids(cut: CutRows, role: str, texts: list[str]) -> list[list[int]]:
    """Token ids of some rows."""
    return [ids for batch in cut.batches(((text, None) for text in texts), role) for ids in batch["input_ids"]]
