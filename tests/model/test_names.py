"""Names that survive wrappers, heads and renaming."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from capaft.model.names import canonical_path, check_renames, renamed_path
from capaft.model.site import Site
from capaft.model.targets import Targets
from capaft.model.weight_sites import find_weight_sites
from capaft.support.errors import UsageError


def find(model: nn.Module, targets: str, rename: dict[str, str] | None = None) -> tuple[Site, ...]:
    return find_weight_sites(model, Targets(targets), rename)


class Inside(nn.Module):
    """A wrapper that hides its model, as DDP does, under a chosen name."""

    def __init__(self, name: str, model: nn.Module) -> None:
        super().__init__()
        self.add_module(name, model)


WRAPPERS = {
    "module": lambda model: Inside("module", model),
    "twice": lambda model: Inside("module", Inside("_fsdp_wrapped_module", model)),
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "compiled inside": lambda model: Inside("module", torch.compile(model, backend="eager")),
    "checkpoint": checkpoint_wrapper,
}


def wrap_layers(model: Any) -> Any:
    for index, layer in enumerate(model.bert.encoder.layer):
        model.bert.encoder.layer[index] = checkpoint_wrapper(Inside("_fsdp_wrapped_module", layer))
    return model


@pytest.mark.parametrize("wrap", [*WRAPPERS.values(), wrap_layers], ids=[*WRAPPERS, "layers"])
@pytest.mark.parametrize("targets", ["qv", "all-linear", "attention.self.key", "re:^encoder.layer.1"])
def test_names_survive_wrappers(wrap: Any, targets: str) -> None:
    bare = tiny.bert()
    names = [canonical_path(bare, name) for name, _ in bare.named_parameters()]
    sites = find(bare, targets)
    model = wrap(tiny.bert())
    assert [canonical_path(model, name) for name, _ in model.named_parameters()] == names
    wrapped = find(model, targets)
    assert [site.path for site in wrapped] == [site.path for site in sites]
    for ours, theirs in zip(wrapped, sites, strict=True):
        assert torch.equal(ours.weight(model), theirs.weight(bare))


def test_names_are_those_of_the_bare_encoder() -> None:
    model = tiny.bert()
    assert find(model, "qv")[0].path == "encoder.layer.0.attention.self.query"
    assert find(model, "qv")[0].module == "bert.encoder.layer.0.attention.self.query"
    assert [site.path for site in find(model.bert, "qv")] == [site.path for site in find(model, "qv")]
    assert canonical_path(model, "classifier.weight") == "classifier.weight"


def test_renamed_modules_keep_their_old_names() -> None:
    model = tiny.bert()
    old = [site.path.replace("attention.self.query", "attn.q_proj") for site in find(model, "query")]
    rename = {"attn.q_proj": "attention.self.query"}
    for targets in ("q_proj", "re:q_proj$", "attn.q_proj"):
        assert [site.path for site in find(model, targets, rename)] == old
    assert [site.module for site in find(model, "q_proj", rename)] == [s.module for s in find(model, "query")]
    assert set(old) < {site.path for site in find(model, "qv", rename)}
    fused = find(tiny.gpt2(), "qv", {"attention.qkv": "attn.c_attn"})
    assert fused[0].path == "h.0.attention.qkv#q"
    assert find(model, "qv", {"xyz": "uer", "layers": "lay"}) == find(model, "qv")


def test_renames_act_at_once() -> None:
    assert renamed_path("a.b.c", {"a": "b", "b": "a"}) == "b.a.c"
    assert renamed_path("x.x.xx", {"y": "x"}) == "y.y.xx"
    assert renamed_path("c.b", {"a": "b", "b": "c"}) == "b.a"
    assert renamed_path("q.proj.q", {"long": "q.proj", "short": "q"}) == "long.short"


@pytest.mark.parametrize(
    ("rename", "says"),
    [
        ({"query": "quary"}, "--rename query=quary: .* has no module quary; it has query: the name at the training"),
        ({"q": "quary"}, "has no module quary; did you mean query"),
        ({"q": "self.quary"}, "has no module self.quary; did you mean self.query"),
        ({"q": "zzz"}, "has no module zzz; name a module as the model at hand does"),
        ({"a": "query", "b": "query"}, "query cannot be both"),
        ({"": "query"}, "must be old=new"),
        ({"query": 3}, "must be old=new"),
    ],
)
def test_renames_that_do_not_concern_the_model(rename: dict[str, str], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        check_renames(tiny.bert(), rename)
