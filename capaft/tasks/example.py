"""One example of a causal language model: a prompt and what follows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from capaft.tasks.plain_text import end_of_text, frame, specials, without_specials
from capaft.tasks.text_pairs import Pair
from capaft.tasks.token_loss import IGNORED


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


def continued(prompt: list[int], answer: list[int], source: str, references: tuple[str, ...]) -> Example:
    """A prompt and its answer, of which the answer counts."""
    return Example(prompt + answer, [IGNORED] * len(prompt) + answer, prompt, source, references)


def shortened(tokenizer: Any, prompt: list[int], room: int) -> list[int]:
    """At most `room` tokens of a prompt: its end, which asks for the answer, after the special tokens it begins with.

    Models that were trained with a first token of their own write nonsense without it.
    """
    if len(prompt) <= room:
        return prompt
    lead = list(takewhile(specials(tokenizer).__contains__, prompt))[: room // 2]
    return lead + prompt[len(prompt) - room + len(lead) :]


def plain(tokenizer: Any, pairs: Sequence[Pair], separator: str) -> list[Example]:
    """Sources, the separator, and the first references with the end token.

    Both are tokenised on their own: a prompt that is generated from ends at the same place.
    """
    lead, end = frame(tokenizer)[0], end_of_text(tokenizer)
    prompts = without_specials(tokenizer, [pair.source + separator for pair in pairs])
    answers = without_specials(tokenizer, ["".join(pair.references[:1]) for pair in pairs])
    return [
        # Nothing can be generated from nothing, nor its first token be learnt; GPT-2 begins with its end token then.
        continued([*lead, *prompt] or [end], [*answer, end] if pair.references else [], pair.source, pair.references)
        for pair, prompt, answer in zip(pairs, prompts, answers, strict=True)
    ]
