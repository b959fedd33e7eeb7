"""The rows that a task trains on and is scored on: their columns, the rows left out, and the lines about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import GOOD, invoke, write_reviews
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from tiny_data import ignore

from capaft.config.parts.task import TaskSettings
from capaft.config.train_config import TrainConfig
from capaft.data.load import Splits
from capaft.support.errors import UsageError
from capaft.tasks.base.columns import Columns, row_numbers
from capaft.tasks.base.registry import task_class
from capaft.tasks.base.task import Task
from capaft.tasks.language.text_pairs import read_pairs
from capaft.tasks.text_classification import TextClassification
from capaft.training.setup.selection import load_splits, select_for_training
from capaft.training.setup.usable_rows import Selection

Row = dict[str, Any]
LABELLED: list[Row] = [{"text": f"text {row}", "label": row % 2} for row in range(40)]
QUICK = ("--max-steps", "2", "--batch-size", "8", "--k", "16", "--rank", "2", "--max-length", "16")


def select(
    rows: list[Row], others: list[Row] | None = None, name: str = "validation", **settings: Any
) -> tuple[Selection, Selection, Task, list[str]]:
    """The training rows, the validation rows, the task, and the lines about the rows."""
    config = TrainConfig(**{"task": "text-classification", **settings})
    source = Splits(Dataset.from_list(rows), None if others is None else Dataset.from_list(others), name)
    messages: list[str] = []
    return *select_for_training(task_class(config.task), source, config, messages.append)[:3], messages


def write(path: Path, rows: list[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# Labels that are in one part only


RARE: list[Row] = [*LABELLED, *({"text": f"rare {number}", "label": f"rare{number}"} for number in range(12))]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("task", "labels"),
    [
        ("text-classification", lambda row: ["any", str(row["label"])]),
        ("token-classification", lambda row: ["O", str(row["label"])]),
    ],
)
def test_what_is_scarce_may_be_in_the_rows_that_are_set_aside(task: str, labels: Any, seed: int) -> None:
    text = (lambda row: row["text"].split()) if task.startswith("token") else (lambda row: row["text"])
    rows = [{"tokens" if task.startswith("token") else "text": text(row), "tags": labels(row)} for row in RARE]
    columns = {"label_column": "tags"} if task.startswith("text") else {}
    train, validation, made, _ = select(rows, task=task, seed=seed, validation_split=0.4, **columns)
    assert (len(train.rows), len(validation.rows), len(made.labels)) == (31, 21, 15)
    made.check_labels(train.rows, train.columns)
    made.check_labels(validation.rows, validation.columns)
    assert sum(made.label_counts(validation.rows, validation.columns)[f"rare{at}"] for at in range(12)) > 0


def test_a_split_of_the_user_may_have_no_other_labels() -> None:
    _, validation, task, _ = select(LABELLED, [{"text": "a", "label": 2}])
    with pytest.raises(UsageError, match="the training data has no label '2'"):
        task.check_labels(validation.rows, validation.columns)


def test_a_whole_run_with_scarce_labels(tmp_path: Path) -> None:
    data = write_reviews(tmp_path / "x.csv")
    with data.open("a") as stream:
        stream.writelines(f"Nothing like number {number}.,rare{number}\n" for number in range(12))
    done = invoke("train", "--data", data, "--output", tmp_path / "run", "--json", *QUICK, "--no-baseline")
    assert done.code == 0, done.err
    assert len(json.loads(done.out)["labels"]) == 14
    assert "data   there is no validation split; 8 of 76 training rows are set aside\n" in done.err
    scored = invoke("eval", tmp_path / "run", "--json")
    assert json.loads(scored.out)["value"] == json.loads(done.out)["value"]


# Test splits


def test_a_test_split_counts_where_it_has_labels() -> None:
    others: list[Row] = [{"text": "a", "label": 1}, {"text": "b", "label": 0}]
    train = [{**row, "note": "x", "level": row["label"] - 1} for row in LABELLED]
    for test in (others, [{**row, "level": -1} for row in others]):
        _, validation, _, messages = select(train, test, "test", label_column="label")
        assert validation.rows["text"][:] == ["a", "b"]
        assert messages == ["validation is the split test, 2 rows"]


@pytest.mark.parametrize(
    ("test", "why"),
    [
        ([{"text": "a", "label": -1}] * 2, "none of the 2 validation rows has a value in 'text' and 'label'"),
        ([{"text": "a", "label": None}] * 2, "cannot tell which column is the label (no column looks like one)"),
        ([{"text": "a"}] * 2, "cannot tell which column is the label"),
    ],
)
def test_a_test_split_without_labels_is_left_aside(test: list[Row], why: str) -> None:
    train, validation, _, messages = select(LABELLED, test, "test")
    assert (len(train.rows), len(validation.rows)) == (36, 4)
    assert messages[0].startswith(f"the test split is skipped: {why}")
    assert messages[1:] == ["there is no validation split; 4 of 40 training rows are set aside"]
    with pytest.raises(UsageError, match=r"none of|cannot tell"):
        select(LABELLED, test, "test", eval_split="test")
    with pytest.raises(UsageError, match=r"none of|cannot tell"):
        select(LABELLED, test, "validation")


def test_a_test_split_without_targets_is_left_aside() -> None:
    rows = [{"prompt": f"p{row}", "completion": f"c{row}"} for row in range(10)]
    test = [{"prompt": "p"}] * 3
    _, validation, _, messages = select(rows, test, "test", task="causal-lm")
    assert len(validation.rows) == 1
    assert messages[0] == "the test split is skipped: it has no labels"


# Rows that are left out


FEATURES = Features(text=Value("string"), label=ClassLabel(names=["no", "yes"]))


def test_rows_without_a_label_or_a_text_are_left_out() -> None:
    rows: list[Row] = [
        *LABELLED,
        {"text": "lost", "label": -1},
        {"text": "lost", "label": None},
        {"text": None, "label": 1},
    ]
    source = Splits(Dataset.from_list(rows, features=FEATURES), Dataset.from_list(rows[20:], features=FEATURES), "dev")
    messages: list[str] = []
    kind, config = task_class("text-classification"), TrainConfig()
    train, validation, *_ = select_for_training(kind, source, config, messages.append)
    assert train.rows["text"][:] == [row["text"] for row in LABELLED]
    assert validation.rows["text"][:] == [row["text"] for row in LABELLED[20:]]
    assert messages == [
        "3 of 43 training rows have no value in 'text' or 'label' and are left out",
        "3 of 23 validation rows have no value in 'text' or 'label' and are left out",
        "validation is the split dev, 20 rows",
    ]


class Shouting(TextClassification):
    """Text classification that takes no text in capitals."""

    @classmethod
    def faults(cls, rows: Dataset, columns: Columns, settings: TaskSettings) -> dict[int, str]:
        return {at: "it shouts" for at, text in enumerate(rows[columns.text]) if text.isupper()}


def select_quiet(shouting: int, strict: bool = False) -> tuple[list[str], list[str]]:
    gap: list[Row] = [{"text": None, "label": 1}]
    loud: list[Row] = [{"text": f"LOUD {row}", "label": 0} for row in range(shouting)]
    source = Splits(Dataset.from_list([*gap, *loud, *LABELLED]), Dataset.from_list(LABELLED), "dev")
    messages: list[str] = []
    train = select_for_training(Shouting, source, TrainConfig(strict=strict), messages.append).train
    return train.rows["text"][:], messages


def test_a_few_rows_with_a_fault_are_left_out_and_the_first_named() -> None:
    texts, messages = select_quiet(6)
    assert texts == [row["text"] for row in LABELLED]
    named = "; ".join(f"row {row}: it shouts" for row in range(2, 7))
    assert messages[1] == f"6 of 46 training rows cannot be used and are left out: {named}; and 1 more"


def test_a_few_rows_with_words_and_tags_that_do_not_go_together_are_left_out() -> None:
    rows = [{"tokens": ["a", "null"], "ner_tags": ["O", "B-X"]} for _ in range(20)]
    rows[3] = {"tokens": ["a", "b"], "ner_tags": ["O"]}
    train, validation, _, messages = select(rows, task="token-classification")
    assert messages[0] == (
        "1 of 20 training rows cannot be used and is left out: row 4: 2 words in column 'tokens' but 1 tags in column "
        "'ner_tags'"
    )
    assert len(train.rows) + len(validation.rows) == 19


def test_many_rows_with_a_fault_are_refused() -> None:
    with pytest.raises(
        UsageError, match=r"^20 of 60 training rows cannot be used, too many to leave out \(row 2: it sh"
    ):
        select_quiet(20)


def test_strict_refuses_every_row_that_would_be_left_out() -> None:
    with pytest.raises(UsageError, match=r"^1 of 41 training rows has no value in 'text' or 'label'; fill it in, or"):
        select_quiet(0, strict=True)
    source = Splits(Dataset.from_list([{"text": "LOUD", "label": 0}, *LABELLED]), None, "")
    with pytest.raises(UsageError, match=r"^1 of 41 training rows cannot be used \(row 1: it shouts\); correct it"):
        select_for_training(Shouting, source, TrainConfig(strict=True), str)


def test_rows_are_left_out_before_any_are_set_aside() -> None:
    gaps: list[Row] = [{"text": "lost", "label": None} for _ in range(40)]
    whole, other = (select(rows)[:2] for rows in (LABELLED, [*gaps, *LABELLED]))
    assert [part.rows["text"][:] for part in whole] == [part.rows["text"][:] for part in other]


def test_rows_keep_their_numbers() -> None:
    gaps: list[Row] = [{"text": "lost", "label": None} for _ in range(40)]
    train, validation, _, _ = select([*gaps, *LABELLED])
    for part in (train, validation):
        assert [f"text {row - 41}" for row in row_numbers(part.rows)] == part.rows["text"][:]
    assert sorted(row_numbers(train.rows) + row_numbers(validation.rows)) == list(range(41, 81))
    _, validation, task, _ = select(LABELLED, [{"text": None, "label": 0}, {"text": "b", "label": 7}])
    with pytest.raises(UsageError, match=r"^row 2 \('b'\): the training data has no label '7'"):
        task.check_labels(validation.rows, validation.columns)


def usable(task: str, rows: Dataset, columns: Columns, **settings: Any) -> list[bool]:
    return task_class(task).usable(rows, columns, TrainConfig(**settings)).tolist()


def test_what_a_label_is_depends_on_the_task() -> None:
    words = Dataset.from_dict({"text": ["a"] * 3, "label": ["x", "", None]})
    columns = Columns("text", None, "label")
    assert usable("text-classification", words, columns) == [True, False, False]
    assert usable("text-classification", words, columns, problem="multi", label_separator=";") == [True, True, False]
    assert usable("seq2seq", words, columns) == [True, True, False]
    numbers = Dataset.from_dict({"text": ["a"] * 4, "label": [0.5, float("nan"), None, float("inf")]})
    assert usable("text-classification", numbers, columns) == [True, False, False, True]
    of_minus_one = Dataset.from_dict({"text": ["a", "b"], "label": [-1, -1]})
    assert usable("text-classification", of_minus_one, columns) == [False, False]
    assert (
        usable("text-classification", Dataset.from_dict({"text": ["a", "b"], "label": [-1, 1]}), columns) == [True] * 2
    )
    features = Features(text=Value("string"), label=List(ClassLabel(names=["a", "b"])))
    lists = Dataset.from_dict({"text": ["a"] * 4, "label": [[0], [], None, [0, -1]]}, features=features)
    assert usable("text-classification", lists, columns) == [True, True, False, False]
    flags = Dataset.from_dict({"text": ["a"] * 2, "x": [0, None], "y": [1, 1]})
    assert usable("text-classification", flags, Columns("text", None, None, ("x", "y"))) == [True, False]
    pairs = Dataset.from_dict({"text": ["a"] * 2, "pair": ["b", None], "label": [0, 1]})
    assert usable("text-classification", pairs, Columns("text", "pair", "label")) == [True, False]
    # A second input of a prompt may be missing.
    assert usable("causal-lm", pairs, Columns("text", "pair", "label")) == [True, True]


def test_what_an_answer_is_depends_on_the_task() -> None:
    asked = {"question": ["q"] * 3, "context": ["c", "c", None]}
    answers = [{"text": ["c"], "answer_start": [0]}, {"text": [], "answer_start": []}, None]
    rows = Dataset.from_dict({**asked, "answers": answers})
    columns = Columns("question", "context", "answers")
    assert usable("question-answering", rows, columns) == [True, True, False]
    letters = Dataset.from_dict({"text": ["a"] * 4, "label": ["A", "", None, "-1"]})
    assert usable("multiple-choice", letters, Columns("text", None, "label", ("b", "c"))) == [True, False, False, False]
    speech = Dataset.from_dict({"image": ["a.png", None], "label": ["x", "y"]})
    assert usable("image-classification", speech, Columns("image", None, "label")) == [True, False]
    languages = Dataset.from_dict({"translation": [{"de": "a", "en": "b"}, {"de": None, "en": "c"}]})
    assert usable("seq2seq", languages, Columns("de", None, "en")) == [True, False]


def kept(rows: list[Row], **settings: Any) -> tuple[int, list[str]]:
    """The number of training rows that are left, with those set aside, and the lines about them."""
    train, validation, _, messages = select(rows, **settings)
    return len(train.rows) + len(validation.rows), messages


def test_missing_values_are_left_out_however_they_are_spelt() -> None:
    gaps = [{"text": "lost", "label": label} for label in ("NA", "null", "  ", None, "NA")]
    words = [{"text": row["text"], "label": ("no", "none")[row["label"]]} for row in LABELLED]
    count, messages = kept([*gaps, {"text": "N/A", "label": "no"}, *words])
    assert count == 40
    assert messages[0] == (
        "6 of 46 training rows have no value in 'text' or 'label' ('NA', 'N/A', 'null', blank) and are left out; "
        "--missing-values says what is missing"
    )
    count, messages = kept([*gaps, *words], missing_values=("",))
    assert count == 43
    assert messages[0] == "2 of 45 training rows have no value in 'text' or 'label' (blank) and are left out"
    with pytest.raises(
        UsageError, match=r"^5 of 45 training rows have no value in 'text' or 'label' \('NA', 'null', bl"
    ):
        kept([*gaps, *words], strict=True)
    with pytest.raises(UsageError, match=r"none of the 5 training rows has a value in 'text' and 'label' \('NA'"):
        kept(gaps)


def test_classes_of_the_hub_may_be_called_na() -> None:
    features = Features(text=Value("string"), label=ClassLabel(names=["NA", "null"]))
    source = Splits(Dataset.from_list(LABELLED, features=features), None, "")
    train, _, task, _ = select_for_training(TextClassification, source, TrainConfig(), ignore)
    assert (len(train.rows), task.labels) == (36, ("NA", "null"))


def test_missing_completions_and_missing_inputs_of_prompts() -> None:
    rows = [{"instruction": f"do {n}", "input": ("NaN", "", None, "x")[n % 4], "output": "yes"} for n in range(20)]
    rows += [{"instruction": "do", "input": "x", "output": output} for output in ("", "nan", None)]
    train, validation, _, messages = select(rows, task="causal-lm", validation_split=0.4)
    assert messages[0].startswith("3 of 23 training rows have no value in 'instruction' or 'output' (blank, 'nan')")
    sources = {pair.source.partition("\n")[2] for part in (train, validation) for pair in pairs_of(part)}
    assert sources == {"", "x"}


def pairs_of(selection: Selection) -> list[Any]:
    return read_pairs(selection.rows, selection.columns, "", per_reference=True)


def test_missing_references_are_left_out_one_by_one() -> None:
    references = [["a", "NA"], ["", None, "b"], ["null"], None, []]
    rows = [{"mr": f"m {n}", "references": references[n % 5]} for n in range(20)]
    train, validation, _, _ = select(rows, task="causal-lm")
    pairs = [*pairs_of(train), *pairs_of(validation)]
    assert sorted(pair.references for pair in pairs) == [("a",)] * 4 + [("b",)] * 4


def test_words_tags_and_choices_are_never_spellings_of_a_missing_value() -> None:
    rows: list[Row] = [{"tokens": ["NA", "null"], "tags": ["NA", "O"]}] * 20
    assert kept(rows, task="token-classification")[0] == 20
    choices = [
        {"question": "q", "choice0": "None", "choice1": "NA", "choice2": " ", "label": "01"[n % 2]} for n in range(20)
    ]
    gaps = [{**choices[0], "label": "NULL"}, {**choices[0], "choice0": ""}]
    train, _, _, messages = select([*choices, *gaps], task="multiple-choice")
    assert messages[0].startswith("1 of 22 training rows has no value in 'question' or 'label' and is left out")
    assert messages[1] == (
        "1 of 21 training rows cannot be used and is left out: row 22: a choice is missing in columns "
        "choice0, choice1, choice2"
    )
    assert len(train.rows) == 18
    named = [{"question": "q", "choices": ["a", "NA"], "label": ("a", "NA")[n % 2]} for n in range(20)]
    assert kept(named, task="multiple-choice")[0] == 20


def test_a_question_is_missing_and_an_answer_may_say_so() -> None:
    answer = {"text": ["NA"], "answer_start": [3]}
    rows: list[Row] = [{"question": "q", "context": "in NA", "answers": answer}] * 20
    gaps: list[Row] = [{**rows[0], "question": "NA"}, {**rows[0], "answers": {"text": [None], "answer_start": [0]}}]
    assert kept([*rows, *gaps], task="question-answering")[0] == 20


def test_columns_of_labels_are_named_where_one_has_a_gap() -> None:
    rows = [{"text": f"a {at}", "x": at % 2, "y": None if at == 3 else at % 3 == 0} for at in range(20)]
    _, _, _, messages = select(rows, label_column="x,y")
    assert messages[0] == "1 of 20 training rows has no value in 'text' or 'x' or 'y' and is left out"


def test_labels_in_lists_and_in_one_text() -> None:
    lists = [{"text": "t", "label": (["a"], ["b", "NA"], ["b", None], [], ["a", "b"])[n % 5]} for n in range(20)]
    assert kept(lists)[0] == 12
    texts = [{"text": "t", "label": ("a", "b; NA", "", "a;b", "NA")[n % 5]} for n in range(20)]
    assert kept(texts, problem="multi", label_separator=";")[0] == 12


def test_numbers_among_texts_are_numbers() -> None:
    def numbers(*others: Any) -> list[Row]:
        return [{"text": f"t {n}", "score": f"{n % 9 / 4}"} for n in range(60)] + [
            {"text": "odd", "score": other} for other in others
        ]

    train, validation, task, messages = select(numbers("NA", "1,4", "n.b.", " 2.5 ", "+1", "1e-3", "3.5"))
    assert (task.labels, task.metric, len(train.rows) + len(validation.rows)) == ((), "pearson", 64)
    assert messages[0].startswith("1 of 67 training rows has no value in 'text' or 'score' ('NA')")
    assert messages[1] == (
        "2 of 66 training rows cannot be used and are left out: row 62: the label '1,4' is not a number such as "
        "1250.5; row 63: the label 'n.b.' is not a number such as 1250.5"
    )
    # Few validation rows may all be whole, and are numbers nevertheless.
    _, validation, _, messages = select(
        numbers(), [{"text": "a", "score": score} for score in ("1", "2", "3", "x", "4")]
    )
    assert (len(validation.rows), messages[0][:40]) == (4, "1 of 5 validation rows cannot be used an")
    with pytest.raises(UsageError, match=r"^column 'score' holds numbers such as '.*%', .*; write them as 1250.5, or"):
        select([{**row, "score": f"{row['score']}%"} for row in numbers()])
    with pytest.raises(
        UsageError, match=r"^column 'score' holds numbers such as '0.25' and words such as 'good'; choose"
    ):
        select(numbers(*["good"] * 60))
    words = select(numbers(*["good"] * 60), problem="single")[2]
    assert words.labels[0] == "0.0"
    with pytest.raises(
        UsageError, match=r"^60 of 120 training rows cannot be used, too many .*the label 'good' is not"
    ):
        select(numbers(*["good"] * 60), problem="regression")


def test_whole_numbers_are_classes_however_they_are_written() -> None:
    for values in (("1", "2", "NA"), (" 1", "+2"), ("1.0", "2.0"), (1, 2, None), (1.0, 2.0, float("nan"))):
        rows = [{"text": f"t {n}", "label": values[n % len(values)]} for n in range(30)]
        assert select(rows)[2].labels == ("1", "2"), values
    infinite = [{"text": f"t {n}", "label": float("inf") if n == 3 else float(n % 2)} for n in range(30)]
    _, _, task, messages = select(infinite)
    assert (task.labels, messages[0][:64]) == (
        ("0", "1"),
        "1 of 30 training rows cannot be used and is left out: row 4: the",
    )


def test_rows_set_aside_have_the_classes_of_those_that_are_left() -> None:
    rows = [{"text": f"t {n}", "label": "rare" if n % 20 == 0 else "often"} for n in range(200)]
    for seed in range(3):
        train, validation, _, _ = select(rows, seed=seed)
        assert [part.rows["label"][:].count("rare") for part in (train, validation)] == [9, 1]


def test_normalised_labels_of_another_split_match() -> None:
    rows = [{"text": f"t {n}", "label": ("delivery", " Delivery", "billing")[n % 3]} for n in range(30)]
    others = [{"text": "a", "label": "DELIVERY "}, {"text": "b", "label": "billing"}]
    _, validation, task, _ = select(rows, others, normalise_labels=True)
    assert (task.labels, task.classes_of(validation.rows, validation.columns)) == (("billing", "delivery"), [1, 0])
    _, validation, task, _ = select(rows, others)
    with pytest.raises(UsageError, match="the training data has no label 'DELIVERY '"):
        task.check_labels(validation.rows, validation.columns)


def test_nothing_that_can_be_used() -> None:
    with pytest.raises(UsageError, match="none of the 3 training rows has a value in 'text' and 'label'"):
        select([{"text": "a", "label": -1}] * 3)


def test_eval_leaves_the_same_rows_out(run: Path, tmp_path: Path) -> None:
    rows = [{"text": f"A {word} film.", "label": "good"} for word in GOOD]
    whole = write(tmp_path / "whole.jsonl", [*rows, {"text": "Bad.", "label": "bad"}])
    gaps = write(tmp_path / "gaps.jsonl", [{"text": "Lost.", "label": None}, *rows, {"text": "Bad.", "label": "bad"}])
    first, second = (invoke("eval", run, "--data", data, "--json") for data in (whole, gaps))
    assert first.out == second.out
    assert second.err == "data   1 of 10 rows has no value in 'text' or 'label' and is left out\n"


# Columns


MOODS: list[Row] = [{"phrase": f"phrase {row}", "mood": ("gay", "sad")[row % 2]} for row in range(40)]


def test_few_rows_have_the_columns_of_many() -> None:
    for others, name in ((None, ""), (MOODS[:3], "validation"), (MOODS[:3], "test")):
        train, validation, _, _ = select(MOODS, others, name)
        assert train.columns == validation.columns == Columns("phrase", None, "mood")


def test_columns_of_another_kind_or_name_are_found_anew() -> None:
    others = [{"sentence": "a", "mood": "gay"}, {"sentence": "b", "mood": "sad"}]
    assert select(MOODS, [{**row, "label": row["mood"]} for row in others])[1].columns.text == "sentence"
    train = [{"sentence1": "a", "sentence2": "b", "label": row % 2} for row in range(10)]
    assert select(train, [{"premise": "a", "hypothesis": "b", "sentence1": "c", "label": 0}])[1].columns == Columns(
        "premise", "hypothesis", "label"
    )


def test_references_go_before_the_target_of_training() -> None:
    features = Features(source=Value("string"), target=Value("string"), references=List(Value("string")))
    made = [
        Dataset.from_list([{"source": "a", "target": "b", "references": references}] * 4, features=features)
        for references in ([], ["c", "d"])
    ]
    config = TrainConfig(task="seq2seq")
    train, validation, *_ = select_for_training(task_class("seq2seq"), Splits(*made, "test"), config, ignore)
    assert (train.columns.label, validation.columns.label) == ("target", "references")


def test_a_run_knows_its_columns(tmp_path: Path) -> None:
    data = write(tmp_path / "moods.jsonl", MOODS)
    run = tmp_path / "run"
    done = invoke("train", "--data", data, "--output", run, *QUICK)
    assert done.code == 0, done.err
    assert "text_column: phrase\n" in (run / "run.yaml").read_text()
    few = write(tmp_path / "few.jsonl", MOODS[:3])
    scored = invoke("eval", run, "--data", few, "--json")
    assert scored.code == 0, scored.err
    assert json.loads(scored.out)["examples"] == 3
    again = invoke("train", "--config", run / "run.yaml", "--output", tmp_path / "again")
    assert again.code == 0, again.err
    for name in ("adapter.safetensors", "run.yaml", "predictions.jsonl"):
        assert (tmp_path / "again" / name).read_bytes() == (run / name).read_bytes()


# Splits by their names


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("named") / "saved"
    rows = Dataset.from_list(LABELLED)
    parts = {"train_sft": rows, "test_sft": rows.select(range(10)), "odd": rows.select(range(5))}
    DatasetDict(parts).save_to_disk(directory)
    return directory


def test_splits_by_name(named: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = ("--train-split", "train_sft", "--eval-split", "test_sft", "--output", run, "--json")
    done = invoke("train", "--data", named, *QUICK, *flags)
    results = json.loads(done.out)
    assert (results["train_examples"], results["validation_examples"]) == (40, 10)
    assert "data   validation is the split test_sft, 10 rows\n" in done.err
    for arguments, count in (
        ((), 10),
        (("--split", "odd"), 5),
        (("--data", named, "--split", "odd"), 5),
        (("--data", named, "--split", "train_sft"), 40),
    ):
        scored = invoke("eval", run, *arguments, "--json")
        assert scored.code == 0, scored.err
        assert json.loads(scored.out)["examples"] == count


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("train", "--train-split", "train_stf"), "there is no split 'train_stf' in this data set; it has train_sft, "),
        (("train", "--train-split", "odd", "--eval-split", "x"), "no split 'x' in this data set; it has train_sft, "),
        (("train",), "there is no train split among train_sft, test_sft, odd; choose one with --train-split"),
        (("eval",), "no validation or train split among train_sft, test_sft, odd; choose one with --split"),
        (("eval", "--split", "x"), "there is no split 'x' in this data set; it has train_sft, test_sft, odd"),
    ],
)
def test_splits_that_are_not_there(
    command: tuple[str, ...], message: str, named: Path, run: Path, tmp_path: Path
) -> None:
    first, *flags = command
    where = ("--output", tmp_path / "run") if first == "train" else (run,)
    done = invoke(first, *where, "--data", named, *flags)
    assert done.code == 2
    assert len(done.err.splitlines()) == 1
    assert message in done.err


def test_splits_of_the_demo_by_name() -> None:
    splits = load_splits(TrainConfig(eval_split="train"), ignore)
    assert splits.train is splits.evaluation
    with pytest.raises(UsageError, match="no split 'test' in this data set; it has train, validation"):
        load_splits(TrainConfig(eval_split="test"), ignore)


# Inputs that are in one part only


@pytest.mark.parametrize(
    ("task", "rows", "others"),
    [
        (
            "text-classification",
            [{"premise": f"p {i}", "hypothesis": f"h {i}", "label": i % 2} for i in range(8)],
            [{"sentence": f"p {i}", "label": i % 2} for i in range(4)],
        ),
        (
            "seq2seq",
            [{"instruction": f"p {i}", "input": f"h {i}", "output": "o"} for i in range(8)],
            [{"instruction": f"p {i}", "output": "o"} for i in range(4)],
        ),
        (
            "multiple-choice",
            [{"context": f"p {i}", "question": "q", "choices": ["a", "b"], "answer": i % 2} for i in range(8)],
            [{"context": f"p {i}", "choices": ["a", "b"], "answer": i % 2} for i in range(4)],
        ),
    ],
)
def test_a_validation_split_with_fewer_inputs_is_refused(task: str, rows: list[Row], others: list[Row]) -> None:
    with pytest.raises(UsageError, match=r"the training data had two inputs, .* and these rows only"):
        select(rows, others, task=task)
    assert select(rows, rows[:4], task=task)[1].columns.pair
