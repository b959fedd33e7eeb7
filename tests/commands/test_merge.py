"""`capaft merge`: a plain model with the same outputs."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import invoke

from capaft.commands import merge


def test_merge_is_a_plain_model_with_the_same_logits(run: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from capaft.training.record.saved_run import open_run

    done = invoke("merge", run, "--output", tmp_path / "merged", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out).keys() == {"output", "sites", "seconds"}
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert plain.config.id2label == {0: "bad", 1: "good"}
    assert not [name for name, _ in plain.named_parameters() if "capaft" in name]
    assert (tmp_path / "merged" / "README.md").exists()
    batch = tokenizer(["A superb film.", "A most tedious and lengthy play."], padding=True, return_tensors="pt")
    saved = open_run(str(run))
    with torch.no_grad():
        torch.testing.assert_close(plain(**batch).logits, saved.model(**batch).logits, atol=1e-5, rtol=0)


def test_an_interrupted_merge_leaves_what_was_there(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the new model is written, and while it takes the place of the old one."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    old = tmp_path / "merged"
    old.mkdir()
    (old / "config.json").write_text("{}")
    for name, raising in (("_card", stop), ("_replace", stop)):
        with monkeypatch.context() as patch:
            patch.setattr(merge, name, raising)
            done = invoke("merge", run, "--output", old, "--overwrite")
        assert (done.code, done.err.splitlines()[-1:]) == (130, ["stopped by Ctrl-C"])
        assert [path.name for path in tmp_path.rglob("*")] == ["merged", "config.json"]
    real = merge._replace

    def asked(*paths: Path) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        real(*paths)

    monkeypatch.setattr(merge, "_replace", asked)
    done = invoke("merge", run, "--output", old, "--overwrite")
    assert (done.code, done.err.splitlines()[-1:]) == (130, ["stopped by SIGTERM"])
    assert (old / "model.safetensors").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


def test_a_plain_model_is_merged_the_same_with_dequantise(run: Path, tmp_path: Path) -> None:
    for name, flags in (("plain", ()), ("dequantised", ("--dequantise",))):
        done = invoke("merge", run, "--output", tmp_path / name, *flags)
        assert done.code == 0, done.err
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "dequantised")]
    assert weights[0] == weights[1]
