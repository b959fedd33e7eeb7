"""A configuration that would fill the memory is refused before anything is made of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_job import bert
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification

from capaft.config.parts.model import ModelSettings
from capaft.model.load import load_base_model, load_configuration, load_skeleton
from capaft.support.errors import UsageError


@pytest.mark.parametrize("change", [{"num_labels": 10**12}, {"text_config": {"num_labels": 10**12}}])
def test_a_billion_labels(change: dict[str, Any], tmp_path: Path) -> None:
    model = bert(tmp_path / "model", BertForSequenceClassification)
    file = Path(model) / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    for load in (lambda: load_configuration(ModelSettings(model=str(model))), lambda: load_skeleton(str(model))):
        with pytest.raises(UsageError, match=r"gives num_labels as 1000000000000, more than 1,000,000; get it again"):
            load()


def test_outputs_have_names_whatever_the_configuration_says(tmp_path: Path) -> None:
    model = bert(tmp_path / "model", BertForSequenceClassification)
    file = Path(model) / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"return_dict": False}))
    base = load_base_model(AutoModelForSequenceClassification, ModelSettings(model=str(model)), seed=0)
    assert base.model(input_ids=torch.ones(1, 3, dtype=torch.int64)).logits.shape[0] == 1
