"""What the frozen base can do by itself: a linear head fitted on its cached features, in seconds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from capaft import batches
from capaft.base_model import BaseModel
from capaft.errors import UsageError
from capaft.sites import backbone
from capaft.tasks.text_classification import Features, TextClassification


def score(task: TextClassification, base: BaseModel, train: Features, validation: Features, batch_size: int) -> float:
    """The task's metric on validation of a logistic regression on what the model's own head sees.

    The strength of its penalty is chosen by three-fold cross-validation on the training examples.

    Args:
        task: the task.
        base: the base model, untouched.
        train: examples to fit on.
        validation: examples to score on.
        batch_size: examples in a forward.

    Raises:
        UsageError: the model has no separate head whose inputs could be cached.
    """
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    head = LogisticRegressionCV(
        Cs=[1e-3, 1e-2, 1e-1, 1.0], cv=3, max_iter=200, l1_ratios=(0,), use_legacy_attributes=False
    )
    fitted = make_pipeline(StandardScaler(), head)
    fitted.fit(_features(task, base, train, batch_size), train.labels)
    predicted = fitted.predict(_features(task, base, validation, batch_size))
    one_hot = torch.nn.functional.one_hot(torch.from_numpy(predicted), len(task.labels))
    return task.score(one_hot, validation.labels)


def _features(task: TextClassification, base: BaseModel, features: Features, batch_size: int) -> NDArray[np.float32]:
    """The head's inputs, `(examples, width)`."""
    device = next(base.model.parameters()).device
    rows: list[tuple[int, NDArray[np.float32]]] = []
    base.model.eval()
    with torch.inference_mode(), _captured(base.model) as captured:
        for indices in batches.evaluation(features.lengths, batch_size):
            batch = task.collate(base.tokenizer, features, indices)
            batch.pop("labels")
            base.model(**{key: value.to(device) for key, value in batch.items()})
            seen = _pooled(captured.pop(), batch["attention_mask"]).float().cpu().numpy()
            rows += zip(indices, seen, strict=True)
    return np.stack([row for _, row in sorted(rows, key=lambda each: each[0])])


@contextmanager
def _captured(model: nn.Module) -> Iterator[list[Any]]:
    """Collects `(head module, its input)` of every forward."""
    inside = backbone(model).removesuffix(".")
    heads = [child for name, child in model.named_children() if name != inside and _has_numbers(child)]
    if not inside or not heads:
        raise UsageError(f"{type(model).__name__} has no head apart from its backbone; use --no-baseline")
    captured: list[Any] = []
    handle = heads[0].register_forward_pre_hook(lambda module, args: captured.append((module, args[0])))
    try:
        yield captured
    finally:
        handle.remove()


def _has_numbers(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def _pooled(seen: tuple[nn.Module, Tensor], attention_mask: Tensor) -> Tensor:
    """One vector an example: transformers' linear heads read the last token, its head blocks the first."""
    module, hidden = seen
    if hidden.ndim == 2:
        return hidden
    if not isinstance(module, nn.Linear):
        return hidden[:, 0]
    mask = attention_mask.to(hidden.device)
    last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), last]
