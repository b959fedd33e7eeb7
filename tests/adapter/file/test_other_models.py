"""A file goes onto the model that it was trained on, and onto copies of it, and onto no other."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import bert, gpt2, scramble
from tiny_files import adapted, envelope, equal, forged, put, refused, trained_values

import capaft
from capaft.adapter.file.adapter_file import AdapterFile, read
from capaft.adapter.file.header import FORMAT
from capaft.adapter.file.save_load import load, save
from capaft.adapter.module import Adapter
from capaft.factors import rng
from capaft.support.errors import AdapterFileError, UsageError


def test_another_architecture_is_refused(path: Path) -> None:
    model = gpt2()
    scramble(capaft.attach(model, "nola", rank=3, k=9))
    save(model, path)
    refused(path, path.read_bytes(), "pass the --model it was trained on")


def test_another_width_is_refused(good: bytes, path: Path) -> None:
    path.write_bytes(good)
    config = copy.deepcopy(bert().config)
    config.hidden_size = 48
    with pytest.raises(
        AdapterFileError, match=r"self.query is 32 x 32, width 3 in the file and 48 x 48, width 3 in the model"
    ):
        load(type(bert())(config), path)


def _other_weights() -> Any:
    model = bert()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    return model


def test_other_base_weights_are_refused_unless_allowed(good: bytes, path: Path) -> None:
    path.write_bytes(good)
    model = _other_weights()
    with pytest.raises(AdapterFileError, match=r"it names tiny.*--allow-base-mismatch"):
        load(model, path)
    assert capaft.adapters(model) == {}
    load(model, path, allow_base_mismatch=True)
    assert equal(trained_values(model), trained_values(adapted()))


@pytest.mark.parametrize("saved", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("loaded", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("method", ["nola", "head"])
def test_copies_in_fewer_bits_are_the_same_model(
    method: str, saved: torch.dtype, loaded: torch.dtype, path: Path
) -> None:
    save(adapted(method, bert().to(saved), head=()), path)
    load(bert().to(loaded), path)


def test_a_quantised_base_gets_a_notice(good: bytes, path: Path) -> None:
    path.write_bytes(forged(good, put("base", "weights", value=None)))
    with pytest.warns(UserWarning, match="weights are quantised"):
        load(_other_weights(), path)


def test_a_newer_format_asks_for_an_upgrade(good: bytes, path: Path) -> None:
    newer = forged(good, put("format", value=FORMAT + 1))
    refused(path, newer, f"format {FORMAT + 1}, newer than this capaft reads; upgrade")
    # Even if nothing else about it is known.
    refused(path, envelope({"__metadata__": {"capaft": '{"format": 9, "new": 1e5}'}}), "upgrade")


def test_other_random_numbers_are_noticed(good: bytes, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = rng.words
    monkeypatch.setattr(rng, "words", lambda key, count, start=0: draw(key, count, start + (key.k0 % 7 == 0)))
    file = _read(good, path)
    with pytest.raises(AdapterFileError, match="random streams come out differently"):
        load(bert(), file, allow_base_mismatch=True)


def _read(data: bytes, path: Path) -> AdapterFile:
    path.write_bytes(data)
    return read(path)


def test_a_name_that_is_taken_is_refused(good: bytes, path: Path) -> None:
    model = bert()
    load(model, _read(good, path))
    with pytest.raises(UsageError, match="already has an adapter named default"):
        load(model, path)
    assert isinstance(load(model, path, name="second"), Adapter)
