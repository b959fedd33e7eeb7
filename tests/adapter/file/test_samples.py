"""The base fingerprint: what it takes for the same model, for a quantised copy, and for another model."""

from __future__ import annotations

import base64
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from tiny_quantised import LAYERS, quantise
from torch import Tensor

import capaft
from capaft.adapter.activation import get_adapter
from capaft.adapter.file.adapter_file import read
from capaft.adapter.file.fingerprint import base_samples, head_samples
from capaft.adapter.file.samples import FEW_SAMPLES, SAMPLES
from capaft.model.origin import Origin

Change = Callable[[Tensor], Tensor]


def uniform(weight: Tensor, part: float) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return weight * (1 + part * (2 * torch.rand(weight.shape, generator=generator) - 1))


def in_blocks(weight: Tensor, bits: int) -> Tensor:
    """Codes in blocks of 32 along a row, unpacked, as in a GGUF file."""
    blocks = weight.reshape(-1, 32)
    scales = blocks.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    return ((blocks / scales).round() * scales).reshape(weight.shape)


SAME: dict[str, Change] = {
    "itself": lambda weight: weight,
    "bfloat16": lambda weight: weight.bfloat16().float(),
    "float16": lambda weight: weight.half().float(),
    "float16, then bfloat16": lambda weight: weight.half().bfloat16().float(),
}
COARSE: dict[str, Change] = {
    f"{bits} bits": lambda weight, bits=bits: in_blocks(weight, bits) for bits in (3, 4, 5, 6, 8)
}
OTHER: dict[str, Change] = {
    "times 1.02": lambda weight: weight * 1.02,
    "times 1.002": lambda weight: weight * 1.002,
    "noise of 2 %": lambda weight: uniform(weight, 0.02),
    "noise of 0.5 %": lambda weight: uniform(weight, 0.005),
    "a small step of Adam": lambda weight: weight + 1e-4 * torch.sign(uniform(torch.ones_like(weight), 2) - 1),
    "another sign": lambda weight: -weight,
    "other weights in 4 bits": lambda weight: in_blocks(weight.flip(0), 4),
}


def changed(change: Change, layers: tuple[int, ...] = (0, 1)) -> Any:
    model = tiny.bert()
    with torch.no_grad():
        for number in layers:
            for parameter in model.bert.encoder.layer[number].parameters():
                if parameter.ndim == 2:
                    parameter.copy_(change(parameter))
    return model


def saved(model: Any, path: Path, method: str = "lora", **options: Any) -> Path:
    capaft.attach(model, method, **options)
    capaft.save(model, path, base=Origin("tiny"))
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "adapter.safetensors"


def verdict(model: Any, path: Path) -> str:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            capaft.load(model, path)
        except capaft.AdapterFileError as error:
            return "other" if "other base weights" in str(error) else str(error)
    return "; ".join(str(warning.message) for warning in caught) or "same"


@pytest.mark.parametrize("change", SAME.values(), ids=SAME)
@pytest.mark.parametrize("method", ["lora", "houlsby"])
def test_copies_in_floating_point_agree(change: Change, method: str, path: Path) -> None:
    assert verdict(changed(change), saved(tiny.bert(), path, method)) == "same"
    assert verdict(tiny.bert(), saved(changed(change), path, method)) == "same"


@pytest.mark.parametrize("change", OTHER.values(), ids=OTHER)
@pytest.mark.parametrize("method", ["lora", "houlsby"])
def test_other_weights_are_refused(change: Change, method: str, path: Path) -> None:
    assert verdict(changed(change), saved(tiny.bert(), path, method)) == "other"
    assert verdict(tiny.bert(), saved(changed(change), path, method)) == "other"


def test_one_layer_of_other_weights_is_refused(path: Path) -> None:
    for number in (0, 1):
        assert verdict(changed(lambda weight: uniform(weight, 0.02), (number,)), saved(tiny.bert(), path)) == "other"


@pytest.mark.parametrize("change", COARSE.values(), ids=COARSE)
def test_an_unpacked_quantised_copy_gets_a_notice(change: Change, path: Path) -> None:
    assert "was unpacked from a quantised copy" in verdict(changed(change), saved(tiny.bert(), path))
    assert "was unpacked from a quantised copy" in verdict(tiny.bert(), saved(changed(change), path))
    assert verdict(changed(change), saved(changed(change), path)) == "same"


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("method", ["lora", "houlsby", "prefix"])
def test_codes_get_a_notice_on_either_side(make: Any, method: str, path: Path) -> None:
    assert "weights are quantised" in verdict(quantise(tiny.bert(), make), saved(tiny.bert(), path, method))
    assert "weights are quantised" in verdict(tiny.bert(), saved(quantise(tiny.bert(), make), path, method))
    assert read(path).header.base.weights is None


def test_every_site_has_its_share() -> None:
    model = tiny.bert()
    adapter = capaft.attach(model, "lora", targets="all-linear")
    for number, site in enumerate(adapter.plan.sites):
        with torch.no_grad():
            site.weight(model).fill_(float(number + 1))
    text = base_samples(model, adapter.plan)
    assert text is not None
    values = np.frombuffer(base64.b64decode(text.lstrip("~")), "<f2")
    counts = np.bincount(values.astype(int), minlength=14)[1:]
    assert counts.sum() == SAMPLES
    assert counts.min() >= 13


def test_a_header_with_a_frozen_head_stays_under_2_kb(path: Path) -> None:
    model = tiny.bert()
    capaft.attach(model, "lora+nola+capaboost", head=["classifier.weight", "classifier.bias"], head_mode="frozen")
    capaft.save(model, path, base=Origin("some-organisation/some-model-with-a-long-name", "0" * 40))
    assert len(json.dumps(read(path).header.record())) < 2048
    text = head_samples(model, get_adapter(model).plan)
    assert text is not None
    assert len(base64.b64decode(text.lstrip("~"))) == 2 * FEW_SAMPLES
