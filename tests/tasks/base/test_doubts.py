"""Data that look like one thing and would be trained as another."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoConfig

from capaft.support.errors import UsageError
from capaft.tasks.base.recognise import recognise_task
from capaft.tasks.text_classification import TextClassification

NOTHING = {"text": None, "pair": None, "label": None}
BERT = AutoConfig.for_model("bert", architectures=["BertModel"])
GPT = AutoConfig.for_model("gpt2", architectures=["GPT2LMHeadModel"])
T5 = AutoConfig.for_model("t5", architectures=["T5ForConditionalGeneration"])
TEXTS = [f"a text of number {row} here" for row in range(24)]
CLASSES = ["pos", "neg"] * 12
CHAT = [[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]] * 24


def task(columns: dict[str, list[Any]], model: Any, **named: str) -> str:
    return recognise_task(Dataset.from_dict(columns), model, NOTHING | named)


def lines(pattern: str) -> dict[str, list[Any]]:
    pairs = zip(TEXTS, CLASSES, strict=True)
    return {"text": [pattern.format(text=t, label=c, n=n) for n, (t, c) in enumerate(pairs)]}


@pytest.mark.parametrize("model", [BERT, GPT, T5])
@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"prompt": TEXTS, "chosen": TEXTS, "rejected": TEXTS}, "prompt, chosen, rejected look like preferences"),
        ({"prompt": TEXTS, "chosen": CHAT, "rejected": CHAT}, "say --task causal-lm --text-column chosen$"),
        ({"chosen": TEXTS, "rejected": TEXTS}, "chosen, rejected look like preferences"),
        ({"prompt": TEXTS, "completion": TEXTS, "label": [True, False] * 12}, "answers rated good or bad"),
        ({"prompt": TEXTS, "completions": [["a"]] * 24, "labels": [[True]] * 24}, "rated steps"),
        ({"anchor": TEXTS, "positive": TEXTS, "negative": TEXTS}, "pairs or triples for embeddings"),
        ({"query": TEXTS, "pos": [["a"]] * 24, "neg": [["b"]] * 24}, "pairs or triples for embeddings"),
        ({"en": TEXTS, "de": CLASSES}, "look like a translation.*--text-column en --label-column de"),
        ({"en_XX": TEXTS, "pt-BR": TEXTS, "id": TEXTS}, "look like a translation"),
        ({"A superb film": TEXTS, "pos": CLASSES}, "as if the first row stood in place of names"),
        ({"A superb film": TEXTS, "1": [0, 1] * 12}, "as if the first row stood in place of names"),
        ({"The cat sat on the mat.": TEXTS}, "as if the first row stood in place of names"),
    ],
)
def test_what_no_task_learns(columns: dict[str, Any], model: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        task(columns, model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model", [BERT, GPT])
@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (lines("{text}\t{label}"), "rows of a table"),
        (lines("{text};{label}"), "rows of a table"),
        (lines("{label},{text}"), "rows of a table"),
        (lines('{{"text": "{text}"}}'), "JSON"),
        (lines("__label__{label} {text}"), "fastText"),
        (lines("word{n} NN"), "a word and its tag a line"),
        (lines("https://a.b/{n}"), "addresses"),
        (lines("images/{n}.jpg"), "names of files"),
        (lines("2024-01-02 10:00:{n}"), "dates or numbers"),
        (lines("{n}.5"), "dates or numbers"),
        (lines("{n:08x}"), "hashes"),
    ],
)
def test_what_is_no_text(columns: dict[str, Any], model: Any, message: str) -> None:
    with pytest.raises(UsageError, match=f"column 'text' looks like .*{message}.*--text-column 'text' --task"):
        task(columns, model)
    assert task(columns, model, text="text") in ("masked-lm", "causal-lm")


@pytest.mark.parametrize(
    "texts",
    [
        TEXTS,
        ["Yes, sir.", "No, madam.", "Well, well."] * 8,
        ["Tyger tyger,", "Burning bright,", "In the forests,"] * 8,
        ["so it goes", "on and on", "time to go"] * 8,
        ["[MASK] is a mask", "{x}", "plain"] * 8,
        ["<|im_start|>Hi<|im_end|>Hello.<|im_end|>", "<|im_start|>Bye<|im_end|>See you.<|im_end|>"] * 12,
    ],
)
def test_prose_is_learnt(texts: list[str]) -> None:
    assert task({"text": texts}, BERT) == "masked-lm"
    assert task({"text": texts}, GPT) == "causal-lm"


def test_columns_that_would_not_be_read() -> None:
    for model, name in ((BERT, "masked-lm"), (GPT, "causal-lm")):
        with pytest.raises(UsageError, match=f"'embedding' would not be read; say --task {name}"):
            task({"text": TEXTS, "embedding": [[0.1]] * 24}, model)
        assert task({"text": TEXTS, "url": TEXTS, "timestamp": ["2024-01-01"] * 24, "id": TEXTS}, model) == name
    with pytest.raises(UsageError, match="'a', 'b' would not be read"):
        task({"text": TEXTS, "a": [0, 1] * 12, "b": [0, 1] * 12}, BERT)


def test_names_of_files_are_not_classified() -> None:
    columns = {"file_name": [f"images/{n}.jpg" for n in range(24)], "label": CLASSES}
    with pytest.raises(UsageError, match="'file_name' looks like names of files"):
        task(columns, BERT)
    assert task(columns, BERT, text="file_name") == "text-classification"


def test_a_number_of_its_own_in_every_row_is_no_class() -> None:
    with pytest.raises(UsageError, match="'count' has a number of its own in most rows"):
        TextClassification.recognise(Dataset.from_dict({"text": TEXTS, "count": list(range(24))}), NOTHING)
    assert task({"text": TEXTS, "count": list(range(24))}, BERT, label="count") == "text-classification"


@pytest.mark.parametrize(
    "columns",
    [
        {"text": TEXTS, "spam": ["spam", "ham"] * 12},
        {"0": TEXTS, "1": [0, 1] * 12},
        {"Unnamed: 0": list(range(24)), "0": TEXTS, "1": [0, 1] * 12},
    ],
)
def test_odd_names_are_names(columns: dict[str, Any]) -> None:
    assert task(columns, BERT) == "text-classification"


def test_a_prompt_is_answered_however_few_the_answers() -> None:
    for pair in (("prompt", "completion"), ("prompt", "response"), ("instruction", "output")):
        columns = dict(zip(pair, (TEXTS, CLASSES), strict=True))
        assert task(columns, GPT) == "causal-lm"
        assert task(columns, T5) == "seq2seq"
    assert task({"prompt": TEXTS, "completion": CLASSES}, GPT, label="completion") == "causal-lm"
    assert task({"prompt": TEXTS, "completion": CLASSES}, BERT) == "text-classification"


def test_columns_named_by_the_user_settle_it() -> None:
    assert task({"en": TEXTS, "de": TEXTS}, GPT, text="en", label="de") == "causal-lm"
    columns = {"prompt": TEXTS, "chosen": TEXTS, "rejected": TEXTS}
    assert task(columns, GPT, text="prompt", label="chosen") == "causal-lm"


def test_parts_of_speech_are_no_positives() -> None:
    words = {"Sentence #": TEXTS, "Word": [["a", "b"]] * 24, "POS": [["N", "V"]] * 24, "Tag": [["O", "B-X"]] * 24}
    assert task(words, BERT) == "token-classification"
