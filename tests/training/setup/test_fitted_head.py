from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2ForSequenceClassification,
    ResNetConfig,
    ResNetForImageClassification,
    RobertaConfig,
)
from transformers import RobertaForSequenceClassification as Roberta

from capaft.config.parts.model import ModelSettings
from capaft.model.demo import demo_model
from capaft.model.load import BaseModel
from capaft.model.origin import Origin
from capaft.support.errors import UsageError
from capaft.tasks.base.features import Batch, Features
from capaft.tasks.text_classification import TextClassification
from capaft.training.setup import fitted_head
from capaft.training.setup.fitted_head import FittedHead

TASK = TextClassification(("a", "b", "c"), 16)


def features(labels: list[int]) -> Features:
    """Token sequences that start and end with a token of their class."""
    draw = np.random.default_rng(0)
    ids = [[10 + y, *draw.integers(20, 90, draw.integers(2, 6)).tolist(), 10 + y] for y in labels]
    return Features({"input_ids": ids}, np.array([len(tokens) for tokens in ids]), np.array(labels))


def base(kind: str) -> BaseModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": 100, "num_labels": 3, "pad_token_id": 0}
    if kind == "gpt2":
        model = GPT2ForSequenceClassification(GPT2Config(n_embd=32, n_layer=1, n_head=2, **sizes))
    else:
        config = RobertaConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, **sizes)
        model = Roberta(config)
    tokenizer = AutoTokenizer.from_pretrained(demo_model())
    head = tuple(name for name, _ in model.named_parameters() if name.startswith(("score", "classifier")))
    return BaseModel(model.eval(), tokenizer, Origin("tiny"), head, True)


def minilm(labels: int) -> BaseModel:
    task = TextClassification(tuple("abcdef"[:labels]), 16)
    return task.load_model(ModelSettings(), seed=0)


def fit(*arguments: Any, seed: int) -> tuple[FittedHead, FittedHead]:
    heads = fitted_head.fit_heads(*arguments, seed=seed)
    assert heads is not None
    return heads


@pytest.mark.parametrize("kind", ["gpt2", "roberta"])
def test_it_reads_what_each_kind_of_head_reads(kind: str) -> None:
    data = features([0, 1, 2] * 12)
    head, _ = fit(TASK, base(kind), data, 8, seed=0)
    assert head.weight.shape == (3, 32)
    assert head.score(TASK, base(kind), data, 8) > 0.9


@pytest.mark.parametrize("classes", [2, 3])
def test_installed_it_gives_the_model_the_same_logits(classes: int) -> None:
    task = TextClassification(tuple("abc"[:classes]), 16)
    loaded = minilm(classes)
    data = features([0, 1, 2, 1][:classes] * 9)
    head, _ = fit(task, loaded, data, 8, seed=0)
    batch = task.collate(loaded, data, range(len(data)), training=False)
    expected = fitted_head._inputs(loaded, batch) @ head.weight.T + head.bias
    assert head.install(loaded)
    with torch.no_grad():
        logits = loaded.model.eval()(**batch.inputs).logits.numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-3)


def test_a_head_of_several_layers_is_left_alone() -> None:
    loaded = base("roberta")
    before = [p.clone() for p in loaded.model.parameters()]
    head, _ = fit(TASK, loaded, features([0, 1, 2] * 4), 8, seed=0)
    assert not head.install(loaded)
    assert all(torch.equal(a, b) for a, b in zip(before, loaded.model.parameters(), strict=True))


def test_a_class_without_examples_is_never_predicted() -> None:
    loaded = base("gpt2")
    head, _ = fit(TASK, loaded, features([0, 1] * 9), 8, seed=0)
    batch = TASK.collate(loaded, features([0, 1] * 9), range(18), training=False)
    assert 2 not in (fitted_head._inputs(loaded, batch) @ head.weight.T + head.bias).argmax(1)


def test_the_start_is_the_strongest_penalty_within_one_standard_error() -> None:
    right = dict(zip(fitted_head.PENALTIES, (140, 158, 162, 160), strict=True))
    best, careful = fitted_head._choose_penalties(lambda penalty: np.arange(200) < right[penalty])
    # The standard error of a share of 0.81 of 200 is 0.028.
    assert (best, careful) == (fitted_head.PENALTIES[2], fitted_head.PENALTIES[1])


