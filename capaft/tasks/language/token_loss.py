"""Loss over the tokens that count: summed for training, by example for scores, and marked in the text for display."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

# Label of a token that does not count; torch's default.
IGNORED = -100

# Logits that are cast to float32 and scored at once where no gradient is taken: 64 MiB of them.
SLICE = 2**24

Counted = tuple[float, int, int]
"""For one example: the summed loss, the number of tokens that count, and how many of those the model predicts."""

TOKEN_METRICS = ("perplexity", "loss", "accuracy")


def pad_rows(rows: Iterable[Sequence[int] | Tensor], value: int, *, left: bool = False) -> Tensor:
    """Stack rows of whole numbers into one tensor `(rows, longest)`, padded with `value` on the right or the left."""
    tensors = [torch.as_tensor(row, dtype=torch.int64, device="cpu") for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=value, padding_side="left" if left else "right")


def summed_loss(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy summed over the tokens that count, float32; 0 if none does.

    The logits of a whole batch can be the largest tensor of all. So only those of tokens that count are cast to
    float32, and where no gradient is taken only a slice of them at a time.

    Args:
        logits: `(batch, tokens, vocabulary)`.
        labels: the right token at each position, or `IGNORED`, `(batch, tokens)`.
        smoothing: share of the target that is spread over the vocabulary.
    """
    if logits.requires_grad:
        counts = labels != IGNORED
        return F.cross_entropy(logits[counts].float(), labels[counts], reduction="sum", label_smoothing=smoothing)
    losses = [
        F.cross_entropy(scores, targets, reduction="sum", label_smoothing=smoothing)
        for scores, targets in _slices(logits, labels)
    ]
    return torch.stack(losses).sum() if losses else logits.new_zeros((), dtype=torch.float32)


def loss_by_example(logits: Tensor, labels: Tensor) -> list[Counted]:
    """The loss of `summed_loss` and the right tokens by example, computed in slices to save memory."""
    rows = []
    for row_logits, row_labels in zip(logits, labels, strict=True):
        sums = [torch.zeros(2, dtype=torch.float32, device=logits.device)]
        for scores, targets in _slices(row_logits, row_labels):
            loss = F.cross_entropy(scores, targets, reduction="sum")
            sums.append(torch.stack([loss, (scores.argmax(-1) == targets).sum().float()]))
        tokens = (row_labels != IGNORED).sum().float()
        rows.append(torch.cat([torch.stack(sums).sum(0), tokens[None]]))
    return [(loss, int(tokens), int(right)) for loss, right, tokens in torch.stack(rows).tolist()]


def _slices(logits: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The logits of tokens that count, in float32, and their labels, at most `SLICE` logits at a time."""
    for places in (labels != IGNORED).nonzero().split(max(1, SLICE // logits.shape[-1])):
        if len(places):
            at = places.unbind(1)
            yield logits[at].float(), labels[at]


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
