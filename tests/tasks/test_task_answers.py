"""Answers to rows without labels, against transformers' pipelines and plain torch."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_speech
import tiny_text
import torch
from datasets import Dataset
from tiny_speech import spoken
from tiny_text import PLAIN_TEMPLATE, SPECIALS
from transformers import pipeline

from capaft.config.parts.model import ModelSettings
from capaft.inference.answers import Answerer
from capaft.model.load import BaseModel
from capaft.support.errors import UsageError
from capaft.tasks.base.columns import Columns
from capaft.tasks.base.task import Task
from capaft.tasks.causal_lm import CausalLM
from capaft.tasks.masked_lm import MaskedLM
from capaft.tasks.multiple_choice import MultipleChoice
from capaft.tasks.question_answering import QuestionAnswering
from capaft.tasks.seq2seq import Seq2Seq
from capaft.tasks.speech_recognition import SpeechRecognition
from capaft.tasks.token_classification import TokenClassification

NER = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def loaded(task: Task) -> BaseModel:
    """The demo's model with a head of that task whose outputs differ from token to token."""
    base = task.load_model(ModelSettings(), seed=0)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in base.model.named_parameters():
        if name.startswith(("classifier", "qa_outputs")):
            parameter.data = torch.randn(parameter.shape, generator=generator)
    base.model.eval()
    return base


def answers(task: Task, base: BaseModel, rows: Dataset, top: int | None = None, **named: str) -> list[dict[str, Any]]:
    columns = task.find_inputs(rows, named)
    return Answerer(task, base, base.model, 2, top).answer(rows, columns)


# Token classification


@pytest.fixture(scope="module")
def tagger() -> BaseModel:
    return loaded(TokenClassification(NER))


TEXTS = ["Ada Lovelace wasn't in Saint-Étienne, France.", "  electroencephalography!", "He paid the U.N. envoys 日本"]


def test_spans_are_those_of_a_pipeline(tagger: BaseModel) -> None:
    tag = pipeline("token-classification", tagger.model, tokenizer=tagger.processor, aggregation_strategy="first")
    records = answers(TokenClassification(NER), tagger, Dataset.from_dict({"text": TEXTS}))
    assert sum(len(record["spans"]) for record in records) > 5
    for text, record in zip(TEXTS, records, strict=True):
        spans = [(span["label"], *span["characters"], span["probability"]) for span in record["spans"]]
        expected = [(group["entity_group"], group["start"], group["end"], float(group["score"])) for group in tag(text)]
        assert [span[:3] for span in spans] == [group[:3] for group in expected]
        np.testing.assert_allclose([span[3] for span in spans], [group[3] for group in expected], rtol=1e-4)
        for span in record["spans"]:
            first, end = span["words"]
            assert span["text"] == text[slice(*span["characters"])]
            assert span["text"].replace(" ", "") == "".join(record["words"][first:end])


def test_words_get_the_tag_of_their_first_token(tagger: BaseModel) -> None:
    words = [["Ada", "Lovelace", "wasn't", "here"], ["electroencephalographically"], None, ["so", None]]
    records = answers(TokenClassification(NER), tagger, Dataset.from_dict({"tokens": words}))
    for of_row, record in zip(words[:2], records[:2], strict=True):
        encoded = tagger.processor(of_row, is_split_into_words=True, return_tensors="pt")
        with torch.inference_mode():
            classes = tagger.model(**encoded).logits[0].argmax(-1).tolist()
        places = encoded.word_ids(0)
        assert record["tags"] == [NER[classes[places.index(at)]] for at in range(len(of_row))]
        for span in record["spans"]:
            assert (
                " ".join(of_row)[slice(*span["characters"])] == span["text"] == " ".join(of_row[slice(*span["words"])])
            )
    assert records[2:] == [{"error": "there is nothing in column 'tokens'"}, records[3]]
    assert "a word is missing" in records[3]["error"]


