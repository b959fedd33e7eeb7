"""A linear head fitted on the frozen base's features: the baseline of a run, and the start of its own head.

Logistic regression (or ridge regression, if the targets are numbers) on the inputs of the model's head shows in seconds
how far the frozen base gets by itself. Training goes on from it, since gradients through a random head first distort
the features that it should learn to use (Kumar et al. 2022, "Fine-tuning can distort pretrained features", arXiv
2202.10054).
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
from capaft.model.names import CHILD_PREFIX, backbone_prefix
from capaft.model.weights import device_of
from capaft.support.errors import UsageError
from capaft.tasks.base.features import Batch, Features
from capaft.tasks.base.task import Task
from capaft.training import batches

Advance = Callable[[int], None]
"""A function that is told how many examples the model has just seen."""

# More examples hardly move a linear head, and are slow to fit.
HEAD_EXAMPLES = 4096
# A scarce class has at least this many examples among them, or all that it has.
MIN_CLASS_EXAMPLES = 8
# Weights of the loss against a penalty of 1, so the strongest penalty comes first.
PENALTIES = (3e-3, 1e-2, 3e-2, 1e-1)


def _silent(examples: int) -> None:
    """Show no progress."""


@dataclass(frozen=True)
class FittedHead:
    """A linear map from the head's inputs to logits.

    Attributes:
        weight: `(outputs, width)`.
        bias: `(outputs,)`.
    """

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]

    def score(
        self, task: Task, base: BaseModel, features: Features, batch_size: int, advance: Advance = _silent
    ) -> float:
        """The task's metric of the frozen base under this head."""
        predictions: dict[int, Any] = {}
        for indices in batches.evaluation_batches(features.lengths, batch_size):
            batch = task.collate(base, features, indices, training=False)
            inputs = _inputs(base, batch)
            assert inputs is not None, "the head was fitted on such inputs"
            outputs = SimpleNamespace(logits=torch.from_numpy(inputs @ self.weight.T + self.bias))
            predictions |= zip(indices, task.predict(base, base.model, features, indices, batch, outputs), strict=True)
            advance(len(indices))
        return task.score(features, [predictions[index] for index in range(len(features))])[task.metric]

    def install(self, base: BaseModel) -> bool:
        """Give the model's head these values if it is a single linear layer; False if it is not."""
        layer = _only_layer(base.model)
        if layer is None:
            return False
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(self.weight))
            layer.bias.copy_(torch.from_numpy(self.bias))
        return True


def can_install_head(base: BaseModel) -> bool:
    """True if the model's own head can start from a fitted one: it is a single linear layer."""
    return _only_layer(base.model) is not None


def _only_layer(model: nn.Module) -> nn.Linear | None:
    layer = _input_module(model)
    is_linear = len(_layers(model)) == 1 and isinstance(layer, nn.Linear) and layer.bias is not None
    return layer if is_linear and isinstance(layer, nn.Linear) else None


def can_fit_head(task: Task, train: Features) -> bool:
    """True if a linear head can be fitted: every example has one class, or one number, and the head is the task's."""
    targets = train.references
    if not task.own_head or not isinstance(targets, np.ndarray) or targets.shape != (len(train),):
        return False
    return np.issubdtype(targets.dtype, np.integer) if task.labels else np.issubdtype(targets.dtype, np.floating)


def fit_heads(
    task: Task, base: BaseModel, train: Features, batch_size: int, seed: int, advance: Advance = _silent
) -> tuple[FittedHead, FittedHead] | None:
    """Fit a regression on standardised inputs of the head, its penalty chosen on a fifth held out.

    Args:
        task: the task, for which `can_fit_head` holds.
        base: the base model, untouched.
        train: examples to fit on; a seeded sample of them, with every class, if there are many.
        batch_size: examples in a forward.
        seed: decides the sample and the fifth.
        advance: called with the number of examples that the model has just seen.

    Returns:
        The best head, which is the baseline; and the one with the strongest penalty within one standard error of it
        (Breiman et al. 1984), from which training starts: it has not learnt the training examples by heart yet, so
        their losses still teach the adapter something. None if the model has no head apart from its backbone, or one
        that reads several vectors per example.

    Raises:
        UsageError: the examples have one class only.
    """
    sample = _sample(train.references, bool(task.labels), seed)
    targets = train.references[sample]
    if task.labels and len(np.unique(targets)) < 2:
        raise UsageError("the training examples have one class only; raise --max-train-examples, or add others")
    inputs = _sample_inputs(task, base, train, sample, batch_size, advance)
    if inputs is None:
        return None
    # The import takes more than a second and is of no use to a model without such inputs.
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(inputs)
    inputs = scaler.transform(inputs)
    held_out = len(targets) // 5

    def fit(penalty: float, first: int = 0) -> Any:
        model = LogisticRegression(C=penalty, max_iter=500) if task.labels else Ridge(alpha=1 / penalty)
        return model.fit(inputs[first:], targets[first:])

    def quality(penalty: float) -> NDArray[Any]:
        predicted, expected = fit(penalty, held_out).predict(inputs[:held_out]), targets[:held_out]
        return predicted == expected if task.labels else -np.square(predicted - expected)

    # Without held-out rows to choose by, a strong penalty is safe.
    best = careful = PENALTIES[0]
    if held_out and len(np.unique(targets[held_out:])) > 1:
        best, careful = _choose_penalties(quality)
    heads = {penalty: _as_linear_map(fit(penalty), scaler, len(task.labels)) for penalty in {best, careful}}
    return heads[best], heads[careful]


