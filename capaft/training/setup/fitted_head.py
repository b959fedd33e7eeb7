"""A linear head fitted on the frozen base's features: the baseline of a run, and where its own head starts.

Logistic regression (or ridge regression, for numbers) on what the model's head sees is what the frozen base can do by
itself, found in seconds. Training goes on from it, since gradients through a random head first distort the features
that it should learn to use (Kumar et al. 2022, "Fine-tuning can distort pretrained features", arXiv 2202.10054).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from capaft.factors import rng
from capaft.model.load import BaseModel
from capaft.model.names import backbone_prefix
from capaft.support.errors import UsageError
from capaft.tasks.base.features import Batch, Features
from capaft.tasks.base.task import Task
from capaft.training import batches

# More examples hardly move a linear head, and would be slow to fit.
HEAD_EXAMPLES = 4096
# Of a scarce class so many are among them if it has them.
FEWEST = 8
# Weights of the loss against a penalty of 1; strongest penalty first.
PENALTIES = (3e-3, 1e-2, 3e-2, 1e-1)


@dataclass(frozen=True)
class FittedHead:
    """A linear map from the head's inputs to logits.

    Attributes:
        weight: `(outputs, width)`.
        bias: `(outputs,)`.
    """

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]

    def score(self, task: Task, base: BaseModel, features: Features, batch_size: int) -> float:
        """The task's metric of the frozen base under this head."""
        predictions: dict[int, Any] = {}
        for indices in batches.evaluation_batches(features.lengths, batch_size):
            batch = task.collate(base, features, indices, training=False)
            inputs = _inputs(base, batch)
            assert inputs is not None, "this head was fitted on such inputs"
            outputs = SimpleNamespace(logits=torch.from_numpy(inputs @ self.weight.T + self.bias))
            found = task.predict(base, base.model, features, indices, batch, outputs)
            predictions |= zip(indices, found, strict=True)
        return task.score(features, [predictions[index] for index in range(len(features))])[task.metric]

    def install(self, base: BaseModel) -> bool:
        """Give the model's head these values, if it is a single linear layer; say whether it is."""
        layer = _only_layer(base.model)
        if layer is None:
            return False
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(self.weight))
            layer.bias.copy_(torch.from_numpy(self.bias))
        return True


def can_install_head(base: BaseModel) -> bool:
    """Whether the model's own head can start from a fitted one: it is a single linear layer."""
    return _only_layer(base.model) is not None


def _only_layer(model: nn.Module) -> nn.Linear | None:
    layer = _entrance(model)
    is_linear = len(_layers(model)) == 1 and isinstance(layer, nn.Linear) and layer.bias is not None
    return layer if is_linear and isinstance(layer, nn.Linear) else None


def can_fit_head(task: Task, train: Features) -> bool:
    """Whether a linear head can be fitted: every example has one class, or one number, and the head is the task's."""
    truth = train.references
    if not task.own_head or not isinstance(truth, np.ndarray) or truth.shape != (len(train),):
        return False
    return np.issubdtype(truth.dtype, np.integer) if task.labels else np.issubdtype(truth.dtype, np.floating)


def fit_heads(
    task: Task, base: BaseModel, train: Features, batch_size: int, seed: int
) -> tuple[FittedHead, FittedHead] | None:
    """Regression on standardised inputs of the head, its penalty chosen on a fifth held out.

    Args:
        task: the task, which `fits`.
        base: the base model, untouched.
        train: examples to fit on; a seeded sample of them, with every class, if there are many.
        batch_size: examples in a forward.
        seed: decides the sample and the fifth.

    Returns:
        The best head, which is the baseline; and the one with the strongest penalty within one standard error of it
        (Breiman et al. 1984), from which training starts: it has not yet learnt the training examples by heart, so
        their losses still say something to the adapter. None if the model has no head apart from its backbone, or
        one that reads more than one vector an example.

    Raises:
        UsageError: the examples have one class only.
    """
    chosen = _sample(train.references, bool(task.labels), seed)
    truth = train.references[chosen]
    if task.labels and len(np.unique(truth)) < 2:
        raise UsageError("the training examples have one class only; raise --max-train-examples, or add others")
    inputs = None
    for rows in batches.evaluation_batches(train.lengths[chosen], batch_size):
        seen = _inputs(base, task.collate(base, train, chosen[rows].tolist(), training=False))
        if seen is None:
            return None
        inputs = np.zeros((len(chosen), seen.shape[1])) if inputs is None else inputs
        inputs[rows] = seen
    # More than a second to import, and of no use to a model without such inputs.
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(inputs)
    inputs = scaler.transform(inputs)
    held_out = len(truth) // 5

    def fitted(penalty: float, first: int = 0) -> Any:
        model = LogisticRegression(C=penalty, max_iter=500) if task.labels else Ridge(alpha=1 / penalty)
        return model.fit(inputs[first:], truth[first:])

    def quality(penalty: float) -> NDArray[Any]:
        guess, right = fitted(penalty, held_out).predict(inputs[:held_out]), truth[:held_out]
        return guess == right if task.labels else -np.square(guess - right)

    # With nothing to choose by, a strong penalty is safe.
    best = careful = PENALTIES[0]
    if held_out and len(np.unique(truth[held_out:])) > 1:
        best, careful = _penalties(quality)
    heads = {each: _unscaled(fitted(each), scaler, len(task.labels)) for each in {best, careful}}
    return heads[best], heads[careful]


