"""Scores of texts against values computed by hand and published examples."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import corpus_bleu

from capaft.tasks.language.text_scores import TEXT_METRICS, score_texts


def test_bleu_of_sacrebleus_readme() -> None:
    """The example of sacrebleu's README: two references, one missing, BLEU 48.53 times 1/100."""
    texts = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
    references = [
        ["The dog bit the man.", "The dog had bit the man."],
        ["It was not unexpected.", "No one was surprised."],
        ["The man bit him first.", "The man had bitten the dog."],
    ]
    assert score_texts(texts, references)["bleu"] == pytest.approx(0.4853, abs=0.00005)


def test_bleu_by_hand_with_unequal_numbers_of_references() -> None:
    # Matches: 5 + 6 unigrams of 12, 4 + 4 bigrams of 10, 3 + 2 trigrams of 8, 2 + 1 of 6; 12 words against 6 + 6.
    texts = ["a b c d e x", "p q r s y t"]
    references = [["a b c d e f"], ["p q r s t u", "p q r s z y t"]]
    matched = (5 + 6) / 12 * (4 + 4) / 10 * (3 + 2) / 8 * (2 + 1) / 6
    assert score_texts(texts, references)["bleu"] == pytest.approx(matched**0.25)


def test_bleu_is_brief() -> None:
    scores = score_texts(["a b c d"], [["a b c d e f g h"]])
    assert scores["bleu"] == pytest.approx(math.exp(1 - 8 / 4))


def test_rouge_by_hand() -> None:
    scores = score_texts(["the cat sat on the mat", "no"], [["a dog", "the cat was on the mat"], ["yes"]])
    # Five of six words, three of five pairs, and five in order; the other text scores 0.
    assert scores["rouge1"] == pytest.approx(5 / 6 / 2)
    assert scores["rouge2"] == pytest.approx(3 / 5 / 2)
    assert scores["rougeL"] == pytest.approx(5 / 6 / 2)


def test_rouge_stems_words() -> None:
    assert score_texts(["running dogs"], [["run dog"]])["rouge1"] == 1


@pytest.mark.parametrize(
    ("text", "reference", "matches", "of_text", "of_reference"),
    [
        ("今天北京天气", "今天上海天气晴朗", 4, 6, 8),
        ("東京は晴れ", "東京は雨", 3, 5, 4),
        ("ฝนตก", "ฝนหนัก", 3, 4, 5),
        ("дождь идёт", "идёт сильный дождь", 2, 2, 3),
        ("बारिश हो रही है", "बारिश तेज़ है", 2, 4, 3),
        ("비가 온다", "비가 많이 온다", 2, 2, 3),
        ("مطر غزير", "مطر", 1, 2, 1),
        ("größer", "gröber", 0, 1, 1),
    ],
)
def test_rouge_knows_the_words_of_every_script(
    text: str, reference: str, matches: int, of_text: int, of_reference: int
) -> None:
    assert score_texts([text], [[reference]])["rouge1"] == pytest.approx(2 * matches / (of_text + of_reference))


@given(st.text(st.characters(codec="ascii")), st.text(st.characters(codec="ascii")))
def test_rouge_of_ascii_is_that_of_rouge_score(text: str, reference: str) -> None:
    published = RougeScorer(["rouge1", "rougeL"], use_stemmer=True).score(reference, text)
    scores = score_texts([text], [[reference]])
    assert {name: scores[name] for name in published} == {name: s.fmeasure for name, s in published.items()}


def test_words_of_other_languages_than_english_are_not_stemmed() -> None:
    assert score_texts(["running"], [["runs"]], "en")["rouge1"] == 1
    assert score_texts(["running"], [["runs"]], "eng")["rouge1"] == 1
    assert score_texts(["running"], [["runs"]], "de")["rouge1"] == 0


def test_rouge_takes_composed_and_decomposed_letters_for_the_same() -> None:
    assert score_texts(["cafe\u0301"], [["caf\u00e9"]])["rouge1"] == 1


@pytest.mark.parametrize(
    ("language", "tokenizer"),
    [
        *[("", "zh"), ("zh-CN", "zh"), ("zho", "zh"), ("cmn-Hans", "zh"), ("nan", "zh"), ("ja", "char")],
        *[("jpn", "char"), ("tha", "char"), ("en", "13a"), ("eng", "13a"), ("pt-BR", "13a")],
    ],
)
def test_bleu_takes_the_tokenizer_of_the_language_or_the_script(language: str, tokenizer: str) -> None:
    texts, references = ["今天北京天气晴朗"], ["今天北京天气不好"]
    expected = corpus_bleu(texts, [references], tokenize=tokenizer).score
    assert score_texts(texts, [references], language)["bleu"] == expected / 100
    assert (expected > 0) == (tokenizer != "13a")


@pytest.mark.parametrize("text", ["今日は雨です", "วันนี้ฝนตก", "ມື້ນີ້ຝົນຕົກ", "ថ្ងៃនេះភ្លៀង", "ဒီနေ့မိုးရွာတယ်"])
def test_bleu_of_short_texts_without_spaces_is_not_zero(text: str) -> None:
    assert score_texts([text[:-1]], [[text]])["bleu"] > 0.5


def test_exact_match_minds_no_white_space_around() -> None:
    assert score_texts([" a b", "A", "c"], [["x", "a b\n"], ["a"], ["c"]])["exact_match"] == pytest.approx(2 / 3)


def test_chrf_by_hand() -> None:
    # Of "abc" against "abd": 2 of 3 letters and 1 of 2 pairs, no triple; precision and recall are the same.
    assert score_texts(["abc"], [["abd"]])["chrf"] == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)


def test_all_of_them() -> None:
    perfect = score_texts(["The same text here."], [["The same text here."]])
    assert tuple(perfect) == TEXT_METRICS
    assert perfect == pytest.approx(dict.fromkeys(TEXT_METRICS, 1))
