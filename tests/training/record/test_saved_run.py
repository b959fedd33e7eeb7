"""Opening what a run has left: a directory, its files, and what can be wrong with them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from capaft.adapter.file.adapter_file import read
from capaft.adapter.file.save_load import save
from capaft.config.open_options import OpenOptions
from capaft.support.errors import AdapterFileError, UsageError
from capaft.training.record.saved_run import open_run, task_of_record

TEXTS = ["A superb film.", "A most tedious and lengthy play."]


def logits(run: str | Path, **options: Any) -> torch.Tensor:
    saved = open_run(str(run), OpenOptions(**options))
    batch = saved.base.processor(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        return saved.model(**batch).logits


def rewritten(run: Path, path: Path, **changes: object) -> Path:
    """The adapter file of a run with another record of its task, and all digests as they should be."""
    saved = open_run(str(run))
    record = None if changes == {"task": None} else dataclasses.replace(saved.file.task, **changes)  # type: ignore
    save(saved.base.model, path, base=saved.file.base, task=record)
    return path


def test_a_directory_and_its_files_are_the_same_adapter(run: Path, tmp_path: Path) -> None:
    expected = logits(run)
    assert torch.equal(logits(run / "adapter.safetensors"), expected)
    # A file alone names its base model.
    alone = shutil.copy(run / "adapter.safetensors", tmp_path / "any.safetensors")
    assert torch.equal(logits(alone), expected)
    saved, bare = open_run(str(run)), open_run(str(alone))
    assert saved.run is not None
    assert saved.config is not None
    assert (bare.run, bare.config) == (None, None)
    assert saved.task == bare.task
    results = json.loads((run / "results.json").read_text())
    assert (saved.task.name, saved.task.metric, list(saved.task.labels)) == (
        results["task"],
        results["metric"],
        results["labels"],
    )


def test_the_model_is_in_evaluation_mode_and_its_head_is_the_trained_one(run: Path) -> None:
    saved = open_run(str(run))
    assert not any(module.training for module in saved.model.modules())
    from safetensors.torch import load_file

    stored = load_file(run / "adapter.safetensors")
    parameters = saved.base.named_parameters()
    for name in saved.base.head:
        assert torch.equal(parameters[name], stored[f"head:{name}"])


def test_another_base_model_can_be_named(run: Path, tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    from capaft.model.demo import demo_model

    copy = tmp_path / "copy"
    AutoModel.from_pretrained(demo_model()).save_pretrained(copy)
    AutoTokenizer.from_pretrained(demo_model()).save_pretrained(copy)
    assert torch.equal(logits(run, model=str(copy)), logits(run))
    with pytest.raises(UsageError, match=r"--model \./nowhere: no such directory"):
        open_run(str(run), OpenOptions(model="./nowhere"))


def test_a_directory_without_an_adapter(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no adapter\.safetensors"):
        open_run(str(tmp_path))
    with pytest.raises(UsageError, match="there is no run or adapter file"):
        open_run(str(tmp_path / "none"))


def test_a_file_without_a_task_or_a_base_model(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"was not trained for a task of this capaft; open it with capaft\.load"):
        open_run(str(rewritten(run, tmp_path / "a.safetensors", task=None)))
    with pytest.raises(UsageError, match="was not trained for a task of this capaft"):
        open_run(str(rewritten(run, tmp_path / "b.safetensors", name="palm-reading")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"options": {"magic": 1}}, "its task has an option magic that this capaft does not know; upgrade capaft"),
        ({"options": {"problem": 3}}, "its task's option problem must be of type str, got 3; get the file again"),
        (
            {"options": {"problem": "none"}},
            "its task is invalid: --problem must be single, multi or regression, got none",
        ),
        ({"options": {"metric": "f1"}}, "its task has an option metric that this capaft does not"),
        ({"max_length": 1}, "its task's option max_length must be at least 2, got 1"),
        ({"metric": "bleu"}, "its task is invalid: --metric must be one of accuracy, f1, matthews"),
        ({"name": "seq2seq", "metric": "", "options": {"num_beams": 0}}, "option num_beams must be at least 1, got 0"),
        ({"name": "seq2seq", "metric": "", "options": {"num_beams": True}}, "num_beams must be of type int, got True"),
        ({"name": "seq2seq", "metric": "", "options": {"source_prefix": None}}, "source_prefix must be of type str"),
    ],
)
def test_a_record_of_a_task_that_cannot_be_is_one_line(
    changes: dict[str, object], message: str, run: Path, tmp_path: Path
) -> None:
    path = rewritten(run, tmp_path / "a.safetensors", **changes)
    with pytest.raises(AdapterFileError) as caught:
        open_run(str(path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_whole_numbers_are_fractions_too(run: Path, tmp_path: Path) -> None:
    changes = {"name": "question-answering", "metric": "", "options": {"no_answer_threshold": 1}}
    file = read(rewritten(run, tmp_path / "a.safetensors", **changes))
    assert task_of_record(file).options()["no_answer_threshold"] == 1
