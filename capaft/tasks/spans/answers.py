"""The answers of a row: read from either of the forms that data sets have, and located in the context.

SQuAD's own files hold a list of `{"text", "answer_start"}`, the hub's copies a pair of lists; empty lists mean that the
context has no answer (SQuAD v2).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from datasets import Dataset

from capaft.data.lazy import ColumnValues, Derived
from capaft.support.errors import UsageError
from capaft.tasks.base.columns import row_numbers

_FIELDS = {"text", "answer_start"}


class Answer(NamedTuple):
    """A text, and the character of the context at which it begins according to the data."""

    text: str
    start: int


def holds_answers(feature: Any) -> bool:
    """True if a column with this `datasets` feature can hold answers."""
    inner = getattr(feature, "feature", feature)
    return isinstance(inner, Mapping) and inner.keys() >= _FIELDS


def has_answers(value: Any) -> bool:
    """True if a row says what its answers are, or that there are none; a missing text says neither."""
    texts = [pair and pair["text"] for pair in (value if isinstance(value, list) else [value])]
    return not any(text is None or (isinstance(text, list) and None in text) for text in texts)


def read_answers(rows: Dataset, column: str) -> Sequence[list[Answer]]:
    """The answers of each row, without blank ones, read when they are needed.

    Raises:
        UsageError: when one is read that has no value, or a text without its start; names the row.
    """
    return Derived(lambda row, value: _answers(value, f"row {row}"), row_numbers(rows), ColumnValues(rows, column))


def locate_answer(context: str, answer: Answer) -> tuple[int, int] | None:
    """Place of the answer in the context: its first character, and one past its last.

    A start that counts bytes, or that was kept when the context was cleaned, is slightly off: the answer is then the
    nearest place that reads the same, preferably in the same case and with the same white space.

    Returns:
        The place, or None if the context does not hold the answer.
    """
    text = answer.text.strip()
    start = answer.start + answer.text.index(text)
    if context.startswith(text, start):
        return start, start + len(text)
    alike = re.finditer(r"\s+".join(map(re.escape, text.split())), context, re.IGNORECASE)
    nearest = min(alike, key=lambda match: (match[0] != text, abs(match.start() - start)), default=None)
    return nearest and nearest.span()


def _answers(value: Any, row: str) -> list[Answer]:
    pairs = value if isinstance(value, list) else [value]
    answers = []
    for pair in pairs:
        texts, starts = (pair or {}).get("text"), (pair or {}).get("answer_start")
        if isinstance(texts, str):
            texts, starts = [texts], [starts]
        if texts is None or starts is None or len(texts) != len(starts) or None in (*texts, *starts):
            raise UsageError(
                f"{row}: its answers are not texts with one answer_start each; fill them in, or leave both lists empty "
                "if there is no answer"
            )
        answers += [Answer(text, start) for text, start in zip(texts, starts, strict=True) if text.strip()]
    return answers
