"""A task in a file of its own, of which no other file knows, and the options of tasks that have no flag."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from command_line import QUICK, invoke_apart
from datasets import Dataset

import capaft
from capaft.config.choices import TASKS
from capaft.config.train_config import TrainConfig
from capaft.support.errors import UsageError
from capaft.tasks.base.columns import Columns
from capaft.tasks.base.registry import task_class

STARS = '''
"""Star rating: a review to its number of stars."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from capaft.tasks.base.columns import Columns, column_values
from capaft.tasks.base.features import Batch, Features
from capaft.tasks.base.task import Task


@dataclass(frozen=True)
class StarRating(Task):
    name: ClassVar[str] = "star-rating"
    pipeline_tag: ClassVar[str] = "text-classification"
    summary: ClassVar[str] = "A review to its number of stars."
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    metrics: ClassVar[tuple[str, ...]] = ("mae",)
    precedence: ClassVar[int] = 5

    most_stars: int = 5
    start: str = ""

    @classmethod
    def is_certain(cls, rows, evidence):
        return "stars" in rows.column_names

    @classmethod
    def recognise(cls, rows, named):
        return Columns("review", None, "stars")

    def model_config(self):
        return {"num_labels": 1}

    def features(self, base, rows, columns, *, training):
        texts = [self.start + text for text in column_values(rows, columns.text)]
        ids = base.processor(texts, truncation=True, max_length=self.max_length)["input_ids"]
        stars = np.array(column_values(rows, columns.label), dtype=np.float32) / self.most_stars
        return Features({"input_ids": ids}, np.array([len(tokens) for tokens in ids]), stars)

    def collate(self, base, features, indices, *, training):
        ids = [features.inputs["input_ids"][i] for i in indices]
        padded = base.processor.pad({"input_ids": ids}, return_tensors="pt")
        return Batch(dict(padded), {"stars": torch.from_numpy(features.references[list(indices)])}, len(indices))

    def loss(self, outputs, targets, smoothing):
        return (outputs.logits.float().squeeze(-1) - targets["stars"]).square().sum()

    def predict(self, base, model, features, indices, batch, outputs):
        return outputs.logits.float().squeeze(-1).tolist()

    def score(self, features, predictions):
        return {"mae": float(np.abs(np.array(predictions) - features.references).mean() * self.most_stars)}
'''


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of capaft with one more file."""
    path = tmp_path_factory.mktemp("site")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(capaft.__file__).parent, path / "capaft", ignore=ignored)
    (path / "capaft" / "tasks" / "star_rating.py").write_text(STARS)
    rows = [{"review": f"Film {i} is {'good' if i % 2 else 'bad'}.", "stars": i % 2 * 8 + 1} for i in range(48)]
    (path / "reviews.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def invoke(site: Path, *commands: Sequence[Any]) -> list[SimpleNamespace]:
    return invoke_apart(commands, site, {"PYTHONPATH": str(site)})


def test_a_new_task_is_one_new_file(site: Path) -> None:
    data = ("--data", "reviews.jsonl", *QUICK)
    trained, again, scored, merged, other, usage = invoke(
        site,
        ("train", "--json", *data, "--task-option", "most_stars=10", "--output", "first"),
        ("train", "--json", "--config", "first/run.yaml", "--output", "again"),
        ("eval", "first", "--json"),
        ("merge", "first", "--output", "merged"),
        ("train", "--json", *data, "--task", "star-rating", "--output", "other", "--task-option", "start=On film: "),
        ("train", "--task", "star-ratings"),
    )
    assert [done.code for done in (trained, again, scored, merged, other)] == [0] * 5, trained.err + again.err
    results = json.loads(trained.out)
    assert (results["task"], results["metric"]) == ("star-rating", "mae")
    assert json.loads(scored.out)["value"] == results["value"]
    assert yaml.safe_load((site / "first" / "run.yaml").read_text())["task_option"] == ["most_stars=10", "start="]
    files = [(site / name / "adapter.safetensors").read_bytes() for name in ("first", "again")]
    assert files[0] == files[1]
    for card in ("first", "merged"):
        assert "\npipeline_tag: text-classification\n" in (site / card / "README.md").read_text()
    assert json.loads(other.out)["value"] != results["value"]
    assert "did you mean star-rating?" in usage.err


def test_wrong_options_of_a_new_task(site: Path) -> None:
    wrong = {
        "most_star=10": "--task-option most_star: star-rating has no option most_star without a flag; did you mean "
        "most_stars?",
        "most_stars=many": "--task-option most_stars must be a whole number, got 'many'",
        "most_stars": "--task-option most_stars must be name=value",
        "max_length=8": "--task-option max_length: star-rating has no option max_length without a flag",
    }
    flags = ("train", "--data", "reviews.jsonl", "--output", "wrong", "--task-option")
    for message, done in zip(wrong.values(), invoke(site, *((*flags, entry) for entry in wrong)), strict=True):
        assert (done.code, done.out) == (2, "")
        assert done.err.splitlines()[-1] == f"error: {message}"
    assert not (site / "wrong").exists()


@pytest.mark.parametrize("name", TASKS)
def test_every_option_of_capafts_own_tasks_has_a_flag_or_is_inferred(name: str) -> None:
    assert task_class(name).options_without_flag() == ()


def test_an_inferred_option_cannot_be_set() -> None:
    rows = Dataset.from_dict({"text": ["one", "two"]})
    with pytest.raises(UsageError, match=r"^--task-option layout: causal-lm has no option layout without a flag$"):
        task_class("causal-lm").decide(rows, Columns("text"), TrainConfig(task_option=("layout=text",)))


def test_the_hubs_name_is_the_tasks_own_unless_it_says_otherwise() -> None:
    others = {
        "causal-lm": "text-generation",
        "seq2seq": "text2text-generation",
        "masked-lm": "fill-mask",
        "speech-recognition": "automatic-speech-recognition",
        "multiple-choice": "",
    }
    assert {name: task_class(name).pipeline_tag for name in TASKS} == {name: name for name in TASKS} | others
