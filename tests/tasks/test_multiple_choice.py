"""Every choice is read with its context, whatever their number, and the right one wins by learning."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset
from transformers import AutoTokenizer, BertConfig, BertForMultipleChoice, ByT5Tokenizer, GPT2Config, GPT2LMHeadModel

from capaft.config.parts.model import ModelSettings
from capaft.config.train_config import TrainConfig
from capaft.model.demo import demo_model
from capaft.model.load import BaseModel
from capaft.model.origin import Origin
from capaft.support.errors import UsageError
from capaft.tasks.base.columns import Columns
from capaft.tasks.multiple_choice import MultipleChoice

TASK = MultipleChoice()
COLUMNS = Columns("context", "question", "label", ("choices",))
CONTEXTS = ["The cat sat on the mat.", "It rained all day in the old town by the river."]
QUESTIONS = ["Who sat?", "What did it do?"]
CHOICES = [["the cat", "the dog", "nobody at all, as far as one knows"], ["it rained", "snow"]]


def rows(labels: Any = (0, 1), **columns: Any) -> Dataset:
    table = {"context": CONTEXTS, "question": QUESTIONS, "choices": CHOICES, "label": list(labels)}
    return Dataset.from_dict({**table, **columns})


@pytest.fixture(scope="module")
def minilm() -> BaseModel:
    base = TASK.load_model(ModelSettings(), seed=0)
    base.model.eval()
    return base


# Inputs


def test_every_choice_is_read_after_the_start_that_all_share(minilm: BaseModel) -> None:
    examples = TASK.features(minilm, rows(), COLUMNS, training=True)
    tokenizer = minilm.processor
    for row in range(2):
        first = tokenizer.tokenize(CONTEXTS[row])
        for at, choice in enumerate(CHOICES[row]):
            second = [*tokenizer.tokenize(QUESTIONS[row]), *tokenizer.tokenize(choice)]
            ids = tokenizer.convert_tokens_to_ids(["[CLS]", *first, "[SEP]", *second, "[SEP]"])
            assert examples.inputs["input_ids"][row][at] == ids
            assert examples.inputs["token_type_ids"][row][at] == [0] * (len(first) + 2) + [1] * (len(second) + 1)
    assert examples.lengths.tolist() == [max(map(len, choices)) for choices in examples.inputs["input_ids"]]
    assert (examples.references, examples.truncated) == ([0, 1], 0)


def test_without_a_start_the_choice_follows(minilm: BaseModel) -> None:
    examples = TASK.features(minilm, rows(), Columns("context", None, "label", ("choices",)), training=True)
    context = CONTEXTS[1].lower()
    assert (
        TASK.show(minilm, examples, 1) == f"- [CLS] {context} [SEP] it rained [SEP]\n* [CLS] {context} [SEP] snow [SEP]"
    )


def test_the_context_is_cut_and_the_endings_survive(minilm: BaseModel) -> None:
    short = MultipleChoice(max_length=16)
    data = rows(context=["long " * 40, "brief"], question=["", ""])
    examples = short.features(minilm, data, COLUMNS, training=True)
    assert examples.truncated == 1
    assert examples.lengths.tolist() == [16, 6]
    for choice, ids in zip(CHOICES[0], examples.inputs["input_ids"][0], strict=True):
        ending = minilm.processor(choice, add_special_tokens=False)["input_ids"]
        # Of the 13 tokens beside the special ones, at least half belong to an ending.
        kept = min(len(ending), 6)
        assert ids[-kept - 1 : -1] == ending[:kept]


def test_a_row_of_exactly_the_limit_is_not_cut(minilm: BaseModel) -> None:
    data = rows(context=["one two", "one two three"], question=["", ""], choices=[["four", "five"]] * 2)
    for limit, truncated in ((7, 0), (6, 1), (5, 2)):
        task = MultipleChoice(max_length=limit)
        assert task.features(minilm, data, COLUMNS, training=True).truncated == truncated


def test_a_slow_tokenizer_will_do() -> None:
    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(max_position_embeddings=20))
    base = BaseModel(SimpleNamespace(config=config), ByT5Tokenizer(), Origin("some/model", None), (), True)
    examples = TASK.features(base, rows(context=["abc", "abc"], question=["", ""]), COLUMNS, training=True)
    assert examples.inputs["input_ids"][1][1][:3] == [ord(letter) + 3 for letter in "abc"]
    assert (examples.truncated, examples.lengths.max()) == (1, 20)


# Batches, loss and predictions


def test_missing_choices_are_marked(minilm: BaseModel) -> None:
    examples = TASK.features(minilm, rows(), COLUMNS, training=True)
    batch = TASK.collate(minilm, examples, [1, 0], training=True)
    width = int(examples.lengths.max())
    assert {name: tuple(tensor.shape) for name, tensor in batch.inputs.items()} == dict.fromkeys(
        ("input_ids", "token_type_ids", "attention_mask"), (2, 3, width)
    )
    assert batch.targets["present"].tolist() == [[True, True, False], [True, True, True]]
    assert batch.targets["labels"].tolist() == [1, 0]
    assert batch.terms == 2
    for at, index in enumerate([1, 0]):
        for choice, ids in enumerate(examples.inputs["input_ids"][index]):
            assert batch.inputs["input_ids"][at, choice].tolist() == ids + [0] * (width - len(ids))
            assert batch.inputs["attention_mask"][at, choice].sum() == len(ids)


def test_logits_are_those_of_each_choice_alone(minilm: BaseModel) -> None:
    examples = TASK.features(minilm, rows(), COLUMNS, training=False)
    batch = TASK.collate(minilm, examples, [0, 1], training=False)
    with torch.inference_mode():
        together = minilm.model(**batch.inputs)
        predictions = TASK.predict(minilm, minilm.model, examples, [0, 1], batch, together)
        for row in range(2):
            alone = []
            for choice in CHOICES[row]:
                one = minilm.processor(CONTEXTS[row], f"{QUESTIONS[row]} {choice}", return_tensors="pt")
                alone.append(minilm.model(**{name: tensor[None] for name, tensor in one.items()}).logits.item())
            assert together.logits[row, : len(alone)].tolist() == pytest.approx(alone, abs=1e-5)
            assert predictions[row] == alone.index(max(alone))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_is_a_softmax_over_the_choices_there_are(smoothing: float) -> None:
    logits = [[1.0, -0.5, 7.0], [0.3, 0.2, -1.0]]
    targets = {
        "labels": torch.tensor([1, 2]),
        "present": torch.tensor([[True, True, False], [True, True, True]]),
    }
    expected = 0.0
    for scores, label in ((logits[0][:2], 1), (logits[1], 2)):
        losses = [math.log(sum(map(math.exp, scores))) - score for score in scores]
        expected += (1 - smoothing) * losses[label] + smoothing * sum(losses) / len(losses)
    outputs = torch.tensor(logits, requires_grad=True)
    loss = TASK.loss(SimpleNamespace(logits=outputs), targets, smoothing)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert outputs.grad[0, 2] == 0
    assert torch.isfinite(outputs.grad).all()


def test_a_missing_choice_is_never_predicted() -> None:
    targets = {"present": torch.tensor([[True, True, False], [True, True, True]])}
    batch = SimpleNamespace(targets=targets)
    outputs = SimpleNamespace(logits=torch.tensor([[1.0, 2.0, 9.0], [1.0, 2.0, 9.0]]))
    assert TASK.predict(None, None, None, [0, 1], batch, outputs) == [1, 2]


def test_score_and_report(minilm: BaseModel) -> None:
    examples = TASK.features(minilm, rows(), COLUMNS, training=False)
    assert TASK.score(examples, [0, 0]) == {"accuracy": 0.5}
    assert TASK.report(examples, [0, 0])[1] == {
        "context": CONTEXTS[1],
        "start": QUESTIONS[1],
        "choices": CHOICES[1],
        "label": "snow",
        "predicted": "it rained",
    }


# Labels


def task_for(data: Dataset, columns: Columns = COLUMNS) -> MultipleChoice:
    return MultipleChoice.decide(data, columns, TrainConfig(max_length=40))


THREE = {"choices": [["a", "b", "c"]] * 2}


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([0, 2], [0, 2]),
        ([1, 3], [0, 2]),
        (["0", "2"], [0, 2]),
        (["1", "3"], [0, 2]),
        (["A", "c"], [0, 2]),
        (["A", "3"], [0, 2]),
    ],
)
def test_labels(minilm: BaseModel, labels: list[Any], expected: list[int]) -> None:
    task = task_for(rows(labels, **THREE))
    assert task.max_length == 40
    assert task.features(minilm, rows(labels, **THREE), COLUMNS, training=True).references == expected
    # The form of the labels in the training rows holds for other rows, and is kept with the adapter.
    assert MultipleChoice(**task.options()) == MultipleChoice(one_based=task.one_based)
    task.check_labels(rows([1, 1], **THREE), COLUMNS)


@pytest.mark.parametrize("labels", [[1, 2], ["1", "2"], ["1", "B"]])
def test_numbers_count_from_one_where_none_is_zero_and_that_is_said(minilm: BaseModel, labels: list[Any]) -> None:
    with pytest.warns(UserWarning, match="no label in column 'label' is 0.*assumed to count from 1; .* letters"):
        task = task_for(rows(labels, **THREE))
    assert task.features(minilm, rows(labels, **THREE), COLUMNS, training=True).references == [0, 1]


@pytest.mark.parametrize("labels", [[0, 2], [1, 4], [1, -1], ["B", "C"]])
def test_other_labels_do_not_count_from_one(labels: list[Any]) -> None:
    assert not task_for(rows(labels, **THREE)).one_based


@pytest.mark.parametrize(
    ("labels", "choices", "expected"),
    [
        (["blue", "red"], [["blue", "red"], ["green", "red"]], [0, 1]),
        (["4", "3"], [["3", "4", "5"], ["3", "4", "5"]], [1, 0]),
        (["b", "snow"], [["b", "a"], ["rain", "snow"]], [0, 1]),
        # Both readings are the same.
        (["0", "1"], [["0", "1"]] * 2, [0, 1]),
        (["B", "A"], [["A", "B"]] * 2, [1, 0]),
        # Numbers, since one label is no choice's text, or that of two.
        (["1", "0"], [["1", "0"], ["2", "3"]], [1, 0]),
        (["1", "0"], [["1", "0"], ["0", "0"]], [1, 0]),
        ([1, 0], [["1", "0"]] * 2, [1, 0]),
    ],
)
def test_labels_may_be_texts_of_choices(
    minilm: BaseModel, labels: list[Any], choices: list[list[str]], expected: list[int]
) -> None:
    data = rows(labels, choices=choices)
    task = task_for(data)
    assert task.features(minilm, data, COLUMNS, training=True).references == expected
    assert MultipleChoice(**task.options()).by_text == task.by_text


@pytest.mark.parametrize(
    ("labels", "numbers"), [(["1", "0"], [["1", "0"]] * 2), (["A", "B"], [["A", "B"], ["B", "A"]])]
)
def test_texts_that_are_numbers_or_letters_of_other_choices_are_refused(labels: list[str], numbers: Any) -> None:
    with pytest.raises(UsageError, match=r"row \d \(.*\): the label '.' is the text of one .* whole numbers") as error:
        task_for(rows(labels, choices=numbers))
    assert "\n" not in str(error.value)


def test_a_text_that_is_none_of_the_choices() -> None:
    task = task_for(rows(["it rained", "snow"], choices=[CHOICES[1]] * 2))
    with pytest.raises(UsageError, match=r"row 2 .*the label '0' is none of .*, which are it rained, snow;"):
        task.check_labels(rows(["snow", "0"], choices=[CHOICES[1]] * 2), COLUMNS)


def test_the_name_of_a_choice_goes_before_its_text(minilm: BaseModel) -> None:
    choices = [{"text": ["2", "1"], "label": ["1", "2"]}] * 2
    data = rows(["1", "2"], choices=choices)
    assert task_for(data).features(minilm, data, COLUMNS, training=True).references == [0, 1]
    data = rows(["d", "c"], choices=[{"text": ["c", "d"], "label": ["A", "B"]}] * 2)
    assert task_for(data).features(minilm, data, COLUMNS, training=True).references == [1, 0]


def test_class_labels_are_indices(minilm: BaseModel) -> None:
    for labels in ([0, 2], [1, 2]):
        data = rows(labels, **THREE).cast_column("label", ClassLabel(names=["A", "B", "C"]))
        assert task_for(data).features(minilm, data, COLUMNS, training=True).references == labels


def test_rows_name_their_choices(minilm: BaseModel) -> None:
    choices = [{"text": ["a", "b"], "label": ["A", "B"]}, {"text": ["c", "d", "e"], "label": ["1", "2", "3"]}]
    data = rows(["B", "3"], choices=choices)
    assert task_for(data).features(minilm, data, COLUMNS, training=True).references == [1, 2]
    with pytest.raises(UsageError, match=r"row 2 .*the label '4' is none of the row's choices, which are 1, 2, 3;"):
        TASK.check_labels(rows(["B", "4"], choices=choices), COLUMNS)


def test_columns_of_choices_may_end_early(minilm: BaseModel) -> None:
    columns = Columns("context", None, "label", ("choice1", "choice2", "choice3"))
    data = rows([0, 1], choice1=["a", "c"], choice2=["b", "d"], choice3=["e", None])
    examples = TASK.features(minilm, data, columns, training=True)
    assert [source["choices"] for source in examples.sources] == [["a", "b", "e"], ["c", "d"]]
    with pytest.raises(UsageError, match=r"row 2 .*a choice is missing in columns choice1, choice2, choice3"):
        TASK.check_labels(rows(choice1=["a", "c"], choice2=["b", None], choice3=["e", "f"]), columns)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            rows([0, 2]),
            r"row 2 \('It rained .*'\): the label 2 is none of the row's choices, which are 0 to 1 or A to B",
        ),
        (rows(["A", "C"]), "row 2 .*the label 'C' is none of"),
        (rows(["A", "it rained"]), "row 2 .*the label 'it rained' is none of"),
        (rows([0, -1]), "row 2 .*no label in column 'label'"),
        (rows(["0", ""]), "row 2 .*no label in column 'label'"),
        (rows([0, None]), "row 2 .*no label in column 'label'"),
        (rows(choices=[["a", "b"], ["c"]]), "row 2 .*there are fewer than two choices in column choices"),
        (rows(choices=[["a", "b"], None]), "row 2 .*there are fewer than two choices"),
        (rows(choices=[["a", "b"], ["c", None]]), "row 2 .*a choice is missing in column choices"),
    ],
)
def test_rows_that_cannot_be_used(data: Dataset, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        TASK.check_labels(data, COLUMNS)
    assert "\n" not in str(error.value)


def test_a_row_without_a_context(minilm: BaseModel) -> None:
    with pytest.raises(UsageError, match="row 2: no text in column 'question'"):
        TASK.features(minilm, rows(question=["Who?", None]), COLUMNS, training=True)


# Models


def test_a_model_without_such_a_head_is_refused_in_one_line(tmp_path: Any) -> None:
    GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=64)).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(demo_model()).save_pretrained(tmp_path)
    with pytest.raises(
        UsageError, match="transformers has no AutoModelForMultipleChoice for its architecture"
    ) as error:
        TASK.load_model(ModelSettings(model=str(tmp_path)), seed=0)
    assert "\n" not in str(error.value)


def test_a_small_model_learns_which_ending_agrees(minilm: BaseModel) -> None:
    """The right ending is the one with a word of praise, among two or three."""
    generator = np.random.default_rng(0)
    good, bad, things = ("superb", "moving", "charming"), ("boring", "clumsy", "hollow"), ("film", "book", "album")
    contexts, choices, labels = [], [], []
    for _ in range(160):
        label = int(generator.integers(2 + generator.integers(2)))
        size = max(2, label + 1 + int(generator.integers(2)))
        endings = [f"it is {generator.choice(good if at == label else bad)}" for at in range(size)]
        contexts.append(f"I liked the {generator.choice(things)}")
        choices.append(endings)
        labels.append(label)
    data = Dataset.from_dict({"context": contexts, "choices": choices, "label": labels})
    columns = MultipleChoice.recognise(data, {})
    task = task_for(data, columns)
    features = task.features(minilm, data, columns, training=True)
    config = BertConfig(
        vocab_size=len(minilm.processor),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    torch.manual_seed(0)
    model = BertForMultipleChoice(config)
    held_out = range(120, 160)

    def accuracy() -> float:
        batch = task.collate(minilm, features, held_out, training=False)
        with torch.inference_mode():
            predictions = task.predict(minilm, model, features, held_out, batch, model(**batch.inputs))
        return float(np.mean(np.array(predictions) == np.array(labels)[120:]))

    before, losses = accuracy(), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(40):
        batch = task.collate(minilm, features, [(step * 20 + at) % 120 for at in range(20)], training=True)
        loss = task.loss(model(**batch.inputs), batch.targets, 0.0) / batch.terms
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    assert before < 0.8
    assert accuracy() > 0.95
