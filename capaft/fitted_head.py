"""A linear head fitted on the frozen base's features: the baseline of a run, and where its own head starts.

Logistic regression on what the model's head sees is what the frozen base can do by itself, found in seconds. Training
goes on from it, since gradients through a random head first distort the features that it should learn to use (Kumar et
al. 2022, "Fine-tuning can distort pretrained features", arXiv 2202.10054).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from capaft import batches, rng
from capaft.base_model import BaseModel
from capaft.errors import UsageError
from capaft.sites import backbone
from capaft.tasks.text_classification import Features, TextClassification

# More examples hardly move a linear head, and would be slow to fit.
EXAMPLES = 4096
# Strongest first.
PENALTIES = (3e-3, 1e-2, 3e-2, 1e-1)


@dataclass(frozen=True)
class FittedHead:
    """A linear map from the head's inputs to logits.

    Attributes:
        weight: `(classes, width)`.
        bias: `(classes,)`.
    """

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]

    def score(self, task: TextClassification, base: BaseModel, features: Features, batch_size: int) -> float:
        """The task's metric of the frozen base under this head."""
        inputs = _inputs(task, base, features, range(len(features)), batch_size)
        return task.score(torch.from_numpy(inputs @ self.weight.T + self.bias), features.labels)

    def install(self, base: BaseModel) -> bool:
        """Give the model's head these values, if it is a single linear layer; say whether it is."""
        heads = _heads(base.model)
        if len(heads) != 1 or not isinstance(heads[0], nn.Linear) or heads[0].bias is None:
            return False
        with torch.no_grad():
            heads[0].weight.copy_(torch.from_numpy(self.weight))
            heads[0].bias.copy_(torch.from_numpy(self.bias))
        return True


def fit(
    task: TextClassification, base: BaseModel, train: Features, batch_size: int, seed: int
) -> tuple[FittedHead, FittedHead]:
    """Logistic regression on standardised inputs of the head, its penalty chosen on a fifth held out.

    Args:
        task: the task.
        base: the base model, untouched.
        train: examples to fit on; a seeded sample of them if there are many.
        batch_size: examples in a forward.
        seed: decides the sample and the fifth.

    Returns:
        The best head, which is the baseline; and the one with the strongest penalty within one standard error of it
        (Breiman et al. 1984), from which training starts: it has not yet learnt the training examples by heart, so
        their losses still say something to the adapter.

    Raises:
        UsageError: the model has no head apart from its backbone, or the examples have one class only.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    chosen = rng.permutation(rng.fold_in(seed, "", "data", "head"), len(train))[:EXAMPLES]
    labels = train.labels[chosen]
    if len(np.unique(labels)) < 2:
        raise UsageError("the training examples have one class only; raise --max-train-examples, or add others")
    inputs = _inputs(task, base, train, chosen.tolist(), batch_size)
    scaler = StandardScaler().fit(inputs)
    inputs = scaler.transform(inputs)

    def fitted(penalty: float, rows: slice) -> Any:
        return LogisticRegression(C=penalty, max_iter=500).fit(inputs[rows], labels[rows])

    best, careful = _penalties(fitted, inputs, labels)
    heads = {each: fitted(each, slice(None)) for each in {best, careful}}
    return _unscaled(heads[best], scaler, len(task.labels)), _unscaled(heads[careful], scaler, len(task.labels))


def _penalties(
    fitted: Callable[[float, slice], Any], inputs: NDArray[np.float64], labels: NDArray[np.int64]
) -> tuple[float, float]:
    """The best penalty on the first fifth of the rows, and the strongest within one standard error of it."""
    cut = len(labels) // 5
    if not cut or len(np.unique(labels[cut:])) < 2:
        # Nothing to choose by; a strong penalty is safe.
        return PENALTIES[0], PENALTIES[0]
    scores = np.array([fitted(each, slice(cut, None)).score(inputs[:cut], labels[:cut]) for each in PENALTIES])
    error = np.sqrt(scores.max() * (1 - scores.max()) / cut)
    return PENALTIES[int(np.argmax(scores))], PENALTIES[int(np.argmax(scores >= scores.max() - error))]


def _unscaled(found: Any, scaler: Any, classes: int) -> FittedHead:
    """A fitted regression as a linear map of the inputs as they were, with a row for every class."""
    weight, bias = found.coef_, found.intercept_
    if len(weight) == 1:
        # Two classes share one row of coefficients: the logit of the second over the first.
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    full_weight = np.zeros((classes, weight.shape[1]))
    full_bias = np.full(classes, bias.min() - 1.0)
    full_weight[found.classes_] = weight / scaler.scale_
    full_bias[found.classes_] = bias - (weight / scaler.scale_) @ scaler.mean_
    return FittedHead(full_weight, full_bias)


def _inputs(
    task: TextClassification, base: BaseModel, features: Features, rows: Any, batch_size: int
) -> NDArray[np.float64]:
    """The head's inputs for those rows, in their order, `(rows, width)`."""
    device = next(base.model.parameters()).device
    rows = list(rows)
    found: dict[int, NDArray[np.float64]] = {}
    was_training = base.model.training
    base.model.eval()
    with torch.inference_mode(), _captured(base.model) as captured:
        for batch_rows in batches.evaluation(features.lengths[rows], batch_size):
            indices = [rows[each] for each in batch_rows]
            batch = task.collate(base.tokenizer, features, indices)
            batch.pop("labels")
            base.model(**{key: value.to(device) for key, value in batch.items()})
            seen = _pooled(captured.pop(), batch["attention_mask"]).double().cpu().numpy()
            found |= zip(indices, seen, strict=True)
    base.model.train(was_training)
    return np.stack([found[index] for index in rows])


@contextmanager
def _captured(model: nn.Module) -> Iterator[list[Any]]:
    """Collects `(head module, its input)` of every forward."""
    heads = _heads(model)
    if not heads:
        raise UsageError(
            f"{type(model).__name__} has no head apart from its backbone; use --head-init seeded and --no-baseline"
        )
    captured: list[Any] = []
    handle = heads[0].register_forward_pre_hook(lambda module, args: captured.append((module, args[0])))
    try:
        yield captured
    finally:
        handle.remove()


def _heads(model: nn.Module) -> list[nn.Module]:
    """The modules with numbers beside the backbone, in the order of the forward as far as names tell."""
    inside = backbone(model).removesuffix(".")
    if not inside:
        return []
    return [child for name, child in model.named_children() if name != inside and any(True for _ in child.parameters())]


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
