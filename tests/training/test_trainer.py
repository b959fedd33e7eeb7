"""A run as a value: its adapter comes later, and its lines reach people as they are."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from tiny_job import bert, config, trainer
from transformers import BertForSequenceClassification

from capaft.training.trainer import Trainer


@pytest.fixture(scope="module")
def attached(tmp_path_factory: pytest.TempPathFactory, reviews: Path) -> Trainer:
    model = bert(tmp_path_factory.mktemp("model"), BertForSequenceClassification)
    return trainer(config(model, reviews), Path("/nowhere"))


def test_the_trainable_parameters_are_those_of_the_attached_adapter(attached: Trainer) -> None:
    assert attached.adapter is not None
    assert attached.model is attached.job.base.model
    before = replace(attached, adapter=None)
    with pytest.raises(AssertionError, match="attached before training"):
        _ = before.trained
    after = replace(before, adapter=attached.adapter)
    assert after == attached
    required = {id(parameter) for parameter in attached.model.parameters() if parameter.requires_grad}
    assert {id(parameter) for parameter in after.trained.values()} == required
    job = attached.job
    assert sum(p.numel() for p in after.trained.values()) == job.adapter_parameters + job.head_parameters


def test_a_line_is_printed_as_it_is(attached: Trainer) -> None:
    stream = io.StringIO()
    line = "data   [bold]reviews[/bold].csv: " + "58 examples " * 20
    replace(attached, console=Console(file=stream, width=40)).say(line)
    assert stream.getvalue() == line + "\n"
