"""Special tokens that a text already holds, in every task: none is doubled, and none is lost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from tiny_checkpoints import encoder_tokenizer
from tiny_text import BREAKS, PLAIN_TEMPLATE, SPECIALS, base, ids, table, tokenizer

from capaft.support.errors import UsageError
from capaft.tasks.base.columns import Columns
from capaft.tasks.causal_lm import CausalLM
from capaft.tasks.language.framing import Frame, frame, tokenise_rows
from capaft.tasks.masked_lm import MaskedLM
from capaft.tasks.seq2seq import Seq2Seq
from capaft.tasks.text_classification import TextClassification


def test_tokenised_leaves_out_empty_texts() -> None:
    tokens = tokenise_rows(tokenizer(framed=True), table(text=["ab", "", "c"]), Columns("text"))
    assert tokens == ([ids("ab"), ids("c")], [])
    with pytest.raises(UsageError, match="every text"):
        tokenise_rows(tokenizer(), table(text=[""]), Columns("text"))
    with pytest.raises(UsageError, match="row 2"):
        tokenise_rows(tokenizer(), Dataset.from_dict({"text": ["a", None]}), Columns("text"))


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("<start>ab<end>", "ab"),
        ("<start>ab", "ab"),
        ("ab<end>\n", "ab"),
        (" <start> ab <end>", " ab "),
        ("ab<stop>", "ab"),
        ("<start><start>ab", "<start>ab"),
        ("a<end>b", "a<end>b"),
        ("<turn>ab ", "<turn>ab "),
    ],
)
def test_a_frame_is_taken_off_once(text: str, bare: str) -> None:
    model = tokenizer()
    around = frame(model, [SPECIALS["<start>"]], ends=[SPECIALS["<end>"], SPECIALS["<stop>"]])
    assert around.strip(text) == bare


def test_a_token_that_a_text_cannot_write_frames_none() -> None:
    assert frame(tokenizer(), ids("a"), [SPECIALS["<end>"]]) == Frame(("a",), ("<end>",), ())
    assert frame(tokenizer(), [BREAKS]) == Frame()


def same(task: Any, kind: str, model: Any, formatted: dict[str, list[str]], bare: dict[str, list[str]]) -> list[str]:
    """The lines about formatted texts, whose features are those of bare ones, in training and in evaluation."""
    loaded = base(kind, model)
    notes = []
    for training in (True, False):
        read = []
        for columns in (formatted, bare):
            rows = table(**columns)
            features = task.features(loaded, rows, type(task).recognise(rows, {}), training=training)
            inputs = {name: [list(entry) for entry in entries] for name, entries in features.inputs.items()}
            read.append((inputs, features.references))
            notes.append(list(features.notes))
        np.testing.assert_equal(read[0], read[1])
    assert notes[1] == notes[3] == []
    assert notes[0] == notes[2]
    return notes[0]


NOTE = "2 of 3 texts already hold special tokens (<start>, <end>), which are not doubled"
TEXTS, BARE = ["<start>abc<end>", "<start>de<end>\n", "f"], ["abc", "de", "f"]


@pytest.mark.parametrize("packing", [True, False])
def test_plain_text(packing: bool) -> None:
    task = CausalLM(packing=packing, max_length=8)
    assert same(task, "llama", tokenizer(framed=True), {"text": TEXTS}, {"text": BARE}) == [NOTE]
    # Without a start of its own, the tokenizer keeps that of the text.
    features = task.features(base("llama", tokenizer()), table(text=TEXTS[:1]), Columns("text"), training=True)
    assert [list(entry) for entry in features.inputs["input_ids"]] == [
        [SPECIALS["<start>"], *ids("abc"), SPECIALS["<end>"]]
    ]


def test_one_token_that_ends_a_text_and_begins_the_next() -> None:
    end = SPECIALS["<end>"]
    rows = table(text=["<end>ab", "<end>c"])
    packed = CausalLM().features(base("gpt2", tokenizer()), rows, Columns("text"), training=True)
    assert packed.inputs["input_ids"][0].tolist() == [end, *ids("ab"), end, *ids("c"), end]


def test_masked_words() -> None:
    model = encoder_tokenizer()
    assert same(MaskedLM(), "bert", model, {"text": TEXTS}, {"text": BARE}) == [NOTE]


def test_classes() -> None:
    task, labels = TextClassification(labels=("a", "b")), ["a", "b", "a"]
    notes = same(task, "bert", encoder_tokenizer(), {"text": TEXTS, "label": labels}, {"text": BARE, "label": labels})
    assert notes == [NOTE]


def test_sources_and_targets() -> None:
    model = tokenizer(framed=True)
    written = {"source": TEXTS, "target": ["x<end>", "<start>y<end>", "z"]}
    notes = same(Seq2Seq(), "t5", model, written, {"source": BARE, "target": ["x", "y", "z"]})
    assert notes == ["2 of 3 rows already hold special tokens (<start>, <end>), which are not doubled"]


def test_chats() -> None:
    model = tokenizer("{{ bos_token }}" + PLAIN_TEMPLATE)
    model.bos_token = "<start>"
    written, bare = (
        {"messages": [[{"role": "user", "content": asked}, {"role": "assistant", "content": said}]]}
        for asked, said in (("<start>hi<stop>", "yo<stop>\n"), ("hi", "yo"))
    )
    (note,) = same(CausalLM(layout="messages"), "llama", model, written, bare)
    assert note == "1 of 1 chats already hold special tokens (<start>, <end>, <stop>), which are not doubled"
    written["messages"][0][1]["content"] = "<stop>"
    with pytest.raises(UsageError, match="row 1: an answer has nothing but special tokens"):
        CausalLM(layout="messages").features(base("llama", model), table(**written), Columns("messages"), training=True)
