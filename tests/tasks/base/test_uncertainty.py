"""Intervals of scores, by the number of examples."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import pearsonr

from capaft.tasks.base.features import Features
from capaft.tasks.base.task import Task
from capaft.tasks.base.uncertainty import binomial_interval, bootstrap_error, mean_resampler, score_interval
from capaft.tasks.causal_lm import CausalLM
from capaft.tasks.image_classification import ImageClassification
from capaft.tasks.masked_lm import MaskedLM
from capaft.tasks.multiple_choice import MultipleChoice
from capaft.tasks.question_answering import Asked, QuestionAnswering
from capaft.tasks.seq2seq import Seq2Seq
from capaft.tasks.speech_recognition import SpeechRecognition
from capaft.tasks.text_classification import TextClassification
from capaft.tasks.token_classification import TokenClassification

RNG = np.random.default_rng(0)
WORDS = np.array(["a", "cat", "dog", "ran", "sat", "on", "the", "mat"])


def features(references: Any, count: int | None = None) -> Features:
    return Features({}, np.ones(len(references) if count is None else count, dtype=np.int64), references)


def interval(task: Task, references: Any, predictions: Any, count: int | None = None) -> tuple[float, float] | None:
    examples = features(references, count)
    value = task.score(examples, predictions)[task.metric]
    ends = score_interval(task, examples, predictions, value)
    assert ends is None or ends[0] <= value <= ends[1]
    return ends


def width(ends: tuple[float, float] | None) -> float:
    assert ends is not None
    return ends[1] - ends[0]


def logits(classes: Any, count: int) -> Any:
    return list(np.eye(count)[classes])


def sentences(count: int) -> list[str]:
    return [" ".join(WORDS[RNG.integers(0, 8, 6)]) for _ in range(count)]


def test_a_share_has_wilsons_interval() -> None:
    """The example of Newcombe (1998, table I): 81 of 263."""
    assert binomial_interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    # A few examples that are all right say little.
    assert binomial_interval(1.0, 6) == pytest.approx((0.6097, 1.0), abs=1e-4)


def test_the_bootstrap_knows_the_error_of_a_mean_and_of_a_correlation() -> None:
    values = RNG.normal(size=300)
    assert bootstrap_error(mean_resampler(values)) == pytest.approx(values.std() / math.sqrt(300), rel=0.3)
    # Of more examples than a resample has.
    many = RNG.normal(size=20_000)
    assert bootstrap_error(mean_resampler(many)) == pytest.approx(many.std() / math.sqrt(20_000), rel=0.3)
    truth = RNG.normal(size=400).astype(np.float32)
    predicted = (truth + RNG.normal(size=400)).astype(np.float32)
    r = pearsonr(truth, predicted).statistic
    task = TextClassification(metric="pearson", problem="regression")
    ends = interval(task, truth, list(predicted[:, None]))
    assert width(ends) == pytest.approx(2 * 1.96 * (1 - r * r) / math.sqrt(400), rel=0.35)


def test_every_task_has_an_interval_that_narrows_with_examples() -> None:
    def classes(count: int) -> tuple[Any, Any]:
        truth = RNG.integers(0, 3, count)
        return truth, np.where(RNG.random(count) < 0.7, truth, RNG.integers(0, 3, count))

    def both(count: int) -> dict[str, tuple[float, float] | None]:
        truth, predicted = classes(count)
        names, texts = ("x", "y", "z"), sentences(count)
        references = [[text if RNG.random() < 0.5 else sentences(1)[0]] for text in texts]
        sets = (truth[:, None] == np.arange(3)).astype(np.int64)
        tags = [RNG.integers(0, 3, 5) for _ in range(count)]
        marked = [np.where(RNG.random(5) < 0.8, row, 0) for row in tags]
        asked = Asked([], [], texts, texts, references)
        answering = QuestionAnswering()
        object.__setattr__(answering, "_answers", lambda *_: texts)
        counted = [(float(loss), 4, int(right)) for loss, right in zip(RNG.random(count) * 9, truth, strict=True)]
        single, written = logits(predicted, 3), [(1.0, 4, 2, text) for text in texts]
        return {
            "accuracy": interval(TextClassification(names), truth, single),
            "f1": interval(TextClassification(names, metric="f1"), truth, single),
            "matthews": interval(TextClassification(names, metric="matthews"), truth, single),
            "multi": interval(TextClassification(names, problem="multi", metric="f1"), sets, [r - 0.5 for r in single]),
            "image": interval(ImageClassification(names), truth, single),
            "choice": interval(MultipleChoice(), truth, list(predicted)),
            "tags": interval(TokenClassification(("O", "B-A", "I-A")), tags, marked),
            "answers": interval(answering, asked, [None] * count, count),
            "words": width_of(MaskedLM(), counted),
            "plain": width_of(CausalLM(), [(*c, None) for c in counted]),
            "bleu": interval(Seq2Seq(metric="bleu"), references, written),
            "rouge": interval(Seq2Seq(metric="rougeL"), references, written),
            "exact": interval(Seq2Seq(metric="exact_match"), references, written),
            "wer": interval(SpeechRecognition(metric="wer"), [r[0] for r in references], texts),
        }

    def width_of(task: Task, predictions: Any) -> tuple[float, float] | None:
        examples = Features({}, np.ones(len(predictions), dtype=np.int64), None, rows=3)
        return score_interval(task, examples, predictions, task.score(examples, predictions)[task.metric])

    few, many = both(30), both(120)
    ratios = {name: width(few[name]) / width(many[name]) for name in few}
    # By the square root of the number of examples, 2.
    assert all(1.2 < ratio < 3.5 for ratio in ratios.values()), ratios


def test_no_interval_is_better_than_a_wrong_one() -> None:
    names = ("x", "y")
    f1 = TextClassification(names, metric="f1")
    # Few examples, or ones that are all right, or an undefined score.
    assert interval(f1, np.array([0, 1, 0, 1]), logits([0, 1, 1, 1], 2)) is None
    assert interval(f1, np.array([0, 1] * 20), logits([0, 1] * 20, 2)) is None
    examples = features(np.array([0, 1] * 20))
    assert score_interval(f1, examples, logits([0, 1] * 20, 2), math.nan) is None
