"""Dtypes of a checkpoint's tensors, from files of every kind, and a model in them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import nn

from capaft.model.origin import Origin
from capaft.model.stored_dtypes import StoredDtypes, stored_dtypes

HALF, FULL = torch.bfloat16, torch.float32


def save(path: Path, dtype: torch.dtype, norms: torch.dtype | None = None, **options: object) -> Path:
    model = tiny.gpt2().to(dtype)
    for name, parameter in model.named_parameters():
        if norms and "ln_" in name:
            parameter.data = parameter.data.to(norms)
    model.save_pretrained(path, **options)
    return path


def read(path: Path) -> StoredDtypes:
    stored = stored_dtypes(Origin(str(path)))
    assert stored is not None
    return stored


@pytest.mark.parametrize("dtype", [HALF, FULL, torch.float16])
def test_one_dtype_in_one_file_or_many(dtype: torch.dtype, tmp_path: Path) -> None:
    whole, shards = read(save(tmp_path / "one", dtype)), read(save(tmp_path / "many", dtype, max_shard_size="20KB"))
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    assert whole == shards
    assert set(whole.by_name.values()) == {dtype}
    assert (whole.usual, whole.base_dtype, whole.config) == (dtype, *[str(dtype).removeprefix("torch.")] * 2)


def test_a_mixed_checkpoint_is_loaded_in_the_dtype_that_holds_all(tmp_path: Path) -> None:
    stored = read(save(tmp_path, HALF, norms=FULL))
    assert (stored.usual, stored.base_dtype) == (HALF, "float32")
    model = tiny.gpt2()
    stored.restore(model)
    assert {"ln_" in name: parameter.dtype for name, parameter in model.named_parameters()} == {True: FULL, False: HALF}
    assert read(save(tmp_path / "other", HALF, norms=torch.float16)).base_dtype == "float32"


def test_a_pickled_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, HALF)
    file = tmp_path / "model.safetensors"
    torch.save(load_file(file), tmp_path / "pytorch_model.bin")
    expected = read(tmp_path)
    file.unlink()
    assert read(tmp_path) == expected


def test_codes_have_no_dtype_to_keep(tmp_path: Path) -> None:
    config = json.loads((save(tmp_path, HALF) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    stored = read(tmp_path)
    assert (stored.usual, stored.base_dtype) == (HALF, None)


def test_files_that_tell_nothing(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert stored_dtypes(Origin(str(tmp_path / "model.gguf"))) is None
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    assert stored_dtypes(Origin(str(tmp_path))) is None


def test_parameters_under_other_names() -> None:
    model = nn.ModuleDict({"joined": nn.Linear(2, 2, bias=False), "gate": nn.Linear(2, 2, bias=False)})
    gate = {"gate.weight": FULL}
    dtypes = []
    # Experts that are stored one by one; and some of them otherwise than others, so that nothing is known.
    for experts in ({"a.weight": HALF, "b.weight": HALF}, {"a.weight": HALF, "b.weight": FULL}, {}):
        model.float()
        StoredDtypes(gate | experts, HALF, False, None).restore(model)
        dtypes.append((model["joined"].weight.dtype, model["gate"].weight.dtype))
    assert dtypes == [(HALF, FULL), (FULL, FULL), (HALF, FULL)]


def test_buffers_that_are_not_stored_stay() -> None:
    model = nn.BatchNorm1d(2)
    model.register_buffer("inverse_frequencies", torch.ones(2))
    stored = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), HALF)
    StoredDtypes(stored, HALF, False, None).restore(model)
    assert (model.running_mean.dtype, model.inverse_frequencies.dtype) == (HALF, FULL)
    assert model.num_batches_tracked.dtype == torch.int64
