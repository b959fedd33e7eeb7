"""The task that columns are for, and the model where they leave it open."""

from __future__ import annotations

from typing import Any

import datasets
import pytest
from datasets import Dataset, Features, Sequence, Value
from transformers import AutoConfig

from capaft.config.choices import TASKS
from capaft.support.errors import UsageError
from capaft.tasks.base.recognise import recognise_task
from capaft.tasks.base.registry import task_class

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
SIZES = list(range(8))
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
        ({"prompt": CHAT, "completion": CHAT}, GPT, "causal-lm"),
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
        # Classes or numbers beside a usual pair of source and target.
        ({"document": TEXTS, "summary": TEXTS, "size": SIZES}, T5, "seq2seq"),
        ({"text": TEXTS, "summary": TEXTS, "language": CLASSES}, T5, "seq2seq"),
        ({"text": TEXTS, "summary": TEXTS, "label": CLASSES}, T5, "seq2seq"),
        ({"mr": TEXTS, "refs": [[text] for text in TEXTS], "size": SIZES}, T5, "seq2seq"),
        ({"prompt": TEXTS, "completion": TEXTS, "n_tokens": SIZES}, GPT, "causal-lm"),
        ({"text": TEXTS, "summary": TEXTS, "n_tokens": SIZES}, GPT, "causal-lm"),
        ({"question": TEXTS, "answer": TEXTS, "topic": CLASSES}, GPT, "causal-lm"),
        ({"question": TEXTS, "answer": TEXTS, "label": CLASSES}, GPT, "text-classification"),
        ({"question": TEXTS, "answer": TEXTS, "topic": CLASSES}, BERT, "text-classification"),
        ({"question": TEXTS, "answer": CLASSES}, T5, "text-classification"),
        ({"text": TEXTS, "target": CLASSES, "label": CLASSES}, T5, "text-classification"),
        ({"text": TEXTS, "language": CLASSES}, GPT, "text-classification"),
        ({"text": TEXTS, "n_tokens": SIZES}, GPT, "text-classification"),
        # A model that cannot write, and a column that is called a label.
        ({"text": TEXTS, "labels": TEXTS}, BERT, "text-classification"),
        ({"question": TEXTS, "answer": TEXTS, "label": TEXTS}, BERT, "text-classification"),
        ({"question": TEXTS, "context": TEXTS, "answers": ANSWERS, "label": CLASSES}, BERT, "question-answering"),
    ],
)
def test_the_columns_tell(columns: dict[str, list[Any]], model: Any, task: str) -> None:
    assert recognise_task(Dataset.from_dict(columns), model, NOTHING) == task


@pytest.mark.parametrize(
    ("feature", "task"),
    [
        (datasets.Image(decode=False), "image-classification"),
        (datasets.Audio(decode=False), "audio-classification"),
    ],
)
def test_media_are_told_by_their_type(feature: Any, task: str) -> None:
    rows = Dataset.from_dict({"x": [{"bytes": b"", "path": None}] * 2, "label": [0, 1]})
    assert recognise_task(rows.cast_column("x", feature), BERT, NOTHING) == task


SPOKEN = datasets.Audio(decode=False)


@pytest.mark.parametrize(
    ("columns", "model", "task"),
    [
        ({"transcription": TEXTS}, config("wav2vec2", "Wav2Vec2ForCTC"), "speech-recognition"),
        ({"sentence": TEXTS, "speaker_id": SIZES}, config("whisper", ""), "speech-recognition"),
        ({"text": TEXTS}, BERT, "speech-recognition"),
        ({"label": CLASSES}, config("whisper", "WhisperForConditionalGeneration"), "audio-classification"),
        ({"text": CLASSES, "label": CLASSES}, config("wav2vec2", "Wav2Vec2Model"), "audio-classification"),
        ({"text": TEXTS, "intent": CLASSES}, config("wav2vec2", "Wav2Vec2Model"), "audio-classification"),
        ({"text": CLASSES, "label": CLASSES}, config("wav2vec2", "Wav2Vec2ForCTC"), "speech-recognition"),
    ],
)
def test_recordings_with_transcripts_are_not_classified(columns: dict[str, Any], model: Any, task: str) -> None:
    rows = Dataset.from_dict({"audio": [{"bytes": b"", "path": None}] * 8, **columns}).cast_column("audio", SPOKEN)
    assert recognise_task(rows, model, NOTHING) == task


def test_captions_have_no_task() -> None:
    rows = Dataset.from_dict({"image": [{"bytes": b"", "path": None}] * 8, "caption": TEXTS})
    rows = rows.cast_column("image", datasets.Image(decode=False))
    with pytest.raises(UsageError, match=r"^column 'caption' holds captions, and capaft has no task that writes texts"):
        task_class(recognise_task(rows, BERT, NOTHING)).recognise(rows, NOTHING)


