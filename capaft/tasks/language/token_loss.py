"""The loss over tokens that count: summed for training, by example for scores, and shown to people."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

# The label of a token that does not count, as everywhere in torch.
IGNORED = -100

Counted = tuple[float, int, int]
"""Of one example: the sum of the loss, how many tokens count, and how many of those are the model's first choice."""

TOKEN_METRICS = ("perplexity", "loss", "accuracy")


def pad_rows(rows: Iterable[Sequence[int] | Tensor], value: int, *, left: bool = False) -> Tensor:
    """Rows of whole numbers as one tensor `(rows, longest)`, filled up with `value` on the right or on the left."""
    tensors = [torch.as_tensor(row, dtype=torch.int64) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=value, padding_side="left" if left else "right")


def summed_loss(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """The sum of the cross-entropy over the tokens that count, float32; 0 where none does.

    Only their logits are cast to float32: those of a whole batch can be the largest tensor of all.

    Args:
        logits: `(batch, tokens, vocabulary)`.
        labels: what should come out at each position, `(batch, tokens)`, or `IGNORED`.
        smoothing: share of the target that is spread over the vocabulary.
    """
    counts = labels != IGNORED
    return F.cross_entropy(logits[counts].float(), labels[counts], reduction="sum", label_smoothing=smoothing)


def loss_by_example(logits: Tensor, labels: Tensor) -> list[Counted]:
    """What `total` sums, by example, and how many tokens are right; one example at a time to save memory."""
    found = []
    for scores, wanted in zip(logits, labels, strict=True):
        counts = wanted != IGNORED
        scores, wanted = scores[counts].float(), wanted[counts]
        loss = F.cross_entropy(scores, wanted, reduction="sum")
        right = (scores.argmax(-1) == wanted).sum()
        found.append(torch.stack([loss, counts.sum().float(), right.float()]))
    return [(loss, int(tokens), int(right)) for loss, tokens, right in torch.stack(found).tolist()]


def score_tokens(counted: Iterable[Counted]) -> dict[str, float]:
    """Perplexity, mean loss and accuracy over all tokens that count; nothing where none does."""
    losses, tokens, right = zip(*counted, strict=True)
    if not sum(tokens):
        return {}
    loss = math.fsum(losses) / sum(tokens)
    # The exponential of more overflows.
    return {"perplexity": math.exp(min(loss, 700.0)), "loss": loss, "accuracy": sum(right) / sum(tokens)}


def mark_tokens(tokenizer: Any, ids: Iterable[int], counts: Iterable[bool]) -> str:
    """Tokens as text, with ⟦brackets⟧ around those that count."""
    tokens = [int(token) for token in ids]

    def text(count: int) -> str:
        return str(tokenizer.decode(tokens[:count], clean_up_tokenization_spaces=False))

    whole, shown, start, done = text(len(tokens)), "", 0, 0
    for does, run in groupby(map(bool, counts)):
        done += len(list(run))
        # A run decoded on its own would lose the space before it.
        end = len(text(done))
        shown += f"⟦{whole[start:end]}⟧" if does else whole[start:end]
        start = end
    return shown
