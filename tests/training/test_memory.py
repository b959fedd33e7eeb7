"""The estimate of peak memory: it leaves the model alone, and gives up on models that it cannot follow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_job import bert, config
from transformers import BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from capaft.adapter.install import attach_plan
from capaft.tasks.base.features import Batch
from capaft.tasks.language.token_loss import summed_loss
from capaft.training.memory import estimate_peak_memory
from capaft.training.setup.job import Job
from capaft.training.setup.prepare import prepare_job


@pytest.fixture
def job(tmp_path: Path, reviews: Path) -> Job:
    """A job whose model is ready to train."""
    model = bert(tmp_path / "model", BertForSequenceClassification)
    job = prepare_job(config(model, reviews), lambda line: None)
    attach_plan(job.base.model, job.plan)
    job.base.model.train()
    return job


def estimated(job: Job) -> int | None:
    batch = job.task.collate(job.base, job.train, range(8), training=True)
    return estimate_peak_memory(job.base.model, batch, lambda outputs, targets: job.task.loss(outputs, targets, 0.0))


def test_the_model_stays_as_it_was(job: Job) -> None:
    before = {name: tensor.clone() for name, tensor in job.base.model.state_dict().items()}
    assert estimated(job) is not None
    after = job.base.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_model_that_looks_at_its_numbers_cannot_be_told(job: Job) -> None:
    classifier = job.base.model.classifier
    classifier.register_forward_hook(lambda module, args, output: output * (2 if output.sum().item() > 0 else 1))
    assert estimated(job) is None


def test_the_logits_of_an_evaluation_count_once() -> None:
    shape = {"n_embd": 8, "n_layer": 1, "n_head": 1, "n_positions": 64}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=49152, bos_token_id=1, eos_token_id=1, **shape))
    ids = torch.ones(1, 2, dtype=torch.int64)
    small = Batch({"input_ids": ids}, {"labels": ids}, 2)
    ids = torch.ones(64, 64, dtype=torch.int64)
    large = Batch({"input_ids": ids}, {"labels": ids}, 64 * 64)

    def loss(outputs: Any, targets: Any) -> torch.Tensor:
        return summed_loss(outputs.logits, targets["labels"], 0.0)

    without, with_one = (estimate_peak_memory(model, small, loss, evaluated=batches) for batches in ((), (large,)))
    assert without is not None
    assert with_one is not None
    logits = 64 * 64 * 49152 * 4
    # Beside it, what training holds otherwise, and a slice in float32 and its probabilities.
    assert 0.5 * logits < with_one - without < 1.4 * logits
