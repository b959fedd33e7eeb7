"""Recognition of labels that a model is to predict, and that are no note beside a text and its target."""

from __future__ import annotations

from typing import TYPE_CHECKING

from capaft.support.errors import UsageError
from capaft.tasks.base.columns import is_text, plain_name
from capaft.tasks.labels.kind import holds_numbers
from capaft.tasks.language.text_pairs import recognise_text_pairs

if TYPE_CHECKING:
    from datasets import Dataset

    from capaft.tasks.base.evidence import Evidence

# A column of this name can hold nothing but labels.
_SURE = ("label", "labels")
# Columns of this name ask for a text in the column of its usual pair.
_PROMPTS = ("prompt", "instruction")


def is_target(rows: Dataset, evidence: Evidence, label: str | None) -> bool:
    """True if the label is the target, and not a note beside a usual pair of source and target.

    For a model that writes, the pair outweighs topics and numbers of tokens. Decoders are often used to classify, so
    for them a column called `label` is the target. A model of masked tokens cannot write: for it a label that the user
    named, or that is called so, holds classes whatever it looks like.
    """
    is_sure = plain_name(label or "") in _SURE
    is_named = bool(evidence.named.get("label"))
    if evidence.is_masked and (is_named or is_sure):
        return True
    if not _has_classes(rows, label) or _is_written(rows, evidence, label):
        return False
    if is_named or evidence.is_masked or (is_sure and not evidence.is_encoder_decoder):
        return True
    try:
        pair = recognise_text_pairs(rows, evidence.named)
    except UsageError:
        return True
    if pair is None or pair.label in (None, label):
        return True
    # Targets of few values are classes as well; those of translations are not columns, and references not texts.
    return is_text(rows.features.get(pair.label)) and _has_classes(rows, pair.label)


def _is_written(rows: Dataset, evidence: Evidence, label: str | None) -> bool:
    """True if a label is what a prompt asks for and the model can write it, however few different ones there are."""
    if evidence.is_masked or label is None:
        return False
    try:
        pair = recognise_text_pairs(rows, evidence.named)
    except UsageError:
        return False
    return pair is not None and pair.label == label and plain_name(pair.text) in _PROMPTS


def _has_classes(rows: Dataset, label: str | None) -> bool:
    """True if a label holds classes or numbers, and not a different text in each row."""
    if label is None or not is_text(rows.features[label]):
        return True
    return len(rows.unique(label)) <= len(rows) // 2 or holds_numbers(rows, label)
