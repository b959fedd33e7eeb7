"""Columns are found by name and by type, texts become tokens, and results are read by people."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny import build
from tiny_text import SIZE, SPECIALS, tokenizer
from transformers import AutoTokenizer, BertConfig, GPT2Config, GPT2ForSequenceClassification, GPT2Model

from capaft.config.parts.model import ModelSettings
from capaft.config.train_config import TrainConfig
from capaft.model.demo import demo_model
from capaft.model.load import BaseModel
from capaft.model.origin import Origin
from capaft.support.errors import UsageError
from capaft.tasks.base.columns import Columns
from capaft.tasks.text_classification import TextClassification

LONG = [f"a sentence of its own, number {i}" for i in range(8)]
WORDS = ["yes", "no"] * 4
INTEGERS = [0, 1] * 4
TASK = TextClassification(("no", "yes"), 12)


def table(**columns: list[Any]) -> Dataset:
    return Dataset.from_dict(columns)


def recognise(dataset: Dataset, **named: str | None) -> Columns:
    return TextClassification.recognise(dataset, named)


# The problem


def decide(dataset: Dataset, **settings: Any) -> TextClassification:
    return TextClassification.decide(dataset, recognise(dataset), TrainConfig(**settings), settings.get("data", ""))


@pytest.mark.parametrize(
    ("values", "problem", "labels"),
    [
        (INTEGERS, "single", ("0", "1")),
        (WORDS, "single", ("no", "yes")),
        ([1.0, 0.0] * 4, "single", ("0", "1")),
        ([0.5, 1.0] * 4, "regression", ()),
        ([["a", "b"], []] * 4, "multi", ("a", "b")),
    ],
)
def test_the_label_tells_the_problem(values: list[Any], problem: str, labels: tuple[str, ...]) -> None:
    task = decide(table(text=LONG, label=values))
    assert (task.problem, task.labels) == (problem, labels)
    options = {"problem": problem, "label_separator": "", "positive_label": "", "normalise_labels": False}
    assert task.options() == options


def test_the_problem_as_given() -> None:
    assert decide(table(text=LONG, label=INTEGERS), problem="regression").labels == ()
    task = decide(table(text=LONG, label=["a;b", ""] * 4), problem="multi", label_separator=";")
    assert task.labels == ("a", "b")
    assert TextClassification(task.labels, task.max_length, task.metric, **task.options()) == task
    with pytest.raises(UsageError, match="--problem regression, or"):
        decide(table(text=LONG, label=[0.5, 1.0] * 4), problem="single")


def test_metrics_belong_to_problems() -> None:
    assert [TextClassification(problem=p).metric for p in ("single", "multi", "regression")] == [
        "accuracy",
        "f1",
        "pearson",
    ]
    with pytest.raises(
        UsageError,
        match=r"--metric must be one of accuracy, f1, matthews, top5, precision, recall for text-.*got pearson",
    ):
        TextClassification(metric="pearson")
    with pytest.raises(UsageError, match="--problem must be single, multi or regression, got auto"):
        TextClassification(problem="auto")


def test_glue_has_metrics_of_its_own() -> None:
    rows = table(sentence=LONG, label=INTEGERS)
    assert decide(rows).metric == "accuracy"
    assert decide(rows, data="glue/cola").metric == "matthews"
    # The F1 of MRPC and QQP is that of the pairs that mean the same, also beside another metric.
    assert (decide(rows, data="glue/mrpc").metric, decide(rows, data="glue/mrpc").positive_label) == ("f1", "1")
    assert decide(rows, data="glue/qqp", metric="accuracy").positive_label == "1"
    assert decide(rows, data="glue/qqp", positive_label="0").positive_label == "0"
    assert decide(rows, data="glue/cola", metric="f1").metric == "f1"
    assert decide(table(sentence=LONG, label=[0.5, 1.0] * 4), data="glue/stsb").metric == "pearson_spearman"
    assert decide(rows, data="glue/stsb").metric == "accuracy"


def test_labels_of_another_split_are_checked() -> None:
    rows = table(text=LONG[:2], label=["no", "maybe"])
    with pytest.raises(UsageError, match="no label 'maybe'"):
        TASK.check_labels(rows, Columns("text", None, "label"))


def test_rows_have_a_class_where_they_have_just_one() -> None:
    rows = table(text=LONG, label=WORDS)
    assert TASK.classes_of(rows, recognise(rows)) == [1, 0] * 4
    several = table(text=LONG, label=[["a", "b"], []] * 4)
    assert decide(several).classes_of(several, recognise(several)) is None


@pytest.mark.parametrize(
    ("task", "outputs", "kind"),
    [
        (TextClassification(("a", "b", "c")), 3, "single_label_classification"),
        (TextClassification(("a", "b", "c"), problem="multi"), 3, "multi_label_classification"),
        (TextClassification(problem="regression"), 1, "regression"),
    ],
)
def test_what_the_model_is_told(task: TextClassification, outputs: int, kind: str) -> None:
    config = BertConfig(**task.model_config())
    assert (config.num_labels, config.problem_type) == (outputs, kind)
    assert len(config.id2label) == outputs


# Features


@pytest.fixture(scope="module")
def base() -> BaseModel:
    tokenizer = AutoTokenizer.from_pretrained(demo_model())
    return BaseModel(SimpleNamespace(config=BertConfig()), tokenizer, Origin("tokenizer alone"), (), True)


def features(base: BaseModel, **texts: list[str]) -> Any:
    columns = Columns("a", "b" if "b" in texts else None, "label")
    return TASK.features(base, table(label=["no", "yes"], **texts), columns, training=True)


def test_pairs_get_segments_and_truncation_is_counted(base: BaseModel) -> None:
    examples = features(base, a=["short", "word " * 50], b=["one", "word " * 50])
    assert examples.truncated == 1
    assert examples.lengths.tolist() == [5, 12]
    assert examples.inputs["token_type_ids"][0] == [0, 0, 0, 1, 1]
    assert examples.references.tolist() == [0, 1]


def test_a_text_of_exactly_the_limit_is_not_cut(base: BaseModel) -> None:
    assert features(base, a=["word " * 10] * 2).truncated == 0


@pytest.mark.parametrize("segments", [False, True])
def test_an_empty_text_is_an_end_token(segments: bool) -> None:
    plain = tokenizer()
    plain.model_input_names = ["input_ids", *["token_type_ids"][: int(segments)], "attention_mask"]
    model = build(
        GPT2ForSequenceClassification, GPT2Config(vocab_size=SIZE, n_embd=8, n_layer=1, n_head=2, pad_token_id=0)
    )
    gpt2 = BaseModel(model, plain, Origin("tiny"), (), True)
    for texts in ({"a": ["", ""]}, {"a": ["", "a"], "b": ["", ""]}):
        examples = features(gpt2, **texts)
        assert examples.inputs["input_ids"][0] == [SPECIALS["<end>"]]
        assert examples.lengths.tolist() == [1, 1]
        batch = TASK.collate(gpt2, examples, [0, 1], training=True)
        assert {tuple(tensor.shape) for tensor in batch.inputs.values()} == {(2, 1)}
        assert batch.inputs["attention_mask"].tolist() == [[1], [1]]
        assert torch.isfinite(model(**batch.inputs).logits).all()


def test_batches_are_padded_to_their_longest(base: BaseModel) -> None:
    batch = TASK.collate(base, features(base, a=["one", "one two three"]), [1, 0], training=True)
    assert batch.inputs["input_ids"].shape == (2, 5)
    assert batch.inputs["attention_mask"].sum(1).tolist() == [5, 3]
    assert batch.targets["labels"].tolist() == [1, 0]
    assert batch.terms == 2


@pytest.mark.parametrize(
    ("values", "problem"), [(INTEGERS, "single"), ([["a", "b"], []] * 4, "multi"), ([0.5, 2.0] * 4, "regression")]
)
def test_losses_of_parts_add_up(base: BaseModel, values: list[Any], problem: str) -> None:
    rows = table(text=LONG, label=values)
    task = decide(rows, problem=problem)
    examples = task.features(base, rows, recognise(rows), training=True)
    logits = torch.randn(8, task.model_config()["num_labels"], generator=torch.Generator().manual_seed(0))

    def loss(indices: list[int]) -> tuple[float, int]:
        batch = task.collate(base, examples, indices, training=True)
        outputs = SimpleNamespace(logits=logits[indices])
        return task.loss(outputs, batch.targets, 0.1).item(), batch.terms

    parts = [loss([0, 1, 2]), loss([3]), loss([4, 5, 6, 7])]
    assert loss(list(range(8))) == (pytest.approx(sum(part for part, _ in parts)), sum(terms for _, terms in parts))


# Outputs


def outcome(base: BaseModel, rows: Dataset, logits: list[list[float]]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    task = decide(rows)
    examples = task.features(base, rows, recognise(rows), training=False)
    batch = task.collate(base, examples, range(len(rows)), training=False)
    outputs = SimpleNamespace(logits=torch.tensor(logits, dtype=torch.bfloat16))
    predictions = task.predict(base, torch.nn.Identity(), examples, range(len(rows)), batch, outputs)
    return task.score(examples, predictions), task.report(examples, predictions)


def test_single_labels_are_scored_and_reported(base: BaseModel) -> None:
    rows = table(premise=["a", "b", "c"], hypothesis=["d", "e", "f"], label=["no", "yes", "no"])
    scores, report = outcome(base, rows, [[2, 1], [0, 3], [0, 1]])
    assert scores == pytest.approx({"accuracy": 2 / 3, "f1": 2 / 3, "matthews": 0.5})
    assert report[0] == {"text": "a", "pair": "d", "label": "no", "predicted": "no"}
    assert [row["predicted"] for row in report] == ["no", "yes", "yes"]


def test_more_than_five_classes_have_a_score_of_the_five_likeliest(base: BaseModel) -> None:
    rows = table(text=["x"] * 12, label=[*"abcdef"] * 2)
    # The first class is the least likely, so that two rows of twelve miss.
    scores, _ = outcome(base, rows, [[0, 1, 2, 3, 4, 5]] * 12)
    assert scores["top5"] == pytest.approx(10 / 12)
    assert decide(rows, metric="top5").metric == "top5"
    with pytest.raises(UsageError, match="top5 is always 1 with 2 classes"):
        decide(table(text=LONG, label=INTEGERS), metric="top5")
    with pytest.raises(UsageError, match="--metric must be one of f1"):
        decide(table(text=LONG, label=[["a"], ["b"]] * 4), metric="top5")


def test_several_labels_are_scored_and_reported(base: BaseModel) -> None:
    scores, report = outcome(base, table(text=["x", "y"], label=[["a", "b"], []]), [[1, -1], [-1, -1]])
    assert scores == pytest.approx({"f1": 2 / 3, "f1_macro": 0.5, "accuracy": 0.5})
    assert report == [
        {"text": "x", "label": ["a", "b"], "predicted": ["a"]},
        {"text": "y", "label": [], "predicted": []},
    ]


def test_numbers_are_scored_and_reported(base: BaseModel) -> None:
    scores, report = outcome(base, table(text=["x", "y"], label=[0.5, 1.5]), [[1.0], [3.0]])
    assert scores["pearson"] == pytest.approx(1.0)
    assert scores["mse"] == pytest.approx((0.25 + 2.25) / 2)
    assert report[1] == {"text": "y", "label": 1.5, "predicted": 3.0}


def test_an_example_is_shown_as_the_model_gets_it(base: BaseModel) -> None:
    assert TASK.show(base, features(base, a=["One", "two"]), 1) == "[CLS] two [SEP] -> yes"


# Models


@pytest.mark.parametrize("configured", [None, 5])
def test_a_language_model_gets_something_to_pad_with(configured: int | None, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo_model())
    tokenizer.pad_token = None
    tokenizer.eos_token = "[SEP]"
    tokenizer.save_pretrained(tmp_path)
    sizes = {"vocab_size": len(tokenizer), "n_embd": 8, "n_layer": 1, "n_head": 2}
    GPT2Model(GPT2Config(**sizes, pad_token_id=configured)).save_pretrained(tmp_path)
    loaded = TASK.load_model(ModelSettings(model=str(tmp_path)), seed=0)
    examples = features(loaded, a=["one", "one two three"])
    batch = TASK.collate(loaded, examples, [0, 1], training=True)
    together = loaded.model(**batch.inputs).logits
    alone = loaded.model(**TASK.collate(loaded, examples, [0], training=True).inputs).logits
    np.testing.assert_allclose(together[:1].detach(), alone.detach(), atol=1e-5)
