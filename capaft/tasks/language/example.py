"""Examples for a causal language model: a prompt and its continuation."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import numpy as np

from capaft.tasks.base.columns import Columns, text_values
from capaft.tasks.base.features import Features
from capaft.tasks.language.framing import frame
from capaft.tasks.language.plain_text import end_of_text_token, special_tokens, surrounding_tokens, tokenise_plain
from capaft.tasks.language.text_pairs import Pair
from capaft.tasks.language.token_loss import IGNORED

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Example:
    """A tokenised text with its labels.

    Attributes:
        ids: all tokens.
        labels: the tokens that count in the loss, `IGNORED` elsewhere.
        prompt: the tokens from which the last answer is generated.
        source: the prompt as text.
        references: right answers to the prompt; empty if unknown.
    """

    ids: list[int]
    labels: list[int]
    prompt: list[int]
    source: str
    references: tuple[str, ...]


def answer_example(prompt: list[int], answer: list[int], source: str, references: tuple[str, ...]) -> Example:
    """A prompt and its answer; only the answer counts."""
    return Example(prompt + answer, [IGNORED] * len(prompt) + answer, prompt, source, references)


def shortened_prompt(tokenizer: Any, prompt: list[int], room: int) -> list[int]:
    """At most `room` tokens of a prompt: its leading special tokens, then its end, which asks for the answer.

    Models that were trained with a special first token write nonsense without it.
    """
    if len(prompt) <= room:
        return prompt
    lead = list(takewhile(special_tokens(tokenizer).__contains__, prompt))[: room // 2]
    return lead + prompt[len(prompt) - room + len(lead) :]


def plain_prompts(tokenizer: Any, rows: Dataset, columns: Columns, room: int) -> Features:
    """Plain texts to go on with: the tokens that begin a text, and it, in at most `room` tokens.

    An empty text is the end token, after which a text begins, as in GPT-2.

    Raises:
        UsageError: a row has no text.
    """
    lead, end = surrounding_tokens(tokenizer)[0], end_of_text_token(tokenizer)
    around = frame(tokenizer, lead)
    texts = list(text_values(rows, columns)[0])
    whole = [[*lead, *ids] or [end] for ids in tokenise_plain(tokenizer, list(map(around.strip, texts)))]
    prompts = [shortened_prompt(tokenizer, ids, room) for ids in whole]
    truncated = sum(len(ids) > room for ids in whole)
    lengths = np.array([len(ids) for ids in prompts], dtype=np.int64)
    return Features({"input_ids": prompts, "prompt_ids": prompts}, lengths, truncated=truncated, sources=texts)


def plain_examples(
    tokenizer: Any, pairs: Sequence[Pair], separator: str, stops: Collection[int] = (), last: int | None = None
) -> list[Example]:
    """Each source with the separator as the prompt, its first reference with the end token as the answer.

    The two are tokenised separately, since in generation the prompt ends at the same place. An answer that already ends
    with a token that ends one gets no other.

    Args:
        tokenizer: of the model.
        pairs: sources with their references.
        separator: stands after each source.
        stops: tokens that end an answer, besides the end token.
        last: the token that an answer gets; by default the end token.
    """
    lead, end = surrounding_tokens(tokenizer)[0], end_of_text_token(tokenizer)
    around, ending = frame(tokenizer, lead), frame(tokenizer, (), ends=sorted({end, *stops}))
    prompts = tokenise_plain(tokenizer, [around.strip(pair.source) + separator for pair in pairs])
    firsts = [around.strip("".join(pair.references[:1])) for pair in pairs]
    is_ended = [ending.strip(text) != text for text in firsts]
    answers = tokenise_plain(
        tokenizer, [text.rstrip() if ended else text for text, ended in zip(firsts, is_ended, strict=True)]
    )
    return [
        # Generation needs a first token, which cannot be learnt; an empty prompt becomes the end token, as in GPT-2.
        answer_example(
            [*lead, *prompt] or [end],
            answer if ended or not pair.references else [*answer, end if last is None else last],
            pair.source,
            tuple(ending.strip(around.strip(text)) for text in pair.references),
        )
        for pair, prompt, answer, ended in zip(pairs, prompts, answers, is_ended, strict=True)
    ]
