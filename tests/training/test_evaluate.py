"""Scores of a model over a data set, against forwards of one example at a time."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score
from tiny_job import bert, config, together
from torch import nn
from torch.nn import functional as F
from transformers import BertForSequenceClassification

from capaft.adapter.install import attach_plan, detach
from capaft.support.errors import TrainingError
from capaft.training.evaluate import Evaluation, evaluate
from capaft.training.fitting_batch import FittingBatch
from capaft.training.parallel.processes import Processes
from capaft.training.setup.job import Job
from capaft.training.setup.prepare import prepare_job


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, reviews: Path) -> Job:
    """A job with 29 validation examples of different lengths, whose model has an opinion on each; not to be changed."""
    model = bert(tmp_path_factory.mktemp("models") / "bert", BertForSequenceClassification, dropout=0.5)
    made = prepare_job(config(model, reviews, validation_split=0.45), lambda line: None)
    with torch.no_grad():
        made.base.model.classifier.weight.mul_(20)
    return made


def scored(job: Job, batch_size: int, processes: Processes | None = None, **options: Any) -> Evaluation:
    model = job.base.model
    processes = processes or Processes.here(60)
    return evaluate(job.task, job.base, model, job.validation, batch_size, processes=processes, **options)


def one_by_one(job: Job) -> np.ndarray:
    """Logits of each example, `(examples, 2)`, without padding."""
    job.base.model.eval()
    with torch.no_grad():
        logits = [job.base.model(input_ids=torch.tensor([ids])).logits[0] for ids in job.validation.inputs["input_ids"]]
    return torch.stack(logits).numpy()


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_scores_are_those_of_every_example_once(batch_size: int, job: Job) -> None:
    evaluation = scored(job, batch_size)
    logits, truth = one_by_one(job), job.validation.references
    np.testing.assert_allclose(np.stack(evaluation.predictions), logits, rtol=1e-4, atol=1e-5)
    assert evaluation.scores["accuracy"] == accuracy_score(truth, logits.argmax(1))
    assert evaluation.scores["f1"] == f1_score(truth, logits.argmax(1), average="macro")
    assert 0 < evaluation.scores["accuracy"] < 1
    loss = F.cross_entropy(torch.from_numpy(logits).double(), torch.from_numpy(truth))
    assert evaluation.scores["loss"] == pytest.approx(float(loss), rel=1e-5)


def test_a_model_whose_numbers_left_the_range_has_no_score(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    head = job.base.model.classifier
    monkeypatch.setattr(head, "forward", lambda hidden: F.linear(hidden, head.weight, head.bias) * math.nan)
    with pytest.raises(TrainingError, match="loss on the validation data is nan"):
        scored(job, 4)


def test_it_leaves_the_model_as_it_was(job: Job) -> None:
    model = job.base.model
    model.train()
    model.bert.encoder.layer[0].eval()
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = scored(job, 8), scored(job, 8)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    # Dropout was off.
    assert np.array_equal(np.stack(first.predictions), np.stack(second.predictions))


def test_its_forwards_run_in_the_context_it_is_given(job: Job) -> None:
    seen = []

    def look(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        seen.append(output.dtype)

    handle = job.base.model.bert.encoder.layer[0].attention.self.query.register_forward_hook(look)
    try:
        scored(job, 64, autocast=torch.autocast("cpu", torch.bfloat16))
        scored(job, 64)
    finally:
        handle.remove()
    assert seen == [torch.bfloat16, torch.float32]


def exhausting(model: nn.Module, room: int) -> Any:
    """Make forwards of more examples than there is room for fail late, in the head."""

    def fail(module: nn.Module, inputs: Any) -> None:
        if len(inputs[0]) > room:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 7 bytes")

    return model.classifier.register_forward_pre_hook(fail)


def test_what_does_not_fit_is_halved_under_an_adapter_too(job: Job) -> None:
    attach_plan(job.base.model, job.plan)
    try:
        whole = scored(job, 64)
        handle = exhausting(job.base.model, 5)
        with pytest.warns(UserWarning, match="out of memory in evaluation; going on with") as lines:
            halved = scored(job, 64)
        handle.remove()
    finally:
        detach(job.base.model, "default")
    assert [str(line.message).split("with ")[1] for line in lines] == [f"batches of {n} examples" for n in (14, 7, 3)]
    np.testing.assert_allclose(np.stack(halved.predictions), np.stack(whole.predictions), rtol=1e-4, atol=1e-5)
    assert halved.scores == pytest.approx(whole.scores, rel=1e-6)


def test_processes_agree_on_what_fits(job: Job, tmp_path: Path) -> None:
    def work(rank: int) -> None:
        fitting = FittingBatch()
        if rank == 1:
            exhausting(job.base.model, 3)
        with pytest.warns(UserWarning, match="going on with batches of"):
            evaluation = scored(job, 8, fitting=fitting)
        (tmp_path / f"{rank}.json").write_text(
            json.dumps([evaluation.scores, len(evaluation.predictions), fitting.limit])
        )

    assert together(2, work, tmp_path) == [0, 0]
    alone = scored(job, 8).scores
    for rank in range(2):
        scores, predictions, limit = json.loads((tmp_path / f"{rank}.json").read_text())
        assert scores == pytest.approx(alone, rel=1e-6)
        assert (predictions, limit) == (29, 2)


@pytest.mark.parametrize(("count", "batch_size"), [(2, 8), (3, 8), (3, 64)])
def test_processes_share_the_work_and_each_has_the_whole(count: int, batch_size: int, job: Job, tmp_path: Path) -> None:
    forwards = []
    handle = job.base.model.register_forward_hook(lambda *_: forwards.append(1))

    def work(rank: int) -> None:
        evaluation = scored(job, batch_size)
        report = [evaluation.scores, np.stack(evaluation.predictions).tolist(), len(forwards)]
        (tmp_path / f"{rank}.json").write_text(json.dumps(report))

    try:
        assert together(count, work, tmp_path) == [0] * count
    finally:
        handle.remove()
    alone = scored(job, batch_size)
    for rank in range(count):
        scores, predictions, made = json.loads((tmp_path / f"{rank}.json").read_text())
        assert scores.pop("loss") == pytest.approx(alone.scores["loss"], rel=1e-12)
        assert scores == {name: score for name, score in alone.scores.items() if name != "loss"}
        assert np.array_equal(np.float32(predictions), np.stack(alone.predictions))
        # Those of a sharded model wait for one another.
        assert made == math.ceil(math.ceil(29 / batch_size) / count)
