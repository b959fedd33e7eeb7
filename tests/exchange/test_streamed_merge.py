"""Merging from file to file: the same bits as merging in memory, whatever the checkpoint looks like."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_merge import CASES, Case, load_base, stored, write_adapter, write_base

import capaft
from capaft.config.open_options import MergeOptions
from capaft.inference.merging import Merge


def in_memory(case: Case, base: Path, adapter: Path, output: Path) -> Path:
    """The same merge by transformers and `capaft.merge` alone."""
    model, _ = load_base(case, base, dtype="auto")
    if case.family == "BertModel":
        model.float()
    capaft.load(model, adapter)
    capaft.merge(model)
    model.save_pretrained(output)
    return output


@pytest.mark.parametrize("name", CASES)
def test_the_result_is_that_of_merging_in_memory(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    base = write_base(case, tmp_path / "base")
    adapter = write_adapter(case, base, tmp_path / "adapter.safetensors")
    lines: list[str] = []
    merge = Merge.open([str(adapter)], MergeOptions(model=str(base)), lines.append)
    assert merge.streamed is not None, lines
    assert merge.write("merged", tmp_path / "merged") > 0
    expected = stored(in_memory(case, base, adapter, tmp_path / "expected"))
    merged = stored(tmp_path / "merged")
    assert merged.keys() == expected.keys()
    for tensor_name, tensor in expected.items():
        assert merged[tensor_name].dtype == tensor.dtype, tensor_name
        assert torch.equal(merged[tensor_name], tensor), tensor_name
    before = stored(base)
    assert any(
        not torch.equal(before.get(key, before.get(key.removeprefix("bert."), tensor)), tensor)
        for key, tensor in merged.items()
    )
    assert len(list((tmp_path / "merged").glob("*.safetensors"))) == len(list(base.glob("*.safetensors")))
    # A task says in the configuration which loss it has.
    expected_config, config = (
        json.loads((tmp_path / name / "config.json").read_text()) for name in ("expected", "merged")
    )
    assert config | {"problem_type": expected_config.get("problem_type")} == expected_config | {"problem_type": None}
