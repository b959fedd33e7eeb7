"""Which task is told by which columns, and by which model where they leave it open."""

from __future__ import annotations

from typing import Any

import datasets
import pytest
from datasets import Dataset, Features, Sequence, Value
from transformers import AutoConfig

from capaft.errors import UsageError
from capaft.tasks.recognise import check_model, recognise

NOTHING = {"text": None, "pair": None, "label": None}


def config(kind: str, *architectures: str) -> Any:
    return AutoConfig.for_model(kind, architectures=list(architectures))


BERT, GPT, T5 = (
    config("bert", "BertModel"),
    config("gpt2", "GPT2LMHeadModel"),
    config("t5", "T5ForConditionalGeneration"),
)
TEXTS = [f"text number {i}" for i in range(8)]
CLASSES = ["a", "b"] * 4
ANSWERS = [{"text": ["number"], "answer_start": [5]}] * 8
CHAT = [[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]] * 8
TOKENS, TAGS = [["a", "b"]] * 8, [["O", "B-x"]] * 8


@pytest.mark.parametrize(
    ("columns", "model", "task"),
    [
        ({"sentence": TEXTS, "label": CLASSES}, BERT, "text-classification"),
        ({"sentence": TEXTS, "label": CLASSES}, GPT, "text-classification"),
        ({"sentence": TEXTS, "label": CLASSES}, T5, "text-classification"),
        ({"sentence1": TEXTS, "sentence2": TEXTS, "label": [0.5] * 8}, BERT, "text-classification"),
        ({"text": TEXTS, "labels": [["a"], ["a", "b"]] * 4}, BERT, "text-classification"),
        ({"tokens": TOKENS, "ner_tags": TAGS}, BERT, "token-classification"),
        ({"id": TEXTS, "tokens": TOKENS, "pos_tags": TAGS, "ner_tags": TAGS}, BERT, "token-classification"),
        ({"question": TEXTS, "context": TEXTS, "answers": ANSWERS}, BERT, "question-answering"),
        (
            {"sent1": TEXTS, "sent2": TEXTS, "ending0": TEXTS, "ending1": TEXTS, "label": [0, 1] * 4},
            BERT,
            "multiple-choice",
        ),
        ({"premise": TEXTS, "choice1": TEXTS, "choice2": TEXTS, "label": [0, 1] * 4}, BERT, "multiple-choice"),
        ({"question": TEXTS, "choices": [["a", "b"]] * 8, "answer": [0, 1] * 4}, BERT, "multiple-choice"),
        ({"messages": CHAT}, GPT, "causal-lm"),
        ({"prompt": TEXTS, "completion": TEXTS}, GPT, "causal-lm"),
        ({"instruction": TEXTS, "input": TEXTS, "output": TEXTS}, GPT, "causal-lm"),
        ({"mr": TEXTS, "ref": TEXTS}, GPT, "causal-lm"),
        ({"mr": TEXTS, "ref": TEXTS}, T5, "seq2seq"),
        ({"document": TEXTS, "summary": TEXTS, "id": TEXTS}, T5, "seq2seq"),
        ({"translation": [{"en": "a", "de": "b"}] * 8}, T5, "seq2seq"),
        ({"text": TEXTS}, GPT, "causal-lm"),
        ({"text": TEXTS}, BERT, "masked-lm"),
        ({"text": TEXTS}, config("bert", "BertLMHeadModel"), "causal-lm"),
        ({"text": TEXTS}, config("roberta", "RobertaForMaskedLM"), "masked-lm"),
    ],
)
def test_the_columns_tell(columns: dict[str, list[Any]], model: Any, task: str) -> None:
    assert recognise(Dataset.from_dict(columns), model, NOTHING) == task


@pytest.mark.parametrize(
    ("feature", "task"),
    [
        (datasets.Image(decode=False), "image-classification"),
        (datasets.Audio(decode=False), "audio-classification"),
    ],
)
def test_media_are_told_by_their_type(feature: Any, task: str) -> None:
    rows = Dataset.from_dict({"x": [{"bytes": b"", "path": None}] * 2, "label": [0, 1]})
    assert recognise(rows.cast_column("x", feature), BERT, NOTHING) == task


def test_named_columns_count() -> None:
    rows = Dataset.from_dict({"from": TEXTS, "to": [f"{text}!" for text in TEXTS]})
    assert recognise(rows, GPT, NOTHING | {"text": "from", "label": "to"}) == "causal-lm"


def test_what_is_for_no_task_is_told_with_a_way_out() -> None:
    rows = Dataset.from_dict({"x": [1.5, 2.5]}, features=Features({"x": Value("float32")}))
    with pytest.raises(UsageError, match="--task"):
        recognise(rows, BERT, NOTHING)
    rows = Dataset.from_dict({"x": [[1], [2]]}, features=Features({"x": Sequence(Value("int32"))}))
    with pytest.raises(UsageError, match="--task"):
        recognise(rows, GPT, NOTHING)


def test_a_model_that_reads_both_ways_does_not_write() -> None:
    with pytest.raises(UsageError, match="causal-lm needs a model that reads from left to right, and bert reads both"):
        check_model("causal-lm", BERT)
    for model in (GPT, T5, config("bert", "BertLMHeadModel"), config("llama")):
        check_model("causal-lm", model)
    check_model("masked-lm", BERT)
