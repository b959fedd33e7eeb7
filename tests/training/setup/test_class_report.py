"""The lines about the classes of a run."""

from __future__ import annotations

import pytest

from capaft.tasks.text_classification import TextClassification
from capaft.tasks.token_classification import TokenClassification
from capaft.training.setup.class_report import class_lines, shown

TWO = TextClassification(("no", "yes"))


def test_names_and_counts() -> None:
    assert list(class_lines(TWO, {"no": 20, "yes": 30}, [0, 1])) == ["2 classes: yes (30), no (20)"]
    assert list(class_lines(TextClassification(problem="regression"), {}, None)) == []
    many = TextClassification(tuple(f"c{n}" for n in range(1000)))
    (line, *_) = class_lines(many, {f"c{n}": 7 for n in range(1000)}, None)
    assert line == f"1,000 classes: {', '.join(f'c{n} (7)' for n in range(10))}, and 990 more"


def test_small_classes() -> None:
    task = TextClassification(("a", "b", "c"))
    assert list(class_lines(task, {"a": 8, "b": 4}, None))[1:] == [
        "warning: classes with fewer than 5 training rows: c (0), b (4)"
    ]


def test_labels_that_are_alike() -> None:
    counts = {"caf\u00e9": 9, "cafe\u0301": 8, " tea ": 7, "tea": 6}
    difference = "differ only in blanks, case or the form of their characters"
    groups = r"'caf\xe9' (9) and 'cafe\u0301' (8); ' tea ' (7) and 'tea' (6)"
    first, second = class_lines(TextClassification(tuple(counts)), counts, None)
    assert first == "4 classes: caf\u00e9 (9), cafe\u0301 (8), ' tea ' (7), tea (6)"
    assert second == f"warning: classes whose names {difference}: {groups}; --normalise-labels merges them"
    merged = TextClassification(("caf\u00e9", "tea"), normalise_labels=True)
    first, second = class_lines(merged, counts, None)
    assert first == "2 classes: caf\u00e9 (17), tea (13)"
    assert second == f"labels that {difference} are merged: {groups}"
    tags = TokenClassification(("A", "a"))
    assert list(class_lines(tags, {"A": 9, "a": 9}, None))[1].endswith("; correct them in the data")


@pytest.mark.parametrize(
    ("task", "ending"),
    [
        (TWO, "; macro F1 is reported beside it (--metric f1)"),
        (TextClassification(("no", "yes"), positive_label="yes"), "; F1 of 'yes' is reported beside it (--metric f1)"),
        (TextClassification(("no", "yes"), metric="f1"), ""),
    ],
)
def test_uneven_classes(task: TextClassification, ending: str) -> None:
    _, line = class_lines(task, {"no": 90, "yes": 10}, [0, 0, 0, 1])
    assert line == f"the classes are uneven: always answering no has an accuracy of 0.7500{ending}"
    assert len(list(class_lines(task, {"no": 79, "yes": 21}, [0, 1]))) == 1


def test_a_name_for_people() -> None:
    assert [shown(name) for name in ("a b", " a", "a,b", "", "a\u200b", "x" * 50)] == [
        "a b",
        "' a'",
        "'a,b'",
        "''",
        r"'a\u200b'",
        "x" * 37 + "...",
    ]
