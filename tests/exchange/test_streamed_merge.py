"""Merging from file to file: the same bits as merging in memory, whatever the checkpoint looks like."""

from __future__ import annotations

import errno
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_merge import CASES, FP32, Case, load_base, stored, write_adapter, write_base

import capaft
from capaft.config.open_options import MergeOptions
from capaft.exchange import checkpoint_files
from capaft.exchange.probe import NoProbe
from capaft.inference.merging import Merge
from capaft.support.errors import TrainingError, UsageError


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


def test_base_and_result_answer_alike_when_both_run_from_disk(tmp_path: Path) -> None:
    for name in ("llama, tied, in files", "mixtral, experts one by one", "bert, a new head"):
        case = replace(CASES[name], dtype=FP32)
        base = write_base(case, tmp_path / name / "base")
        adapter = write_adapter(case, base, tmp_path / name / "adapter.safetensors")
        merge = Merge.open([str(adapter)], MergeOptions(model=str(base)))
        merge.write("merged", tmp_path / name / "merged")
        assert merge.verify(tmp_path / name / "merged").relative < 1e-4
        assert not [path for path in (tmp_path / name).iterdir() if path.name.startswith(".")]
        merged = stored(tmp_path / name / "merged")
        key = next(key for key in merged if key.endswith(("v_proj.weight", "value.weight")))
        save_file(merged | {key: -merged[key]}, tmp_path / name / "merged" / "model.safetensors", {"format": "pt"})
        (tmp_path / name / "merged" / "model.safetensors.index.json").unlink(missing_ok=True)
        with pytest.raises(TrainingError, match="answers otherwise than the base with the adapter"):
            merge.verify(tmp_path / name / "merged")


