"""Settings that have no effect: every setting has a rule or is always of effect, and each rule is right both ways."""

from __future__ import annotations

import json
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import tiny_checkpoints
from command_line import invoke
from tiny_job import bert, config
from transformers import BertForSequenceClassification

from capaft.config.train_config import TASK_OPTIONS, TrainConfig
from capaft.methods.registry import HOSTS
from capaft.methods.stack import NOLA_OPTIONS, known_options
from capaft.training.setup.idle import ALWAYS, RULES, idle_settings, reason_of
from capaft.training.setup.job import Job
from capaft.training.setup.prepare import prepare_job


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert(tmp_path_factory.mktemp("model"), BertForSequenceClassification)


def prepared(settings: TrainConfig) -> Job:
    return prepare_job(settings, lambda line: None)


def test_no_setting_is_forgotten() -> None:
    """A new setting takes a rule, or a place among those that are always of effect."""
    names = {field.name for field in fields(TrainConfig)}
    by_rule = RULES.keys() | TASK_OPTIONS | (known_options() & names)
    assert by_rule | ALWAYS == names
    assert not by_rule & ALWAYS


IDLE: list[tuple[str, Any, dict[str, Any], str]] = [
    # The setting, its value, the run, and the cause; without those other settings of the run it has an effect.
    ("revision", "main", {}, "with a base model that is not from the hub"),
    ("validation_split", 0.3, {"eval_split": "test"}, "with data that have a split for validation"),
    ("head_k", 8, {}, "with --head full"),
    ("density", 0.5, {"method": "capaboost", "masks": "partition"}, "with --masks partition"),
    ("mask_rescale", "variance", {"method": "capaboost", "density": 1.0}, "with masks that keep every entry"),
    ("k", (12,), {"method": "capaboost"}, "with lora+capaboost"),
    ("copies", 3, {}, "with lora+nola"),
    ("target_modules", "qv", {"method": "head"}, "with --method head"),
    ("exclude_modules", "key", {"method": "full"}, "with --method full"),
    ("layers", "0", {"method": "head"}, "with --method head"),
    ("modules_to_save", "pooler", {"method": "full"}, "with --method full"),
    ("lr", 0.1, {"method": "head", "head_lr": 0.1}, "with --method head and --head-lr"),
    ("head_lr", 0.1, {"head": "frozen"}, "with --head frozen"),
    ("head_init", "fitted", {"head": "frozen"}, "with --head frozen"),
    ("head_cache", False, {"head": "frozen"}, ": this run fits no head"),
    ("lora_plus_ratio", 4.0, {"method": "ia3"}, "with ia3, which trains no up factors"),
    ("weight_decay", 0.1, {"method": "bitfit", "head": "frozen"}, "with a run that trains no matrix"),
    ("epochs", 3, {"max_steps": 4}, "with --max-steps"),
    ("eval_epochs", 2, {"eval_steps": 4}, "with --eval-steps"),
    ("patience", 3, {}, "with 2 evaluations"),
    ("timeout", 60, {}, "with a single process"),
    ("min_delta", 0.1, {}, "without --patience"),
    ("label_separator", "|", {"problem": "single"}, "with --problem single"),
    ("stride", 4, {}, "with text-classification"),
    ("packing", False, {}, "with text-classification"),
    ("num_beams", 4, {}, "with text-classification"),
    ("bottleneck", 8, {}, "with lora+nola"),
    ("prefix_length", 8, {"method": "houlsby"}, "with houlsby"),
    ("rslora", True, {"method": "dora"}, "with dora"),
]


@pytest.mark.parametrize(("name", "value", "run", "cause"), IDLE, ids=lambda value: value if type(value) is str else "")
def test_what_has_no_effect_is_named_with_its_cause(
    name: str, value: Any, run: dict[str, Any], cause: str, model: Path, tmp_path: Path
) -> None:
    rows = [{"text": f"{word} film {i}", "label": word} for i in range(8) for word in ("good", "bad")]
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes: dict[str, Any] = {"k": None} if run.get("method", "nola") != "nola" else {}
    if run.get("method") in ("head", "full", "ia3", "bitfit", "houlsby"):
        sizes["rank"] = None
    data = tmp_path if "eval_split" in run else tmp_path / "train.jsonl"
    settings = config(model, data, **{**sizes, **run, name: value})
    (line,) = idle_settings(prepared(settings), settings, {name: "CAPAFT_X"})
    end = "" if cause.startswith(":") else " and is ignored"
    assert line == f"CAPAFT_X has no effect{'' if cause.startswith(':') else ' '}{cause}{end}"
    # A default that nobody set is not named.
    assert list(idle_settings(prepared(settings), settings, {})) == []


