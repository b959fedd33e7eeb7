"""Columns of sources and targets under their usual names on the hub, and the pairs read from them."""

from __future__ import annotations

import pytest
from datasets import Dataset, Features, Translation, Value
from tiny_text import table

from capaft.support.errors import UsageError
from capaft.tasks.base.columns import Columns
from capaft.tasks.language.text_pairs import (
    Pair,
    are_summaries,
    check_pairs,
    read_pairs,
    recognise_source,
    recognise_text_pairs,
)

LANGUAGES = [{"en": "one", "de": "eins"}, {"en": "two", "de": "zwei"}]


def rows_of(names: str) -> Dataset:
    return table(**{name: [f"{name} 1", f"{name} 2"] for name in names.split()})


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("prompt completion", Columns("prompt", None, "completion")),
        ("instruction input output text", Columns("instruction", "input", "output")),
        ("instruction context response category", Columns("instruction", "context", "response")),
        ("question answer", Columns("question", None, "answer")),
        ("mr ref", Columns("mr", None, "ref")),
        ("meaning_representation human_reference", Columns("meaning_representation", None, "human_reference")),
        ("document summary id", Columns("document", None, "summary")),
        ("article highlights id", Columns("article", None, "highlights")),
        ("id dialogue summary", Columns("dialogue", None, "summary")),
        ("text summary title", Columns("text", None, "summary")),
        ("input output", Columns("input", None, "output")),
        ("Source Target", Columns("Source", None, "Target")),
    ],
)
def test_usual_names(names: str, expected: Columns) -> None:
    assert recognise_text_pairs(rows_of(names), {}) == expected


def test_what_is_given_goes_first() -> None:
    rows = rows_of("prompt completion body heading")
    assert recognise_text_pairs(rows, {"text": "body", "label": "heading"}) == Columns("body", None, "heading")
    assert recognise_text_pairs(rows, {"label": "heading"}) == Columns("prompt", None, "heading")
    assert recognise_text_pairs(rows, {"text": "prompt"}) == Columns("prompt", None, "completion")
    assert recognise_text_pairs(rows, {"text": "body"}) is None
    pairs = recognise_text_pairs(rows, {"text": "prompt", "pair": "body", "label": "heading"})
    assert pairs == Columns("prompt", "body", "heading")


def test_the_further_text_of_a_source_goes_with_it_whatever_the_target_is_called() -> None:
    rows = rows_of("instruction input gold")
    named = {"text": "instruction", "label": "gold"}
    assert recognise_text_pairs(rows, named) == Columns("instruction", "input", "gold")
    assert recognise_text_pairs(rows, {"label": "gold"}) == Columns("instruction", "input", "gold")


@pytest.mark.parametrize(
    ("names", "named", "expected"),
    [
        ("instruction input", {}, Columns("instruction", "input")),
        ("id instruction", {}, Columns("instruction")),
        ("instruction input extra", {"text": "instruction"}, Columns("instruction", "input")),
        ("instruction input extra", {"text": "instruction", "pair": "extra"}, Columns("instruction", "extra")),
        ("task more", {"text": "task", "pair": "more"}, Columns("task", "more")),
        ("task more", {"pair": "more"}, Columns("task", "more")),
    ],
)
def test_a_source_without_a_target_keeps_its_further_text(names: str, named: dict[str, str], expected: Columns) -> None:
    assert recognise_source(rows_of(names), named) == expected


def test_what_is_not_surely_the_source_is_asked_for() -> None:
    with pytest.raises(UsageError, match="cannot tell which column is the text"):
        recognise_source(rows_of("instruction input extra"), {})
    with pytest.raises(UsageError, match="no usual name goes with the target extra"):
        recognise_source(rows_of("instruction extra"), {"label": "extra"})


def test_no_pair() -> None:
    assert recognise_text_pairs(rows_of("text label"), {}) is None
    assert recognise_text_pairs(table(question=["a"], answer=[1]), {}) is None
    with pytest.raises(UsageError, match="does not hold text or a list of texts"):
        recognise_text_pairs(table(question=["a"], answer=[1]), {"label": "answer"})


