"""`capaft merge`: a plain model with the same outputs."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import torch
from command_line import invoke


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


def test_a_plain_model_is_merged_the_same_with_dequantise(run: Path, tmp_path: Path) -> None:
    for name, flags in (("plain", ()), ("dequantised", ("--dequantise",))):
        done = invoke("merge", run, "--output", tmp_path / name, *flags)
        assert done.code == 0, done.err
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "dequantised")]
    assert weights[0] == weights[1]


def test_the_merged_files_have_the_permissions_of_new_ones(run: Path, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        assert invoke("merge", run, "--output", tmp_path / "merged").code == 0
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "merged").iterdir()} == {0o640}
    assert stat.S_IMODE((tmp_path / "merged").stat().st_mode) == 0o750
