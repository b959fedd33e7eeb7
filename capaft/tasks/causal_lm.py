"""Causal language modelling: plain text, prompts with completions, or chats; the model's own head, frozen."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from torch import Tensor
from torch.nn import functional as F

from capaft.config.choices import CHAT_TEMPLATE, PACKING
from capaft.config.parts.model import ModelSettings
from capaft.config.parts.task import TaskSettings
from capaft.data.lazy import Derived
from capaft.data.spool import lengths_of, stored_columns
from capaft.model.load import BaseModel
from capaft.model.modalities import auto_class_of_writer, check_reads_text_alone, has_towers
from capaft.support.errors import UsageError
from capaft.tasks.base.columns import Columns, is_text, row_batches
from capaft.tasks.base.doubts import refuse_doubtful_text, refuse_unread_columns
from capaft.tasks.base.evidence import Evidence, predicts_masked_tokens
from capaft.tasks.base.features import Batch, Features
from capaft.tasks.language.chat import chat_rows_examples
from capaft.tasks.language.chat_columns import (
    are_prompts,
    chat_columns,
    chat_faults,
    further_columns,
    is_chat,
    is_usual_chat,
    only_chat,
    recognise_exchange,
    usual_chat,
    waiting_chats,
)
from capaft.tasks.language.chat_template import has_template, turn_ends
from capaft.tasks.language.example import Example, plain_prompts, shortened_prompt
from capaft.tasks.language.formatted import SEPARATOR, pair_examples
from capaft.tasks.language.framing import frame, tokenise_rows
from capaft.tasks.language.generation import GENERATION_OPTIONS, Generation
from capaft.tasks.language.notes import Notes
from capaft.tasks.language.plain_text import (
    end_of_text_token,
    pack_blocks,
    recognise_plain_text,
    surrounding_tokens,
)
from capaft.tasks.language.text_pairs import check_pairs, read_pairs, recognise_source, recognise_text_pairs
from capaft.tasks.language.text_scores import TEXT_METRICS
from capaft.tasks.language.token_limit import model_positions, token_limit
from capaft.tasks.language.token_loss import IGNORED, TOKEN_METRICS, mark_tokens, pad_rows
from capaft.tasks.language.truncation import Inputs

if TYPE_CHECKING:
    from datasets import Dataset

TEXT, PROMPT, MESSAGES = LAYOUTS = ("text", "prompt", "messages")


@dataclass(frozen=True)
class CausalLM(Generation):
    """The task. An example longer than the maximum length loses its end.

    A prompt to generate from loses its beginning instead, except for special tokens, if it leaves no room for the
    answer.

    Attributes:
        packing: join plain texts, each with its end token, and cut them into blocks of the maximum length.
        chat_template: put prompts and completions into the model's chat template, if it has one.
        separator: text between prompt and completion otherwise.
        layout: the tokens that count in the loss: all for `text`, the completion and its end for `prompt`, the words of
            the assistant for `messages`.
    """

    name: ClassVar[str] = "causal-lm"
    pipeline_tag: ClassVar[str] = "text-generation"
    summary: ClassVar[str] = "text in, what follows it out: plain text, prompts with completions, or chats"
    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    metrics: ClassVar[tuple[str, ...]] = TOKEN_METRICS + TEXT_METRICS
    own_head: ClassVar[bool] = False
    inferred: ClassVar[tuple[str, ...]] = ("layout",)
    precedence: ClassVar[int] = 80

    packing: bool = PACKING
    chat_template: bool = CHAT_TEMPLATE
    separator: str = SEPARATOR
    layout: str = TEXT

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layout not in LAYOUTS:
            raise UsageError(f"the layout of causal-lm must be one of {', '.join(LAYOUTS)}, got {self.layout}")
        if self.layout == TEXT and self.generates:
            raise UsageError(
                f"--metric {self.metric} compares completions, and plain text has none; "
                f"choose one of {', '.join(TOKEN_METRICS)}, or name their column with --label-column"
            )

    @classmethod
    def is_certain(cls, rows: Dataset, evidence: Evidence) -> bool:
        """True if a column holds chats, unless the model is an encoder with a decoder.

        JSON text of chats may also be a text to classify, by a model of masked tokens.
        """
        names = chat_columns(rows)
        if evidence.is_masked:
            names = [name for name in names if not is_text(rows.features[name])]
        return not evidence.is_encoder_decoder and bool(names)

    @classmethod
    def claims(cls, rows: Dataset, evidence: Evidence) -> bool:
        """True for texts, with or without completions; for a model of masked tokens only with unnamed completions.

        Raises:
            UsageError: the model writes, and the columns cannot be determined.
        """
        if evidence.is_encoder_decoder:
            return False
        if evidence.is_masked:
            # Such a model cannot write: a named label is a class, and plain text is for masked-lm.
            return not evidence.named.get("label") and cls._has_completions(rows, evidence)
        return evidence.agrees_with(cls.recognise(rows, evidence.named))

    @classmethod
    def doubt(cls, rows: Dataset, evidence: Evidence) -> None:
        """See `Task.doubt`; texts often stand beside numbers that describe them, so only lists count."""
        columns = cls.recognise(rows, evidence.named)
        if columns.label is None and evidence.named.get("text") is None and is_text(rows.features.get(columns.text)):
            refuse_doubtful_text(rows, columns.text, cls.name, plain=True)
            refuse_unread_columns(rows, columns.text, cls.name, scalars=False)

    @classmethod
    def check_model(cls, config: Any) -> None:
        """Make sure that a model has not seen the tokens that it predicts.

        Raises:
            UsageError: it looks at both sides of every token, so that its perplexity would mean nothing.
        """
        if predicts_masked_tokens(config):
            raise UsageError(
                f"causal-lm needs a model that reads from left to right, and {config.model_type} reads both ways; "
                "choose another --model, or --task masked-lm for plain text"
            )

    def auto_class_for(self, config: Any) -> str:
        """See `Task.auto_class_for`; a checkpoint that also reads images is loaded whole."""
        return auto_class_of_writer(config)

    def load_model(self, settings: ModelSettings, *, seed: int) -> BaseModel:
        """See `Task.load_model`.

        Raises:
            UsageError: also if the model reads no text without an image.
        """
        loaded = super().load_model(settings, seed=seed)
        # A model without weights cannot be asked; the training has.
        if has_towers(loaded.model) and loaded.model.device.type != "meta":
            check_reads_text_alone(loaded.model, settings.model)
        return loaded

    @classmethod
    def recognise(cls, rows: Dataset, named: Mapping[str, str | None]) -> Columns:
        """Chats by name, else prompts with completions, else the only column of chats, else plain text."""
        text, label = named.get("text"), named.get("label")
        if label is None and (text is None or is_usual_chat(rows, text)):
            usual = usual_chat(rows) if text is None else text
            if usual is not None:
                return Columns(usual)
        exchange = recognise_exchange(rows, named)
        if exchange is not None:
            return exchange
        if text is not None and label is None and is_chat(rows, text):
            return Columns(text)
        pair = recognise_text_pairs(rows, named)
        only = only_chat(rows) if pair is None and text is None else None
        if only is not None:
            return Columns(only)
        return pair or recognise_plain_text(rows, named)

    def find_columns(self, rows: Dataset, named: Mapping[str, str | None]) -> Columns:
        """See `Task.find_columns`; prompts need no completions."""
        if self.layout == PROMPT:
            return recognise_text_pairs(rows, named) or recognise_source(rows, named)
        return self.recognise(rows, named) if self.layout == MESSAGES else recognise_plain_text(rows, named)

    @classmethod
    def faults(cls, rows: Dataset, columns: Columns, settings: TaskSettings) -> Mapping[int, str]:
        """Chats that cannot be read, or in which the assistant says nothing."""
        return chat_faults(rows, columns) if is_chat(rows, columns.text) else {}

    @classmethod
    def decide(cls, rows: Dataset, columns: Columns, settings: TaskSettings, data: str = "") -> Self:
        """See `Task.decide`; the layout is that of the rows."""
        layout = MESSAGES if is_chat(rows, columns.text) else TEXT if columns.label is None else PROMPT
        # The layout decides which metrics are available.
        task = super().decide(rows, columns, dataclasses.replace(settings, metric=None), data)
        return dataclasses.replace(task, layout=layout, metric=settings.metric or "")

    def check_labels(self, rows: Dataset, columns: Columns) -> None:
        """Make sure that rows have chats or texts as the training rows do, and completions if those have some.

        Raises:
            UsageError: they do not.
        """
        self._check_layout(rows, columns)
        if self.layout == PROMPT:
            check_pairs(rows, columns)
        elif self.layout == MESSAGES and are_prompts(rows, columns):
            raise UsageError(
                f"the chats in column {columns.text!r} have no answers to compare with; name the column of the answers "
                "with --label-column"
            )

    def features(self, base: BaseModel, rows: Dataset, columns: Columns, *, training: bool) -> Features:
        """Blocks or texts; prompts with completions; or chats.

        A training example whose completion lies beyond the maximum length is left out, and counted as truncated. In
        evaluation the loss of a row with several references is that of the first; without a label there is no loss.

        Raises:
            UsageError: a value is missing, the model has no template for chats, or no completion fits.
        """
        self._check_layout(rows, columns)
        limit = token_limit(base, self.max_length)
        if self.layout == TEXT:
            return self._plain(base.processor, rows, columns, limit)
        room = min(limit, model_positions(base) - self.new_tokens(base))
        writes = self.generates and not training
        notes, prompts = Notes(), []
        truncated = fitting = referred = 0

        def batches() -> Iterator[Inputs]:
            nonlocal truncated, fitting, referred
            for part in row_batches(rows):
                examples, lines = self._examples(base.processor, part, columns, training)
                notes.add(lines, len(part))
                fits = [any(token != IGNORED for token in example.labels[:limit]) for example in examples]
                fitting += sum(fits)
                referred += sum(bool(example.references) for example in examples)
                prompts.append(min(len(example.prompt) for example in examples))
                truncated += sum(len(e.ids) > limit or (writes and len(e.prompt) > room) for e in examples)
                kept = [example for example, is_kept in zip(examples, fits, strict=True) if is_kept or not training]
                inputs: Inputs = {
                    "input_ids": [example.ids[:limit] for example in kept],
                    "labels": [example.labels[:limit] for example in kept],
                    "references": [example.references for example in kept],
                    "sources": [example.source for example in kept],
                }
                if not training:
                    inputs["prompt_ids"] = [shortened_prompt(base.processor, example.prompt, room) for example in kept]
                yield inputs

        stored = stored_columns(batches())
        if not fitting and (training or referred):
            raise UsageError(
                f"no {'training' if training else 'validation'} prompt leaves any of the {limit} tokens for its "
                f"completion, the shortest takes {min(prompts)}; raise --max-length or shorten the prompts"
            )
        references, sources = Derived(tuple, stored.pop("references")), stored.pop("sources")
        return Features(stored, lengths_of(stored["input_ids"]), references, truncated, sources, notes=notes.lines())

    def collate(self, base: BaseModel, features: Features, indices: Sequence[int], *, training: bool) -> Batch:
        """Tokens `(batch, longest)`, padded on the right, and at each position the token that follows, if it counts.

        Models that can leave out logits (`logits_to_keep`) give only those of positions where some token counts.
        """
        ids = [features.inputs["input_ids"][i] for i in indices]
        counted = features.inputs.get("labels", features.inputs["input_ids"])
        labels = F.pad(pad_rows((counted[i] for i in indices), IGNORED)[:, 1:], (0, 1), value=IGNORED)
        inputs = {
            "input_ids": pad_rows(ids, base.processor.pad_token_id),
            "attention_mask": pad_rows(([1] * len(tokens) for tokens in ids), 0),
        }
        places = (labels != IGNORED).any(0).nonzero().squeeze(1)
        if 0 < len(places) < labels.shape[1] - 1 and _leaves_logits_out(base.model):
            inputs["logits_to_keep"] = places
            labels = labels[:, places]
        return Batch(inputs, {"labels": labels}, int((labels != IGNORED).sum()))

    def find_inputs(self, rows: Dataset, named: Mapping[str, str | None]) -> Columns:
        """See `TaskAnswers.find_inputs`; a run on chats takes a text for what the user says.

        Raises:
            UsageError: also if the rows hold chats, and the training rows did not.
        """
        if self.layout == MESSAGES and not (is_chat(rows, str(named.get("text"))) or chat_columns(rows)):
            return recognise_plain_text(rows, named)
        columns = super().find_inputs(rows, named)
        self._check_layout(rows, columns)
        return columns

    def prompts(self, base: BaseModel, rows: Dataset, columns: Columns) -> Features:
        """See `Generation.prompts`; of plain texts, what follows them is written."""
        if self.layout == MESSAGES:
            rows, columns = waiting_chats(rows, columns)
        self._check_layout(rows, columns)
        if self.layout != TEXT:
            return super().prompts(base, rows, columns)
        room = min(token_limit(base, self.max_length), model_positions(base) - self.new_tokens(base))
        return plain_prompts(base.processor, rows, columns, room)

    def prompt_inputs(self, base: BaseModel, features: Features, indices: Sequence[int]) -> dict[str, Tensor]:
        """The prompts, padded on the left so that all end at one place."""
        prompts = [features.inputs["prompt_ids"][i] for i in indices]
        return {
            "input_ids": pad_rows(prompts, base.processor.pad_token_id, left=True),
            "attention_mask": pad_rows(([1] * len(tokens) for tokens in prompts), 0, left=True),
        }

    def stops(self, base: BaseModel) -> set[int]:
        """See `Generation.stops`: the token after a turn; plain text ends with its own."""
        return {end_of_text_token(base.processor)} if self.layout == TEXT else turn_ends(base.processor)

    def new_tokens(self, base: BaseModel) -> int:
        """See `Generation.new_tokens`: half of the model's positions are the prompt's."""
        return min(self.max_new_tokens, model_positions(base) // 2)

    def idle_options(self, base: BaseModel) -> dict[str, str]:
        """See `Task.idle_options`."""
        if self.layout == TEXT:
            read = ("chat_template", "separator", "source_prefix")
            return dict.fromkeys((*read, *GENERATION_OPTIONS), "plain text")
        idle = super().idle_options(base)
        if self.layout == MESSAGES:
            return idle | dict.fromkeys(("packing", "chat_template", "separator", "source_prefix"), "chats")
        idle["packing"] = "prompts and completions"
        if not has_template(base.processor):
            idle["chat_template"] = "a model that has none"
        elif self.chat_template:
            idle["separator"] = "the model's chat template"
        return idle

    def show(self, base: BaseModel, features: Features, index: int) -> str:
        """The text, with ⟦brackets⟧ around the tokens that count in the loss."""
        ids = features.inputs["input_ids"][index]
        labels = features.inputs.get("labels", features.inputs["input_ids"])[index]
        return mark_tokens(base.processor, ids, (label != IGNORED for label in labels))

    @classmethod
    def _has_completions(cls, rows: Dataset, evidence: Evidence) -> bool:
        return cls.has_columns(rows, evidence) and cls.recognise(rows, evidence.named).label is not None

    def _check_layout(self, rows: Dataset, columns: Columns) -> None:
        if (self.layout == MESSAGES) != is_chat(rows, columns.text):
            kind = "chats" if self.layout == MESSAGES else "texts"
            raise UsageError(f"column {columns.text!r} does not hold {kind}, as the training data did; name another")

    def _plain(self, tokenizer: Any, rows: Dataset, columns: Columns, limit: int) -> Features:
        """Texts between the special tokens that the tokenizer puts before one and its end; empty ones are left out."""
        lead, end = surrounding_tokens(tokenizer)[0], end_of_text_token(tokenizer)
        needed = None if self.packing else limit
        texts, notes = tokenise_rows(tokenizer, rows, columns, frame(tokenizer, lead, [end]), needed)
        whole: Iterable[list[int]] = ([*lead, *ids, end] for ids in texts)
        if self.packing and not lead:
            # The end of one text is also the beginning of the next where one token does for both, as in GPT-2.
            whole = (ids[1:] if row and ids[0] == end and len(ids) > 1 else ids for row, ids in enumerate(whole))
        blocks: Iterable[Any] = pack_blocks(whole, limit) if self.packing else (ids[:limit] for ids in whole)
        inputs = stored_columns({"input_ids": [block]} for block in blocks)
        truncated = 0 if self.packing else int((lengths_of(texts) + len(lead) + 1 > limit).sum())
        lengths = lengths_of(inputs["input_ids"])
        return Features(inputs, lengths, truncated=truncated, rows=len(texts), notes=notes)

    def _examples(
        self, tokenizer: Any, rows: Dataset, columns: Columns, training: bool
    ) -> tuple[list[Example], list[str]]:
        """The examples of the rows, and lines about them."""
        if self.layout == MESSAGES:
            waiting = not training and are_prompts(rows, columns)
            return chat_rows_examples(tokenizer, rows, columns, waiting=waiting)
        pairs = read_pairs(rows, columns, self.source_prefix, per_reference=training)
        examples, notes = pair_examples(tokenizer, pairs, self.separator, chat_template=self.chat_template)
        beside = [name for name in further_columns(rows).values() if name not in dataclasses.astuple(columns)]
        if beside:
            names = ", ".join(map(repr, beside))
            notes = [*notes, f"not read beside prompts, but only beside chats (messages): {names}"]
        return examples, notes


def _leaves_logits_out(model: Any) -> bool:
    """True if a model takes `logits_to_keep`, and is not on several devices: the places would be on the wrong one."""
    is_spread = len(set(getattr(model, "hf_device_map", {}).values())) > 1
    return not is_spread and "logits_to_keep" in inspect.signature(type(model).forward).parameters