@pytest.mark.parametrize("feature", [Translation(["en", "de"]), {"en": Value("string"), "de": Value("string")}])
def test_translations_go_by_language(feature: object) -> None:
    rows = Dataset.from_dict({"id": [1, 2], "translation": LANGUAGES}, Features(id=Value("int64"), translation=feature))
    columns = recognise_text_pairs(rows, {})
    assert columns == Columns("en", None, "de")
    assert recognise_text_pairs(rows, {"text": "de"}) == Columns("de", None, "en")
    assert recognise_text_pairs(rows, {"label": "en"}) == Columns("de", None, "en")
    assert read_pairs(rows, columns, "", per_reference=True) == [Pair(1, "one", ("eins",)), Pair(2, "two", ("zwei",))]
    with pytest.raises(UsageError, match=r"--text-column fr.*the columns are en"):
        recognise_text_pairs(rows, {"text": "fr"})


def test_several_references() -> None:
    rows = table(mr=["a", "b"], refs=[["x", "y"], ["z"]])
    columns = recognise_text_pairs(rows, {})
    assert columns == Columns("mr", None, "refs")
    assert read_pairs(rows, columns, "say: ", per_reference=False) == [
        Pair(1, "say: a", ("x", "y")),
        Pair(2, "say: b", ("z",)),
    ]
    assert [pair.references for pair in read_pairs(rows, columns, "", per_reference=True)] == [("x",), ("y",), ("z",)]


def test_a_further_text_stands_on_a_line_of_its_own() -> None:
    rows = table(instruction=["add", "add"], input=["1 2", ""], output=["3", "?"])
    columns = recognise_text_pairs(rows, {})
    assert [pair.source for pair in read_pairs(rows, columns, "", per_reference=False)] == ["add\n1 2", "add"]


def test_missing_texts_name_their_row() -> None:
    with pytest.raises(UsageError, match="row 2: no text in column 'ref'"):
        check_pairs(table(mr=["a", "b"], ref=["x", None]), Columns("mr", None, "ref"))
    with pytest.raises(UsageError, match="row 1: no text in column 'refs'"):
        check_pairs(table(mr=["a", "b"], refs=[[], ["x"]]), Columns("mr", None, "refs"))
    with pytest.raises(UsageError, match="row 1: no text in column 'mr'"):
        check_pairs(table(mr=[None, "b"], ref=["x", "x"]), Columns("mr", None, "ref"))
    with pytest.raises(UsageError, match="--label-column among mr"):
        check_pairs(table(mr=["a"]), Columns("mr"))


def test_summaries_are_known_by_their_name() -> None:
    assert are_summaries(Columns("a", None, "Summary"))
    assert are_summaries(Columns("a", None, "highlights"))
    assert not are_summaries(Columns("a", None, "de"))


GEM = {"target": ["one", "two"], "references": [["one", "ONE"], ["two"]]}


@pytest.mark.parametrize(
    ("name", "values", "source"),
    [
        ("tripleset", [[["a", "b", "c"], ["d", "e", "f"]], [["g", "h", "i"]]], "a : b : c | d : e : f"),
        ("input", [["a | b | c", "d | e | f"], ["g | h | i"]], "a | b | c | d | e | f"),
        ("meaning_representation", ["name[a]", "name[b]"], "name[a]"),
    ],
)
def test_sources_may_be_lists_and_all_references_count(name: str, values: list[object], source: str) -> None:
    """DART, WebNLG and E2E as in GEM; triples are written as in LoRA's experiments."""
    rows = table(**{name: values}, **GEM)
    columns = recognise_text_pairs(rows, {"text": name})
    assert columns == Columns(name, None, "references")
    first, _ = read_pairs(rows, columns, "", per_reference=False)
    assert first == Pair(1, source, ("one", "ONE"))
    # Training rows have a target and no references.
    training = table(**{name: values, "target": ["one", "two"], "references": [[], []]})
    assert recognise_text_pairs(training, {"text": name}) == Columns(name, None, "target")


def test_a_list_with_nothing_in_it_is_no_source() -> None:
    rows = table(triples=[[["a"]], []], target=["one", "two"])
    columns = recognise_text_pairs(rows, {"text": "triples", "label": "target"})
    assert columns is not None
    with pytest.raises(UsageError, match="row 2: no text in column 'triples'"):
        read_pairs(rows, columns, "", per_reference=True)
    with pytest.raises(UsageError, match="--text-column number: this column does not hold text or lists of texts"):
        recognise_text_pairs(table(number=[1], target=["x"]), {"text": "number", "label": "target"})
    # A list is a source only if the user chooses it.
    assert recognise_text_pairs(table(input=[["a"]], target=["x"]), {}) is None
