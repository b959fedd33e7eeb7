"""The loop itself: the parameters that it trains, their rates, and the parts that it leaves alone."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from command_line import invoke
from safetensors.torch import load_file
from tiny_job import bert, config, execute, losses, outputs, records, together, trained, trainer, write_tags
from torch.nn import functional as F
from transformers import BertForSequenceClassification, BertForTokenClassification

import capaft
from capaft.adapter.activation import get_adapter
from capaft.adapter.install import attach_plan
from capaft.config.train_config import TrainConfig
from capaft.support.errors import TrainingError, UsageError
from capaft.tasks.base import task as tasks
from capaft.training import loop, schedule, validation
from capaft.training.evaluate import Evaluation
from capaft.training.parallel.processes import Processes
from capaft.training.setup.job import Job
from capaft.training.setup.prepare import prepare_job

# Newer versions call it activation checkpointing.
pytestmark = pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning")


@pytest.fixture(autouse=True)
def _no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than everything else."""
    monkeypatch.setattr(validation, "draw_losses", lambda *_: b"")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directories of models: `still`, `dropout` and `tags`."""
    directory = tmp_path_factory.mktemp("models")
    bert(directory / "still", BertForSequenceClassification)
    bert(directory / "dropout", BertForSequenceClassification, dropout=0.1)
    bert(directory / "tags", BertForTokenClassification)
    return directory


@pytest.fixture
def still(models: Path, reviews: Path) -> TrainConfig:
    """A classification without dropout."""
    return config(models / "still", reviews)


@pytest.fixture(scope="module")
def tags(models: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A classification of tokens, of which batches have different numbers."""
    return config(models / "tags", write_tags(tmp_path_factory.mktemp("tags") / "tags.jsonl"), max_length=64)


# What is trained


@pytest.mark.parametrize("method", ["nola", "lora", "capaboost"])
def test_the_base_stays_as_it_was_and_holds_no_gradient(method: str, still: TrainConfig, tmp_path: Path) -> None:
    settings = replace(still, method=method)
    before = {k: v.clone() for k, v in prepare_job(settings, lambda line: None).base.model.state_dict().items()}
    job, _, _ = trained(settings, tmp_path)
    model, head = job.base.model, set(job.base.head)
    assert head == {"classifier.weight", "classifier.bias"}
    # The model's own head is kept, and the adapter's stands in its place.
    after = {name: value for name, value in model.state_dict().items() if "capaft" not in name}
    assert after.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    for name, value in model.named_parameters():
        if name in before:
            assert torch.equal(value, before[name]) == (name not in head), name
    for name, parameter in job.base.named_parameters().items():
        if name not in head and "capaft" not in name:
            assert parameter.grad is None
            assert not parameter.requires_grad


def test_an_adapter_that_no_gradient_reaches_is_refused() -> None:
    model = tiny.bert()
    adapter = capaft.attach(model, "lora")
    tiny.logits(model).sum().backward()
    loop.check_gradients(adapter)
    for parameter in adapter.parameters():
        parameter.grad = None
    with pytest.raises(UsageError, match=r"^no gradient reaches the adapter: the loss does not depend on the layers"):
        loop.check_gradients(adapter)


@pytest.mark.parametrize(("group", "rates"), [("head", {"head_lr": 1e-30}), ("adapter", {"lr": 1e-30})])
def test_head_and_adapter_learn_at_their_own_rates(
    group: str, rates: dict[str, float], still: TrainConfig, tmp_path: Path
) -> None:
    settings = replace(still, head_init="seeded", max_steps=2, epochs=None, method="lora", **rates)
    job = prepare_job(settings, lambda line: None)
    attach_plan(job.base.model, job.plan)
    start = {k: p.detach().clone() for k, p in get_adapter(job.base.model).trained(job.base.model).items()}
    job, _, _ = trained(settings, tmp_path)
    now = get_adapter(job.base.model).trained(job.base.model)
    stayed = {name for name, parameter in now.items() if torch.allclose(parameter, start[name], rtol=0, atol=1e-20)}
    assert stayed == ({"down", "up"} if group == "adapter" else {"head:classifier.weight", "head:classifier.bias"})


