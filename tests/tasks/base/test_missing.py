"""Texts that stand for a missing value: found whatever blanks surround them, and null afterwards."""

from __future__ import annotations

from typing import Any

import pandas._libs.parsers
import pytest
from datasets import Dataset

from capaft.config.choices import MISSING_VALUES
from capaft.tasks.base.missing import BLANK, spellings, with_nulls

ALL = BLANK.union(MISSING_VALUES)


def nulled(values: list[Any], texts: frozenset[str] = ALL) -> list[Any]:
    return with_nulls(Dataset.from_dict({"a": values}), {"a": texts})["a"][:]


def test_the_spellings_are_those_of_pandas_and_of_r() -> None:
    assert pandas._libs.parsers.STR_NA_VALUES <= ALL
    assert {"NA_character_", "NA_integer_", "NA_real_"} <= ALL
    assert "none" not in ALL


@pytest.mark.parametrize(
    "text", ["", "  ", "\t\u00a0\u3000", "\ufeff", "\u200b", "NA", " NA ", "null\n", "\ufeffNaN", "<NA>"]
)
def test_missing_texts_are_null(text: str) -> None:
    assert nulled(["x", text, "y"]) == ["x", None, "y"]


@pytest.mark.parametrize("text", ["none", "nil", "Null", "Nancy", "N A", "0", "-"])
def test_words_are_values(text: str) -> None:
    assert nulled([text]) == [text]


def test_members_of_lists_and_languages_of_translations_are_null() -> None:
    assert nulled([["a", "NA"], [], None, [""]]) == [["a", None], [], None, [None]]
    rows = Dataset.from_dict({"translation": [{"de": "a", "en": "NaN"}, {"de": "null", "en": "b"}]})
    expected = [{"de": "a", "en": None}, {"de": None, "en": "b"}]
    assert with_nulls(rows, {"de": ALL, "en": ALL})["translation"][:] == expected


def test_what_holds_no_text_stays() -> None:
    messages = [[{"role": "user", "content": "NA"}]]
    assert nulled(messages) == messages
    assert nulled([1, None]) == [1, None]
    rows = Dataset.from_dict({"a": ["x"], "b": ["NA"]})
    assert with_nulls(rows, {"a": ALL}) is rows
    assert with_nulls(rows, {"absent": ALL}) is rows


def test_selections_and_many_rows() -> None:
    rows = Dataset.from_dict({"n": list(range(25_000)), "a": [["x", "NA"][n % 3 == 0] for n in range(25_000)]})
    chosen = with_nulls(rows.select(range(24_999, 0, -7)), {"a": ALL})
    assert [value is None for value in chosen["a"]] == [n % 3 == 0 for n in chosen["n"]]
    assert chosen.column_names == ["n", "a"]
    assert len(with_nulls(rows.select([]), {"a": ALL})) == 0


def test_spellings_for_a_message() -> None:
    rows = Dataset.from_dict({"a": ["NA", " NA", "x", "", None], "b": [["null"], [], ["y"], [], []]})
    assert spellings(rows, {"a": ALL, "b": ALL}) == "'NA', blank, 'null'"
    assert spellings(rows, {"a": BLANK}) == "blank"
    assert spellings(rows.select([2]), {"a": ALL}) == ""
    many = Dataset.from_dict({"a": list(MISSING_VALUES)})
    assert spellings(many, {"a": ALL}).endswith("'#N/A N/A', ...")
