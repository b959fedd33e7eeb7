"""One example of a causal language model: a prompt and what follows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from capaft.tasks.language.plain_text import end_of_text_token, special_tokens, surrounding_tokens, tokenise_plain
from capaft.tasks.language.text_pairs import Pair
from capaft.tasks.language.token_loss import IGNORED


@dataclass(frozen=True)
class Example:
    """A text in tokens, and which of them the model learns.

    Attributes:
        ids: all tokens.
        labels: the same where they count, `IGNORED` elsewhere.
        prompt: the tokens that the last answer is generated from.
        source: the prompt as text.
        references: what the last answer may be; empty where that is not known.
    """

    ids: list[int]
    labels: list[int]
    prompt: list[int]
    source: str
    references: tuple[str, ...]


def answered(prompt: list[int], answer: list[int], source: str, references: tuple[str, ...]) -> Example:
    """A prompt and its answer, of which the answer counts."""
    return Example(prompt + answer, [IGNORED] * len(prompt) + answer, prompt, source, references)


def shortened_prompt(tokenizer: Any, prompt: list[int], room: int) -> list[int]:
    """At most `room` tokens of a prompt: its end, which asks for the answer, after the special tokens it begins with.

    Models that were trained with a first token of their own write nonsense without it.
    """
    if len(prompt) <= room:
        return prompt
    lead = list(takewhile(special_tokens(tokenizer).__contains__, prompt))[: room // 2]
    return lead + prompt[len(prompt) - room + len(lead) :]


def plain_examples(tokenizer: Any, pairs: Sequence[Pair], separator: str) -> list[Example]:
    """Sources, the separator, and the first references with the end token.

    Both are tokenised on their own: a prompt that is generated from ends at the same place.
    """
    lead, end = surrounding_tokens(tokenizer)[0], end_of_text_token(tokenizer)
    prompts = tokenise_plain(tokenizer, [pair.source + separator for pair in pairs])
    answers = tokenise_plain(tokenizer, ["".join(pair.references[:1]) for pair in pairs])
    return [
        # Nothing can be generated from nothing, nor its first token be learnt; GPT-2 begins with its end token then.
        answered([*lead, *prompt] or [end], [*answer, end] if pair.references else [], pair.source, pair.references)
        for pair, prompt, answer in zip(pairs, prompts, answers, strict=True)
    ]