def test_training_does_not_depend_on_global_generators(models: Path, reviews: Path, tmp_path: Path) -> None:
    settings = config(models / "dropout", reviews, dropout=0.1)
    files = []
    for index in range(2):
        torch.manual_seed(index)
        np.random.seed(index)
        trained(settings, tmp_path / str(index))
        files.append(outputs(tmp_path / str(index)))
    assert files[0] == files[1]
    trained(replace(settings, seed=1), tmp_path / "other")
    assert outputs(tmp_path / "other")["adapter.safetensors"] != files[0]["adapter.safetensors"]


def test_dropout_is_on_in_training_and_differs_from_step_to_step(
    models: Path, reviews: Path, still: TrainConfig, tmp_path: Path
) -> None:
    runs = {
        "none": still,
        "model": config(models / "dropout", reviews),
        "adapter": replace(still, dropout=0.5),
    }
    losses_of = {}
    for name, settings in runs.items():
        # Rates of nearly nothing: losses differ by dropout alone.
        frozen = replace(settings, lr=1e-30, head_lr=1e-30, batch_size=58, epochs=2)
        trained(frozen, tmp_path / name)
        losses_of[name] = [loss for _, loss in losses(tmp_path / name)]
    assert losses_of["none"][0] == pytest.approx(losses_of["none"][1], rel=1e-5)
    assert abs(losses_of["model"][0] - losses_of["model"][1]) > 1e-4
    # An adapter begins as no change, whatever its dropout.
    assert losses_of["adapter"] == losses_of["none"]


# Sums over micro-batches and processes


def gradients(settings: TrainConfig, indices: list[int], processes: int = 1) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss of a batch and the gradients of all trainable parameters, added up over processes in turn."""
    run = trainer(replace(settings, dropout=0.0), Path("/nowhere"))
    model, parameters = run.model, run.trained
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for parameter in parameters.values():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    model.train()
    shares = []
    for rank in range(processes):
        share = replace(run, processes=Processes(rank, processes))
        shares.append((share, loop.collate_share(share, indices, 3)))
    terms = sum(batch.terms for _, micro_batches in shares for batch, is_own in micro_batches if is_own)
    loss = 0.0
    for share, micro_batches in shares:
        loss += float(loop.backward(share, micro_batches, terms, 3))
    return loss, {name: parameter.grad for name, parameter in parameters.items()}


def by_hand(settings: TrainConfig, indices: list[int]) -> tuple[float, dict[str, torch.Tensor]]:
    """The same by hand: from the mean over the batch's terms, one example at a time and without padding."""
    job = prepare_job(settings, lambda line: None)
    model = job.base.model
    parameters = attach_plan(model, job.plan).trained(model)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for parameter in parameters.values():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    terms = []
    for index in indices:
        logits = model(input_ids=torch.tensor([job.train.inputs["input_ids"][index]])).logits[0]
        if logits.ndim == 1:
            label = torch.tensor(job.train.references[index])
            terms.append(F.cross_entropy(logits, label, label_smoothing=settings.label_smoothing))
        else:
            # Every word of these sentences is one token, between the special ones.
            labels = torch.tensor(job.train.references[index]).long()
            assert len(logits) == len(labels) + 2
            terms += [F.cross_entropy(row, label) for row, label in zip(logits[1:-1], labels, strict=True)]
    loss = torch.stack(terms).mean()
    loss.backward()
    return float(loss.detach()), {name: parameter.grad for name, parameter in parameters.items()}


def assert_same(
    actual: tuple[float, dict[str, torch.Tensor]], expected: tuple[float, dict[str, torch.Tensor]], rtol: float
) -> None:
    assert actual[0] == pytest.approx(expected[0], rel=rtol)
    for name, gradient in expected[1].items():
        assert gradient.abs().max() > 1e-4
        scale = float(gradient.abs().max())
        torch.testing.assert_close(actual[1][name], gradient, rtol=rtol, atol=rtol * scale)


