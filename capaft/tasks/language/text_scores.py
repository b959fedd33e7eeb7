"""How near generated texts come to references: BLEU, chrF, ROUGE and exact match."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

TEXT_METRICS = ("bleu", "chrf", "rouge1", "rouge2", "rougeL", "exact_match")


def score_texts(texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """All of them over a data set.

    BLEU (Papineni et al. 2002) and chrF (Popovic 2015) are sacrebleu's, over the corpus, from 0 to 100. ROUGE (Lin
    2004) is the F-measure of rouge_score with stemming, which knows the letters of English only; it and exact match
    (but for white space around) are means over texts, each against the reference it is nearest to, from 0 to 1.

    Args:
        texts: one of each example.
        references: at least one of each example.
    """
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu import corpus_bleu, corpus_chrf

    # sacrebleu wants all first references, all second ones, and so on; None where there is none.
    streams = [list(stream) for stream in zip_longest(*references)]
    kinds = ("rouge1", "rouge2", "rougeL")
    rouge = RougeScorer(kinds, use_stemmer=True)
    found = [rouge.score_multi(wanted, text) for text, wanted in zip(texts, references, strict=True)]
    exact = [text.strip() in {each.strip() for each in wanted} for text, wanted in zip(texts, references, strict=True)]
    return {
        "bleu": corpus_bleu(list(texts), streams).score,
        "chrf": corpus_chrf(list(texts), streams).score,
        **{kind: sum(each[kind].fmeasure for each in found) / len(found) for kind in kinds},
        "exact_match": sum(exact) / len(exact),
    }
