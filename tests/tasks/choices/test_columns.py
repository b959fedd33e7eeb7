"""Recognition of contexts and their choices among the columns of a split."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset

from capaft.support.errors import UsageError
from capaft.tasks.base.columns import Columns
from capaft.tasks.choices.columns import recognise_choices

T, L = ["a", "b"], [["a", "b"], ["c", "d"]]
NAMED = [{"text": ["a", "b"], "label": ["A", "B"]}] * 2


def table(names: str, **columns: Any) -> Dataset:
    return Dataset.from_dict({**dict.fromkeys(names.split(), T), **columns})


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (
            table("video-id startphrase sent1 sent2 gold-source ending0 ending1 ending2 ending3", label=[0, 1]),
            Columns("sent1", "sent2", "label", ("ending0", "ending1", "ending2", "ending3")),
        ),
        (
            table("activity_label ctx_a ctx_b ctx source_id split label", endings=L, ind=[0, 1]),
            Columns("ctx", None, "label", ("endings",)),
        ),
        (
            table("premise choice1 choice2 question", idx=[0, 1], label=[0, 1]),
            Columns("premise", "question", "label", ("choice1", "choice2")),
        ),
        (
            table("example_id article answer question", options=L),
            Columns("article", "question", "answer", ("options",)),
        ),
        (table("id question answerKey", choices=NAMED), Columns("question", None, "answerKey", ("choices",))),
        (table("question_stem answerKey", choices=NAMED), Columns("question_stem", None, "answerKey", ("choices",))),
        (table("question subject", choices=L, answer=[0, 1]), Columns("question", None, "answer", ("choices",))),
        (table("A B C D question answer"), Columns("question", None, "answer", ("A", "B", "C", "D"))),
        (
            table("sentence option1 option2 answer"),
            Columns("sentence", None, "answer", ("option1", "option2")),
        ),
        (
            table("context question answerA answerB answerC label"),
            Columns("context", "question", "label", ("answerA", "answerB", "answerC")),
        ),
        (table("goal sol1 sol2", label=[0, 1]), Columns("goal", None, "label", ("sol1", "sol2"))),
        (
            table("question exp opa opb opc opd", cop=[0, 1]),
            Columns("question", None, "cop", ("opa", "opb", "opc", "opd")),
        ),
        (
            table("prompt option_10 option_2 option_3 option_1 label", **{f"option_{n}": T for n in range(4, 10)}),
            Columns("prompt", None, "label", tuple(f"option_{n}" for n in range(1, 11))),
        ),
    ],
)
def test_columns(data: Dataset, expected: Columns) -> None:
    assert recognise_choices(data, {}) == expected


def test_given_columns() -> None:
    data = table("a b c choice1 choice2")
    named = {"text": "b", "label": "c"}
    assert recognise_choices(data, named) == Columns("b", None, "c", ("choice1", "choice2"))
    columns = recognise_choices(data, {**named, "pair": "a"})
    assert columns == Columns("b", "a", "c", ("choice1", "choice2"))
    swag = table("sent1 sent2 ending0 ending1 label")
    assert recognise_choices(swag, {"text": "sent1"}).pair is None


@pytest.mark.parametrize(
    ("data", "named", "message"),
    [
        (table("context label"), {}, "cannot tell the columns of choices: call them choice0, choice1"),
        (table("context label ending0 ending2"), {}, "cannot tell the columns of choices"),
        (table("context label ending0 ending1 option1 option2"), {}, "'ending0' and 'option1' each begin a set"),
        (table("words label choice1 choice2"), {}, "which column is the text.*--text-column"),
        (table("context choice1 choice2"), {}, "which column is the label.*--label-column"),
        (table("context choice1 choice2 label"), {"pair": "contxt"}, "--pair-column contxt: there is no such column"),
        (table("context choice1 choice2 label"), {"label": "choice1"}, "--label-column choice1: .*another role"),
        (table("context choice1 choice2", label=[0.5, 1.0]), {"label": "label"}, "does not hold numbers or letters"),
    ],
)
def test_columns_that_cannot_be_told(data: Dataset, named: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        recognise_choices(data, named)
    assert "\n" not in str(error.value)
