"""What is saved comes back, onto any model with the same layers."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import naive_reader
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import bert, logits, scramble
from tiny_files import TASK, adapted, equal, one_layer, trained_values, unpack
from torch import nn

import capaft
from capaft.adapter.file.adapter_file import read
from capaft.adapter.file.encoding import SAVE_DTYPES, SaveDtype, decode_tensor, encode_tensor
from capaft.adapter.file.header import TaskRecord
from capaft.adapter.file.save_load import load, restore_parameters, save
from capaft.model.origin import Origin
from capaft.support.errors import AdapterFileError

STACKS: dict[str, dict[str, Any]] = {
    "head": {"method": "head"},
    "full": {"method": "full"},
    "lora": {"method": "lora", "targets": "all-linear"},
    "nola": {"method": "nola", "k": (9, 5)},
    "nola-uniform": {"method": "nola", "k": 9, "basis": "uniform"},
    "nola-group": {"method": "nola", "k": 9, "basis": "group"},
    "capaboost": {"method": "capaboost", "copies": 3, "density": 0.29},
    "partition": {"method": "capaboost", "copies": 2, "masks": "partition"},
    "everything": {"method": "lora+nola+capaboost", "k": 9, "targets": "re:layer\\.1\\.", "seed": 2**64 - 1},
    "blocks": {"method": "nola", "targets": "all-linear", "exclude": "query,mlp", "layers": "1"},
    "ranks": {"method": "lora", "rslora": True, "rank_pattern": ("value=5", "re:^encoder=2")},
    "shared": {"method": "lora+nola+capaboost", "scope": "model", "basis": "group", "mask_rescale": "variance"},
    "dora": {"method": "dora+nola", "k": (9, 40), "scope": "model", "targets": "mlp"},
    "vera": {"method": "vera+capaboost", "rank": 40},
    "ia3": {"method": "ia3"},
    "bitfit": {"method": "bitfit+nola", "modules_to_save": "pooler", "exclude": "re:^pooler"},
    "houlsby": {"method": "houlsby+capaboost", "bottleneck": 4, "scaling": 2},
    "pfeiffer": {"method": "pfeiffer", "bottleneck": 4, "activation": "tanh", "bias": False},
    "parallel": {"method": "parallel", "bottleneck": 4},
    "prefix": {"method": "prefix+nola"},
    "head-nola": {"method": "head", "head_mode": "nola", "head_k": 20},
    "lora-head-nola": {"method": "lora", "head_mode": "nola", "head_k": 2, "modules_to_save": "pooler"},
    "frozen": {"method": "nola", "head_mode": "frozen"},
}


@pytest.mark.parametrize("dtype", SAVE_DTYPES)
@pytest.mark.parametrize("stack", STACKS)
def test_round_trip(stack: str, dtype: SaveDtype, path: Path) -> None:
    model, fresh = adapted(**STACKS[stack]), bert()
    size = save(model, path, base=Origin("tiny", "main"), task=TASK, dtype=dtype)
    file = read(path)
    assert size == file.size == path.stat().st_size
    assert (file.base, file.task) == (Origin("tiny", "main"), TASK)
    # The same values in the same order.
    assert json.dumps(file.header.record()) == json.dumps(unpack(path.read_bytes())[0])
    adapter = load(fresh, path)
    plan = capaft.adapters(model)["default"].plan
    assert (adapter.plan.stack, adapter.plan.seed, adapter.plan.targets) == (plan.stack, plan.seed, plan.targets)
    assert (adapter.plan.sites, adapter.plan.trained) == (plan.sites, plan.trained)
    stored = {
        key: decode_tensor(key, encode_tensor(key, n, dtype), tuple(n.shape), dtype)
        for key, n in trained_values(model).items()
    }
    assert equal(trained_values(fresh), stored)
    restore_parameters(model, path)
    assert torch.equal(logits(fresh), logits(model))
    # What came back is saved as the same file.
    save(fresh, path.with_name("again"), base=Origin("tiny", "main"), task=TASK, dtype=dtype)
    if dtype.startswith(("float", "bfloat")):
        assert path.with_name("again").read_bytes() == path.read_bytes()


ANY_TEXT = st.text()
PLAIN = (
    ANY_TEXT
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.booleans()
    | st.none()
)


@given(
    labels=st.lists(ANY_TEXT, max_size=4),
    name=st.text() | st.none(),
    options=st.dictionaries(ANY_TEXT, PLAIN, max_size=32),
)
@settings(max_examples=50, deadline=None)
def test_any_text_comes_back(
    labels: list[str], name: str | None, options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    file, model = tmp_path_factory.getbasetemp() / "text.safetensors", one_layer()
    task = TaskRecord("text-classification", tuple(labels), 1, "f1", options)
    capaft.attach(model, "nola", rank=1, k=2)
    save(model, file, base=Origin(name, name), task=task)
    assert (read(file).task, read(file).base) == (task, Origin(name, name))


def test_ext_is_kept_and_ignored(path: Path) -> None:
    ext = {"made by": "a test", "": [{"digest": {"header": "0" * 32}}, 1, -0.0, None], "é": {"a": {"b": True}}}
    model, fresh = adapted(), bert()
    size = save(model, path)
    assert save(model, path, ext=ext) > size
    assert read(path).header.ext == ext
    assert naive_reader.read(path.read_bytes())[0]["ext"] == ext
    load(fresh, path)
    assert equal(trained_values(fresh), trained_values(model))
    save(fresh, path)
    assert read(path).header.ext == {}


def test_sites_are_listed_by_path(path: Path) -> None:
    save(adapted(targets="query,value,word_embeddings", rank_pattern=("value=2",)), path)
    sites = read(path).header.sites
    assert sites.record() == [
        ["embeddings.word_embeddings", 32, 64, 3, "embedding"],
        ["encoder.layer.{0-1}.attention.self.query", 32, 32, 3, ""],
        ["encoder.layer.{0-1}.attention.self.value", 32, 32, 2, ""],
    ]
    assert list(sites) == [
        "embeddings.word_embeddings",
        *(f"encoder.layer.{layer}.attention.self.{name}" for layer in (0, 1) for name in ("query", "value")),
    ]
    assert (len(sites), sites.shapes["encoder.layer.1.attention.self.value"].width) == (5, 2)


def test_a_parameter_is_never_taken_for_scales(path: Path) -> None:
    """A model may name its parameters as it likes."""
    model = one_layer()
    model["ln"] = nn.Module()
    model["ln"].register_parameter("gain", nn.Parameter(torch.ones(300)))
    model["ln"].register_parameter("gain_scale", nn.Parameter(torch.full((3,), 2.0)))
    model["scale:head:ln"] = nn.Module()
    model["scale:head:ln"].register_parameter("gain", nn.Parameter(torch.full((5,), 3.0)))
    names = ["ln.gain", "ln.gain_scale", "scale:head:ln.gain"]
    capaft.attach(model, "nola", rank=1, k=2, head=names)
    save(model, path, dtype="int8")
    model_again = copy.deepcopy(model)
    capaft.detach(model_again)
    with torch.no_grad():
        for name in names:
            model_again.get_parameter(name).zero_()
    load(model_again, path)
    for name in names:
        torch.testing.assert_close(model_again.get_parameter(name), model.get_parameter(name), rtol=0.01, atol=0)


def test_a_wrapped_model_and_a_bare_encoder_have_the_same_sites(path: Path) -> None:
    model = adapted(head=())
    save(model, path)
    bare = bert().bert
    load(bare, path)
    with torch.no_grad():
        expected = model.bert(input_ids=torch.tensor([[1, 2, 3]])).last_hidden_state
        assert not torch.equal(expected, bert().bert(input_ids=torch.tensor([[1, 2, 3]])).last_hidden_state)
        assert torch.allclose(bare(input_ids=torch.tensor([[1, 2, 3]])).last_hidden_state, expected, atol=1e-6)


def test_renamed_modules_keep_their_streams(path: Path) -> None:
    old, new = _nested("old"), _nested("new")
    scramble(capaft.attach(old, "nola", rank=2, k=3, targets="old.query"))
    save(old, path)
    with pytest.raises(AdapterFileError, match="pass the --model it was trained on"):
        load(new, path)
    adapter = load(new, path, rename={"old": "new"})
    assert [site.path for site in adapter.plan.sites] == ["old.query"]
    inputs = torch.ones(1, 6)
    assert torch.equal(new["new"]["query"](inputs), old["old"]["query"](inputs))


def _nested(name: str) -> nn.Module:
    return nn.ModuleDict({name: nn.ModuleDict({"query": one_layer()["query"]})})


def test_restore_refuses_another_adapter(path: Path) -> None:
    save(adapted(seed=1), path)
    model = adapted()
    before = trained_values(model)
    with pytest.raises(AdapterFileError, match="not a file of the attached adapter"):
        restore_parameters(model, path)
    assert equal(trained_values(model), before)
