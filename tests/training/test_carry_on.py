"""`--init-from`: a run that carries another adapter on."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import invoke
from safetensors.torch import load_file
from tiny_job import bert, command, config, execute, fork, outputs, records, wait
from transformers import BertModel

from capaft.config.open_options import EvalOptions
from capaft.config.train_config import TrainConfig
from capaft.support.errors import UsageError
from capaft.training import loop, validation
from capaft.training.record.saved_run import open_run, settings_of_run
from capaft.training.scoring import score_run

WORDS = {"bad": "poor", "good": "great", "odd": "strange"}


@pytest.fixture(autouse=True)
def _no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "draw_losses", lambda *_: b"")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert(tmp_path_factory.mktemp("models") / "bert", BertModel, dropout=0.1)


def data_of(directory: Path, *labels: str) -> Path:
    """A data set of 24 training and 12 validation rows."""
    directory.mkdir()
    for split, count in (("train", 24), ("validation", 12)):
        with (directory / f"{split}.csv").open("w") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            rows = [
                (f"a {WORDS[label]} film {row}", label) for row in range(count) for label in [labels[row % len(labels)]]
            ]
            writer.writerows(rows)
    return directory


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data_of(tmp_path_factory.mktemp("data") / "two", "good", "bad")


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data_of(tmp_path_factory.mktemp("data") / "three", "odd", "good", "bad")


@pytest.fixture(scope="module")
def first(model: Path, two: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose settings are not the defaults."""
    directory = tmp_path_factory.mktemp("runs") / "first"
    settings = config(model, two, method="capaboost", copies=3, seed=7, target_modules="query,key", lr=2e-2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation, "draw_losses", lambda *_: b"")
        execute(settings, directory)
    return directory


def carrying(run: Path, data: Path, **changes: Any) -> TrainConfig:
    small = {"epochs": 1, "batch_size": 8, "checkpoint_seconds": 0.0}
    return TrainConfig(data=str(data), init_from=str(run), **{**small, **changes})


