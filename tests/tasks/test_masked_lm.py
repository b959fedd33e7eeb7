"""Masked language modelling: the share of masked tokens, their fates, and the fixed masks of evaluation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_text import SIZE, SPECIALS, base, ids, table, tokenizer

from capaft.config.parts.model import ModelSettings
from capaft.config.train_config import TrainConfig
from capaft.support.errors import UsageError
from capaft.tasks.base.columns import Columns
from capaft.tasks.language.token_loss import IGNORED
from capaft.tasks.masked_lm import MaskedLM, mask

START, END, MASK = [SPECIALS["<start>"]], [SPECIALS["<end>"]], SPECIALS["<mask>"]
COLUMNS = Columns("text")
ROWS = table(text=["some words", "", "others", "x"])


@pytest.fixture(scope="module")
def model() -> Any:
    return base("bert", tokenizer(framed=True, masks=True))


def task_for(**settings: Any) -> MaskedLM:
    return MaskedLM.decide(ROWS, MaskedLM.recognise(ROWS, {}), TrainConfig(**settings))


def test_settings_become_fields() -> None:
    task = task_for(packing=False, mlm_probability=0.4, metric="accuracy")
    assert task == MaskedLM(metric="accuracy", packing=False, mlm_probability=0.4)
    assert task.options() == {"packing": False, "mlm_probability": 0.4}
    assert task_for().metric == "perplexity"


def test_packed_texts(model: Any) -> None:
    examples = task_for(max_length=10).features(model, ROWS, COLUMNS, training=True)
    stream = [*ids("some words"), *END, *ids("others"), *END, *ids("x")]
    assert examples.inputs["input_ids"] == [START + stream[i : i + 8] + END for i in (0, 8, 16)]
    assert examples.lengths.tolist() == [10, 10, 5]
    assert examples.truncated == 0


def test_texts_row_by_row(model: Any) -> None:
    examples = task_for(max_length=8, packing=False).features(model, ROWS, COLUMNS, training=True)
    assert examples.inputs["input_ids"] == [START + ids(text) + END for text in ("some w", "others", "x")]
    assert examples.truncated == 1


def test_shares_of_masked_kept_and_random_tokens(model: Any) -> None:
    count = 200_000
    tokens = torch.full((count,), ids("a")[0])
    tokens[::10] = END[0]
    hidden, targets = mask(tokens, model.processor, 0.15, torch.Generator().manual_seed(0))
    drawn = targets != IGNORED
    assert not drawn[::10].any()
    assert torch.equal(targets[drawn], tokens[drawn])
    assert torch.equal(hidden[~drawn], tokens[~drawn])
    share = drawn.sum().item() / (count * 0.9)
    # Within five standard errors.
    assert share == pytest.approx(0.15, abs=5 * (0.15 * 0.85 / (count * 0.9)) ** 0.5)
    total = drawn.sum().item()
    for observed, expected in (
        ((hidden[drawn] == MASK).sum().item() / total, 0.8 + 0.1 / SIZE),
        ((hidden[drawn] == tokens[drawn]).sum().item() / total, 0.1 + 0.1 / SIZE),
    ):
        assert observed == pytest.approx(expected, abs=5 * (expected * (1 - expected) / total) ** 0.5)
    others = hidden[drawn & (hidden != MASK) & (hidden != tokens)]
    assert (others.min(), others.max()) == (0, SIZE - 1)


def test_evaluation_masks_the_same_in_any_batch_and_training_does_not(model: Any) -> None:
    task = task_for(packing=False, mlm_probability=0.5)
    examples = task.features(model, ROWS, COLUMNS, training=False)
    state = torch.get_rng_state()
    together = task.collate(model, examples, [2, 0, 1], training=False)
    assert torch.equal(torch.get_rng_state(), state)
    for place, index in enumerate((2, 0, 1)):
        alone = task.collate(model, examples, [index], training=False)
        width = examples.lengths[index]
        assert torch.equal(together.inputs["input_ids"][place, :width], alone.inputs["input_ids"][0])
        assert torch.equal(together.targets["labels"][place, :width], alone.targets["labels"][0])
        assert (together.targets["labels"][place, width:] == IGNORED).all()

    def trained(seed: int) -> list[list[int]]:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return task.collate(model, examples, [0, 1], training=True).targets["labels"].tolist()

    assert trained(1) == trained(1)
    assert trained(1) != trained(2)


def test_the_loss_is_that_of_masked_tokens(model: Any) -> None:
    task = task_for(packing=False, mlm_probability=0.5)
    examples = task.features(model, ROWS, COLUMNS, training=False)
    batch = task.collate(model, examples, [0, 1, 2], training=False)
    with torch.inference_mode():
        outputs = model.model(**batch.inputs)
        predictions = task.predict(model, model.model, examples, [0, 1, 2], batch, outputs)
    scores = outputs.logits.double().log_softmax(-1)
    labels = batch.targets["labels"]
    expected = -sum(float(scores[row, place, labels[row, place]]) for row, place in (labels != IGNORED).nonzero())
    assert batch.terms == (labels != IGNORED).sum()
    assert float(task.loss(outputs, batch.targets, 0.0)) == pytest.approx(expected, rel=1e-5)
    assert task.score(examples, predictions)["loss"] == pytest.approx(expected / batch.terms, rel=1e-5)


def test_a_batch_in_which_nothing_is_masked(model: Any) -> None:
    task = task_for(packing=False, mlm_probability=1e-9)
    examples = task.features(model, ROWS, COLUMNS, training=True)
    batch = task.collate(model, examples, [0, 1], training=True)
    outputs = model.model(**batch.inputs)
    loss = task.loss(outputs, batch.targets, 0.0)
    loss.backward()
    model.model.zero_grad()
    assert (batch.terms, loss.item()) == (0, 0.0)
    predictions = task.predict(model, model.model, examples, [0, 1], batch, outputs)
    assert predictions == [(0.0, 0, 0)] * 2


def test_evaluation_needs_something_to_predict(model: Any) -> None:
    with pytest.raises(UsageError, match="none is masked"):
        task_for(mlm_probability=1e-9).features(model, ROWS, COLUMNS, training=False)


def test_no_mask_token_and_no_room() -> None:
    with pytest.raises(UsageError, match=r"no mask token.*causal-lm"):
        task_for().features(base("bert", tokenizer(framed=True)), ROWS, COLUMNS, training=True)
    model = base("bert", tokenizer(framed=True, masks=True))
    with pytest.raises(UsageError, match="--max-length 2 leaves no room"):
        task_for(max_length=2).features(model, ROWS, COLUMNS, training=True)


def test_show(model: Any) -> None:
    task = task_for(packing=False, mlm_probability=0.5)
    examples = task.features(model, ROWS, COLUMNS, training=False)
    shown = task.show(model, examples, 0)
    assert shown.replace("⟦", "").replace("⟧", "") == "<start>some words<end>"
    labels = task.collate(model, examples, [0], training=False).targets["labels"][0].tolist()
    assert shown.count("⟦") == sum(
        label != IGNORED and before == IGNORED for before, label in zip([IGNORED, *labels], labels, strict=False)
    )


def test_the_embedded_model_gets_a_new_head() -> None:
    task = MaskedLM()
    loaded = task.load_model(ModelSettings(), seed=0)
    assert loaded.new_head
    assert "cls.predictions.bias" in loaded.head
    assert not [name for name in loaded.head if "embeddings" in name]