@pytest.mark.parametrize("name", ["llama, tied, in files", "gpt2, transposed and fused", "mixtral, experts one by one"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_another_dtype_is_rounded_to_once(name: str, dtype: Any, tmp_path: Path) -> None:
    case = CASES[name]
    base = write_base(case, tmp_path / "base")
    adapter = write_adapter(case, base, tmp_path / "adapter.safetensors")
    merge = Merge.open([str(adapter)], MergeOptions(model=str(base), dtype=dtype, max_shard_size="50KB"))
    merge.write("merged", tmp_path / "merged")
    model, _ = load_base(case, base, dtype=FP32)
    capaft.load(model, adapter)
    capaft.merge(model)
    exact = {key: value.double() for key, value in model.state_dict().items()}
    model.to(getattr(torch, dtype)).save_pretrained(tmp_path / "expected", max_shard_size="50KB")
    expected, merged = stored(tmp_path / "expected"), stored(tmp_path / "merged")
    before = stored(base)
    if exact.keys() >= before.keys() == merged.keys():
        changed = [key for key in before if not torch.equal(exact[key], before[key].double())]
        lost = sum(float((merged[key] - exact[key]).square().sum()) for key in changed)
        update = sum(float((exact[key] - before[key]).square().sum()) for key in changed)
        assert merge.rounding.error == pytest.approx((lost / update) ** 0.5, rel=1e-3)
        assert len(merge.rounding.by_layer) == len(changed)
    assert merged.keys() == expected.keys()
    assert all(torch.equal(merged[key], expected[key]) and merged[key].dtype == expected[key].dtype for key in merged)
    index = json.loads((tmp_path / "merged" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == merged.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in merged.values())
    for file in (tmp_path / "merged").glob("*.safetensors"):
        tensors = load_file(file)
        assert len(tensors) == 1 or sum(tensor.nbytes for tensor in tensors.values()) <= 50_000
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == dtype


def test_a_weighted_sum_of_two_runs_is_the_sum_of_their_updates(tmp_path: Path) -> None:
    """Against the differences of the two merged alone, in float64; rounded once to the checkpoint's dtype."""
    case = CASES["llama, tied, in files"]
    base = write_base(case, tmp_path / "base")
    one = write_adapter(case, base, tmp_path / "one.safetensors")
    two = write_adapter(replace(case, method="capaboost", targets="qv"), base, tmp_path / "two.safetensors", rank=2)
    options = MergeOptions(model=str(base), dtype="float32")
    for name, files, weights in (("a", [one], None), ("b", [two], None), ("sum", [one, two], (0.75, -0.5))):
        merge = Merge.open([str(file) for file in files], replace(options, weights=weights))
        merge.write(name, tmp_path / name)
    first, second, total = (stored(tmp_path / name) for name in ("a", "b", "sum"))
    for key, value in stored(base).items():
        exact = value.double() + 0.75 * (first[key].double() - value) - 0.5 * (second[key].double() - value)
        torch.testing.assert_close(total[key].double(), exact, atol=1e-6, rtol=1e-6)
    with pytest.raises(NoProbe, match="exists only merged"):
        merge.verify(tmp_path / "sum")
    # In memory, with the weights' own dtype.
    Merge.open([str(one), str(two)], replace(options, weights=(0.75, -0.5), dtype=None)).write("low", tmp_path / "low")
    model, _ = load_base(case, base, dtype="auto")
    for name, file in (("one", one), ("two", two)):
        capaft.load(model, file, name=name)
    capaft.merge(model, weights={"one": 0.75, "two": -0.5})
    low = stored(tmp_path / "low")
    assert all(torch.equal(low[key], value) for key, value in model.state_dict().items() if key in low)
    assert {key: value.dtype for key, value in low.items()} == {key: value.dtype for key, value in stored(base).items()}


def test_the_head_of_a_sum_is_that_of_the_first(tmp_path: Path) -> None:
    case = CASES["bert, a new head"]
    base = write_base(case, tmp_path / "base")
    runs = [str(write_adapter(case, base, tmp_path / f"{seed}.safetensors", seed=seed)) for seed in (1, 2)]
    lines: list[str] = []
    merge = Merge.open(runs, MergeOptions(model=str(base)), lines.append)
    merge.write("merged", tmp_path / "merged")
    assert lines[-1] == f"head   that of {runs[0]}; those of the other runs are left out"
    head = capaft.read(runs[0]).tensors["head:classifier.weight"]
    assert torch.equal(stored(tmp_path / "merged")["classifier.weight"], head)


def test_updates_that_do_not_add_up_are_refused(tmp_path: Path) -> None:
    case = CASES["neox, magnitudes"]
    base = write_base(case, tmp_path / "base")
    run = str(write_adapter(case, base, tmp_path / "adapter.safetensors"))
    for runs, weights in (([run, run], None), ([run], (0.5,))):
        with pytest.raises(UsageError, match="dora cannot be merged in a weighted sum"):
            Merge.open(runs, MergeOptions(model=str(base), weights=weights))
    with pytest.raises(UsageError, match="--weights has 1 entries for 2 runs"):
        Merge.open([run, run], MergeOptions(model=str(base), weights=(1.0,)))


def test_what_cannot_be_read_tensor_by_tensor_is_merged_in_memory(tmp_path: Path) -> None:
    case = Case("GPT2LMHeadModel", "lora", "qv")
    base = write_base(case, tmp_path / "base")
    adapter = write_adapter(case, base, tmp_path / "adapter.safetensors")
    weights = stored(base)
    (base / "model.safetensors").unlink()
    torch.save(weights, base / "pytorch_model.bin")
    lines: list[str] = []
    merge = Merge.open([str(adapter)], MergeOptions(model=str(base)), lines.append)
    assert merge.streamed is None
    assert lines[-1] == "the whole base model is read into memory: its weights are not in safetensors files"
    merge.write("merged", tmp_path / "merged")
    assert merge.verify(tmp_path / "merged").relative < 1e-5
    torch.save(weights, base / "pytorch_model.bin")
    expected = stored(in_memory(case, base, adapter, tmp_path / "expected"))
    assert all(torch.equal(tensor, expected[key]) for key, tensor in stored(tmp_path / "merged").items())


def test_a_full_disk_and_a_kill_leave_nothing_or_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["llama, tied, in files"]
    base = write_base(case, tmp_path / "base")
    adapter = write_adapter(case, base, tmp_path / "adapter.safetensors")
    options, output = MergeOptions(model=str(base)), tmp_path / "merged"
    real, written = checkpoint_files._put, 0

    def full(handle: int, data: Any) -> None:
        nonlocal written
        written += 1
        if written > 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle, data)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_files, "_put", full)
        with pytest.raises(TrainingError, match="cannot write merged: No space left on device; nothing was left there"):
            Merge.open([str(adapter)], options).write("merged", output)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter.safetensors", "base"]
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
    else:
        checkpoint_files._put = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        Merge.open([str(adapter)], options).write("merged", output)
    assert not output.exists()
    Merge.open([str(adapter)], options).write("merged", output)
    assert stored(output).keys() == stored(base).keys()


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("gpt2, transposed and fused", "bfloat16"),
        ("gpt2, transposed and fused", "float16"),
        ("mixtral, experts one by one", "float16"),
    ],
)
def test_rounding_passes_and_a_damaged_tensor_does_not(dtype: Any, name: str, tmp_path: Path) -> None:
    case = replace(CASES[name], dtype=FP32)
    base = write_base(case, tmp_path / "base")
    adapter = write_adapter(case, base, tmp_path / "adapter.safetensors")
    merge = Merge.open([str(adapter)], MergeOptions(model=str(base), dtype=dtype))
    merge.write("merged", tmp_path / "merged")
    verdict = merge.verify(tmp_path / "merged")
    assert 1e-5 < verdict.relative <= verdict.allowed < 0.5
    ends = ("v_proj.weight", "c_attn.weight")
    files = {key: path for path in (tmp_path / "merged").glob("*.safetensors") for key in load_file(path)}
    key, file = next((key, path) for key, path in files.items() if key.endswith(ends))
    merged = load_file(file)
    save_file(merged | {key: -merged[key]}, file, {"format": "pt"})
    before = file.read_bytes()
    with pytest.raises(TrainingError, match=f"and {dtype} explains .*whole but wrong: remove it"):
        merge.verify(tmp_path / "merged")
    assert file.read_bytes() == before


def test_a_model_that_rounding_turns_into_another_is_said_to_be_one(tmp_path: Path) -> None:
    case = replace(CASES["llama, tied, in files"], dtype=FP32)
    base = write_base(case, tmp_path / "base")
    adapter = write_adapter(case, base, tmp_path / "adapter.safetensors")
    merge = Merge.open([str(adapter)], MergeOptions(model=str(base), dtype="bfloat16"))
    merge.write("merged", tmp_path / "merged")
    with pytest.raises(NoProbe, match="rounding to bfloat16 alone turns this model's answers into others"):
        merge.verify(tmp_path / "merged")