@pytest.mark.parametrize("kind", ["still", "tags"])
def test_micro_batches_add_up_to_the_whole_batch(kind: str, request: pytest.FixtureRequest) -> None:
    settings = replace(request.getfixturevalue(kind), method="nola" if kind == "still" else "lora")
    indices = [0, 5, 11, 17, 2, 23, 30]
    expected = by_hand(settings, indices)
    for size in (None, 1, 2, 3, 7):
        assert_same(gradients(replace(settings, micro_batch_size=size), indices), expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["still", "tags"])
@pytest.mark.parametrize(("indices", "processes"), [([0, 5, 11, 17, 2, 23, 30], 2), ([5, 11, 17, 2], 3), ([9], 2)])
def test_shares_of_processes_add_up_to_the_whole_batch(
    kind: str, indices: list[int], processes: int, request: pytest.FixtureRequest
) -> None:
    settings = request.getfixturevalue(kind)
    expected = by_hand(settings, indices)
    for size in (None, 2):
        assert_same(gradients(replace(settings, micro_batch_size=size), indices, processes), expected, rtol=1e-5)


def test_label_smoothing_is_that_of_torch(still: TrainConfig) -> None:
    settings = replace(still, label_smoothing=0.2)
    indices = [3, 1, 4, 15]
    assert_same(gradients(settings, indices), by_hand(settings, indices), rtol=1e-5)
    assert gradients(settings, indices)[0] != pytest.approx(gradients(still, indices)[0], rel=1e-3)


@pytest.mark.parametrize("kind", ["still", "tags"])
def test_a_run_in_micro_batches_is_the_run_in_whole_ones(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    settings = replace(request.getfixturevalue(kind), clip=0.05, epochs=1)
    _, whole, _ = trained(settings, tmp_path / "whole")
    _, cut, _ = trained(replace(settings, micro_batch_size=3), tmp_path / "cut")
    assert losses(tmp_path / "cut") == [
        (step, pytest.approx(loss, rel=1e-4)) for step, loss in losses(tmp_path / "whole")
    ]
    assert cut.scores == {name: pytest.approx(score, rel=1e-4) for name, score in whole.scores.items()}


@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_the_norm_of_the_gradient_is_limited(
    clip: float, still: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms = []
    real = torch.optim.AdamW.step

    def step(optimizer: torch.optim.AdamW, *args: Any) -> Any:
        gradients_now = [p.grad for group in optimizer.param_groups for p in group["params"]]
        norms.append(float(torch.cat([gradient.flatten() for gradient in gradients_now]).norm()))
        return real(optimizer, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    trained(replace(still, clip=clip, epochs=1, head_init="seeded"), tmp_path)
    assert len(norms) == 8
    assert max(norms) == pytest.approx(clip, rel=1e-3) if clip else max(norms) > 0.1


# Rates, records and results


def test_the_rate_follows_the_schedule(still: TrainConfig, tmp_path: Path) -> None:
    settings = replace(still, schedule="cosine", warmup=3.0, lr=2e-3)
    _, outcome, rows = trained(settings, tmp_path)
    at = schedule.course("cosine", 3, 16)
    assert [record["lr"] for record in rows if "loss" in record] == [2e-3 * at(step) for step in range(16)]
    assert outcome.steps == 16


@pytest.mark.parametrize(("name", "lr"), [("adamw", 0.02), ("adafactor", 0.02), ("sgd", 0.5)])
def test_the_loss_falls_and_every_step_is_recorded(name: str, lr: float, tags: TrainConfig, tmp_path: Path) -> None:
    _, outcome, rows = trained(replace(tags, optimizer=name, lr=lr, head_lr=lr, epochs=4), tmp_path)
    steps = losses(tmp_path)
    assert [step for step, _ in steps] == list(range(1, outcome.steps + 1))
    assert outcome.steps == 4 * 5
    assert outcome.epochs == 4
    assert sum(loss for _, loss in steps[-5:]) < 0.7 * sum(loss for _, loss in steps[:5])
    assert outcome.peak_memory_bytes > 2**20
    pace = {"step", "epoch", "examples_per_second", "seconds_left", "peak_memory_bytes"}
    assert all(record.keys() >= pace for record in rows)
    assert rows[-1]["seconds_left"] == 0


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"eval_steps": 3}, [3, 6, 9, 12, 15, 16]),
        ({"eval_epochs": 2, "epochs": 5}, [16, 32, 40]),
        ({"eval_steps": 100}, [16]),
        ({"max_steps": 11, "epochs": None}, [8, 11]),
    ],
)
def test_when_it_evaluates(settings: dict[str, Any], steps: list[int], still: TrainConfig, tmp_path: Path) -> None:
    _, _, rows = trained(replace(still, **settings), tmp_path)
    assert [record["step"] for record in rows if "value" in record] == steps


