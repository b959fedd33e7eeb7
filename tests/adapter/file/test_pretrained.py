"""`save_pretrained` of a model with adapters, by its user and by the trainer of transformers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import tiny
import torch
from transformers import BertForSequenceClassification, Trainer, TrainingArguments

import capaft

HEAD = ["classifier.weight", "classifier.bias"]


def adapted() -> Any:
    """A trained adapter called default, active, with five labels, and another one."""
    model = tiny.bert()
    model.config = copy.deepcopy(model.config)
    tiny.scramble(capaft.attach(model, "nola", k=9, rank=2, head=HEAD, labels=5))
    capaft.attach(model, "ia3", name="other")
    return tiny.train(model, 1)


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(directory / "model.safetensors")


@pytest.mark.parametrize("given", [False, True])
def test_the_base_is_written_clean_and_each_adapter_beside_it(given: bool, tmp_path: Path) -> None:
    model, base = adapted(), tiny.bert()
    expected = tiny.logits(model)
    model.save_pretrained(tmp_path / "model", **({"state_dict": model.state_dict()} if given else {}))
    assert torch.equal(tiny.logits(model), expected)
    written = weights(tmp_path / "model")
    assert written.keys() == base.state_dict().keys()
    assert all(torch.equal(written[name], value) for name, value in base.state_dict().items())
    files = sorted(path.name for path in (tmp_path / "model").iterdir())
    assert files == ["adapter-other.safetensors", "adapter.safetensors", "config.json", "model.safetensors"]
    again = BertForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    assert again.num_labels == 3
    capaft.load(again, tmp_path / "model" / "adapter.safetensors")
    assert torch.equal(tiny.logits(again), expected)


def test_merged_and_detached_models_are_written_as_ever(tmp_path: Path) -> None:
    model = adapted()
    capaft.detach(model, "other")
    capaft.merge(model)
    assert "save_pretrained" not in vars(model)
    model.save_pretrained(tmp_path / "merged")
    again = BertForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    assert torch.equal(tiny.logits(again), tiny.logits(model))
    assert again.num_labels == 5


def test_a_copy_writes_itself(tmp_path: Path) -> None:
    model = adapted()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        model.bert.pooler.dense.weight.zero_()
    twin.save_pretrained(tmp_path / "twin")
    assert weights(tmp_path / "twin")["bert.pooler.dense.weight"].abs().sum() > 0


def test_a_model_that_diverged_is_refused_but_its_checkpoint_is_not(tmp_path: Path) -> None:
    model = adapted()
    with torch.no_grad():
        model.classifier.bias.fill_(torch.nan)
    with pytest.raises(capaft.TrainingError, match="not finite"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model" / "model.safetensors").exists()
    with pytest.warns(UserWarning, match="not finite"):
        model.save_pretrained(tmp_path / "checkpoint-3")
    assert (tmp_path / "checkpoint-3" / "model.safetensors").exists()


def test_the_trainer_saves_and_resumes(tmp_path: Path) -> None:
    rows = [{"input_ids": tiny.IDS[index % 2], "labels": index % 5} for index in range(8)]

    def trainer(model: Any) -> Trainer:
        arguments = TrainingArguments(
            str(tmp_path), max_steps=4, save_steps=2, use_cpu=True, report_to=[], disable_tqdm=True, learning_rate=0.05
        )
        return Trainer(model, arguments, train_dataset=rows)

    model = adapted()
    whole = trainer(model)
    whole.train()
    resumed = adapted()
    # Whoever was active when the checkpoint was written.
    capaft.switch(resumed, "other")
    capaft.switch(resumed, "default")
    trainer(resumed).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert torch.equal(tiny.logits(resumed.eval()), tiny.logits(model.eval()))
    assert all(torch.equal(p, q) for p, q in zip(resumed.parameters(), model.parameters(), strict=True))
    fresh = tiny.bert()
    fresh.config = copy.deepcopy(fresh.config)
    capaft.load(fresh, tmp_path / "checkpoint-4" / "adapter.safetensors")
    assert torch.equal(tiny.logits(fresh), tiny.logits(model))
    whole.save_model(str(tmp_path / "saved"))
    assert weights(tmp_path / "saved").keys() == tiny.bert().state_dict().keys()
    assert (tmp_path / "saved" / "adapter.safetensors").exists()
