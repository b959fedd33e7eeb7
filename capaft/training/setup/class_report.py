"""The lines about a run's classes: their names and sizes, and what may be wrong with them.

A label that is there by mistake - another spelling, a missing value, a typing error - shows in its name or its size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import itemgetter

from capaft.support.counting import counted
from capaft.tasks.base.task import Task
from capaft.tasks.labels.spelling import alike

# Names, and groups of names, that a line lists; the length of a name; rows from which a class can be learnt.
_LISTED = 10
_GROUPS = 5
_LONGEST = 40
_ENOUGH = 5
# Share of the largest class, and its size in those of the smallest, from which accuracy says little.
_DOMINANT = 0.8
_UNEVEN = 10


def class_lines(task: Task, labels: Mapping[str, int], validation: Sequence[int] | None) -> Iterator[str]:
    """The lines about the classes of a task.

    Args:
        task: the task.
        labels: number of training rows, or words, with each label as the data spells it.
        validation: the class of each validation row, if rows have one.
    """
    if not task.labels:
        return
    counts = Counter(dict.fromkeys(task.labels, 0))
    for label, count in labels.items():
        counts[task.class_of_label(label) or label] += count
    named = [f"{shown(label)} ({count})" for label, count in counts.most_common()]
    yield f"{counted(len(task.labels), 'class', 'classes')}: {_listed(named, _LISTED)}"
    merges = getattr(task, "normalise_labels", None)
    if groups := alike(labels if merges else task.labels):
        written = [" and ".join(f"{label!a} ({labels.get(label, 0)})" for label in group) for group in groups]
        yield _spelt(_listed(written, _GROUPS, "; "), merges)
    scarce = [f"{shown(label)} ({count})" for label, count in sorted(counts.items(), key=itemgetter(1))]
    scarce = scarce[: sum(count < _ENOUGH for count in counts.values())]
    if scarce:
        yield f"warning: classes with fewer than {_ENOUGH} training rows: {_listed(scarce, _LISTED)}"
    if validation:
        yield from _imbalance(task, counts, validation)


def _spelt(groups: str, merges: bool | None) -> str:
    """The line about labels that are alike; `merges` is None if the task cannot merge them."""
    difference = "differ only in blanks, case or the form of their characters"
    if merges:
        return f"labels that {difference} are merged: {groups}"
    advice = "correct them in the data" if merges is None else "--normalise-labels merges them"
    return f"warning: classes whose names {difference}: {groups}; {advice}"


def _imbalance(task: Task, counts: Counter[str], validation: Sequence[int]) -> Iterator[str]:
    (largest, count), smallest = counts.most_common(1)[0], min(filter(None, counts.values()), default=0)
    if count > _DOMINANT * counts.total() or count > _UNEVEN * smallest:
        accuracy = sum(task.labels[index] == largest for index in validation) / len(validation)
        also = f"; {task.score_name('f1')} is reported beside it (--metric f1)" if task.metric == "accuracy" else ""
        yield f"the classes are uneven: always answering {shown(largest)} has an accuracy of {accuracy:.4f}{also}"


def shown(label: str) -> str:
    """A label for people: in quotes if it would be mistaken without."""
    cut = label if len(label) <= _LONGEST else f"{label[: _LONGEST - 3]}..."
    is_plain = label.isprintable() and label == label.strip() and not set(label) & set(",;()'\"") and label
    return cut if is_plain else ascii(cut) if not label.isprintable() else repr(cut)


def _listed(parts: Iterable[str], limit: int, separator: str = ", ") -> str:
    parts = list(parts)
    more = f"{separator}and {len(parts) - limit} more" if len(parts) > limit else ""
    return separator.join(parts[:limit]) + more