def test_what_has_an_effect_is_not_named(model: Path, reviews: Path) -> None:
    settings = config(model, reviews, method="lora+nola+capaboost", max_train_examples=8, eval_steps=1, patience=2)
    settings = replace(settings, min_delta=0.1, validation_split=0.2, head="nola", head_k=8, density=0.4, epochs=8)
    job = prepared(settings)
    named = ["k", "copies", "density", "min_delta", "patience", "validation_split", "head_k", "lora_plus_ratio", "lr"]
    assert [reason_of(name, job, settings) for name in named] == [""] * len(named)


@pytest.mark.parametrize("host", HOSTS)
def test_each_option_of_another_method_is_named(host: str, model: Path, reviews: Path) -> None:
    settings = config(model, reviews, method=host, k=None, rank=None)
    job = prepared(settings)
    names = {option.name for option in HOSTS[host].options()}
    named = {name for name in known_options() & set(vars(settings)) if reason_of(name, job, settings)}
    assert named == (known_options() & set(vars(settings))) - names
    assert named >= NOLA_OPTIONS


@pytest.mark.parametrize(
    ("row", "chats", "idle"),
    [
        ({"text": "a ship of many sails"}, False, ["--chat-template", "--separator", "--num-beams"]),
        ({"prompt": "a ship?", "completion": "yes"}, False, ["--packing", "--chat-template"]),
        ({"prompt": "a ship?", "completion": "yes"}, True, ["--packing", "--separator"]),
        (
            {"messages": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]},
            True,
            ["--packing", "--chat-template", "--separator"],
        ),
    ],
)
def test_options_of_language_models_by_their_data(
    row: dict[str, Any], chats: bool, idle: list[str], tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text((json.dumps(row) + "\n") * 8)
    checkpoint = tiny_checkpoints.save("gpt2", tmp_path / "model", chats=chats)
    options = ("--packing", "--chat-template", "--separator", " ", "--num-beams", "2", "--max-length", "96")
    files = ("--model", checkpoint, "--data", tmp_path / "rows.jsonl")
    done = invoke("train", *files, *options, "--task", "causal-lm", "--dry-run", "--rank", "2", "--k", "8")
    assert done.code == 0, done.err
    assert re.findall(r"warning: (\S+) has no effect with", done.err) == idle


def test_variables_and_lines_of_a_file_are_named_as_the_user_set_them(reviews: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("method: capaboost\nk: 12\nstride: 128\n")
    arguments = ("train", "--data", reviews, "--config", file, "--max-train-examples", "8", "--dry-run")
    done = invoke(*arguments, environ={"CAPAFT_NUM_BEAMS": "1"})
    lines = [line.strip() for line in done.err.splitlines() if "no effect" in line]
    # A default in a file may be spelled out by nobody, one in a variable is somebody's choice.
    assert lines == [
        "warning: CAPAFT_NUM_BEAMS has no effect with text-classification and is ignored",
        f"warning: {file}:2: k has no effect with lora+capaboost and is ignored",
    ]
    done = invoke(*arguments, environ={"CAPAFT_MAX_STEPS": "4", "CAPAFT_EPOCHS": "4"})
    assert done.code == 2
    assert done.err == "error: CAPAFT_MAX_STEPS and CAPAFT_EPOCHS cannot be used together; drop one\n"


def test_copies_that_are_alike_are_told(model: Path, reviews: Path) -> None:
    settings = config(model, reviews, method="capaboost", k=None, density=1.0)
    lines: list[str] = []
    prepare_job(settings, lines.append)
    assert "       warning: --density 1 makes all 2 copies alike: the rank stays" in lines
