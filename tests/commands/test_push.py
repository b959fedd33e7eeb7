"""Runs on the hub: pushed by the real client to a hub on this machine, and read back by their ids."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command_line import invoke, write_reviews
from tiny_checkpoints import save
from tiny_hub import MAIN, reaching
from tiny_job import bert
from transformers import BertModel

import capaft

SHARED = ["README.md", "adapter.safetensors", "loss.png", "results.json", "run.yaml"]
QUICK = "--epochs 1 --batch-size 8 --max-length 16 --no-baseline"
TRAIN = (
    f"train --model user/base --data reviews.csv {QUICK} --k 16 --rank 2 --output run --json --push user/new --private"
)
WRITER = f"train --model user/gpt --data pairs.jsonl {QUICK} --method lora --output writer --push user/writer"
EXPORT = "export run --to peft --output peft"
PUSH = "push run user/name --json"
BRANCH = "push run/adapter.safetensors user/name@v2 --commit-message Files"
EVAL = "eval user/new --json"
INFO = "info user/name@v2 --json"
PEFT = "info user/peft --json"
MERGE = "merge user/new@main --output merged"
BY_ID = {
    "predict": "predict user/new --text good --top 2",
    "generate": "generate user/writer hi --max-new-tokens 2 --json",
    "inspect-rank": "inspect-rank user/name@v2 --json",
    "export": "export user/new --to peft --output exported",
    "average": "average user/new user/name --output averaged.safetensors",
    "merge of two": "merge user/new user/name --weights 0.7,0.3 --output both",
    "init-from": f"train --init-from user/new --data reviews.csv {QUICK} --output carried",
    "bank add": "bank add bank user/new",
    "import": "import user/peft --output imported.safetensors --labels bad,good",
    "predict by PEFT": "predict user/peft --text good --labels bad,good",
    "eval by PEFT": "eval user/peft --data reviews.csv --labels bad,good",
    "init-from PEFT": f"train --init-from user/peft --data reviews.csv {QUICK} --output taken",
}
WRONG = {
    "train --push other/name": (2, "other/name cannot be pushed to: your token has no permission for it"),
    "push run other/name": (2, "other/name cannot be pushed to: your token has no permission for it"),
    "push linked user/linked": (2, "README.md is a link or no file, and is not pushed"),
    "push damaged user/damaged": (2, "damaged"),
    "push run/nothing user/name": (2, "there is no run or adapter file run/nothing"),
    "eval user/nothing": (2, "user/nothing cannot be read from the hub: there is no such repository"),
    "eval user/name@v9": (2, "user/name has no revision v9"),
    "eval other/private": (2, "it is private and not yours"),
    "eval user/model": (2, "user/model holds no adapter: neither adapter.safetensors nor adapter_model.safetensors"),
    "eval user/pickled": (2, "user/pickled holds adapter_model.bin and no adapter_model.safetensors: it is pickled"),
    "eval user/large": (2, "user/large has a run.yaml of 5,000,000 bytes, and at most 4,194,304 are downloaded"),
}


def _copy_runs(place: Path) -> None:
    """Make a run with a link and a damaged one, and on the hub a PEFT adapter and what cannot be read."""
    models = place / "hub" / "models"
    assert {"local.json", "checkpoints"} <= set(os.listdir(place / "run"))
    for name in ("linked", "damaged"):
        shutil.copytree(place / "run", place / name)
    (place / "linked" / "README.md").unlink()
    (place / "linked" / "README.md").symlink_to("/etc/hostname")
    (place / "damaged" / "adapter.safetensors").write_bytes(b"nothing")
    shutil.copytree(place / "peft", models / "user" / "peft" / MAIN)
    (models / "user" / "peft" / MAIN / "training_args.bin").write_bytes(b"pickled")
    shutil.copytree(place / "run", models / "user" / "large" / MAIN)
    (models / "user" / "large" / MAIN / "run.yaml").write_text("#" * 5_000_000)
    for name, file in (
        ("other/private", "run.yaml"),
        ("user/model", "config.json"),
        ("user/pickled", "adapter_model.bin"),
    ):
        (models / name / MAIN).mkdir(parents=True)
        (models / name / MAIN / file).write_text("{}")
    (models / "other" / "private" / "private.txt").touch()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with data, and a hub with base models."""
    place = tmp_path_factory.mktemp("work")
    write_reviews(place / "reviews.csv")
    (place / "pairs.jsonl").write_text(4 * (json.dumps({"prompt": "hi", "completion": "a"}) + "\n"))
    bert(place / "hub" / "models" / "user" / "base" / MAIN, BertModel)
    save("gpt2", place / "hub" / "models" / "user" / "gpt" / MAIN)
    return place


