"""The answers to questions, with their probabilities and their places, from the scores of windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from capaft.tasks.base.task_answers import Record
from capaft.tasks.labels.problem import rounded
from capaft.tasks.spans.best_span import Span, best_spans
from capaft.tasks.spans.windows import Window


class Candidates(NamedTuple):
    """The answers in a window.

    Attributes:
        spans: the best, in descending order.
        mass: logarithm of what the probability of a start, and of an end, is a share of: the sum over the window's null
            token and its tokens of the context.
    """

    spans: list[Span]
    mass: float


class PlacedAnswer(NamedTuple):
    """An answer: its text, its place in the context, and the sum of the logits of its start and end."""

    text: str
    start: int | None
    end: int | None
    score: float


def candidates(start: Tensor, end: Tensor, window: Window, n_best: int, max_length: int) -> Candidates:
    """The answers in a window; see `best_span`."""
    places = torch.from_numpy(np.append(np.flatnonzero(window.answerable()), window.null)).unique()
    mass = start[places].logsumexp(0) + end[places].logsumexp(0)
    return Candidates(best_spans(start, end, window, n_best, max_length, n_best), float(mass))


def answer_record(
    context: str,
    windows: Sequence[tuple[Window, Candidates]],
    margin: float | None,
    top: int | None,
) -> Record:
    """The answer to a question, its score, and its place in the context in characters.

    The score is the probability of the answer's start times that of its end, each a share among the tokens of the
    context in the window and the null token; of several windows, as much of it as the window has of all. A score of a
    single window is that of transformers' pipeline.

    Args:
        context: the context.
        windows: its windows, with their candidates.
        margin: by how much "no answer" must outscore every answer; None if every question has one.
        top: number of answers to list; None for none.
    """
    placed: dict[tuple[int, int], PlacedAnswer] = {}
    for window, found in windows:
        for span in found.spans:
            if np.isfinite(span.score):
                place = window.place(context, span.first, span.last)
                answer = PlacedAnswer(context[slice(*place)], *place, span.score)
                placed[place] = max(answer, placed.get(place, answer), key=lambda one: one.score)
    nothing = PlacedAnswer("", None, None, min(found.spans[0].null for _, found in windows))
    mass = float(np.logaddexp.reduce([found.mass for _, found in windows]))
    ranked = sorted(placed.values(), key=lambda answer: -answer.score)
    is_silent = not ranked or (margin is not None and nothing.score - ranked[0].score > margin)
    record = _record(nothing if is_silent else ranked[0], mass)
    if top is None:
        return record
    listed = sorted([*ranked, nothing], key=lambda answer: -answer.score) if margin is not None else ranked
    return {**record, "answers": [_record(answer, mass) for answer in listed[:top]]}


def _record(answer: PlacedAnswer, mass: float) -> Record:
    score = rounded(np.exp(answer.score - mass))
    return {"answer": answer.text, "score": score, "start": answer.start, "end": answer.end}
