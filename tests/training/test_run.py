"""A run that was interrupted, at any moment, ends with the same bytes as one that was not."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import invoke
from safetensors.torch import load_file, save_file
from tiny_job import bert, command, config, execute, fork, killing_at, losses, outputs, records, together, wait
from transformers import BertForMaskedLM, BertForSequenceClassification

from capaft.config.train_config import TrainConfig
from capaft.support.errors import UsageError
from capaft.training import evaluate, loop
from capaft.training.record import resume
from capaft.training.record.run_directory import RunDirectory, hold_directory

# Measurements, and the place of the run.
OF_THE_MACHINE = {"seconds", "examples_per_second", "peak_memory_bytes", "output", "next"}


@pytest.fixture(autouse=True)
def _no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than everything else."""
    monkeypatch.setattr(loop, "draw_losses", lambda *_: b"")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models")
    bert(directory / "reviews", BertForSequenceClassification, dropout=0.1)
    bert(directory / "words", BertForMaskedLM, dropout=0.1)
    return directory


@pytest.fixture(scope="module")
def settings(models: Path, reviews: Path) -> TrainConfig:
    """Everything at once that a resumed run has to restore: dropout of both kinds, micro-batches, patience."""
    return config(
        models / "reviews",
        reviews,
        dropout=0.1,
        micro_batch_size=3,
        epochs=None,
        # An epoch has 8.
        max_steps=11,
        eval_steps=4,
        patience=9,
        schedule="cosine",
        warmup=0.2,
        lr=2e-2,
        weight_decay=0.1,
        baseline=True,
        checkpoint_seconds=0.0,
    )


@pytest.fixture(scope="module")
def undisturbed(settings: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of these settings without an interruption."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "draw_losses", lambda *_: b"")
        directory = tmp_path_factory.mktemp("undisturbed") / "run"
        execute(settings, directory)
    return directory


def killed(settings: TrainConfig, directory: Path, step: int) -> None:
    """A run whose process was killed when it was about to take a step, counted from 0."""

    def work() -> None:
        real = loop._collated

        def collated(run: Any, indices: Any, at: int) -> Any:
            if at == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(run, indices, at)

        loop._collated = collated
        execute(settings, directory)

    assert wait(fork(work)) == -signal.SIGKILL
    assert not (directory / "results.json").exists()


def assert_same(actual: Path, expected: Path) -> None:
    """Same bytes, same record of losses, same results, and nothing left over."""
    assert outputs(actual) == outputs(expected)
    assert losses(actual) == losses(expected)
    scores = ("step", "value", "validation_loss", "scores", "best")
    assert [[r.get(name) for name in scores] for r in records(actual)] == [
        [r.get(name) for name in scores] for r in records(expected)
    ]
    one, other = (json.loads((directory / "results.json").read_text()) for directory in (actual, expected))
    assert {k: v for k, v in one.items() if k not in OF_THE_MACHINE} == {
        k: v for k, v in other.items() if k not in OF_THE_MACHINE
    }
    one, other = (
        sorted(str(path.relative_to(directory)) for path in directory.rglob("*")) for directory in (actual, expected)
    )
    assert one == other


def damage(checkpoint: Path) -> None:
    file = checkpoint / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-40])


# Killed


