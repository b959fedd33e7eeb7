"""Error rates of transcripts: of words, and of characters."""

from __future__ import annotations

from collections.abc import Sequence

from capaft.tasks.language.words import has_spaces

ERROR_RATES = ("wer", "cer")


def error_rates(texts: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Word and character error rate over a data set: edits of all texts by the length of all references (jiwer).

    Args:
        texts: one per recording.
        references: one per recording, none empty.
    """
    import jiwer

    return {
        "wer": float(jiwer.wer(list(references), list(texts))),
        "cer": float(jiwer.cer(list(references), list(texts))),
    }


def usual_error_rate(language: str, references: Sequence[str]) -> str:
    """`cer` for languages that put no spaces between words, else `wer`."""
    return "wer" if has_spaces(language, references) else "cer"
