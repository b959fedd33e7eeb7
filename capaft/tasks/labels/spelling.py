"""Labels that are one class, spelt differently: blanks, case, forms of Unicode, characters that cannot be seen."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from capaft.support.invisible import INVISIBLE, WITHOUT_WIDTH
from capaft.tasks.labels.numbers import whole_number

_HIDDEN = dict.fromkeys(map(ord, WITHOUT_WIDTH))


def plain_label(label: str) -> str:
    """What all spellings of a label have in common, for comparison."""
    visible = unicodedata.normalize("NFKC", label).translate(_HIDDEN)
    words = " ".join(unicodedata.normalize("NFKC", visible.casefold()).split())
    return whole_number(words) or words


def alike(labels: Iterable[str]) -> list[list[str]]:
    """Groups of two or more labels that differ only in their spelling, in the order of their first."""
    groups: dict[str, list[str]] = {}
    for label in dict.fromkeys(labels):
        groups.setdefault(plain_label(label), []).append(label)
    return [group for group in groups.values() if len(group) > 1]


def merged_labels(counts: Mapping[str, int]) -> dict[str, str]:
    """The name of the class of each label: the most frequent spelling, without what cannot be seen around it.

    Args:
        counts: number of rows of each label; of two that are as frequent the first is taken.
    """
    tidy = {label: unicodedata.normalize("NFC", label).strip(INVISIBLE) for label in counts}
    spellings: dict[str, Counter[str]] = {}
    for label, count in counts.items():
        spellings.setdefault(plain_label(label), Counter())[tidy[label]] += count
    return {label: spellings[plain_label(label)].most_common(1)[0][0] for label in counts}


def label_finder(labels: Sequence[str], *, normalise: bool) -> Callable[[str], str | None]:
    """A function that gives the class of a label in the data, or None if it is no class.

    Args:
        labels: the classes.
        normalise: take another spelling of a class for that class.
    """
    exact = dict(zip(labels, labels, strict=True))
    plain = {plain_label(label): label for label in reversed(labels)}

    def find(label: str) -> str | None:
        if label in exact:
            return label
        if (number := whole_number(label)) in exact:
            return number
        return plain.get(plain_label(label)) if normalise else None

    return find
