"""`capaft export`: a run in the form of another tool."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_checkpoints
import torch
from command_line import invoke
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import capaft
from capaft.adapter.file.header import TaskRecord
from capaft.exchange import peft_export
from capaft.model.load import locate_model
from capaft.model.origin import Origin
from capaft.training.record.saved_run import open_run


def test_export_loads_in_peft_with_the_same_logits(run: Path, tmp_path: Path) -> None:
    done = invoke("export", run, "--to", "peft", "--output", tmp_path / "peft", "--json")
    assert done.code == 0, done.err
    record = json.loads(done.out)
    assert record["to"] == "peft"
    assert record["peft_type"] == "LORA"
    saved = open_run(str(run))
    source = locate_model(saved.settings.model)
    base = AutoModelForSequenceClassification.from_pretrained(source, num_labels=2)
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = PeftModel.from_pretrained(base, tmp_path / "peft").eval()
    batch = tokenizer(["A superb film.", "A most tedious and lengthy play."], padding=True, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, saved.model(**batch).logits, atol=1e-6, rtol=0)
    card = (tmp_path / "peft" / "README.md").read_text()
    assert 'labels = ["bad", "good"]' in card


def test_the_directory_is_there_whole_or_as_it_was(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "peft"
    assert invoke("export", run, "--output", output).code == 0
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    again = invoke("export", run, "--output", output)
    assert (again.code, "replace it with --overwrite" in again.err) == (2, True)

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(peft_export, "card", stop)
        done = invoke("export", run, "--output", output, "--overwrite")
    assert done.code == 130
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["peft"]
    assert invoke("export", run, "--output", output, "--overwrite").code == 0
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").write_text("mine")
    done = invoke("export", run, "--output", other, "--overwrite")
    assert (done.code, "holds something else" in done.err) == (2, True)


def test_a_form_or_a_rank_that_there_is_not(run: Path, tmp_path: Path) -> None:
    done = invoke("export", run, "--to", "onnx", "--output", tmp_path / "x")
    assert (done.code, "peft" in done.err) == (2, True)
    done = invoke("export", run, "--pad-rank", "0", "--output", tmp_path / "x")
    assert (done.code, "--pad-rank" in done.err) == (2, True)
    assert not (tmp_path / "x").exists()


def test_gguf_of_a_language_model(tmp_path: Path) -> None:
    """A run of another task is refused before anything is written: llama.cpp has no place for its head."""
    checkpoint = tiny_checkpoints.save("llama", tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    tiny.scramble(capaft.attach(model, "nola", k=8, rank=2))
    task = TaskRecord("causal-lm", (), 64, "loss", {})
    capaft.save(model, tmp_path / "adapter.safetensors", base=Origin(str(checkpoint)), task=task)
    output, name = tmp_path / "lora.gguf", tmp_path / "adapter.safetensors"
    done = invoke("export", name, "--model", checkpoint, "--to", "gguf", "--output", output, "--json")
    assert done.code == 0, done.err
    record = json.loads(done.out)
    assert (record["architecture"], record["rank"], record["bytes"]) == ("llama", 2, output.stat().st_size)
    capaft.export_gguf(model, tmp_path / "python.gguf")
    assert output.read_bytes() == (tmp_path / "python.gguf").read_bytes()
    again = invoke("export", name, "--model", checkpoint, "--to", "gguf", "--output", output)
    assert (again.code, "--overwrite" in again.err) == (2, True)


def test_gguf_refuses_a_head_and_the_options_of_peft(run: Path, tmp_path: Path) -> None:
    done = invoke("export", run, "--to", "gguf", "--output", tmp_path / "x.gguf")
    assert (done.code, "no place for classifier.bias and" in done.err, "capaft merge" in done.err) == (2, True, True)
    for option, value, form in (("--pad-rank", "8", "gguf"), ("--dtype", "float16", "peft")):
        done = invoke("export", run, "--to", form, option, value, "--output", tmp_path / "x.gguf")
        assert (done.code, f"{option} belongs to --to" in done.err) == (2, True)
    assert not list(tmp_path.iterdir())
