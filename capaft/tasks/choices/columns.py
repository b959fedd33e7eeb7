"""Recognition of a context, its choices and the right one among the columns of a split."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from capaft.support.errors import UsageError
from capaft.tasks.base.columns import Columns, ask_for_column, cell_kind, find_column, is_text, list_columns

if TYPE_CHECKING:
    from datasets import Dataset

# In lower case without punctuation: the contexts and questions of SWAG, HellaSwag, COPA, RACE, CosmosQA, ARC, PIQA, ...
_CONTEXTS = (
    ("sent1",),
    ("context", "ctx", "premise", "article", "passage", "story", "dialogue"),
    ("question", "questionstem", "query", "prompt", "goal", "sentence", "text"),
)
_STARTS = (("sent2",), ("question",), ("questionstem",), ("query",))
_LISTS = (("endings",), ("choices",), ("options",), ("answers",), ("candidates",), ("alternatives",))
_LABELS = (
    ("label", "labels"),
    ("answerkey", "answeridx", "answerindex", "correctansweridx", "correctanswerid", "correctoption", "cop"),
    ("answer", "correctanswer", "gold", "goldlabel", "target"),
)
# `ending0`, `choice1`, `option_a`, `answerA`, `sol1`, `opa`, or just `A`.
_CHOICE = re.compile(
    r"(?P<stem>(?i:ending|choice|option|answer|candidate|alternative|solution|sol|op))[\W_]*(?P<mark>\d+|[A-Ja-j])|[A-J]"
)


def recognise_choices(rows: Dataset, named: Mapping[str, str | None]) -> Columns:
    """Find the columns by name; if a context is named and a start is not, there is no start.

    The choices have no flag: they are one column of lists, or columns that are numbered or lettered.

    Args:
        rows: the split.
        named: the columns that the user named, by role.

    Raises:
        UsageError: a named column is missing or not usable, or another one cannot be determined.
    """
    choices = _choices(rows)
    text, pair, label = named.get("text"), named.get("pair"), named.get("label")
    label = find_column(rows, "label", label, _LABELS, _holds_label, "numbers or letters", (text, pair, *choices))
    columns = _context(rows, named, choices, label)
    if label is None:
        ask_for_column(rows, "label", "no column has a usual name")
    return columns


def recognise_undecided(rows: Dataset, named: Mapping[str, str | None]) -> Columns:
    """Find the columns in the same way where nobody knows the right choices.

    Raises:
        UsageError: a named column is missing or not usable, or another one cannot be determined.
    """
    return _context(rows, named, _choices(rows), None)


def _choices(rows: Dataset) -> tuple[str, ...]:
    lists = find_column(rows, "choices", None, _LISTS, _holds_lists, "lists of choices")
    return (lists,) if lists else _numbered(rows)


def _context(rows: Dataset, named: Mapping[str, str | None], choices: tuple[str, ...], label: str | None) -> Columns:
    text, pair = named.get("text"), named.get("pair")
    text = find_column(rows, "text", text, _CONTEXTS, is_text, "text", (pair, label, *choices))
    if text is None:
        ask_for_column(rows, "text", "no column has a usual name")
    if pair or not named.get("text"):
        pair = find_column(rows, "pair", pair, _STARTS, is_text, "text", (text, label, *choices))
    return Columns(text, pair, label, choices)


def _holds_label(feature: Any) -> bool:
    return cell_kind(feature) in ("class", "integer", "text")


def _holds_lists(feature: Any) -> bool:
    """True if a column holds lists of texts, or as in ARC texts and their names."""
    if isinstance(feature, Mapping):
        return {"text", "label"} <= feature.keys() and _holds_lists(feature["text"]) and _holds_lists(feature["label"])
    return cell_kind(feature) == "list" and is_text(feature.feature)


def _numbered(rows: Dataset) -> tuple[str, ...]:
    """The columns of single choices, in their order.

    Raises:
        UsageError: no column is one, or there are several sets of them.
    """
    sets: dict[str, dict[int, str]] = {}
    for name, feature in rows.features.items():
        if (match := _CHOICE.fullmatch(name)) and is_text(feature):
            mark = match["mark"] or name
            at = int(mark) if mark.isdecimal() else ord(mark.upper()) - ord("A")
            sets.setdefault((match["stem"] or "").lower(), {})[at] = name
    # A gap would give the numbers of labels another meaning.
    complete = [names for names in sets.values() if len(names) > 1 and _follow(sorted(names))]
    if len(complete) != 1:
        firsts = " and ".join(repr(min(names.values())) for names in complete)
        why = f"; {firsts} each begin a set" if len(complete) > 1 else ""
        raise UsageError(
            "cannot tell the columns of choices: call them choice0, choice1, ..., or give one column of lists called "
            f"choices{why}; the columns are {list_columns(rows)}"
        )
    (names,) = complete
    return tuple(names[at] for at in sorted(names))


def _follow(numbers: list[int]) -> bool:
    """True if numbers begin at 0 or 1 and leave none out."""
    return numbers[0] in (0, 1) and numbers == list(range(numbers[0], numbers[0] + len(numbers)))
