"""Labels that are one class, spelt differently."""

from __future__ import annotations

import pytest

from capaft.tasks.labels.spelling import alike, label_finder, merged_labels


@pytest.mark.parametrize(
    "spelling",
    ["delivery", " delivery ", "DELIVERY", "deli\u200bvery", "\ufeffdelivery", "ｄｅｌｉｖｅｒｙ", "delivery\u00a0"],
)
def test_spellings_of_one_class(spelling: str) -> None:
    assert label_finder(["billing", "delivery"], normalise=True)(spelling) == "delivery"
    exact = "delivery" if spelling == "delivery" else None
    assert label_finder(["billing", "delivery"], normalise=False)(spelling) == exact


def test_other_labels_are_other_classes() -> None:
    find = label_finder(["a", "A", "1"], normalise=True)
    assert (find("a"), find("A"), find("b")) == ("a", "A", None)
    assert (find("+1"), find("1.0"), find("01")) == ("1", "1", None)


def test_alike() -> None:
    labels = ["tea", "caf\u00e9", "cafe\u0301", "TEA", "x  y", "x y", "Straße", "STRASSE", "1", "1.0"]
    assert alike(labels) == [
        ["tea", "TEA"],
        ["caf\u00e9", "cafe\u0301"],
        ["x  y", "x y"],
        ["Straße", "STRASSE"],
        ["1", "1.0"],
    ]
    assert alike(["a", "b", "a"]) == []


def test_a_class_is_called_as_most_of_its_rows_call_it() -> None:
    counts = {"DELIVERY": 3, " delivery": 2, "delivery": 2, "cafe\u0301": 1, "tea": 1}
    assert merged_labels(counts) == {
        "DELIVERY": "delivery",
        " delivery": "delivery",
        "delivery": "delivery",
        "cafe\u0301": "caf\u00e9",
        "tea": "tea",
    }
