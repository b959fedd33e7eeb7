"""Models that accelerate has dispatched: it wraps the `forward` of modules, and capaft's hooks run around that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import IDS, bert, gpt2, scramble, train
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import capaft
from capaft.model.origin import Origin
from capaft.support.errors import UsageError

OPTIONS: dict[str, Any] = {"k": 32, "rank": 4, "seed": 3}
METHOD = "lora+nola+capaboost"
KINDS = {"bert": (bert, AutoModelForSequenceClassification), "gpt2": (gpt2, AutoModelForCausalLM)}
BERT = {"bert.embeddings": "cpu", "bert.pooler": "cpu", "dropout": "cpu", "classifier": "cpu"}
GPT2 = {"transformer.drop": "cpu", "transformer.ln_f": "cpu"}
OFFLOADED = {
    "last layer": ("bert", BERT | {"bert.encoder.layer.0": "cpu", "bert.encoder.layer.1": "disk"}),
    "first layer": ("bert", BERT | {"bert.encoder.layer.0": "disk", "bert.encoder.layer.1": "cpu"}),
    "first parameter": ("bert", BERT | {"bert.embeddings": "disk", "bert.encoder": "cpu"}),
    "all": ("bert", {"": "disk"}),
    "fused": (
        "gpt2",
        GPT2
        | {"transformer.wte": "cpu", "lm_head": "cpu", "transformer.wpe": "cpu"}
        # One of the two projections that `qv` slices.
        | {"transformer.h.0": "disk", "transformer.h.1": "cpu"},
    ),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    where = tmp_path_factory.mktemp("models")
    for name, (make, _) in KINDS.items():
        make().save_pretrained(where / name)
    return {name: where / name for name in KINDS}


def adapted(model: Any) -> Any:
    scramble(capaft.attach(model, METHOD, **OPTIONS))
    return model.eval()


def logits(model: Any) -> Tensor:
    return model(input_ids=IDS).logits


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", [{"": "cpu"}, "auto", "cpu"], ids=str)
def test_a_model_loaded_with_a_device_map(kind: str, place: Any, saved: dict[str, Path], tmp_path: Path) -> None:
    make, auto = KINDS[kind]
    model, plain = adapted(auto.from_pretrained(saved[kind], device_map=place)), adapted(make())
    assert torch.equal(logits(model), logits(plain))
    train(model)
    train(plain)
    assert torch.equal(logits(model), logits(plain))
    capaft.save(model, tmp_path / "one.safetensors")
    capaft.load(make(), tmp_path / "one.safetensors")
    capaft.merge(model)
    assert torch.allclose(logits(model), logits(plain), atol=1e-5)


@pytest.mark.parametrize("case", OFFLOADED)
def test_a_model_whose_layers_are_partly_on_disk(case: str, saved: dict[str, Path], tmp_path: Path) -> None:
    kind, places = OFFLOADED[case]
    make, auto = KINDS[kind]

    def load() -> Any:
        return auto.from_pretrained(saved[kind], device_map=places, offload_folder=tmp_path / "offload").eval()

    model, plain = adapted(load()), adapted(make())
    assert any(parameter.is_meta for parameter in model.parameters())
    assert {parameter.device.type for parameter in model.capaft_default.parameters()} == {"cpu"}
    with torch.no_grad():
        assert torch.equal(logits(model), logits(plain))
        with capaft.disabled(model):
            assert torch.equal(logits(model), logits(make()))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(logits(model), logits(plain))
    for network in (model, plain):
        logits(network).square().sum().backward()
    for role, numbers in plain.capaft_default.role_parameters.items():
        assert torch.equal(model.capaft_default.role_parameters[role].grad, numbers.grad)
    # Both models write the same file, and load the other's.
    for name, network in (("one", model), ("other", plain)):
        capaft.save(network, tmp_path / name, base=Origin("tiny"))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
    fresh = load()
    capaft.load(fresh, tmp_path / "other")
    with torch.no_grad():
        assert torch.equal(logits(fresh), logits(plain))
    capaft.merge(plain)
    if any(model.get_submodule(site.module).weight.is_meta for site in model.capaft_default.plan.sites):
        with pytest.raises(UsageError, match="is offloaded"):
            capaft.merge(model)
    else:
        capaft.merge(model)
    with torch.no_grad():
        assert torch.allclose(logits(model), logits(plain), atol=1e-5)


def test_training_with_a_layer_on_disk(saved: dict[str, Path], tmp_path: Path) -> None:
    model = adapted(
        AutoModelForSequenceClassification.from_pretrained(
            saved["bert"], device_map=OFFLOADED["first layer"][1], offload_folder=tmp_path
        )
    )
    plain = adapted(bert())
    for network in (model, plain):
        target = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
        optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-2)
        for _ in range(3):
            optimizer.zero_grad()
            (logits(network) - target).square().sum().backward()
            optimizer.step()
    assert torch.equal(logits(model), logits(plain))


def test_a_head_that_is_offloaded_cannot_be_trained(saved: dict[str, Path], tmp_path: Path) -> None:
    places = OFFLOADED["first layer"][1] | {"classifier": "disk"}
    model = AutoModelForSequenceClassification.from_pretrained(
        saved["bert"], device_map=places, offload_folder=tmp_path
    )
    with pytest.raises(UsageError, match=r"classifier\.weight is offloaded"):
        capaft.attach(model, METHOD, head=["classifier.weight"], **OPTIONS)
    assert not capaft.adapters(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_detaching_leaves_the_dispatched_model(saved: dict[str, Path], tmp_path: Path) -> None:
    model = adapted(
        AutoModelForSequenceClassification.from_pretrained(
            saved["bert"], device_map=OFFLOADED["first layer"][1], offload_folder=tmp_path
        )
    )
    capaft.detach(model)
    assert torch.equal(logits(model), logits(bert()))
