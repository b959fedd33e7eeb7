"""Scoring a model on a data set, in training and afterwards alike, so that both give the same number."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from capaft import batches
from capaft.tasks.text_classification import Features, TextClassification


def evaluate(
    task: TextClassification, model: nn.Module, tokenizer: Any, features: Features, batch_size: int
) -> tuple[float, float]:
    """The task's metric and the mean cross-entropy over a data set.

    Args:
        task: the task.
        model: the model, on the device it runs on; its training mode is restored.
        tokenizer: pads the batches.
        features: what to score, with labels.
        batch_size: examples in a forward.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    order: list[int] = []
    chunks = []
    with torch.inference_mode():
        for indices in batches.evaluation(features.lengths, batch_size):
            batch = task.collate(tokenizer, features, indices)
            batch.pop("labels")
            chunks.append(model(**{key: value.to(device) for key, value in batch.items()}).logits.float().cpu())
            order += indices
    model.train(was_training)
    logits = torch.empty_like(torch.cat(chunks))
    logits[torch.tensor(order)] = torch.cat(chunks)
    loss = F.cross_entropy(logits, torch.from_numpy(features.labels))
    return task.score(logits, np.asarray(features.labels)), float(loss)