def test_words_beyond_the_limit_have_no_tag(tagger: BaseModel) -> None:
    task = TokenClassification(("A", "B", *NER[2:]), max_length=4)
    (record,) = answers(task, tagger, Dataset.from_dict({"text": ["one two three four"]}))
    assert [tag is None for tag in record["tags"]] == [False, False, True, True]
    assert [span["words"] for span in record["spans"]] == [[0, 1], [1, 2]]


# Question answering

QUESTION, CONTEXT = (
    "Who built it?",
    "The Tower was built in 1078. William, a Norman, built it. " + "It still stands. " * 9,
)


@pytest.fixture(scope="module")
def reader() -> BaseModel:
    return loaded(QuestionAnswering())


def naive_answers(base: BaseModel, task: QuestionAnswering, context: str) -> list[tuple[float, str, int]]:
    """Score, text and start of every span of every window, the best first, with no answer as the empty text."""
    encoded = base.processor(
        QUESTION,
        context,
        truncation="only_second",
        max_length=task.max_length,
        stride=task.stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    spans: list[tuple[float, str, int]] = []
    null, mass = math.inf, 0.0
    for window in range(len(encoded["input_ids"])):
        inputs = {n: torch.tensor([encoded[n][window]]) for n in ("input_ids", "token_type_ids", "attention_mask")}
        with torch.inference_mode():
            outputs = base.model(**inputs)
        start, end = outputs.start_logits[0].double().tolist(), outputs.end_logits[0].double().tolist()
        inside = [at for at, sequence in enumerate(encoded.sequence_ids(window)) if sequence == 1]
        mass += sum(math.exp(start[first] + end[last]) for first in [0, *inside] for last in [0, *inside])
        null = min(null, start[0] + end[0])
        places = encoded["offset_mapping"][window]
        for first in inside:
            for last in range(first, min(first + task.max_answer_length, inside[-1] + 1)):
                begin, behind = places[first][0], places[last][1]
                spans.append((start[first] + end[last], context[begin:behind], begin))
    everything = [*spans, (null, "", -1)]
    return sorted(((math.exp(logit) / mass, text, at) for logit, text, at in everything), reverse=True)


@pytest.mark.parametrize("length", [384, 32])
def test_answers_are_those_of_a_search_of_all_spans(length: int, reader: BaseModel) -> None:
    task = QuestionAnswering(max_length=length, stride=8, n_best=100)
    rows = Dataset.from_dict({"question": [QUESTION, QUESTION, None], "context": ["No.", CONTEXT, CONTEXT]})
    records = answers(task, reader, rows, top=3)
    assert records[2] == {"error": "there is nothing in column 'question'"}
    for context, record in zip(("No.", CONTEXT), records[:2], strict=True):
        spans = [span for span in naive_answers(reader, task, context) if span[1]]
        seen = list({(text, at): score for score, text, at in reversed(spans)}.items())[::-1]
        best = sorted(((score, *place) for place, score in seen), reverse=True)[:3]
        assert [(one["answer"], one["start"]) for one in record["answers"]] == [(text, at) for _, text, at in best]
        np.testing.assert_allclose([one["score"] for one in record["answers"]], [one[0] for one in best], rtol=1e-4)
        assert record["answers"][0] == {name: record[name] for name in ("answer", "score", "start", "end")}
        assert context[record["start"] : record["end"]] == record["answer"]


def test_no_answer_is_an_answer_where_it_was_trained(reader: BaseModel) -> None:
    rows = Dataset.from_dict({"question": [QUESTION], "context": [CONTEXT]})
    score = next(score for score, text, _ in naive_answers(reader, QuestionAnswering(), CONTEXT) if not text)
    for threshold in (-1e9, 1e9):
        task = QuestionAnswering(no_answer=True, no_answer_threshold=threshold, n_best=100)
        (record,) = answers(task, reader, rows, top=1000)
        assert (record["answer"] == "", record["start"] is None) == (threshold < 0, threshold < 0)
        nothing = next(one for one in record["answers"] if not one["answer"])
        np.testing.assert_allclose(nothing["score"], score, rtol=1e-4)


# Multiple choice


def test_choices_have_the_softmax_of_their_scores() -> None:
    base = loaded(MultipleChoice())
    columns = {
        "context": ["It rained all day.", "The cat sat.", "One."],
        "choices": [["yes", "no"], ["a", "b", "c"], ["x"]],
    }
    records = answers(MultipleChoice(), base, Dataset.from_dict(columns))
    for context, choices, record in zip(*(values[:2] for values in columns.values()), records[:2], strict=True):
        encoded = base.processor([context] * len(choices), choices, padding=True, return_tensors="pt")
        with torch.inference_mode():
            logits = base.model(**{name: tensor[None] for name, tensor in encoded.items()}).logits[0]
        expected = logits.softmax(-1).tolist()
        np.testing.assert_allclose(record["probabilities"], expected, rtol=1e-4)
        assert record["index"] == int(logits.argmax())
        assert record["choice"] == choices[record["index"]]
        assert record["probability"] == record["probabilities"][record["index"]]
    assert records[2] == {"error": "there are fewer than two choices in column choices; fill it in or drop the row"}


# Texts


def greedy(model: Any, ids: list[int], new: int, ends: set[int]) -> list[int]:
    """The likeliest token, one after the other, without a cache."""
    tokens: list[int] = []
    with torch.inference_mode():
        for _ in range(new):
            if model.config.is_encoder_decoder:
                begun = torch.tensor([[model.config.decoder_start_token_id, *tokens]])
                logits = model(input_ids=torch.tensor([ids]), decoder_input_ids=begun).logits
            else:
                logits = model(torch.tensor([[*ids, *tokens]])).logits
            tokens.append(int(logits[0, -1].argmax()))
            if tokens[-1] in ends:
                break
    return tokens


def text_of(base: BaseModel, tokens: list[int]) -> str:
    return base.processor.decode(tokens, skip_special_tokens=True).strip()


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


SAID = ["hi", "a longer question", "yes?"]
LONG = [turn("user", "a"), turn("assistant", "b"), turn("user", "c")]
END, STOP = SPECIALS["<end>"], SPECIALS["<stop>"]


@pytest.mark.parametrize("layout", ["text", "prompt"])
def test_texts_are_continued_one_by_one_as_in_a_batch(layout: str) -> None:
    base = tiny_text.base("llama", tiny_text.tokenizer())
    task = CausalLM(layout=layout, max_new_tokens=7)
    records = answers(task, base, Dataset.from_dict({"prompt": [*SAID, None]}), text="prompt")
    for text, record in zip(SAID, records, strict=False):
        ids = tiny_text.ids(text if layout == "text" else f"{text}\n")
        assert record == {"text": text_of(base, greedy(base.model, ids, 7, {END}))}
    assert records[3] == {"error": "there is nothing in column 'prompt'"}


@pytest.mark.parametrize(
    "column",
    [[*LONG], [*LONG, turn("assistant", "an answer that is there")], json.dumps(LONG)],
    ids=["waits", "has", "json"],
)
def test_the_last_answer_of_a_chat_is_written(column: Any) -> None:
    base = tiny_text.base("llama", tiny_text.tokenizer(PLAIN_TEMPLATE))
    task = CausalLM(layout="messages", max_new_tokens=7)
    (record,) = answers(task, base, Dataset.from_dict({"messages": [column], "id": [1]}))
    ids = base.processor.apply_chat_template(LONG, add_generation_prompt=True, return_dict=False)
    assert record == {"text": text_of(base, greedy(base.model, ids, 7, {END, STOP}))}


def test_a_text_is_what_the_user_says_to_a_run_on_chats() -> None:
    base = tiny_text.base("llama", tiny_text.tokenizer(PLAIN_TEMPLATE))
    task = CausalLM(layout="messages", max_new_tokens=7)
    for text, record in zip(SAID, answers(task, base, Dataset.from_dict({"text": SAID})), strict=True):
        ids = base.processor.apply_chat_template([turn("user", text)], add_generation_prompt=True, return_dict=False)
        assert record == {"text": text_of(base, greedy(base.model, ids, 7, {END, STOP}))}


def test_rows_of_another_form_are_refused_at_once() -> None:
    for layout in ("text", "prompt"):
        with pytest.raises(UsageError, match="does not hold text"):
            CausalLM(layout=layout).find_inputs(Dataset.from_dict({"prompt": [LONG]}), {"text": "prompt"})


def test_sources_are_answered_by_the_decoder() -> None:
    base = tiny_text.base("t5", tiny_text.tokenizer())
    task = Seq2Seq(source_prefix="say: ", max_new_tokens=7)
    rows = Dataset.from_dict({"source": SAID, "target": ["is not read"] * 3})
    for text, record in zip(SAID, answers(task, base, rows), strict=True):
        ids = base.processor(f"say: {text}")["input_ids"]
        assert record == {"text": text_of(base, greedy(base.model, ids, 7, {END}))}


# Masks


def test_masks_are_filled_as_by_a_pipeline() -> None:
    task = MaskedLM(max_length=32)
    base = loaded(task)
    fill = pipeline("fill-mask", base.model, tokenizer=base.processor, top_k=3)
    texts = ["The Capital of [MASK] is Paris.", "a [MASK] and\ta [MASK]", "none", "far " * 40 + "[MASK]"]
    records = answers(task, base, Dataset.from_dict({"text": texts}), top=3)
    for text, record in zip(texts[:2], records[:2], strict=True):
        found = fill(text)
        groups = found if text.count("[MASK]") > 1 else [found]
        for listed, group in zip(record["candidates"], groups, strict=True):
            assert [one["token"] for one in listed] == [one["token_str"].strip() for one in group]
            np.testing.assert_allclose(
                [one["probability"] for one in listed], [one["score"] for one in group], rtol=1e-4
            )
        expected = text
        for token in record["tokens"]:
            expected = expected.replace("[MASK]", token.removeprefix("##"), 1)
        assert record["text"] == expected
        assert record["probabilities"] == [listed[0]["probability"] for listed in record["candidates"]]
    assert records[2:] == [
        {"error": "there is no [MASK] to fill"},
        {"error": "a [MASK] lies beyond the first 30 tokens"},
    ]


# Speech


@pytest.mark.parametrize("kind", ["ctc", "whisper"])
def test_recordings_are_written_down_without_transcripts(kind: str, tmp_path: Path) -> None:
    task = SpeechRecognition(language="en", max_new_tokens=8)
    base = task.load_model(ModelSettings(model=getattr(tiny_speech, kind)(tmp_path)), seed=0)
    rows = spoken("low high", "high", "low low low")
    known = task.features(base, rows, Columns("audio", None, "transcription"), training=False)
    indices = range(3)
    batch = task.collate(base, known, indices, training=False)
    with torch.inference_mode():
        expected = task.predict(base, base.model, known, indices, batch, base.model(**batch.inputs))
    unlabelled = rows.remove_columns("transcription")
    answerer = Answerer(task, base, base.model, 3)
    assert answerer.answer(unlabelled, task.find_inputs(unlabelled, {})) == [{"text": text} for text in expected]
    broken = Dataset.from_dict({"audio": [{"path": "missing.wav", "bytes": None}]})
    (record,) = answerer.answer(broken, Columns("audio"))
    assert "missing.wav" in record["error"]


def test_every_task_answers() -> None:
    from capaft.config.choices import TASKS
    from capaft.tasks.base.registry import task_class

    for name in TASKS:
        kind = task_class(name)
        fields = {"labels": NER} if kind.own_head else {}
        assert SimpleNamespace(fields=kind(**fields).answer_fields()).fields, name
