"""Scores of generated texts against references: BLEU, chrF, ROUGE and exact match."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from capaft.tasks.language.words import WordTokenizer, bleu_tokenizer

TEXT_METRICS = ("bleu", "chrf", "rouge1", "rouge2", "rougeL", "exact_match")


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
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu import corpus_bleu, corpus_chrf

    # sacrebleu takes all first references, all second ones, and so on, with None for a missing one.
    streams = [list(stream) for stream in zip_longest(*references)]
    kinds = ("rouge1", "rouge2", "rougeL")
    rouge = RougeScorer(kinds, tokenizer=WordTokenizer(language))
    examples = list(zip(texts, references, strict=True))
    rouges = [rouge.score_multi(targets, text) for text, targets in examples]
    exact = [text.strip() in {target.strip() for target in targets} for text, targets in examples]
    return {
        "bleu": corpus_bleu(list(texts), streams, tokenize=bleu_tokenizer(language, references)).score / 100,
        "chrf": corpus_chrf(list(texts), streams).score / 100,
        **{kind: sum(scores[kind].fmeasure for scores in rouges) / len(rouges) for kind in kinds},
        "exact_match": sum(exact) / len(exact),
    }
