"""Scores of texts against values computed by hand and published examples."""

from __future__ import annotations

import math

import pytest

from capaft.tasks.language.text_scores import TEXT_METRICS, score_texts


def test_bleu_of_sacrebleus_readme() -> None:
    """The example of sacrebleu's README: two references, one missing, BLEU 48.53."""
    texts = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
    references = [
        ["The dog bit the man.", "The dog had bit the man."],
        ["It was not unexpected.", "No one was surprised."],
        ["The man bit him first.", "The man had bitten the dog."],
    ]
    assert score_texts(texts, references)["bleu"] == pytest.approx(48.53, abs=0.005)


def test_bleu_by_hand_with_unequal_numbers_of_references() -> None:
    # Matches: 5 + 6 unigrams of 12, 4 + 4 bigrams of 10, 3 + 2 trigrams of 8, 2 + 1 of 6; 12 words against 6 + 6.
    texts = ["a b c d e x", "p q r s y t"]
    references = [["a b c d e f"], ["p q r s t u", "p q r s z y t"]]
    matched = (5 + 6) / 12 * (4 + 4) / 10 * (3 + 2) / 8 * (2 + 1) / 6
    assert score_texts(texts, references)["bleu"] == pytest.approx(100 * matched**0.25)


def test_bleu_is_brief() -> None:
    scores = score_texts(["a b c d"], [["a b c d e f g h"]])
    assert scores["bleu"] == pytest.approx(100 * math.exp(1 - 8 / 4))


def test_rouge_by_hand() -> None:
    scores = score_texts(["the cat sat on the mat", "no"], [["a dog", "the cat was on the mat"], ["yes"]])
    # Five of six words, three of five pairs, and five in order; the other text scores 0.
    assert scores["rouge1"] == pytest.approx(5 / 6 / 2)
    assert scores["rouge2"] == pytest.approx(3 / 5 / 2)
    assert scores["rougeL"] == pytest.approx(5 / 6 / 2)


def test_rouge_stems_words() -> None:
    assert score_texts(["running dogs"], [["run dog"]])["rouge1"] == 1


def test_exact_match_minds_no_white_space_around() -> None:
    assert score_texts([" a b", "A", "c"], [["x", "a b\n"], ["a"], ["c"]])["exact_match"] == pytest.approx(2 / 3)


def test_chrf_by_hand() -> None:
    # Of "abc" against "abd": 2 of 3 letters and 1 of 2 pairs, no triple; precision and recall are the same.
    assert score_texts(["abc"], [["abd"]])["chrf"] == pytest.approx(100 * (2 / 3 + 1 / 2 + 0) / 3)


def test_all_of_them() -> None:
    perfect = score_texts(["The same text here."], [["The same text here."]])
    assert tuple(perfect) == TEXT_METRICS
    assert perfect == pytest.approx({"bleu": 100, "chrf": 100} | dict.fromkeys(TEXT_METRICS[2:], 1))
