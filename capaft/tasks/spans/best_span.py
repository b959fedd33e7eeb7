"""The span of a window that its scores of starts and ends make the best answer."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from capaft.tasks.spans.windows import Window


class Span(NamedTuple):
    """A window's best answer: its first and last token, the sum of their logits, and that of the null token's."""

    first: int
    last: int
    score: float
    null: float


def best_span(start: Tensor, end: Tensor, window: Window, n_best: int, max_length: int) -> Span:
    """The best of a window's answers, among the likeliest starts and ends within the context.

    Args:
        start: logits, `(tokens or more,)`; those beyond the window's tokens are padding.
        end: logits, likewise.
        window: the window.
        n_best: number of starts, and of ends, that are combined.
        max_length: largest number of tokens in an answer.

    Returns:
        The span; its score is -inf if no start and end go together.
    """
    return best_spans(start, end, window, n_best, max_length, 1)[0]


def best_spans(start: Tensor, end: Tensor, window: Window, n_best: int, max_length: int, count: int) -> list[Span]:
    """The `count` best of a window's answers, the best first, or fewer; see `best_span`."""
    null = float(start[window.null] + end[window.null])
    places = torch.from_numpy(np.flatnonzero(window.answerable()))
    firsts, lasts = (
        places[logits[places].topk(min(n_best, len(places))).indices].unsqueeze(dim)
        for logits, dim in ((start, 1), (end, 0))
    )
    scores = start[firsts] + end[lasts]
    scores = scores.masked_fill((lasts < firsts) | (lasts - firsts >= max_length), -torch.inf)
    if not scores.numel():
        return [Span(0, 0, -np.inf, null)]
    spans = []
    # Of equal scores the first is the best, as argmax has it.
    for at in scores.flatten().argsort(descending=True, stable=True)[:count].tolist():
        first, last = divmod(at, scores.shape[1])
        spans.append(Span(int(firsts[first, 0]), int(lasts[0, last]), float(scores[first, last]), null))
    return [spans[0], *(span for span in spans[1:] if np.isfinite(span.score))]
