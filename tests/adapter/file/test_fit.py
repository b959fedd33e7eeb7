"""Models that an adapter file does not fit, and arguments that are no models, files or names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import build
from tiny_files import forged
from transformers import BertConfig, BertForSequenceClassification

import capaft
from capaft.adapter.file.adapter_file import read
from capaft.adapter.file.header import TaskRecord
from capaft.support.errors import AdapterFileError, UsageError

HEAD = ("classifier.weight", "classifier.bias")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file without a head or labels."""
    model = _labelled(2)
    capaft.attach(model, "nola", k=9, rank=3)
    capaft.save(model, tmp_path / "file")
    return tmp_path / "file"


def _six_labels(path: Path, **settings: Any) -> None:
    """A file of six labels, on a model whose configuration had them too."""
    model = _labelled(6)
    capaft.attach(model, "nola", k=9, rank=3, **settings)
    task = TaskRecord("text-classification", tuple("abcdef"), 16, "accuracy", {})
    capaft.save(model, path, task=task)


def _labelled(labels: int) -> Any:
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return build(BertForSequenceClassification, BertConfig(vocab_size=30, num_labels=labels, **shape))


@pytest.mark.parametrize("settings", [{}, {"head": HEAD, "head_mode": "frozen"}])
def test_a_model_of_another_number_of_labels(settings: dict[str, Any], tmp_path: Path) -> None:
    _six_labels(tmp_path / "six", **settings)
    model = _labelled(2)
    with pytest.raises(AdapterFileError, match="the file has 6 labels, the model 2; load the model with num_labels=6"):
        capaft.load(model, tmp_path / "six")
    assert capaft.adapters(model) == {}
    assert capaft.load(_labelled(6), tmp_path / "six").enabled


@pytest.mark.parametrize("labels", [["a"], [str(n) for n in range(50)]])
def test_labels_that_are_not_those_of_the_stored_head(labels: list[str], tmp_path: Path) -> None:
    _six_labels(tmp_path / "six", head=HEAD)

    def renamed(header: dict[str, Any], _: Any) -> None:
        header["task"]["labels"] = labels

    (tmp_path / "other").write_bytes(forged((tmp_path / "six").read_bytes(), renamed))
    with pytest.raises(AdapterFileError, match=rf"the file has {len(labels)} labels?, the model 6"):
        capaft.load(_labelled(6), tmp_path / "other")


def test_a_head_that_is_not_what_its_configuration_says(tmp_path: Path) -> None:
    _six_labels(tmp_path / "six", head=HEAD)
    model = _labelled(2)
    model.classifier = torch.nn.Linear(16, 3)
    with pytest.raises(AdapterFileError, match="the file has 6 labels, the model 2"):
        capaft.load(model, tmp_path / "six")


@pytest.mark.parametrize("value", [None, 3, [], b"x"])
def test_arguments_of_the_wrong_type_are_one_line(value: Any, path: Path) -> None:
    for call in (
        lambda: read(value),
        lambda: capaft.load(value, path),
        lambda: capaft.load(_labelled(2), value),
        lambda: capaft.save(value, path),
        lambda: capaft.detach(value),
        lambda: capaft.adapters(value),
        lambda: capaft.merge(value),
        lambda: capaft.Stack.parse(value),
    ):
        with pytest.raises(UsageError, match=r"must be (a torch module|a path|a method stack)"):
            call()


def test_a_rename_that_matches_nothing_is_refused(path: Path) -> None:
    with pytest.raises(UsageError, match=r"^rename x=quary: .* has no module quary; did you mean query"):
        capaft.load(_labelled(2), path, rename={"x": "quary"})
