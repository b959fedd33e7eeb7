"""Exact match and F1 of an answer, as SQuAD scores it.

Defined by the official script evaluate-v2.0.py (Rajpurkar, Jia and Liang 2018, arXiv 1806.03822), which scores rows
of version 1 too. Libraries know version 1 alone, or bring a framework along. Scores are fractions, not per cent.
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
    """1 if the answer is one of the references, else 0; no references ask for an empty answer."""
    return _best(lambda given, wanted: float(given == wanted), answer, references)


def f1(answer: str, references: Sequence[str]) -> float:
    """The harmonic mean of the shares of the answer's and a reference's words that are common, for the best of them."""
    return _best(_f1, answer, references)


def _best(score: Callable[[str, str], float], answer: str, references: Sequence[str]) -> float:
    # A reference such as "the" is nothing when normalised, and the official script asks for nothing then.
    wanted = [text for text in map(normalise, references) if text] or [""]
    return max(score(normalise(answer), text) for text in wanted)


def _f1(given: str, wanted: str) -> float:
    words, reference = given.split(), wanted.split()
    if not words or not reference:
        return float(words == reference)
    common = (Counter(words) & Counter(reference)).total()
    return 2 * common / (len(words) + len(reference))