def _sample(truth: NDArray[Any], are_classes: bool, seed: int) -> NDArray[np.int64]:
    """Rows to fit on, in random order: any, but of no class fewer than `FEWEST` where it has them and all fit in."""
    order = rng.permutation(rng.fold_in(seed, "", "data", "head"), len(truth))
    if not are_classes:
        return order[:HEAD_EXAMPLES]
    found = truth[order]
    by_class = np.argsort(found, kind="stable")
    before = np.empty(len(order), dtype=np.int64)
    before[by_class] = np.arange(len(order)) - np.searchsorted(found[by_class], found[by_class])
    first = np.argsort(np.minimum(before, FEWEST), kind="stable")[:HEAD_EXAMPLES]
    return order[np.sort(first)]


def _penalties(quality: Callable[[float], NDArray[Any]]) -> tuple[float, float]:
    """The best penalty by the mean quality of held-out rows, and the strongest within one standard error of it."""
    found = np.array([quality(each) for each in PENALTIES], dtype=np.float64)
    means = found.mean(1)
    best = int(np.argmax(means))
    error = found[best].std() / np.sqrt(found.shape[1])
    return PENALTIES[best], PENALTIES[int(np.argmax(means >= means[best] - error))]


def _unscaled(found: Any, scaler: Any, classes: int) -> FittedHead:
    """A fitted regression as a linear map of the inputs as they were, with a row for every class, or one without."""
    weight, bias = np.atleast_2d(found.coef_), np.atleast_1d(found.intercept_)
    if classes and len(weight) == 1:
        # Two classes share one row of coefficients: the logit of the second over the first.
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    present = found.classes_ if classes else [0]
    full_weight = np.zeros((classes or 1, weight.shape[1]))
    full_bias = np.full(classes or 1, bias.min() - 1.0)
    full_weight[present] = weight / scaler.scale_
    full_bias[present] = bias - (weight / scaler.scale_) @ scaler.mean_
    return FittedHead(full_weight, full_bias)


def _inputs(base: BaseModel, batch: Batch) -> NDArray[np.float64] | None:
    """The head's inputs for a batch, `(examples, width)`, or None if they are not one vector an example."""
    layer = _entrance(base.model)
    if layer is None:
        return None
    device = next(base.model.parameters()).device
    captured: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda module, args: captured.append(args[0]))
    was_training = base.model.training
    base.model.eval()
    try:
        with torch.inference_mode():
            base.model(**{key: value.to(device) for key, value in batch.inputs.items()})
    finally:
        handle.remove()
        base.model.train(was_training)
    vectors = _pooled(layer, captured[0], batch.inputs.get("attention_mask"))
    return None if vectors is None else vectors.double().cpu().numpy()


def _heads(model: nn.Module) -> list[nn.Module]:
    """The modules with numbers beside the backbone, in the order of the forward as far as names tell."""
    inside = backbone_prefix(model).removesuffix(".")
    if not inside:
        return []
    return [child for name, child in model.named_children() if name != inside and any(True for _ in child.parameters())]


def _layers(model: nn.Module) -> list[nn.Module]:
    """The modules of the heads that have numbers of their own."""
    inside = (module for head in _heads(model) for module in head.modules())
    return [module for module in inside if any(True for _ in module.parameters(recurse=False))]


def _entrance(model: nn.Module) -> nn.Module | None:
    """The module whose inputs a linear head would read: the head's only layer, or else all of the first head."""
    layers = _layers(model)
    return layers[0] if len(layers) == 1 else next(iter(_heads(model)), None)


def _pooled(module: nn.Module, hidden: Tensor, attention_mask: Tensor | None) -> Tensor | None:
    """One vector an example: transformers' linear heads read the last token, its head blocks the first."""
    if hidden.ndim == 2:
        return hidden
    if attention_mask is None or attention_mask.shape != hidden.shape[:2]:
        return None
    if not isinstance(module, nn.Linear):
        return hidden[:, 0]
    mask = attention_mask.to(hidden.device)
    last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), last]