@pytest.fixture(scope="module")
def online(place: Path) -> dict[str, SimpleNamespace]:
    """What came of each command, and of a push from Python."""
    with reaching(place / "hub", place / "cache"), pytest.MonkeyPatch.context() as here:
        here.chdir(place)
        done = {command: invoke(*command.split()) for command in (TRAIN, WRITER, EXPORT)}
        assert not [result.err for result in done.values() if result.code]
        _copy_runs(place)
        others = (PUSH, BRANCH, EVAL, INFO, PEFT, MERGE, *BY_ID.values(), *WRONG)
        done |= {command: invoke(*command.split()) for command in others}
        pushed = capaft.push(place / "run", "user/python", private=True, commit_message="From Python")
        return {**done, "python": SimpleNamespace(pushed=pushed)}


def _log(place: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (place / "hub" / "models" / name / "log.jsonl").read_text().splitlines()]


def test_one_commit_has_what_others_need_and_nothing_else(online: dict[str, SimpleNamespace], place: Path) -> None:
    done = online[PUSH]
    assert done.code == 0, done.err
    record = json.loads(done.out)
    assert (record["repository"], record["files"]) == ("user/name", SHARED)
    assert record["url"].endswith(f"/user/name/commit/{record['commit']}")
    pushed = place / "hub" / "models" / "user" / "name" / MAIN
    assert sorted(os.listdir(pushed)) == SHARED
    assert all((pushed / file).read_bytes() == (place / "run" / file).read_bytes() for file in SHARED)
    assert not [file for file in pushed.iterdir() if str(place).encode() in file.read_bytes()]
    assert _log(place, "user/name")[0]["summary"] == ("Upload a lora+nola adapter for user/base")


def test_a_run_is_pushed_when_it_is_complete(online: dict[str, SimpleNamespace], place: Path) -> None:
    done = online[TRAIN]
    assert done.code == 0, done.err
    assert json.loads(done.out)["output"] == "run"
    assert "pushed README.md, adapter.safetensors, " in done.err
    assert "push" not in (place / "run" / "run.yaml").read_text()
    assert len(_log(place, "user/new")) == 1
    assert (place / "hub" / "models" / "user" / "new" / "private.txt").exists()


def test_a_branch_and_a_message(online: dict[str, SimpleNamespace], place: Path) -> None:
    assert online[BRANCH].code == 0, online[BRANCH].err
    record = _log(place, "user/name")[1]
    assert (record["summary"], sorted(record["files"])) == ("Files", SHARED)


def test_ids_of_the_hub_are_runs(online: dict[str, SimpleNamespace], place: Path) -> None:
    assert online[EVAL].code == 0, online[EVAL].err
    assert (
        json.loads(online[EVAL].out)["examples"]
        == json.loads((place / "run/results.json").read_text())["validation_examples"]
    )
    assert online[MERGE].code == 0, online[MERGE].err
    assert (place / "merged" / "model.safetensors").exists()
    cached = [path.name for path in (place / "cache" / "models--user--new").rglob("*.*")]
    assert "results.json" not in cached
    assert "adapter.safetensors" in cached


def test_a_peft_adapter_on_the_hub_is_a_run(online: dict[str, SimpleNamespace], place: Path) -> None:
    assert online[PEFT].code == 0, online[PEFT].err
    record = json.loads(online[PEFT].out)
    assert (record["format"], record["rank"]) == ("peft", 2)
    assert not list((place / "cache").rglob("training_args.bin"))


@pytest.mark.parametrize("verb", BY_ID)
def test_every_verb_takes_ids(verb: str, online: dict[str, SimpleNamespace]) -> None:
    done = online[BY_ID[verb]]
    assert done.code == 0, done.err
    assert "Traceback" not in done.err


def test_what_verbs_leave_of_an_id_has_its_name(online: dict[str, SimpleNamespace], place: Path) -> None:
    assert (place / "bank" / "new.safetensors").read_bytes() == (place / "run" / "adapter.safetensors").read_bytes()
    assert (
        json.loads((place / "exported" / "adapter_config.json").read_text())["base_model_name_or_path"] == "user/base"
    )
    for output, name in (("carried", "user/new"), ("taken", "user/peft")):
        assert json.loads((place / output / "results.json").read_text())["init_from"]["run"] == name
        assert f"init_from: {name}" in (place / output / "run.yaml").read_text()