def test_numbers_are_fitted_by_ridge_regression() -> None:
    task = TextClassification((), 16, problem="regression")
    loaded = task.load_model(ModelSettings(), seed=0)
    kinds = [0, 1, 2] * 20
    data = replace(features(kinds), references=np.array([0.0, 2.5, 5.0], dtype=np.float32)[kinds])
    best, careful = fit(task, loaded, data, 8, seed=0)
    assert best.weight.shape == (1, 384)
    assert best.score(task, loaded, data, 8) > 0.9
    assert careful.install(loaded)
    batch = task.collate(loaded, data, range(60), training=False)
    with torch.no_grad():
        numbers = loaded.model.eval()(**batch.inputs).logits[:, 0].numpy()
    inputs = fitted_head._inputs(loaded, batch)
    # Ridge in its closed form, on standardised inputs, for one of the penalties.
    z = (inputs - inputs.mean(0)) / inputs.std(0)
    y = data.references.astype(float) - data.references.mean()
    closed = [
        z @ np.linalg.solve(z.T @ z + np.eye(384) / penalty, z.T @ y) + data.references.mean()
        for penalty in fitted_head.PENALTIES
    ]
    assert min(np.abs(numbers - prediction).max() for prediction in closed) < 1e-3


def test_what_it_fits() -> None:
    whole = features([0, 1, 2])
    assert fitted_head.can_fit_head(TASK, whole)
    assert not fitted_head.can_fit_head(TASK, replace(whole, references=np.zeros((3, 3), dtype=np.float32)))
    assert not fitted_head.can_fit_head(TASK, replace(whole, references=[[0], [1], [2]]))
    assert not fitted_head.can_fit_head(TextClassification(), whole)
    numbers = replace(whole, references=np.zeros(3, dtype=np.float32))
    assert fitted_head.can_fit_head(TextClassification(problem="regression"), numbers)
    assert not fitted_head.can_fit_head(TASK, numbers)


def test_a_head_that_reads_several_vectors_is_not_fitted() -> None:
    frames, samples = torch.zeros(2, 7, 4), torch.ones(2, 50)
    assert fitted_head._pooled(torch.nn.Linear(4, 3), frames, samples) is None
    assert fitted_head._pooled(torch.nn.Linear(4, 3), frames, None) is None


def test_images_are_read_where_the_only_layer_reads_them() -> None:
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3)
    model = ResNetForImageClassification(config).eval()
    base = BaseModel(model, None, Origin("tiny"), ("classifier.1.weight", "classifier.1.bias"), True)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    inputs = fitted_head._inputs(base, Batch({"pixel_values": pixels}, {}, 2))
    assert inputs.shape == (2, 16)
    assert FittedHead(np.zeros((3, 16)), np.arange(3.0)).install(base)
    assert model(pixels).logits[0].tolist() == [0, 1, 2]


def test_one_class_only() -> None:
    with pytest.raises(UsageError, match="one class only"):
        fit(TASK, base("gpt2"), features([1] * 9), 8, seed=0)


@pytest.mark.parametrize("seed", range(3))
def test_a_scarce_class_is_in_the_sample(seed: int) -> None:
    targets = np.zeros(20_000, dtype=np.int64)
    targets[[5, 9_000, 19_999]] = 1
    targets[100:120] = 2
    sample = fitted_head._sample(targets, True, seed)
    assert len(set(sample)) == len(sample) == fitted_head.HEAD_EXAMPLES
    assert (targets[sample] == 1).sum() == 3
    assert 8 <= (targets[sample] == 2).sum() <= 20
    assert sample.tolist() == fitted_head._sample(targets, True, seed).tolist()
    # The order is random, so that the fifth held out is like the others.
    assert np.corrcoef(sample, np.arange(len(sample)))[0, 1] == pytest.approx(0, abs=0.1)


def test_each_class_comes_before_any_comes_often() -> None:
    targets = np.arange(20_000) % 4000
    assert len(set(targets[fitted_head._sample(targets, True, 0)])) == 4000


def test_a_sample_of_common_classes_is_any() -> None:
    targets = np.arange(20_000) % 3
    assert np.array_equal(fitted_head._sample(targets, True, 0), fitted_head._sample(targets / 2, False, 0))


def test_a_class_that_is_only_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitted_head, "_sample", lambda targets, are_classes, seed: np.arange(len(targets)))
    for labels in ([1, 2, *[0] * 18], [2, *[0, 1] * 12]):
        head, _ = fit(TASK, base("gpt2"), features(labels), 8, seed=0)
        assert np.isfinite(head.weight).all()


def test_three_positives_of_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitted_head, "HEAD_EXAMPLES", 40)
    data = features([1, 1, 1, *[0] * 297])
    for seed in range(5):
        head, _ = fit(TextClassification(("a", "b"), 16), base("gpt2"), data, 8, seed=seed)
        assert head.weight.shape == (2, 32)
