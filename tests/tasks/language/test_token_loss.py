"""The summed loss against a loop in float64, its scores, and the marking of counted tokens."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_text import tokenizer
from transformers import AutoTokenizer

from capaft.model.demo import demo_model
from capaft.tasks.language.token_loss import IGNORED, loss_by_example, mark_tokens, pad_rows, score_tokens, summed_loss


def case(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(3, 5, 7, generator=generator)
    labels = torch.randint(7, (3, 5), generator=generator)
    labels[0, :3] = labels[1] = IGNORED
    return logits.to(dtype), labels


def naive(logits: torch.Tensor, labels: torch.Tensor, smoothing: float) -> float:
    total = 0.0
    for row_logits, row_labels in zip(logits.tolist(), labels.tolist(), strict=True):
        for scores, label in zip(row_logits, row_labels, strict=True):
            if label == IGNORED:
                continue
            log_sum = math.log(math.fsum(map(math.exp, scores)))
            spread = math.fsum(log_sum - score for score in scores) / len(scores)
            total += (1 - smoothing) * (log_sum - scores[label]) + smoothing * spread
    return total


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_sum_is_that_of_a_loop(smoothing: float, dtype: torch.dtype) -> None:
    logits, labels = case(dtype)
    loss = summed_loss(logits, labels, smoothing)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(naive(logits, labels, smoothing), rel=1e-5)


def test_sums_of_parts_add_up() -> None:
    logits, labels = case()
    parts = sum(summed_loss(logits[i : i + 1], labels[i : i + 1], 0.1) for i in range(3))
    torch.testing.assert_close(parts, summed_loss(logits, labels, 0.1))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_nothing_counts(smoothing: float) -> None:
    logits, labels = case()
    logits.requires_grad_()
    loss = summed_loss(logits, torch.full_like(labels, IGNORED), smoothing)
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_each_example_and_their_scores() -> None:
    logits, labels = case()
    counted = loss_by_example(logits, labels)
    right = (logits.argmax(-1) == labels).sum(1).tolist()
    for row, (loss, tokens, hits) in enumerate(counted):
        assert loss == pytest.approx(naive(logits[row : row + 1], labels[row : row + 1], 0.0), rel=1e-5)
        assert (tokens, hits) == ((labels[row] != IGNORED).sum(), right[row])
    # The mean is over tokens, not over examples.
    mean = naive(logits, labels, 0.0) / 7
    assert score_tokens(counted) == pytest.approx(
        {"perplexity": math.exp(mean), "loss": mean, "accuracy": sum(right) / 7}, rel=1e-5
    )
    assert score_tokens([(0.0, 0, 0)]) == {}
    assert math.isfinite(score_tokens([(1e6, 1, 0)])["perplexity"])


def test_padding_on_either_side() -> None:
    assert pad_rows([[1, 2], [3]], 9).tolist() == [[1, 2], [3, 9]]
    assert pad_rows([[1, 2], [3]], 9, left=True).tolist() == [[1, 2], [9, 3]]


def test_marked() -> None:
    ids = tokenizer()("abcd")["input_ids"]
    assert mark_tokens(tokenizer(), ids, [False, True, True, False]) == "a⟦bc⟧d"
    pieces = AutoTokenizer.from_pretrained(demo_model())
    ids = pieces("the alimentum is", add_special_tokens=False)["input_ids"]
    assert mark_tokens(pieces, ids, [False, True, True, False, True]) == "the⟦ aliment⟧um⟦ is⟧"
