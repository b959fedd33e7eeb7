"""Plans of adapters, made before anything is drawn."""

from __future__ import annotations

import pytest
import tiny
import torch

import capaft
from capaft.adapter.plan import Placement, make_plan
from capaft.methods.stack import parse_stack
from capaft.support.errors import UsageError


def test_modules_to_save_are_trained_as_they_are() -> None:
    model = tiny.bert()
    adapter = capaft.attach(model, "nola", rank=2, k=4, modules_to_save="pooler")
    assert adapter.plan.trained == ("pooler.dense.bias", "pooler.dense.weight")
    assert model.bert.pooler.dense.weight.requires_grad
    pattern = make_plan(tiny.bert(), parse_stack("lora"), Placement(modules_to_save=r"re:embeddings\.LayerNorm$"))
    assert pattern.trained == ("embeddings.LayerNorm.bias", "embeddings.LayerNorm.weight")


def test_modules_to_save_come_back_from_the_file(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = tiny.bert()
    tiny.scramble(capaft.attach(model, "nola", rank=2, k=4, modules_to_save="pooler"))
    tiny.train(model)
    capaft.save(model, tmp_path / "adapter.safetensors")
    fresh = tiny.bert()
    capaft.load(fresh, tmp_path / "adapter.safetensors")
    assert torch.equal(fresh.bert.pooler.dense.weight, model.bert.pooler.dense.weight)
    assert not torch.equal(fresh.bert.pooler.dense.weight, tiny.bert().bert.pooler.dense.weight)
    assert torch.equal(tiny.logits(fresh), tiny.logits(model))


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ("nothing", "--modules-to-save nothing: the model has no module of that name with parameters"),
        ("re:(", r"--modules-to-save re:\( is not a regular expression"),
        ("query", "is both adapted and trained directly; leave it out of one of them"),
    ],
)
def test_modules_that_cannot_be_saved(modules: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_plan(tiny.bert(), parse_stack("lora"), Placement(modules_to_save=modules))


def test_vectors_shorter_than_their_coefficients_are_trained_themselves() -> None:
    stack = parse_stack("houlsby+nola", bottleneck=4, k=16)
    adapter = capaft.attach(tiny.bert(), stack)
    assert {role: tuple(parameter.shape) for role, parameter in adapter.role_parameters.items()} == {
        "down": (4, 16),
        "up": (4, 16),
        "down_bias": (16,),
        "up_bias": (4, 16),
    }
    adapter = capaft.attach(tiny.bert(), "houlsby+nola", bottleneck=4, k=32)
    assert tuple(adapter.role_parameters["up_bias"].shape) == (4 * 32,)


def test_coefficients_of_the_whole_model() -> None:
    adapter = capaft.attach(tiny.bert(), "nola", targets="all-linear", rank=2, k=(9, 7), scope="model")
    assert {role: tuple(parameter.shape) for role, parameter in adapter.role_parameters.items()} == {
        "down": (1, 9),
        "up": (1, 7),
    }
    assert len(adapter.plan.sites) == 13
    assert adapter.plan.bounds() == {"down": (9, 9), "up": (7, 7)}


def test_renamed_modules_that_are_trained_as_they_are(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = tiny.bert()
    tiny.scramble(capaft.attach(model, "lora", modules_to_save="pooler"))
    tiny.train(model)
    capaft.save(model, tmp_path / "adapter.safetensors")
    fresh = tiny.bert()
    fresh.bert.pooler.dense2 = fresh.bert.pooler.dense
    del fresh.bert.pooler.dense
    fresh.bert.pooler.__dict__["dense"] = fresh.bert.pooler.dense2
    adapter = capaft.load(fresh, tmp_path / "adapter.safetensors", rename={"pooler.dense": "pooler.dense2"})
    assert adapter.plan.trained == ("pooler.dense.bias", "pooler.dense.weight")
    assert torch.equal(tiny.logits(fresh), tiny.logits(model))


def test_a_rank_pattern_that_matches_nothing() -> None:
    with pytest.raises(UsageError, match="--rank-pattern qurey=3 matches none of the adapted layers"):
        make_plan(tiny.bert(), parse_stack("lora", rank_pattern=("qurey=3",)))
