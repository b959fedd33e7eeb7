"""Exact match and F1 of an answer, as SQuAD scores it.

Defined by the official script evaluate-v2.0.py (Rajpurkar, Jia and Liang 2018, arXiv 1806.03822), which also scores
rows of version 1. Libraries know only version 1, or bring a framework along. Scores are fractions, not per cent.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalise(text: str) -> str:
    """Lower case, without punctuation, articles and superfluous white space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1 if the answer is one of the references, else 0; without references the right answer is empty."""
    return _best(lambda text, reference: float(text == reference), answer, references)


def f1(answer: str, references: Sequence[str]) -> float:
    """Harmonic mean of the shares of the answer's and the reference's words that are common, for the best reference."""
    return _best(_f1, answer, references)


def _best(score: Callable[[str, str], float], answer: str, references: Sequence[str]) -> float:
    # A reference such as "the" is empty when normalised, and the official script then expects an empty answer.
    texts = [text for text in map(normalise, references) if text] or [""]
    return max(score(normalise(answer), text) for text in texts)


def _f1(text: str, reference: str) -> float:
    words, expected = text.split(), reference.split()
    if not words or not expected:
        return float(words == expected)
    common = (Counter(words) & Counter(expected)).total()
    return 2 * common / (len(words) + len(expected))
