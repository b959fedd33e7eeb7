"""Sequence to sequence: labels, decoder inputs, the sums, and the generated texts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from datasets import Dataset
from tiny_text import SPECIALS, base, ids, table, tokenizer

from capaft.config.train_config import TrainConfig
from capaft.support.errors import UsageError
from capaft.tasks.base.columns import Columns
from capaft.tasks.language.token_loss import IGNORED
from capaft.tasks.seq2seq import Seq2Seq

START, END = [SPECIALS["<start>"]], [SPECIALS["<end>"]]
ROWS = table(document=["abc", "d", "a longer one"], summary=["xy", "z", "w"])
COLUMNS = Columns("document", None, "summary")


def task_for(rows: Dataset = ROWS, **settings: Any) -> Seq2Seq:
    return Seq2Seq.decide(rows, Seq2Seq.recognise(rows, {}), TrainConfig(**settings))


@pytest.fixture(params=["t5", "bart", "m2m"])
def model(request: pytest.FixtureRequest) -> Any:
    return base(request.param, tokenizer(framed=True))


def test_the_metric_suits_the_target() -> None:
    assert task_for().metric == "rougeL"
    assert task_for(table(translation=[{"en": "a", "de": "b"}])).metric == "bleu"
    assert task_for(metric="chrf").metric == "chrf"
    task = task_for(num_beams=2, max_target_length=9, source_prefix="summarize: ")
    assert Seq2Seq(max_length=task.max_length, metric=task.metric, **task.options()) == task


def test_columns_that_cannot_be_told() -> None:
    rows = table(one=["a"], two=["b"])
    with pytest.raises(UsageError, match="--text-column and --label-column among one"):
        Seq2Seq.recognise(rows, {})
    assert Seq2Seq.recognise(rows, {"text": "one", "label": "two"}) == Columns("one", None, "two")
    assert Seq2Seq.recognise(rows, {"text": "one"}) == Columns("one")
    with pytest.raises(UsageError, match="choose one with --label-column among one, two"):
        task_for().check_labels(rows, Columns("one"))
    task_for().check_labels(ROWS, COLUMNS)


def test_features(model: Any) -> None:
    examples = task_for(source_prefix="> ").features(model, ROWS, COLUMNS, training=True)
    assert examples.inputs["input_ids"][1] == START + ids("> d") + END
    assert examples.inputs["labels"] == [START + ids(text) + END for text in ("xy", "z", "w")]
    assert examples.lengths.tolist() == [7, 5, 16]
    assert examples.truncated == 0


def test_both_are_cut_and_keep_their_ends(model: Any) -> None:
    examples = task_for(max_length=5, max_target_length=3).features(model, ROWS, COLUMNS, training=True)
    assert examples.inputs["input_ids"][2] == START + ids("a l") + END
    assert examples.inputs["labels"][0] == START + ids("x") + END
    assert examples.truncated == 2


def test_several_references(model: Any) -> None:
    rows = table(mr=["a"], refs=[["xy", "z"]])
    task, columns = task_for(rows), Columns("mr", None, "refs")
    assert len(task.features(model, rows, columns, training=True)) == 2
    examples = task.features(model, rows, columns, training=False)
    assert examples.inputs["labels"] == [START + ids("xy") + END]
    assert examples.references == [("xy", "z")]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_that_of_the_targets(model: Any, smoothing: float) -> None:
    task = task_for()
    examples = task.features(model, ROWS, COLUMNS, training=True)
    batch = task.collate(model, examples, [2, 0], training=True)
    first = model.model.config.decoder_start_token_id
    # M2M-100 makes these of the labels itself.
    if "labels" not in batch.inputs:
        assert batch.inputs["decoder_input_ids"][1].tolist() == [first, *START, *ids("xy")]
    assert batch.targets["labels"].tolist() == [[*START, *ids("w"), *END, IGNORED], START + ids("xy") + END]
    assert batch.terms == 7
    expected = 0.0
    for index in (2, 0):
        source, target = (examples.inputs[name][index] for name in ("input_ids", "labels"))
        decoder = torch.tensor([[first, *target[:-1]]])
        scores = model.model(input_ids=torch.tensor([source]), decoder_input_ids=decoder).logits[0].double()
        for row, token in zip(scores.log_softmax(-1), target, strict=True):
            expected -= ((1 - smoothing) * row[token] + smoothing * row.mean()).item()
    loss = task.loss(model.model(**batch.inputs), batch.targets, smoothing)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("beams", [1, 2])
def test_batches_are_written_like_single_sources(model: Any, beams: int) -> None:
    task = task_for(num_beams=beams, max_new_tokens=5)
    examples = task.features(model, ROWS, COLUMNS, training=False)

    def predicted(indices: list[int]) -> list[Any]:
        batch = task.collate(model, examples, indices, training=False)
        return task.predict(model, model.model, examples, indices, batch, model.model(**batch.inputs))

    with torch.inference_mode():
        together = predicted([0, 1, 2])
        alone = [predicted([index])[0] for index in range(3)]
    assert [text for *_, text in together] == [text for *_, text in alone]
    assert [loss for loss, *_ in together] == pytest.approx([loss for loss, *_ in alone], rel=1e-4)
    assert set(task.score(examples, together)) == set(task.metrics)
    assert [record["references"] for record in task.report(examples, together)] == [["xy"], ["z"], ["w"]]


def test_sources_without_targets(model: Any) -> None:
    task = task_for(max_new_tokens=3)
    examples = task.features(model, ROWS, Columns("document"), training=False)
    batch = task.collate(model, examples, [0, 1, 2], training=False)
    assert batch.terms == 0
    predictions = task.predict(model, model.model, examples, [0, 1, 2], batch, model.model(**batch.inputs))
    assert task.score(examples, predictions) == {}
    assert len(task.report(examples, predictions)) == 3


def test_show(model: Any) -> None:
    examples = task_for().features(model, ROWS, COLUMNS, training=True)
    assert task_for().show(model, examples, 1) == "<start>d<end> ⟦<start>z<end>⟧"
