"""Scores of generated texts against references: BLEU, chrF, ROUGE and exact match."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from capaft.tasks.base.uncertainty import Resampler, mean_resampler
from capaft.tasks.language.words import WordTokenizer, bleu_tokenizer

_CORPUS = ("bleu", "chrf")
_ROUGE = ("rouge1", "rouge2", "rougeL")
TEXT_METRICS = (*_CORPUS, *_ROUGE, "exact_match")


def score_texts(texts: Sequence[str], references: Sequence[Sequence[str]], language: str = "") -> dict[str, float]:
    """All scores over a data set.

    BLEU (Papineni et al. 2002) and chrF (Popovic 2015) are sacrebleu's corpus scores. ROUGE (Lin 2004) is the
    F-measure of rouge_score. What a word is depends on the script; see `capaft.tasks.language.words`. ROUGE and exact
    match (without surrounding white space) are means over texts, each against its best reference. All are from 0 to 1;
    sacrebleu and papers print BLEU and chrF times 100.

    Args:
        texts: one per example.
        references: at least one per example.
        language: a code such as `en` or `zh`; if empty, the script of the references decides what a word is.
    """
    means = {name: sum(values) / len(values) for name, values in _by_text(texts, references, language, _ROUGE).items()}
    return {name: _of_corpus(name, texts, references, language) for name in _CORPUS} | means


def text_resampler(metric: str, texts: Sequence[str], references: Sequence[Sequence[str]], language: str) -> Resampler:
    """One of these scores over some of the texts; arguments as for `score_texts`."""
    if metric not in _CORPUS:
        return mean_resampler(_by_text(texts, references, language, (metric,) if metric in _ROUGE else ())[metric])

    def score(rows: NDArray[np.int64]) -> float:
        return _of_corpus(metric, [texts[row] for row in rows], [references[row] for row in rows], language)

    return Resampler(len(texts), score)


def _of_corpus(metric: str, texts: Sequence[str], references: Sequence[Sequence[str]], language: str) -> float:
    from sacrebleu import corpus_bleu, corpus_chrf

    # sacrebleu takes all first references, all second ones, and so on, with None for a missing one.
    streams = [list(stream) for stream in zip_longest(*references)]
    if metric == "chrf":
        return float(corpus_chrf(list(texts), streams).score) / 100
    return float(corpus_bleu(list(texts), streams, tokenize=bleu_tokenizer(language, references)).score) / 100


def _by_text(
    texts: Sequence[str], references: Sequence[Sequence[str]], language: str, kinds: Sequence[str]
) -> dict[str, list[float]]:
    """ROUGE of some kinds, and exact match, of each text."""
    from rouge_score.rouge_scorer import RougeScorer

    rouge = RougeScorer(kinds, tokenizer=WordTokenizer(language))
    examples = list(zip(texts, references, strict=True))
    rouges = [rouge.score_multi(targets, text) for text, targets in examples] if kinds else []
    exact = [float(text.strip() in {target.strip() for target in targets}) for text, targets in examples]
    return {kind: [scores[kind].fmeasure for scores in rouges] for kind in kinds} | {"exact_match": exact}