def test_killed_while_it_reads_or_writes(settings: TrainConfig, undisturbed: Path, tmp_path: Path) -> None:
    moments = _moments(settings, tmp_path)
    assert moments > 100
    for moment in range(0, moments, moments // 4):
        _killed_at_a_file(moment, settings, undisturbed, tmp_path / "run")


@pytest.mark.slow
def test_killed_at_every_file(settings: TrainConfig, undisturbed: Path, tmp_path: Path) -> None:
    for moment in range(_moments(settings, tmp_path)):
        _killed_at_a_file(moment, settings, undisturbed, tmp_path / "run")


def _moments(settings: TrainConfig, directory: Path) -> int:
    """Number of times that an undisturbed run touches its directory."""

    def count() -> None:
        seen = killing_at(sys.maxsize, directory / "counted")
        execute(settings, directory / "counted")
        (directory / "moments").write_text(str(seen()))

    assert wait(fork(count)) == 0
    return int((directory / "moments").read_text())


def _killed_at_a_file(moment: int, settings: TrainConfig, undisturbed: Path, directory: Path) -> None:
    def work() -> None:
        killing_at(moment, directory)
        execute(settings, directory)

    assert wait(fork(work)) == -signal.SIGKILL
    execute(settings, directory, resume=True)
    assert_same(directory, undisturbed)
    shutil.rmtree(directory)


@pytest.mark.parametrize(
    ("changes", "step"),
    [
        # A checkpoint at evaluations only, so that steps are taken again.
        ({"checkpoint_seconds": 60.0}, 10),
        ({"optimizer": "adafactor", "checkpoint_seconds": 60.0}, 7),
        ({"optimizer": "sgd", "lora_plus_ratio": 4.0, "method": "lora", "save_dtype": "int8"}, 6),
        ({"task": "masked-lm", "mlm_probability": 0.3, "packing": False, "max_length": 32}, 7),
    ],
)
def test_killed_between_two_steps(
    changes: dict[str, Any], step: int, settings: TrainConfig, models: Path, tmp_path: Path
) -> None:
    changed = replace(settings, baseline=False, **changes)
    if changed.task == "masked-lm":
        changed = replace(changed, model=str(models / "words"))
    for name in ("whole", "run"):
        if name == "run":
            killed(changed, tmp_path / "run", step)
        execute(changed, tmp_path / name, resume=name == "run")
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_patience_goes_on_where_it_was(settings: TrainConfig, tmp_path: Path) -> None:
    # Nothing gets better: the first evaluation is the best, and the fourth the last.
    changed = replace(settings, lr=1e-30, head_lr=1e-30, eval_steps=2, patience=3, baseline=False)
    killed(changed, tmp_path, 5)
    assert execute(changed, tmp_path, resume=True)["steps"] == 8
    assert [record["step"] for record in records(tmp_path) if "value" in record] == [2, 4, 6, 8]


def test_killed_once_more_and_with_damaged_checkpoints(
    settings: TrainConfig, undisturbed: Path, tmp_path: Path
) -> None:
    directory, checkpoints, kept = tmp_path / "run", tmp_path / "run" / "checkpoints", tmp_path / "kept"
    killed(settings, directory, 6)
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-000000005", "step-000000006"]
    damage(checkpoints / "step-000000006")
    # Half-written files of a dying process.
    for left in (directory / ".adapter.safetensors.x1y2", checkpoints / ".step-000000007" / "state.json"):
        left.parent.mkdir(exist_ok=True)
        left.write_bytes(b"{")
    killed(replace(settings, resume=True), directory, 9)
    shutil.copytree(checkpoints, kept)
    for checkpoint in checkpoints.iterdir():
        damage(checkpoint)
    with pytest.raises(UsageError, match=r"no checkpoint in .* can be read; start anew with --overwrite") as error:
        execute(settings, directory, resume=True)
    assert "\n" not in str(error.value)
    shutil.copytree(kept, checkpoints, dirs_exist_ok=True)
    execute(settings, directory, resume=True)
    assert_same(directory, undisturbed)


def test_two_processes_of_which_one_is_killed(settings: TrainConfig, tmp_path: Path) -> None:
    def run(directory: Path, kill: int, **changes: Any) -> list[int]:
        def work(rank: int) -> None:
            real = loop._collated

            def collated(run: Any, indices: Any, at: int) -> Any:
                if at == kill and rank == 1:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(run, indices, at)

            loop._collated = collated
            execute(settings, directory, **changes)

        (tmp_path / "meeting").unlink(missing_ok=True)
        return together(2, work, tmp_path)

    assert run(tmp_path / "whole", kill=-1) == [0, 0]
    # The other process notices, and says so.
    assert run(tmp_path / "run", kill=6) == [1, -signal.SIGKILL]
    assert run(tmp_path / "run", kill=-1, resume=True) == [0, 0]
    assert_same(tmp_path / "run", tmp_path / "whole")


# The command


def test_a_killed_command_goes_on_with_resume_alone(settings: TrainConfig, undisturbed: Path, tmp_path: Path) -> None:
    """A separate process, killed by another at a moment that nobody chose."""
    directory = tmp_path / "run"
    metrics = directory / "metrics.jsonl"
    _kill_when(lambda: metrics.exists() and metrics.read_text().count("\n") > 4, command(settings, directory))
    assert not (directory / "results.json").exists()
    done = invoke("train", "--resume", "--output", directory, "--json")
    assert done.code == 0, done.err
    assert "warning" not in done.err
    assert_same(directory, undisturbed)


@pytest.mark.slow
def test_ten_times_killed_at_random_moments(settings: TrainConfig, undisturbed: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    arguments = command(replace(settings, resume=True), directory)
    chance = random.Random(0)
    started = time.monotonic()
    subprocess.run([sys.executable, "-m", "capaft", *arguments[:-1], str(tmp_path / "first")], check=True)
    whole = time.monotonic() - started
    kills = 0
    for _ in range(10):
        until = time.monotonic() + chance.uniform(0.3, 1.0) * whole
        kills += _kill_when(lambda until=until: time.monotonic() > until, arguments)  # type: ignore[misc]
    assert kills
    done = invoke(*arguments)
    assert done.code == 0, done.err
    assert_same(directory, undisturbed)


def _kill_when(ready: Any, arguments: list[str]) -> bool:
    """Start a command and kill it once `ready` holds; True if it was still running."""
    process = subprocess.Popen([sys.executable, "-m", "capaft", *arguments], stderr=subprocess.DEVNULL)
    while process.poll() is None and not ready():
        time.sleep(0.005)
    process.kill()
    return process.wait() == -signal.SIGKILL


def test_ctrl_c_saves_and_the_run_goes_on(
    settings: TrainConfig, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop._collated

    def collated(run: Any, indices: Any, at: int) -> Any:
        if at == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return real(run, indices, at)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_collated", collated)
        done = invoke(*command(settings, tmp_path))
    assert done.code == 130, done.err
    assert done.out == ""
    assert f"stopped at step 3 of 11; resume with --resume --output {tmp_path}" in done.err
    # Before the first evaluation the present adapter is better than none.
    assert invoke("info", tmp_path).code == 0
    assert [step for step, _ in losses(tmp_path)] == [1, 2, 3]
    done = invoke("train", "--resume", "--output", tmp_path)
    assert done.code == 0, done.err
    assert_same(tmp_path, undisturbed)


@pytest.mark.parametrize("number", [1, 3])
def test_a_signal_in_an_evaluation_stops_it_and_the_run_goes_on(
    number: int, settings: TrainConfig, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first evaluation, and the last."""
    begun, real = 0, loop._evaluated

    def evaluated(*arguments: Any) -> Any:
        nonlocal begun
        begun += 1
        if begun == number:
            os.kill(os.getpid(), signal.SIGHUP)
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_evaluated", evaluated)
        done = invoke(*command(settings, tmp_path))
    assert done.code == 130, done.err
    step = {1: 4, 3: 11}[number]
    assert f"stopped at step {step} of 11; resume with --resume --output {tmp_path}" in done.err
    assert len([record for record in records(tmp_path) if "value" in record]) == number - 1
    done = invoke("train", "--resume", "--output", tmp_path)
    assert done.code == 0, done.err
    assert_same(tmp_path, undisturbed)


@pytest.mark.parametrize("moment", ["record", "evaluation"])
def test_a_directory_that_is_removed_ends_the_run_and_stays_away(
    moment: str, settings: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part, name = {"record": (loop, "_collated"), "evaluation": (evaluate, "move_batch")}[moment]
    real = getattr(part, name)

    def removing(*arguments: Any) -> Any:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        return real(*arguments)

    monkeypatch.setattr(part, name, removing)
    done = invoke(*command(replace(settings, baseline=False), tmp_path / "run"))
    assert done.code == 1
    assert "run/metrics.jsonl was removed, moved or replaced" in done.err.splitlines()[-1]
    assert "epoch" not in done.err
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_resumed_with_a_part_of_another(settings: TrainConfig, tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    killed(settings, run, 5)
    killed(replace(settings, weight_decay=0.2), other, 5)
    shutil.copytree(run, tmp_path / "whole")
    for part, says in (
        ("adapter.safetensors", "adapter.safetensors is not the adapter that this run saved at step 4"),
        ("checkpoints", f"the checkpoint in {run} is one of another run"),
    ):
        shutil.rmtree(run)
        shutil.copytree(tmp_path / "whole", run)
        if part == "checkpoints":
            # Both parts, so that they fit one another.
            shutil.rmtree(run / part)
            shutil.copytree(other / part, run / part)
            shutil.copy(other / "adapter.safetensors", run)
        else:
            shutil.copy(other / part, run / part)
        before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        done = invoke("train", "--resume", "--output", run)
        assert done.code == 2
        (line,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
        assert says in line
        assert line.endswith("; restore it, or start anew in another --output")
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_what_resume_says(settings: TrainConfig, tmp_path: Path) -> None:
    run = tmp_path / "run"
    changed = replace(settings, max_steps=3, baseline=False, resume=True)
    # There is no run yet: it starts one.
    killed(changed, run, 2)
    arguments = command(changed, run)
    for changes, flag, values in (
        (("--lr", "0.5"), "--lr", "0.02, not 0.5"),
        (("--no-augment",), "--augment", "True, not False"),
        (("--batch-size", "4"), "--batch-size", "8, not 4"),
    ):
        done = invoke(*arguments, *changes)
        assert done.code == 2
        (line,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
        assert line.startswith(f"error: --resume: {run} was started with {flag} {values}; drop {flag}, or start")
    # The same settings, spelled out again.
    done = invoke(*arguments, "--json")
    assert done.code == 0, done.err
    results = json.loads(done.out)
    before = outputs(run)
    for again in (arguments, ["train", "--resume", "--output", str(run)]):
        done = invoke(*again, "--json")
        assert done.code == 0
        assert done.err == f"{run} is finished; nothing is left to do\n"
        assert json.loads(done.out) == results
    assert outputs(run) == before
    # Not even a finished run takes other settings for its own.
    done = invoke("train", "--resume", "--output", run, "--lr", "0.5")
    assert done.code == 2
    assert done.err.splitlines()[-1].startswith(f"error: --resume: {run} was started with --lr 0.02, not 0.5; drop")
    assert outputs(run) == before


@pytest.mark.parametrize("content", [None, b"junk"])
def test_the_best_adapter_must_be_there_still(content: bytes | None, settings: TrainConfig, tmp_path: Path) -> None:
    killed(replace(settings, max_steps=5, eval_steps=2), tmp_path, 4)
    adapter = tmp_path / "adapter.safetensors"
    adapter.unlink()
    if content is not None:
        adapter.write_bytes(content)
    done = invoke("train", "--resume", "--output", tmp_path)
    assert done.code == 2
    line = done.err.splitlines()[-1]
    assert line.startswith("error: --resume: ")
    assert str(adapter) in line
    assert line.endswith("restore it, or start anew in another --output")


def test_a_run_without_its_metrics_goes_on(settings: TrainConfig, undisturbed: Path, tmp_path: Path) -> None:
    killed(settings, tmp_path, 4)
    (tmp_path / "metrics.jsonl").unlink()
    done = invoke("train", "--resume", "--output", tmp_path)
    assert done.code == 0, done.err
    assert outputs(tmp_path) == outputs(undisturbed)


def test_what_fits_the_machine_may_change(settings: TrainConfig, tmp_path: Path) -> None:
    killed(replace(settings, max_steps=5, baseline=False), tmp_path, 4)
    dry = invoke("train", "--resume", "--output", tmp_path, "--dry-run", "--json")
    assert json.loads(dry.out)["train_examples"] == 58
    done = invoke("train", "--resume", "--output", tmp_path, "--micro-batch-size", "2", "--eval-batch-size", "5")
    assert done.code == 0, done.err
    (line,) = [line for line in done.err.splitlines() if line.startswith("warning: ")]
    assert line == "warning: not the same bytes as without the interruption: --micro-batch-size 3 -> 2"
    saved = (tmp_path / "run.yaml").read_text()
    assert "micro_batch_size: 2\n" in saved
    assert "max_steps: 5\n" in saved


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda rows: [*rows, "A fine film.,good"], "training data"),
        (lambda rows: [row.replace("good", "fine") for row in rows], "list of labels"),
        (lambda rows: [row.replace("good", "bad") if at == 1 else row for at, row in enumerate(rows)], "training data"),
    ],
)
def test_other_data_are_refused(change: Any, what: str, settings: TrainConfig, reviews: Path, tmp_path: Path) -> None:
    file = Path(shutil.copy(reviews, tmp_path))
    run = tmp_path / "run"
    killed(replace(settings, data=str(file), baseline=False), run, 6)
    file.write_text("\n".join(change(file.read_text().splitlines())) + "\n")
    before = outputs(run)
    done = invoke("train", "--resume", "--output", run)
    assert done.code == 2
    (line,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: --resume: the {what} of {run} has changed; restore it")
    assert outputs(run) == before
    shutil.copy(reviews, tmp_path)
    assert invoke("train", "--resume", "--output", run).code == 0


def test_another_base_model_is_refused(settings: TrainConfig, models: Path, tmp_path: Path) -> None:
    model = shutil.copytree(models / "reviews", tmp_path / "model")
    killed(replace(settings, model=str(model), baseline=False), tmp_path / "run", 6)
    weights = load_file(model / "model.safetensors")
    save_file({name: value * 1.5 for name, value in weights.items()}, model / "model.safetensors", {"format": "pt"})
    done = invoke("train", "--resume", "--output", tmp_path / "run")
    assert done.code == 2
    assert "--resume: the base model of" in done.err


def test_the_card_of_a_resumed_run_is_that_of_an_uninterrupted_one(settings: TrainConfig, tmp_path: Path) -> None:
    changed = replace(settings, max_steps=3, baseline=False, separator="\n")
    killed(changed, tmp_path / "a" / "run", 2)
    assert invoke("train", "--resume", "--output", tmp_path / "a" / "run").code == 0
    execute(changed, tmp_path / "b" / "run")
    resumed, whole = ((tmp_path / name / "run" / "README.md").read_text() for name in "ab")
    assert resumed.partition("## Use")[2] == whole.partition("## Use")[2]


def test_one_at_a_time(settings: TrainConfig, tmp_path: Path) -> None:
    killed(settings, tmp_path, 2)
    with hold_directory(RunDirectory(tmp_path)):
        done = invoke("train", "--resume", "--output", tmp_path)
    assert done.code == 2
    assert "another process is training here" in done.err


def test_resume_has_to_be_told_what_run() -> None:
    done = invoke("train", "--resume")
    assert done.code == 2
    assert done.err == "error: --resume needs --output, the directory of the run\n"


def test_what_makes_other_bytes_is_told(settings: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = replace(settings, max_steps=3, baseline=False)
    killed(changed, tmp_path, 2)
    here = resume.environment

    monkeypatch.setattr(loop, "environment", lambda *about: here(*about) | {"torch": "9.9", "threads": "64"})
    done = invoke("train", "--resume", "--output", tmp_path)
    assert done.code == 0
    (line,) = [line for line in done.err.splitlines() if line.startswith("warning: ")]
    assert line.startswith("warning: not the same bytes as without the interruption: torch ")
    assert line.endswith("-> 9.9, threads 1 -> 64")


def test_a_run_that_is_replaced_leaves_nothing_of_itself(
    settings: TrainConfig, undisturbed: Path, tmp_path: Path
) -> None:
    killed(replace(settings, max_steps=20, seed=5), tmp_path, 9)
    execute(settings, tmp_path, overwrite=True)
    assert_same(tmp_path, undisturbed)


# A finished run


@pytest.fixture(scope="module")
def extended(undisturbed: Path, settings: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of 11 steps, extended to 19 steps, which is not a multiple of its 8 an epoch either."""
    directory = tmp_path_factory.mktemp("extended") / "run"
    shutil.copytree(undisturbed, directory)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "draw_losses", lambda *_: b"")
        results = execute(replace(settings, max_steps=19), directory, resume=True)
    assert results["steps"] == 19
    return directory


def test_an_extended_run_is_one_whose_schedule_starts_anew(
    settings: TrainConfig, undisturbed: Path, extended: Path, tmp_path: Path
) -> None:
    execute(replace(settings, max_steps=19, restarts=("11",)), tmp_path / "run")
    assert_same(extended, tmp_path / "run")
    assert losses(extended)[:11] == losses(undisturbed)
    rates = [record["lr"] for record in records(extended) if "lr" in record]
    # Down to nearly nothing, then a warm-up and a cosine of its own over the 8 steps that are added.
    assert rates[10] < 0.1 * max(rates[:11]) < max(rates[11:]) == pytest.approx(max(rates[:11]))


@pytest.mark.parametrize("moment", [11, 12, 17])
def test_an_extension_is_resumed_to_the_byte(
    moment: int, settings: TrainConfig, undisturbed: Path, extended: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "run"
    shutil.copytree(undisturbed, directory)
    killed(replace(settings, max_steps=19, resume=True), directory, moment)
    # The command of the extension, or any command that goes on.
    done = invoke("train", "--resume", "--output", directory, *(("--max-steps", "19") if moment == 12 else ()))
    assert done.code == 0, done.err
    assert "is extended" not in done.err
    assert_same(directory, extended)


def test_an_extension_killed_at_a_file_goes_on(
    settings: TrainConfig, undisturbed: Path, extended: Path, tmp_path: Path
) -> None:
    changed = replace(settings, max_steps=19, resume=True)

    def extend(moment: int, directory: Path) -> int:
        def work() -> None:
            seen = killing_at(moment, directory)
            execute(changed, directory)
            (tmp_path / "moments").write_text(str(seen()))

        shutil.copytree(undisturbed, directory)
        return wait(fork(work))

    assert extend(sys.maxsize, tmp_path / "counted") == 0
    moments = int((tmp_path / "moments").read_text())
    # The first of them are where the settings and the old results are replaced.
    for moment in (*range(0, 24, 3), moments - 4):
        directory = tmp_path / f"run{moment}"
        assert extend(moment, directory) == -signal.SIGKILL
        execute(changed, directory)
        assert_same(directory, extended)


def test_extended_twice_and_by_epochs(settings: TrainConfig, extended: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    shutil.copytree(extended, directory)
    before = outputs(directory)
    done = invoke("train", "--resume", "--output", directory, "--epochs", "3")
    assert done.code == 0, done.err
    assert f"{directory} is extended from 19 to 24 steps; the schedule starts anew at step 19" in done.err
    results = json.loads((directory / "results.json").read_text())
    assert (results["steps"], results["epochs"]) == (24, 3.0)
    assert outputs(directory)["last.safetensors"] != before["last.safetensors"]
    whole = replace(settings, max_steps=None, epochs=3, restarts=("11", "19"))
    execute(whole, tmp_path / "whole")
    assert_same(directory, tmp_path / "whole")
    # Its own settings repeat it, too.
    done = invoke("train", "--config", directory / "run.yaml", "--output", tmp_path / "repeated")
    assert done.code == 0, done.err
    assert_same(tmp_path / "repeated", directory)


def test_an_extended_run_is_not_shortened(extended: Path, tmp_path: Path) -> None:
    shutil.copytree(extended, tmp_path / "run")
    done = invoke("train", "--resume", "--output", tmp_path / "run", "--max-steps", "10")
    assert done.code == 2
    assert done.err.splitlines()[-1] == (
        "error: the run is to end at step 10, but its schedule starts anew at step 11 (--restarts, or --resume of a "
        "run that was extended there); raise --epochs or --max-steps"
    )


def test_a_run_that_stopped_early_is_extended_from_where_it_stopped(settings: TrainConfig, tmp_path: Path) -> None:
    early = replace(settings, lr=1e-30, head_lr=1e-30, eval_steps=2, patience=2, baseline=False, save_dtype="int8")
    assert execute(early, tmp_path / "run")["steps"] == 6
    assert execute(replace(early, max_steps=20), tmp_path / "run", resume=True)["steps"] == 10
    assert "restarts: [6/11]" in (tmp_path / "run" / "run.yaml").read_text()
    done = invoke("train", "--config", tmp_path / "run" / "run.yaml", "--output", tmp_path / "repeated")
    assert done.code == 0, done.err
    assert_same(tmp_path / "run", tmp_path / "repeated")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--max-steps", "10"), "has done 1.375 epochs, 11 steps, and --max-steps 10 is 10 steps; raise it, or start"),
        (("--epochs", "1"), "has done 1.375 epochs, 11 steps, and --epochs 1 is 8 steps; raise it, or start anew"),
        (("--epochs", "4", "--lr", "0.5"), "was started with --lr 0.02, not 0.5; drop --lr, or start anew"),
        (("--budget", "2k"), "was started with --k 16,16, not "),
        (("--metric", "f1"), "was started with --metric accuracy, not f1; drop --metric, or start anew"),
    ],
)
def test_what_a_finished_run_refuses(flags: tuple[str, ...], message: str, undisturbed: Path, tmp_path: Path) -> None:
    shutil.copytree(undisturbed, tmp_path / "run")
    before = {path: path.read_bytes() for path in sorted((tmp_path / "run").rglob("*")) if path.is_file()}
    done = invoke("train", "--resume", "--output", tmp_path / "run", *flags)
    assert done.code == 2
    line = done.err.splitlines()[-1]
    assert line.startswith("error: --resume: ")
    assert message in line
    if flags[0] == "--budget":
        assert "as by --budget; drop --budget, or start anew" in line
    assert {path: path.read_bytes() for path in sorted((tmp_path / "run").rglob("*")) if path.is_file()} == before


def test_a_setting_is_named_by_its_variable(undisturbed: Path) -> None:
    done = invoke("train", "--resume", "--output", undisturbed, environ={"CAPAFT_LR": "0.5"})
    assert done.code == 2
    assert done.err.splitlines()[-1] == (
        f"error: --resume: {undisturbed} was started with CAPAFT_LR 0.02, not 0.5; unset CAPAFT_LR, or start anew in "
        "another --output"
    )


@pytest.mark.parametrize("extends", [False, True])
def test_a_finished_run_has_the_data_and_the_base_that_it_began_with(
    extends: bool, settings: TrainConfig, models: Path, reviews: Path, tmp_path: Path
) -> None:
    shutil.copytree(models / "reviews", tmp_path / "model")
    data = tmp_path / "reviews.csv"
    data.write_bytes(reviews.read_bytes())
    changed = replace(settings, model=str(tmp_path / "model"), data=str(data), max_steps=2, baseline=False)
    execute(changed, tmp_path / "run")
    arguments = ("train", "--resume", "--output", tmp_path / "run", *(("--max-steps", "3") if extends else ()))
    data.write_text(reviews.read_text().replace("superb", "so-so"))
    done = invoke(*arguments)
    assert done.code == 2
    assert "data of" in done.err
    assert "has changed; restore it, or start anew" in done.err
    data.write_bytes(reviews.read_bytes())
    weights = load_file(tmp_path / "model" / "model.safetensors")
    save_file(
        {name: tensor * 1.5 for name, tensor in weights.items()},
        tmp_path / "model" / "model.safetensors",
        {"format": "pt"},
    )
    done = invoke(*arguments)
    assert done.code == 2
    assert "the base model of" in done.err
    assert json.loads((tmp_path / "run" / "results.json").read_text())["steps"] == 2


def test_without_its_checkpoints_a_finished_run_is_neither_compared_nor_extended(
    undisturbed: Path, tmp_path: Path
) -> None:
    shutil.copytree(undisturbed, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    done = invoke("train", "--resume", "--output", tmp_path / "run")
    assert done.code == 0
    assert done.err.splitlines()[0].startswith(f"warning: {tmp_path / 'run'} has no checkpoint")
    done = invoke("train", "--resume", "--output", tmp_path / "run", "--max-steps", "19")
    assert done.code == 2
    assert "has no checkpoint of its last step to go on from; start anew in another --output" in done.err
    assert (tmp_path / "run" / "results.json").exists()


def test_a_run_that_is_not_finished_cannot_be_extended(settings: TrainConfig, tmp_path: Path) -> None:
    killed(replace(settings, baseline=False), tmp_path, 4)
    done = invoke("train", "--resume", "--output", tmp_path, "--max-steps", "19")
    assert done.code == 2
    assert "was started with --max-steps 11, not 19; drop --max-steps" in done.err
