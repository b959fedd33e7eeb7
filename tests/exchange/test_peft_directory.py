"""Directories that a stranger may have made: one line, and no memory for what they claim."""

from __future__ import annotations

import json
import pickle
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("peft")

from tiny_peft import TEXT, edit_config, edit_tensors, llama, save_peft

import capaft
from capaft.exchange import peft_config

WEIGHTS = "adapter_model.safetensors"
SETTINGS = "adapter_config.json"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    save_peft(llama(), tmp_path, TEXT, task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"])
    return tmp_path


def _settings(**entries: Any) -> Callable[[Path], None]:
    return lambda directory: edit_config(directory, **entries)


def _pickled(directory: Path) -> None:
    (directory / WEIGHTS).unlink()
    (directory / "adapter_model.bin").write_bytes(pickle.dumps({"a": 1}))


def _huge(directory: Path) -> None:
    """A tensor of a terabyte in a file of a few bytes."""
    entry = {"dtype": "F32", "shape": [2**38], "data_offsets": [0, 2**40]}
    text = json.dumps({"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": entry}).encode()
    (directory / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text)


def _truncated(directory: Path) -> None:
    content = (directory / WEIGHTS).read_bytes()
    (directory / WEIGHTS).write_bytes(content[:-100])


def _other(ending: str, change: Callable[[torch.Tensor], torch.Tensor] | None) -> Callable[[Path], None]:
    return lambda directory: edit_tensors(directory, ending, change)


DAMAGED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "pickled": (_pickled, "pickled, and unpickling runs whatever code is in it; load it in PEFT"),
    "no tensors": (lambda d: (d / WEIGHTS).unlink(), f"holds {SETTINGS} and no {WEIGHTS}"),
    "truncated": (_truncated, "truncated|do not lie where"),
    "a terabyte": (_huge, "do not lie where its header says"),
    "not JSON": (lambda d: (d / SETTINGS).write_text("{"), "it is not JSON"),
    "deep JSON": (lambda d: (d / SETTINGS).write_text("[" * 200_000), "it is not JSON"),
    "a list": (lambda d: (d / SETTINGS).write_text("[]"), "it is not a JSON object"),
    "5 MB of settings": (lambda d: (d / SETTINGS).write_text(" " * 5_000_000), "at most 4,194,304 are read"),
    "another method": (_settings(peft_type="IA3"), "its method is IA3, and only PEFT's LORA"),
    "no method": (_settings(peft_type=None), "its method is None"),
    "a rank of text": (_settings(r="4"), "r is '4'"),
    "a rank beyond floats": (_settings(r=10**400), "r is 1000000"),
    "a scale beyond floats": (_settings(lora_alpha=-(10**400)), "lora_alpha is -100000"),
    "many patterns": (_settings(rank_pattern={str(n): 1 for n in range(10_001)}), "10,001 entries, and at most 10,000"),
    "no rank": (_settings(r=0), "r is 0, and a rank is at least 1"),
    "a scale beyond numbers": (_settings(lora_alpha=float("inf")), "lora_alpha is inf"),
    "a pattern of text": (_settings(rank_pattern="q=3"), "rank_pattern is 'q=3' and not an object"),
    "a slow pattern": (_settings(rank_pattern={"(" + "a*" * 20 + ")*": 2}), "cannot be searched"),
    "a wrong pattern": (_settings(alpha_pattern={"(": 2}), "cannot be searched"),
    "a base that is no text": (_settings(base_model_name_or_path=["a"]), "and not a text"),
    "another scheme": (_settings(use_qalora=True), "use_qalora is set: it pools the inputs"),
    "repeated layers": (_settings(layer_replication=[[0, 2]]), "layer_replication is set: it repeats layers"),
    "a setting of a later version": (_settings(use_tomorrow=True), "does not know the setting use_tomorrow"),
    "a long setting": (_settings(**{"x" * 10_000: True}), "does not know the setting x{60},"),
    "a missing half": (_other("0.self_attn.q_proj.lora_B.weight", None), "has no up matrix"),
    "another width": (_other("q_proj.lora_A.weight", lambda t: t[:, :-1]), r"shape \(4, 31\), and LlamaForCausalLM"),
    "no width": (_other("q_proj.lora_B.weight", lambda t: t[:0]), r"shape \(0, 4\)"),
    "a scalar": (_other("q_proj.lora_A.weight", lambda t: t.sum()), "shape"),
    "not a number": (_other("1.self_attn.q_proj.lora_A.weight", lambda t: t * float("nan")), "not finite"),
    "whole numbers": (_other("q_proj.lora_A.weight", lambda t: t.long()), "it holds whole numbers"),
    "a magnitude too many": (_settings(use_dora=True), "unlike what use_dora says"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_directory_is_one_line(name: str, directory: Path) -> None:
    damage, message = DAMAGED[name]
    damage(directory)
    model = llama()
    with pytest.raises(capaft.AdapterFileError) as caught:
        capaft.import_peft(model, directory)
    assert re.search(message, str(caught.value)), str(caught.value)
    assert str(directory) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert not capaft.adapters(model)


@pytest.mark.parametrize(
    ("key", "module"),
    [
        ("q_proj", "model.layers.0.self_attn.q_proj"),
        ("layers.0.self_attn.q_proj", "model.layers.0.self_attn.q_proj"),
        ("layers.0.self_attn.q_proj", "model.layers.10.self_attn.q_proj"),
        ("proj", "model.q_proj"),
        ("q.proj", "model.q_proj"),
        ("model.q_proj", "model.q_proj"),
        ("^model.q_proj", "model.q_proj"),
        (r".*\.[qk]_proj", "model.layers.0.q_proj"),
        (r"layers\.[01]\.mlp", "model.layers.1.mlp"),
        (r"layers\.[01]\.mlp", "model.layers.2.mlp"),
        ("a|b", "model.b"),
    ],
)
def test_patterns_match_as_in_peft(key: str, module: str) -> None:
    from peft.utils.other import get_pattern_key

    expected = 2 if get_pattern_key([key], module) == key and key != module else 1
    expected = 2 if key == module else expected
    assert peft_config._by_pattern(Path("x"), {key: 2}, module, 1) == expected