def scripted(values: list[float], monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """Have evaluations find these values of the metric; the trainable parameters at each."""
    seen: list[dict[str, torch.Tensor]] = []

    def evaluate(task: Any, base: Any, model: Any, features: Any, *args: Any, **options: Any) -> Evaluation:
        value = values[len(seen)]
        seen.append({name: p.detach().clone() for name, p in get_adapter(model).trained(model).items()})
        predictions = [np.array([0.0, value])] * len(features)
        return Evaluation({"loss": 1.0, "accuracy": value, "f1": 0.0, "matthews": 0.0}, predictions)

    monkeypatch.setattr(validation, "evaluate", evaluate)
    return seen


@pytest.mark.parametrize(("more_is_better", "best"), [(True, 1), (False, 2)])
def test_the_best_adapter_and_the_last_are_on_the_disk(
    more_is_better: bool, best: int, still: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not more_is_better:
        monkeypatch.setattr(tasks, "LOWER_IS_BETTER", frozenset({"accuracy"}))
    values = [0.5, 0.9, 0.3, 0.7]
    seen = scripted(values, monkeypatch)
    _, outcome, rows = trained(replace(still, eval_steps=4, save_dtype="float32"), tmp_path)
    assert (outcome.value, outcome.best_step) == (values[best], 4 * (best + 1))
    assert outcome.scores == {"loss": 1.0, "accuracy": values[best], "f1": 0.0, "matthews": 0.0}
    for file, index in (("adapter", best), ("last", 3)):
        saved = load_file(tmp_path / f"{file}.safetensors")
        assert saved.keys() == seen[index].keys()
        assert all(torch.equal(saved[name], parameter) for name, parameter in seen[index].items())
    marks = [record["best"] for record in rows if "value" in record]
    assert [index for index, mark in enumerate(marks) if mark] == ([0, 1] if more_is_better else [0, 2])


@pytest.mark.parametrize(
    ("settings", "values", "evaluations"),
    [
        ({}, [0.5, 0.4, 0.3, 0.2], 4),
        ({"patience": 1}, [0.5, 0.6, 0.6, 0.7], 3),
        ({"patience": 2}, [0.5, 0.4, 0.6, 0.6], 4),
        ({"patience": 2, "min_delta": 0.15}, [0.5, 0.6, 0.64, 0.9], 3),
        ({"patience": 2, "min_delta": 0.15}, [0.5, 0.6, 0.66, 0.66], 4),
    ],
)
def test_it_stops_when_nothing_better_comes(
    settings: dict[str, Any],
    values: list[float],
    evaluations: int,
    still: TrainConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = scripted(values, monkeypatch)
    _, outcome, _ = trained(replace(still, eval_steps=4, **settings), tmp_path)
    assert len(seen) == evaluations
    assert outcome.steps == 4 * evaluations


def test_scores_are_those_of_the_rounded_numbers_in_the_file(tags: TrainConfig, tmp_path: Path) -> None:
    results = execute(replace(tags, lr=2e-2, save_dtype="int4"), tmp_path)
    done = invoke("eval", tmp_path, "--json")
    assert done.code == 0, done.err
    assert results["scores"] == json.loads(done.out)["scores"]
    assert results["scores"]["loss"] not in [record.get("validation_loss") for record in records(tmp_path)]


# What a machine may ask for


def test_gradient_checkpointing_changes_no_loss(still: TrainConfig, tmp_path: Path) -> None:
    trained(replace(still, epochs=1), tmp_path / "kept")
    job, _, _ = trained(replace(still, epochs=1, gradient_checkpointing=True), tmp_path / "again")
    assert job.base.model.is_gradient_checkpointing
    assert losses(tmp_path / "again") == losses(tmp_path / "kept")
    assert outputs(tmp_path / "again") == outputs(tmp_path / "kept")


def test_gradient_checkpointing_of_a_model_that_cannot(
    still: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BertForSequenceClassification, "supports_gradient_checkpointing", False)
    with pytest.raises(UsageError, match="--gradient-checkpointing is not supported by BertForSequenceClassification"):
        trained(replace(still, gradient_checkpointing=True), tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_what_was_good(
    still: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop.backward

    def poisoned(*args: Any) -> torch.Tensor:
        return real(*args) * (math.nan if args[-1] == 12 else 1.0)

    monkeypatch.setattr(loop, "backward", poisoned)
    with pytest.raises(TrainingError, match=r"the loss is nan at step 13 .*; lower --lr\. The best adapter of earlier"):
        trained(still, tmp_path)
    assert [step for step, _ in losses(tmp_path)] == list(range(1, 13))
    assert (tmp_path / "adapter.safetensors").exists()


# Several processes


@pytest.mark.parametrize("kind", ["still", "tags"])
def test_two_processes_train_as_one_does(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    # 58 examples in batches of 19 leave one example for the last, and 36 in batches of 7 do too.
    settings = replace(request.getfixturevalue(kind), batch_size=19 if kind == "still" else 7, micro_batch_size=4)
    _, alone, rows = trained(settings, tmp_path / "one")
    assert rows[0]["examples_per_second"]

    def work(rank: int) -> None:
        job, outcome, _ = trained(settings, tmp_path / "two") if rank == 0 else follow(settings)
        parameters = get_adapter(job.base.model).trained(job.base.model)
        torch.save([outcome, {name: p.detach() for name, p in parameters.items()}], tmp_path / f"{rank}.pt")

    assert together(2, work, tmp_path) == [0, 0]
    (first, parameters), (second, others) = (
        torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2)
    )
    assert all(torch.equal(parameters[name], others[name]) for name in parameters)
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert two == [(step, pytest.approx(loss, abs=1e-5)) for step, loss in one]
    assert first.scores == second.scores
    assert first.scores == {name: pytest.approx(score, abs=1e-5) for name, score in alone.scores.items()}
    assert first.steps == alone.steps
    # Coefficients and head, as float32.
    assert first.bytes_per_step == 4 * sum(p.numel() for p in parameters.values())
    assert alone.bytes_per_step == 0


def follow(settings: TrainConfig) -> tuple[Job, loop.Outcome, None]:
    """The loop in a process that is not the first, which writes nothing."""
    run = trainer(settings, Path("/nowhere"))
    return run.job, loop.train(run), None


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_base_of_fewer_bits_has_trained_numbers_of_32(method: str, still: TrainConfig, tmp_path: Path) -> None:
    settings = replace(still, method=method, base_dtype="bfloat16", precision="bf16", head_init="seeded")
    job, outcome, written = trained(settings, tmp_path)
    kinds = {name: p.dtype for name, p in job.base.model.named_parameters()}
    for name, parameter in job.base.model.named_parameters():
        assert kinds[name] == (torch.float32 if parameter.requires_grad else torch.bfloat16), name
    _, _, expected = trained(replace(settings, base_dtype="float32"), tmp_path / "fuller")
    rows = [record["loss"] for record in written if "loss" in record]
    assert rows == pytest.approx([record["loss"] for record in expected if "loss" in record], abs=0.05)
    assert outcome.value == outcome.scores[job.task.metric]
