"""Loss over the tokens that count: summed for training, by example for scores, and marked in the text for display."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

# Label of a token that does not count; torch's default.
IGNORED = -100

Counted = tuple[float, int, int]
"""For one example: the summed loss, the number of tokens that count, and how many of those the model predicts."""

TOKEN_METRICS = ("perplexity", "loss", "accuracy")


def pad_rows(rows: Iterable[Sequence[int] | Tensor], value: int, *, left: bool = False) -> Tensor:
    """Stack rows of whole numbers into one tensor `(rows, longest)`, padded with `value` on the right or the left."""
    tensors = [torch.as_tensor(row, dtype=torch.int64, device="cpu") for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=value, padding_side="left" if left else "right")


def summed_loss(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy summed over the tokens that count, float32; 0 if none does.

    Only their logits are cast to float32: the logits of a whole batch can be the largest tensor of all.

    Args:
        logits: `(batch, tokens, vocabulary)`.
        labels: the right token at each position, or `IGNORED`, `(batch, tokens)`.
        smoothing: share of the target that is spread over the vocabulary.
    """
    counts = labels != IGNORED
    return F.cross_entropy(logits[counts].float(), labels[counts], reduction="sum", label_smoothing=smoothing)


def loss_by_example(logits: Tensor, labels: Tensor) -> list[Counted]:
    """The loss of `summed_loss` and the right tokens by example, computed one example at a time to save memory."""
    rows = []
    for row_logits, row_labels in zip(logits, labels, strict=True):
        counts = row_labels != IGNORED
        scores, targets = row_logits[counts].float(), row_labels[counts]
        loss = F.cross_entropy(scores, targets, reduction="sum")
        right = (scores.argmax(-1) == targets).sum()
        rows.append(torch.stack([loss, counts.sum().float(), right.float()]))
    return [(loss, int(tokens), int(right)) for loss, tokens, right in torch.stack(rows).tolist()]


def score_tokens(counted: Iterable[Counted]) -> dict[str, float]:
    """Perplexity, mean loss and accuracy over all tokens that count; empty if none does."""
    losses, tokens, right = zip(*counted, strict=True)
    if not sum(tokens):
        return {}
    loss = math.fsum(losses) / sum(tokens)
    # The exponential of a larger loss overflows.
    return {"perplexity": math.exp(min(loss, 700.0)), "loss": loss, "accuracy": sum(right) / sum(tokens)}


def mark_tokens(tokenizer: Any, ids: Iterable[int], counts: Iterable[bool]) -> str:
    """Decode tokens, with ⟦brackets⟧ around those that count."""
    tokens = [int(token) for token in ids]

    def text(count: int) -> str:
        return str(tokenizer.decode(tokens[:count], clean_up_tokenization_spaces=False))

    whole, marked, start, done = text(len(tokens)), "", 0, 0
    for is_counted, run in groupby(map(bool, counts)):
        done += len(list(run))
        # A run decoded separately would lose the space before it.
        end = len(text(done))
        marked += f"⟦{whole[start:end]}⟧" if is_counted else whole[start:end]
        start = end
    return marked
