"""The summed loss against a loop in float64, its scores, and the marking of counted tokens."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tiny_text import tokenizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoTokenizer

from capaft.model.demo import demo_model
from capaft.tasks.language import token_loss
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


@pytest.mark.parametrize("size", [1, 14, 21])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_slices_add_up(size: int, smoothing: float, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = case()
    whole, by_example = summed_loss(logits, labels, smoothing), loss_by_example(logits, labels)
    with_gradient = summed_loss(logits.clone().requires_grad_(), labels, smoothing)
    assert torch.equal(whole, with_gradient.detach())
    monkeypatch.setattr(token_loss, "SLICE", size)
    torch.testing.assert_close(summed_loss(logits, labels, smoothing), whole)
    for sliced, expected in zip(loss_by_example(logits, labels), by_example, strict=True):
        assert sliced == pytest.approx(expected, rel=1e-6)


class Most(TorchDispatchMode):
    """Notes the most bytes that an operation makes, views apart."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {leaf.data_ptr() for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)}
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        if func.name().partition("::")[2] not in ("unbind.int", "select.int"):
            self.most = max([self.most, *(leaf.nbytes for leaf in made if leaf.data_ptr() not in given)])
        return result


def test_no_second_copy_of_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_loss, "SLICE", 2**12)
    torch.manual_seed(0)
    logits = torch.randn(4, 64, 2**9, dtype=torch.bfloat16)
    labels = torch.randint(2**9, (4, 64))
    for function in (lambda: summed_loss(logits, labels, 0.0), lambda: loss_by_example(logits, labels)):
        with torch.inference_mode(), Most() as noted:
            function()
        assert noted.most == 2**12 * 4


def test_padding_on_either_side() -> None:
    assert pad_rows([[1, 2], [3]], 9).tolist() == [[1, 2], [3, 9]]
    assert pad_rows([[1, 2], [3]], 9, left=True).tolist() == [[1, 2], [9, 3]]


def test_marked() -> None:
    ids = tokenizer()("abcd")["input_ids"]
    assert mark_tokens(tokenizer(), ids, [False, True, True, False]) == "a⟦bc⟧d"
    pieces = AutoTokenizer.from_pretrained(demo_model())
    ids = pieces("the alimentum is", add_special_tokens=False)["input_ids"]
    assert mark_tokens(pieces, ids, [False, True, True, False, True]) == "the⟦ aliment⟧um⟦ is⟧"
