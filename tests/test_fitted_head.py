from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2ForSequenceClassification, RobertaConfig
from transformers import RobertaForSequenceClassification as Roberta

from capaft import demo, fitted_head
from capaft.adapter_file import Base
from capaft.base_model import BaseModel
from capaft.errors import UsageError
from capaft.tasks.text_classification import Features, TextClassification

TASK = TextClassification(("a", "b", "c"), 16)


def features(labels: list[int]) -> Features:
    """Token sequences that start and end with a token of their class."""
    draw = np.random.default_rng(0)
    ids = [[10 + y, *draw.integers(20, 90, draw.integers(2, 6)).tolist(), 10 + y] for y in labels]
    return Features(ids, None, np.array(labels, dtype=np.int64), 0)


def base(kind: str) -> BaseModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": 100, "num_labels": 3, "pad_token_id": 0}
    if kind == "gpt2":
        model = GPT2ForSequenceClassification(GPT2Config(n_embd=32, n_layer=1, n_head=2, **sizes))
    else:
        config = RobertaConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, **sizes)
        model = Roberta(config)
    tokenizer = AutoTokenizer.from_pretrained(demo.base_model())
    head = tuple(name for name, _ in model.named_parameters() if name.startswith(("score", "classifier")))
    return BaseModel(model.eval(), tokenizer, Base("tiny"), head, True)


def minilm(labels: int) -> BaseModel:
    task = TextClassification(tuple("abcdef"[:labels]), 16)
    return task.load_model(None, seed=0)


@pytest.mark.parametrize("kind", ["gpt2", "roberta"])
def test_it_reads_what_each_kind_of_head_reads(kind: str) -> None:
    data = features([0, 1, 2] * 12)
    found, _ = fitted_head.fit(TASK, base(kind), data, 8, seed=0)
    assert found.weight.shape == (3, 32)
    assert found.score(TASK, base(kind), data, 8) > 0.9


@pytest.mark.parametrize("classes", [2, 3])
def test_installed_it_gives_the_model_the_same_logits(classes: int) -> None:
    task = TextClassification(tuple("abc"[:classes]), 16)
    loaded = minilm(classes)
    data = features([0, 1, 2, 1][:classes] * 9)
    found, _ = fitted_head.fit(task, loaded, data, 8, seed=0)
    expected = fitted_head._inputs(task, loaded, data, range(len(data)), 8) @ found.weight.T + found.bias
    assert found.install(loaded)
    batch = task.collate(loaded.tokenizer, data, range(len(data)))
    batch.pop("labels")
    with torch.no_grad():
        logits = loaded.model.eval()(**batch).logits.numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-3)


def test_a_head_of_several_layers_is_left_alone() -> None:
    loaded = base("roberta")
    before = [p.clone() for p in loaded.model.parameters()]
    found, _ = fitted_head.fit(TASK, loaded, features([0, 1, 2] * 4), 8, seed=0)
    assert not found.install(loaded)
    assert all(torch.equal(a, b) for a, b in zip(before, loaded.model.parameters(), strict=True))


def test_a_class_without_examples_is_never_predicted() -> None:
    loaded = base("gpt2")
    found, _ = fitted_head.fit(TASK, loaded, features([0, 1] * 9), 8, seed=0)
    inputs = fitted_head._inputs(TASK, loaded, features([0, 1] * 9), range(18), 8)
    assert 2 not in (inputs @ found.weight.T + found.bias).argmax(1)


def test_the_start_is_the_strongest_penalty_within_one_standard_error() -> None:
    def fitted(penalty: float, rows: slice) -> SimpleNamespace:
        held_out = dict(zip(fitted_head.PENALTIES, (0.70, 0.79, 0.81, 0.80), strict=True))
        return SimpleNamespace(score=lambda *_: held_out[penalty])

    labels = np.arange(1000) % 2
    best, careful = fitted_head._penalties(fitted, np.zeros((1000, 1)), labels)
    assert (best, careful) == (fitted_head.PENALTIES[2], fitted_head.PENALTIES[1])


def test_one_class_only() -> None:
    with pytest.raises(UsageError, match="one class only"):
        fitted_head.fit(TASK, base("gpt2"), features([1] * 9), 8, seed=0)