def _sample(targets: NDArray[Any], are_classes: bool, seed: int) -> NDArray[np.int64]:
    """Rows to fit on, in random order; `MIN_CLASS_EXAMPLES` of every class come before more of any."""
    order = rng.permutation(rng.fold_in(seed, "", "data", "head"), len(targets))
    if not are_classes:
        return order[:HEAD_EXAMPLES]
    classes = targets[order]
    by_class = np.argsort(classes, kind="stable")
    # For each row, the number of rows of its class before it.
    rank = np.empty(len(order), dtype=np.int64)
    rank[by_class] = np.arange(len(order)) - np.searchsorted(classes[by_class], classes[by_class])
    positions = np.argsort(np.minimum(rank, MIN_CLASS_EXAMPLES), kind="stable")[:HEAD_EXAMPLES]
    return order[np.sort(positions)]


def _choose_penalties(quality: Callable[[float], NDArray[Any]]) -> tuple[float, float]:
    """The best penalty by the mean quality of held-out rows, and the strongest within one standard error of it."""
    qualities = np.array([quality(penalty) for penalty in PENALTIES], dtype=np.float64)
    means = qualities.mean(1)
    best = int(np.argmax(means))
    error = qualities[best].std() / np.sqrt(qualities.shape[1])
    return PENALTIES[best], PENALTIES[int(np.argmax(means >= means[best] - error))]


def _as_linear_map(regression: Any, scaler: Any, classes: int) -> FittedHead:
    """A fitted regression as a map of the inputs before scaling: a row for each class, or one row without classes."""
    weight, bias = np.atleast_2d(regression.coef_), np.atleast_1d(regression.intercept_)
    if classes and len(weight) == 1:
        # Two classes share one row of coefficients: the logit of the second over the first.
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    present = regression.classes_ if classes else [0]
    full_weight = np.zeros((classes or 1, weight.shape[1]))
    # A class without examples in the sample is never predicted.
    full_bias = np.full(classes or 1, bias.min() - 1.0)
    full_weight[present] = weight / scaler.scale_
    full_bias[present] = bias - (weight / scaler.scale_) @ scaler.mean_
    return FittedHead(full_weight, full_bias)


def _sample_inputs(
    task: Task, base: BaseModel, train: Features, sample: NDArray[np.int64], batch_size: int, advance: Advance
) -> NDArray[np.float64] | None:
    """The head's inputs for a sample of the examples, `(sample, width)`, or None; see `_inputs`."""
    inputs = None
    for rows in batches.evaluation_batches(train.lengths[sample], batch_size):
        vectors = _inputs(base, task.collate(base, train, sample[rows].tolist(), training=False))
        if vectors is None:
            return None
        inputs = np.zeros((len(sample), vectors.shape[1])) if inputs is None else inputs
        inputs[rows] = vectors
        advance(len(rows))
    return inputs


def _inputs(base: BaseModel, batch: Batch) -> NDArray[np.float64] | None:
    """The head's inputs for a batch, `(examples, width)`, or None if they are not one vector per example."""
    module = _input_module(base.model)
    if module is None:
        return None
    device = device_of(base.model)
    captured: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, args: captured.append(args[0]))
    was_training = base.model.training
    base.model.eval()
    try:
        with torch.inference_mode():
            base.model(**{key: value.to(device) for key, value in batch.inputs.items()})
    finally:
        handle.remove()
        base.model.train(was_training)
    vectors = _pooled(module, captured[0], batch.inputs.get("attention_mask"))
    return None if vectors is None else vectors.double().cpu().numpy()


def _heads(model: nn.Module) -> list[nn.Module]:
    """The modules with parameters beside the backbone, in the order of their definition."""
    backbone = backbone_prefix(model).removesuffix(".")
    if not backbone:
        return []
    # A run that carries an adapter on has it attached.
    named = ((name, child) for name, child in model.named_children() if not name.startswith(CHILD_PREFIX))
    children = [child for name, child in named if name != backbone]
    return [child for child in children if any(True for _ in child.parameters())]


def _layers(model: nn.Module) -> list[nn.Module]:
    """The modules of the heads that hold parameters themselves."""
    modules = (module for head in _heads(model) for module in head.modules())
    return [module for module in modules if any(True for _ in module.parameters(recurse=False))]


def _input_module(model: nn.Module) -> nn.Module | None:
    """The module whose inputs a linear head would read: the head's only layer, or else the whole first head."""
    layers = _layers(model)
    return layers[0] if len(layers) == 1 else next(iter(_heads(model)), None)


def _pooled(module: nn.Module, hidden: Tensor, attention_mask: Tensor | None) -> Tensor | None:
    """One vector per example: transformers' linear heads read the last token, its head blocks the first."""
    if hidden.ndim == 2:
        return hidden
    if attention_mask is None or attention_mask.shape != hidden.shape[:2]:
        return None
    if not isinstance(module, nn.Linear):
        return hidden[:, 0]
    mask = attention_mask.to(hidden.device)
    last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), last]
