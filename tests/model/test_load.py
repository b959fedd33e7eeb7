from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForSequenceClassification

from capaft.config.parts.model import ModelSettings
from capaft.factors import rng
from capaft.model.demo import MODEL_NAME, demo_model
from capaft.model.load import BaseModel, load_base_model, locate_model
from capaft.support import hub
from capaft.support.errors import UsageError


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A tiny BERT classifier with two labels, as a directory."""
    torch.manual_seed(0)
    config = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    BertForSequenceClassification(config).save_pretrained(tmp_path / "small")
    AutoTokenizer.from_pretrained(demo_model()).save_pretrained(tmp_path / "small")
    return tmp_path / "small"


def load(name: str | None, **options: int) -> BaseModel:
    settings = ModelSettings(model=name)
    return load_base_model(AutoModelForSequenceClassification, settings, **{"seed": 0, "num_labels": 3, **options})


def test_a_new_head_comes_from_the_seed_and_not_from_torch() -> None:
    torch.manual_seed(1)
    first = load(None, seed=5)
    torch.manual_seed(2)
    second = load(None, seed=5)
    weight = first.model.classifier.weight
    assert first.head == ("classifier.weight", "classifier.bias")
    assert first.new_head
    assert torch.equal(weight, second.model.classifier.weight)
    drawn = rng.uniform(rng.fold_in(5, "classifier", "head:weight", "init"), 3 * 384) / np.sqrt(384)
    np.testing.assert_allclose(weight.detach().numpy().ravel(), drawn, rtol=1e-6)
    assert not first.model.classifier.bias.any()
    assert not torch.equal(weight, load(None, seed=6).model.classifier.weight)


def test_a_head_that_the_checkpoint_brings_is_kept(small: Path) -> None:
    before = BertForSequenceClassification.from_pretrained(small).classifier.weight
    kept = load(str(small), num_labels=2)
    assert not kept.new_head
    assert kept.head == ("classifier.weight", "classifier.bias")
    assert torch.equal(kept.model.classifier.weight, before)


def test_a_head_for_other_classes_is_new(small: Path) -> None:
    assert load(str(small), num_labels=5).new_head


def test_the_demo_model_is_also_found_by_its_hub_name() -> None:
    assert locate_model(MODEL_NAME) == locate_model(None)


def test_what_is_no_model_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name, message in (
        ("./nowhere", "no such directory"),
        (str(tmp_path), "no config.json"),
        (str(tmp_path / "file"), "is a file"),
        ("no-such-user/no-such-model", "cannot be reached"),
    ):
        with pytest.raises(UsageError, match=message):
            load(name)


def test_offline_by_environment_or_by_a_dead_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert hub.offline.__wrapped__()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert hub.offline.__wrapped__()