@pytest.mark.parametrize("which", ["two", "three"])
def test_the_score_before_the_first_step_is_that_of_the_other_run(
    which: str, first: Path, two: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    data = request.getfixturevalue(which)
    results = execute(carrying(first, data), tmp_path / "run")
    assert (results["method"], results["seed"]) == ("lora+capaboost", 7)
    assert results["method_settings"]["targets"] == {"modules": "query,key"}
    assert results["init_from"]["run"] == "./first"
    assert results["labels"] == ["bad", "good", "odd"][: {"two": 2, "three": 3}[which]]
    if which == "two":
        scores = score_run(open_run(str(first)), EvalOptions(data=str(two)), say=lambda line: None)
        assert results["baseline"] == scores.value
    card = (tmp_path / "run" / "README.md").read_text()
    assert f"started from | ./first (digest {results['init_from']['digest']})" in card.replace("\\", "")
    assert str(first) not in card + (tmp_path / "run" / "run.yaml").read_text()


def test_the_rows_of_known_labels_are_kept_by_name(first: Path, three: Path, tmp_path: Path) -> None:
    execute(carrying(first, three, lr=1e-12, head_lr=1e-12), tmp_path / "run")
    before, after = load_file(first / "adapter.safetensors"), load_file(tmp_path / "run" / "last.safetensors")
    assert before.keys() == after.keys()
    for name, values in before.items():
        if name.startswith("head:"):
            assert after[name].shape[0] == 3
        assert after[name][: len(values)].allclose(values, atol=1e-9)


def test_a_label_that_no_row_has_stays(first: Path, model: Path, three: Path, two: Path, tmp_path: Path) -> None:
    execute(carrying(first, three), tmp_path / "three")
    assert execute(carrying(tmp_path / "three", two), tmp_path / "back")["labels"] == ["bad", "good", "odd"]


def killed(settings: TrainConfig, directory: Path, step: int) -> None:
    """A run whose process was killed when it was about to take a step, counted from 0."""

    def work() -> None:
        real = loop.collate_share

        def collated(run: Any, indices: Any, at: int) -> Any:
            if at == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(run, indices, at)

        loop.collate_share = collated
        execute(settings, directory)

    assert wait(fork(work)) == -signal.SIGKILL


def test_a_killed_run_goes_on_to_the_same_bytes_without_the_other_one(first: Path, three: Path, tmp_path: Path) -> None:
    other = shutil.copytree(first, tmp_path / "other")
    settings = carrying(other, three)
    execute(settings, tmp_path / "whole")
    killed(settings, tmp_path / "killed", 2)
    shutil.rmtree(other)
    done = invoke("train", "--resume", "--output", tmp_path / "killed")
    assert done.code == 0, done.err
    assert outputs(tmp_path / "killed") == outputs(tmp_path / "whole")
    assert len(outputs(tmp_path / "whole")) == 3
    # The whole command may be repeated.
    done = invoke(*command(settings, tmp_path / "killed"), "--resume")
    assert done.code == 0
    assert "nothing is left to do" in done.err


def test_a_run_is_repeated_from_its_own_copy(first: Path, three: Path, two: Path, tmp_path: Path) -> None:
    other = shutil.copytree(first, tmp_path / "other")
    execute(carrying(other, three), tmp_path / "run")
    # The other run has trained on since.
    shutil.copy(tmp_path / "run" / "adapter.safetensors", other / "adapter.safetensors")
    done = invoke("train", "--config", tmp_path / "run" / "run.yaml", "--output", tmp_path / "again")
    assert done.code == 0, done.err
    assert outputs(tmp_path / "again") == outputs(tmp_path / "run")
    origins = [json.loads((tmp_path / name / "results.json").read_text())["init_from"] for name in ("run", "again")]
    assert origins[0] == origins[1]
    done = invoke("train", "--resume", "--output", tmp_path / "run", "--init-from", other)
    assert done.code == 2
    assert "was started from another adapter than --init-from" in done.err


def test_resuming_what_did_not_start_from_another(first: Path, two: Path, model: Path, tmp_path: Path) -> None:
    execute(carrying(first, two), tmp_path / "run")
    (tmp_path / "run" / "start.safetensors").unlink()
    done = invoke("train", "--resume", "--output", tmp_path / "run")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "start.safetensors is missing; restore it" in done.err
    done = invoke("train", "--resume", "--output", first, "--init-from", tmp_path / "run")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "was started without --init-from; drop it" in done.err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 4}, "it was trained with --rank 2, not 4; drop --rank"),
        ({"method": "vera"}, "it was trained with --method lora.capaboost, not vera; drop --method"),
        ({"copies": 2}, None),
        ({"copies": 4}, "--copies 3, not 4"),
        ({"density": 0.25}, "--density 0.5, not 0.25"),
        ({"seed": 3}, "--seed 7, not 3"),
        ({"head": "frozen"}, "--head full, not frozen"),
        ({"budget": 5000}, "--budget and --init-from cannot be used together"),
        ({"target_modules": "value"}, "on other layers than this run adapts: .*; leave --target-modules"),
        ({"target_modules": "key,query"}, None),
        ({"init_from": "runs/nothing"}, "there is no run or adapter file runs/nothing"),
    ],
    ids=str,
)
def test_settings_that_are_not_the_adapters(
    changes: dict[str, Any], message: str | None, first: Path, two: Path, tmp_path: Path
) -> None:
    settings = replace(carrying(first, two), **changes)
    if message is None:
        execute(settings, tmp_path / "run")
        return
    with pytest.raises(UsageError, match=message):
        execute(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_typed_default_is_a_wish_as_any_other(first: Path, two: Path, tmp_path: Path) -> None:
    done = invoke("train", "--data", two, "--init-from", first, "--seed", 0, "--output", tmp_path / "run")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "it was trained with --seed 7, not 0; drop --seed" in done.err


def test_the_plan_of_a_run_says_what_it_starts_from(first: Path, three: Path, tmp_path: Path) -> None:
    done = invoke("train", "--data", three, "--init-from", first, "--dry-run", "--print-config")
    assert f"start  from the trained parameters of {first}\n" in done.err
    assert "and the outputs of 2 labels; new: odd\n" in done.err
    assert "method: lora+capaboost\n" in done.out
    assert "copies: 3\n" in done.out


def test_a_new_head_is_fitted_on_what_the_adapter_makes_of_the_texts(first: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(WORDS, "yes", "great")
        patch.setitem(WORDS, "no", "poor")
        data = data_of(tmp_path / "answers", "yes", "no")
    done = invoke("train", "--data", data, "--init-from", first, "--epochs", 1, "--output", tmp_path / "run")
    assert done.code == 0, done.err
    assert "but its head, which starts anew: none of its labels is among the data's" in done.err
    assert f"examples' features of {first}, as start and baseline" in done.err
    assert json.loads((tmp_path / "run" / "results.json").read_text())["labels"] == ["no", "yes"]
    assert records(tmp_path / "run")


def test_the_columns_are_those_of_the_other_run_where_the_rows_have_them(
    model: Path, two: Path, tmp_path: Path
) -> None:
    def wide(directory: Path) -> Path:
        """Rows with another text, which would be taken for the input."""
        directory.mkdir()
        for split in ("train", "validation"):
            with (two / f"{split}.csv").open() as source, (directory / f"{split}.csv").open("w") as target:
                read = enumerate(csv.DictReader(source))
                rows = [{"text": f"no {n}", "remark": row["text"], "label": row["label"]} for n, row in read]
                writer = csv.DictWriter(target, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        return directory

    data = wide(tmp_path / "wide")
    execute(config(model, data, text_column="remark", epochs=1), tmp_path / "first")
    execute(carrying(tmp_path / "first", data), tmp_path / "second")
    execute(carrying(tmp_path / "first", two), tmp_path / "third")
    columns = [settings_of_run(tmp_path / run / "run.yaml").text_column for run in ("second", "third")]
    assert columns == ["remark", "text"]


def test_an_adapter_of_peft_is_carried_on(first: Path, model: Path, two: Path, tmp_path: Path) -> None:
    done = invoke("export", first, "--to", "peft", "--output", tmp_path / "peft", "--model", model)
    assert done.code == 0, done.err
    results = execute(carrying(tmp_path / "peft", two, model=str(model)), tmp_path / "run")
    # Three copies of rank 2, one beside the other.
    assert (results["method"], results["method_settings"]["rank"]) == ("lora", 6)
    scores = score_run(open_run(str(first)), EvalOptions(data=str(two)), say=lambda line: None)
    assert results["baseline"] == scores.value
    done = invoke("train", "--resume", "--output", tmp_path / "run")
    assert "nothing is left to do" in done.err