def test_named_columns_count() -> None:
    rows = Dataset.from_dict({"from": TEXTS, "to": [f"{text}!" for text in TEXTS]})
    assert recognise_task(rows, GPT, NOTHING | {"text": "from", "label": "to"}) == "causal-lm"


def test_a_named_label_outweighs_a_pair() -> None:
    rows = Dataset.from_dict({"text": TEXTS, "summary": TEXTS, "language": CLASSES})
    assert recognise_task(rows, T5, NOTHING | {"label": "language"}) == "text-classification"


@pytest.mark.parametrize(
    ("columns", "model", "named"),
    [
        ({"text": TEXTS, "tags": TEXTS}, BERT, {"label": "tags"}),
        ({"sentence": TEXTS, "tags": TEXTS}, GPT, {"label": "tags"}),
        ({"question": TEXTS, "answer": TEXTS}, BERT, {"label": "answer"}),
        ({"text": TEXTS, "rude": [0, 1] * 4, "loud": [0, 1] * 4}, BERT, {"label": "rude,loud"}),
    ],
)
def test_a_named_label_is_never_left_unread(columns: dict[str, Any], model: Any, named: dict[str, str]) -> None:
    assert recognise_task(Dataset.from_dict(columns), model, NOTHING | named) == "text-classification"


@pytest.mark.parametrize("model", [BERT, GPT])
def test_named_columns_that_no_task_can_read_are_told(model: Any) -> None:
    rows = Dataset.from_dict({"text": TEXTS, "more": TEXTS, "box": [{"a": 1}] * 8})
    with pytest.raises(UsageError, match=r"^--label-column box: this column does not hold a label.*--task$"):
        recognise_task(rows, model, NOTHING | {"label": "box"})
    with pytest.raises(UsageError, match=r"^cannot tell which column is the label .*--task$"):
        recognise_task(rows, model, NOTHING | {"text": "text", "pair": "more"})
    rows = Dataset.from_dict({"source": TEXTS, "foo": TEXTS, "verdict": CLASSES})
    with pytest.raises(UsageError, match=r"^cannot tell which column is the text .*--task$"):
        recognise_task(rows, BERT, NOTHING | {"label": "verdict"})


@pytest.mark.parametrize("model", [BERT, GPT, T5])
@pytest.mark.parametrize("columns", [{"text": TEXTS, "tags": TEXTS}, {"question": TEXTS, "answer": TEXTS}])
def test_an_option_of_classification_alone_says_so(model: Any, columns: dict[str, Any]) -> None:
    assert recognise_task(Dataset.from_dict(columns), model, NOTHING, classify=True) == "text-classification"


@pytest.mark.parametrize("kind", ["string", "large_string"])
def test_a_text_of_its_own_in_every_row_is_no_class(kind: str) -> None:
    rows = Dataset.from_dict({"text": TEXTS, "target": TEXTS})
    rows = rows.cast(Features({"text": Value(kind), "target": Value(kind)}))
    assert recognise_task(rows, GPT, NOTHING) == "causal-lm"
    rows = rows.rename_column("target", "label")
    with pytest.raises(UsageError, match=r"^cannot tell source and target; choose them with --text-column .*--task$"):
        recognise_task(rows, T5, NOTHING)
    assert recognise_task(rows, T5, NOTHING | {"text": "text", "label": "label"}) == "seq2seq"


def test_what_is_for_no_task_is_told_with_a_way_out() -> None:
    rows = Dataset.from_dict({"x": [1.5, 2.5]}, features=Features({"x": Value("float32")}))
    with pytest.raises(UsageError, match="--task"):
        recognise_task(rows, BERT, NOTHING)
    rows = Dataset.from_dict({"x": [[1], [2]]}, features=Features({"x": Sequence(Value("int32"))}))
    with pytest.raises(UsageError, match="--task"):
        recognise_task(rows, GPT, NOTHING)


def test_a_model_that_reads_both_ways_does_not_write() -> None:
    with pytest.raises(UsageError, match="causal-lm needs a model that reads from left to right, and bert reads both"):
        task_class("causal-lm").check_model(BERT)
    for model in (GPT, T5, config("bert", "BertLMHeadModel"), config("llama")):
        task_class("causal-lm").check_model(model)
    task_class("masked-lm").check_model(BERT)


def test_each_task_is_asked_in_its_own_place_and_one_takes_the_rest() -> None:
    tasks = [task_class(name) for name in TASKS]
    assert len({task.precedence for task in tasks}) == len(tasks)
    assert [task.name for task in tasks if task.is_fallback] == ["text-classification"]
