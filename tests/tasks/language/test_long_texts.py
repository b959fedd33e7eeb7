"""The law of long texts: tokenised in pieces or cut beforehand, they have the tokens of the whole text."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from capaft.model.demo import demo_model
from capaft.support.errors import UsageError
from capaft.tasks.language import long_texts
from capaft.tasks.language.long_texts import beginning, ids_of, plain_ids, text_batches
from capaft.tasks.language.truncation import CutRows

CORPUS = [
    "the quick brown fox jumps over a lazy dog, it's 1234 times; the end of a text\nand another line äöü 中文"
] * 3
KINDS = ("wordpiece", "bytes", "metaspace bpe", "unigram")
WORDS = st.sampled_from(["the", "fox", "a", "it's", "1234", "end,", "x" * 9, "Ünï", "中文字", "<s>", "(", "aaaa"])
BLANKS = st.sampled_from([" ", " ", " ", "  ", "\n", "\t", "\u00a0", ". "])
TEXTS = st.lists(st.tuples(WORDS, BLANKS), max_size=120).map(lambda parts: "".join(map("".join, parts)))


@cache
def tokenizer(kind: str) -> Any:
    """A tokenizer of each kind of model, with special tokens around a text and a pair."""
    if kind == "wordpiece":
        return AutoTokenizer.from_pretrained(demo_model())
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    if kind == "unigram":
        made = Tokenizer(models.Unigram())
        trainer: Any = trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token="<unk>")
        made.normalizer = normalizers.NFKC()
    else:
        made = Tokenizer(models.BPE(unk_token="<unk>"))
        trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    made.pre_tokenizer = pre_tokenizers.ByteLevel() if kind == "bytes" else pre_tokenizers.Metaspace()
    made.train_from_iterator(CORPUS, trainer)
    made.post_processor = processors.TemplateProcessing("<s> $A </s>", "<s> $A </s> $B </s>", [("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of a few words are long ones."""
    monkeypatch.setattr(long_texts, "PIECE", 48)
    monkeypatch.setattr(long_texts, "_NEAR", 12)


law = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("kind", KINDS)
@law
@given(text=TEXTS)
def test_pieces_have_the_tokens_of_the_text(kind: str, text: str) -> None:
    assert plain_ids(tokenizer(kind), text) == ids_of(tokenizer(kind), [text])[0]


@pytest.mark.parametrize("kind", KINDS)
@law
@given(first=TEXTS, second=st.none() | TEXTS, limit=st.integers(6, 19), side=st.sampled_from(["right", "left"]))
def test_cut_texts_have_the_tokens_of_the_text(
    kind: str, first: str, second: str | None, limit: int, side: str
) -> None:
    model = tokenizer(kind)
    model.truncation_side = side
    try:
        cut = CutRows(model, limit)
        (inputs,) = cut.batches([(first, second)])
        pairs = None if second is None else [second]
        whole = model([first], pairs, truncation=True, max_length=limit, return_attention_mask=False)
        assert inputs == dict(whole)
        model.backend_tokenizer.no_truncation()
        assert cut.truncated == (len(model([first], pairs, verbose=False)["input_ids"][0]) > limit)
    finally:
        model.truncation_side = "right"


class Counting:
    """A tokenizer that adds up the characters that it is given."""

    def __init__(self, kind: str) -> None:
        self.characters = 0
        self.backend_tokenizer = tokenizer(kind).backend_tokenizer
        self._tokenizer = tokenizer(kind)

    def __call__(self, text: list[str], *args: Any, **kwargs: Any) -> Any:
        self.characters += sum(map(len, text))
        return self._tokenizer(text, *args, **kwargs)


@pytest.mark.parametrize("kind", KINDS)
def test_no_more_of_a_text_is_tokenised_than_its_limit_needs(kind: str) -> None:
    counting = Counting(kind)
    (inputs,) = CutRows(counting, 8).batches([("the quick fox " * 100_000, None)])
    assert len(inputs["input_ids"][0]) == 8
    assert counting.characters < 2_000


@pytest.mark.parametrize("kind", ["wordpiece", "bytes", "metaspace bpe"])
def test_an_endless_word(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_texts, "LONGEST_PIECE", 4_000)
    part = beginning(tokenizer(kind), "x" * 50_000, 6)
    assert len(part) < 10_000
    assert ids_of(tokenizer(kind), [part])[0][:6] == ids_of(tokenizer(kind), ["x" * 50_000])[0][:6]


def test_an_endless_word_whose_tokens_depend_on_its_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_texts, "LONGEST_PIECE", 4_000)
    with pytest.raises(UsageError, match=r"50,000 characters.*without a blank.*drop the row"):
        beginning(tokenizer("unigram"), "x" * 50_000, 6)


def test_batches_are_bounded_by_rows_and_by_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_texts, "LONGEST_PIECE", 200)
    texts: list[tuple[str, str | None]] = [("a", None)] * 5 + [("b" * 300, None), ("c", "d")]
    assert [len(batch) for batch in text_batches(texts, rows=2)] == [2, 2, 2, 1]