def test_a_run_is_pushed_from_python(online: dict[str, Any], place: Path) -> None:
    pushed = online["python"].pushed
    assert (pushed.repository, list(pushed.files), pushed.bytes) == (
        "user/python",
        SHARED,
        sum((place / "run" / file).stat().st_size for file in SHARED),
    )
    assert _log(place, "user/python")[0]["summary"] == "From Python"
    assert (place / "hub" / "models" / "user" / "python" / "private.txt").exists()
    with pytest.raises(capaft.UsageError, match="repository user is no name of a repository on the hub"):
        capaft.push(place / "run", "user")


def test_what_is_cached_is_read_without_a_network(
    online: dict[str, SimpleNamespace], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    from capaft.exchange.hub_download import fetch_adapter

    fetch_adapter.cache_clear()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(place / "cache"))
    for command in (INFO, PEFT):
        done = invoke(*command.split())
        assert done.code == 0, done.err
        assert json.loads(done.out)["bytes"] == json.loads(online[command].out)["bytes"]
    missing = invoke("info", "user/other")
    assert missing.code == 2
    assert (
        "there is no run or adapter file user/other, and the hub, which may have it, cannot be reached" in missing.err
    )
    pushed = invoke("push", place / "run", "user/name")
    assert (pushed.code, "HF_HUB_OFFLINE is set" in pushed.err) == (2, True)
    fetch_adapter.cache_clear()


@pytest.mark.parametrize("command", WRONG)
def test_what_the_hub_does_not_give_is_one_line(command: str, online: dict[str, SimpleNamespace]) -> None:
    code, message = WRONG[command]
    done = online[command]
    assert (done.code, done.out) == (code, "")
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.err
    assert message in errors[0]
    assert "hf_user" not in done.err


def test_names_that_are_none_are_refused_before_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("user", "a/b/c", "../x", "user/name@", "-a/b", "user/na--me", "u\x1b/x", "user/" + "n" * 97):
        done = invoke("train", "--push", name, "--dry-run")
        assert (done.code, "is no name of a repository on the hub; give USER/NAME" in done.err) == (2, True), name
        assert "\x1b" not in done.err
    done = invoke("train", "--private", "--dry-run")
    assert (done.code, "--private is for the repository of --push" in done.err) == (2, True)


def test_who_is_not_logged_in_is_told_before_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    from capaft.support import hub

    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: False)
    monkeypatch.setattr(hub, "offline", lambda: False)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    done = invoke("train", "--push", "user/name")
    assert (done.code, done.err.strip()) == (
        2,
        "error: --push user/name: you are not logged in to the hub; log in with `hf auth login`, or set HF_TOKEN",
    )
    monkeypatch.setattr(hub, "offline", lambda: True)
    assert "the hub cannot be reached; push it when there is a network" in invoke("push", "x", "user/name").err


def test_a_failed_push_leaves_the_run_and_says_how_to_go_on(
    reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from capaft.exchange import hub_upload
    from capaft.exchange.hub_names import HubName
    from capaft.support.errors import TrainingError
    from capaft.training.record import push

    def fail(*_: object, **__: object) -> None:
        raise TrainingError("user/name cannot be pushed to: the hub answered 500; try again later")

    monkeypatch.setattr(hub_upload, "check_pushable", lambda *_: HubName("user/name"))
    monkeypatch.setattr(hub_upload, "check_permitted", lambda *_: None)
    monkeypatch.setattr(push, "push_files", fail)
    base, output = bert(tmp_path / "base", BertModel), tmp_path / "run"
    quick = ("--epochs", "1", "--batch-size", "8", "--k", "16", "--rank", "2", "--no-baseline")
    done = invoke("train", "--model", base, "--data", reviews, "--output", output, *quick, "--push", "user/name")
    assert done.code == 1
    assert "error: the run is complete, but user/name cannot be pushed to: the hub answered 500; " in done.err
    assert f"then push it with: capaft push {output} user/name" in done.err
    assert (output / "results.json").exists()
    assert done.out


def test_a_directory_of_that_name_wins(
    online: dict[str, SimpleNamespace], place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from capaft.training.record import found_run

    def fetch(name: object) -> None:
        raise AssertionError(name)

    monkeypatch.setattr(found_run, "fetch_adapter", fetch)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user").mkdir()
    (tmp_path / "user" / "name").symlink_to(place / "run")
    assert invoke("info", "user/name").code == 0
    # A misspelt name in a directory that is there is not asked of the hub.
    assert "there is no run or adapter file user/nam;" in invoke("info", "user/nam").err
