"""The start of a run: every stack's parameters are its predecessor's, and outputs go by the names of their labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import build
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification, RobertaConfig, RobertaForSequenceClassification

import capaft
from capaft.adapter.file.encoding import decode_tensor
from capaft.adapter.file.header import TaskRecord
from capaft.adapter.install import attach_plan
from capaft.adapter.plan import Placement, make_plan
from capaft.config.choices import HeadMode
from capaft.methods.registry import HOSTS
from capaft.methods.stack import stacks_of
from capaft.model.load import BaseModel
from capaft.model.new_head import initialise_head
from capaft.model.origin import Origin
from capaft.support.errors import UsageError
from capaft.tasks.text_classification import TextClassification
from capaft.tasks.token_classification import TokenClassification
from capaft.training.setup.carried import Carried, carry_parameters, saved_modules
from capaft.training.setup.predecessor import Predecessor

BUILT_IN = [name for name in HOSTS if "." not in name]
STACKS = [stack for name in BUILT_IN for stack in stacks_of(HOSTS[name])]
OPTIONS = {"rank": 2, "k": 8, "copies": 3, "density": 0.4, "bottleneck": 4, "prefix_length": 3}
HEAD = ("classifier.weight", "classifier.bias")


def model_of(labels: int, kind: str = "bert") -> BaseModel:
    """A tiny model with a new head, drawn from seed 3; models of other labels have the same body."""
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    size |= {"vocab_size": 32, "max_position_embeddings": 16}
    cls, config = {
        "bert": (BertForSequenceClassification, BertConfig),
        "roberta": (RobertaForSequenceClassification, RobertaConfig),
    }[kind]
    model = build(cls, config(**size, num_labels=labels))
    head = tuple(name for name, _ in model.named_parameters() if name.startswith("classifier"))
    initialise_head(model, head, 3)
    return BaseModel(model, None, Origin("tiny", None), head, True)


def task_of(*labels: str) -> TextClassification:
    return TextClassification(labels=labels, max_length=8)


def trained(
    file: Path, method: str, labels: tuple[str, ...] = ("a", "b", "c"), kind: str = "bert", **options: Any
) -> Predecessor:
    """A trained adapter: all its parameters are random."""
    dtype = options.pop("dtype", "float32")
    base = model_of(len(labels), kind)
    stack = capaft.Stack.parse(method, **{n: v for n, v in OPTIONS.items() if n in known(method)})
    plan = make_plan(base.model, stack, Placement(seed=3, head=base.head, **options))
    adapter = attach_plan(base.model, plan)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in adapter.trained(base.model).values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    task = task_of(*labels)
    record = TaskRecord(task.name, task.labels, task.max_length, task.metric, task.options())
    capaft.save(base.model, file, base=base.base, task=record, dtype=dtype)
    return Predecessor(str(file), capaft.read(file))


def known(method: str) -> set[str]:
    from capaft.methods.stack import stack_options

    return set(stack_options(method))


def carry(predecessor: Predecessor, base: BaseModel, task: Any, **options: Any) -> tuple[Carried, dict[str, Tensor]]:
    """What a run on a base model takes over, and its trainable parameters before the first step."""
    header = predecessor.file.header
    mode: HeadMode = "full" if header.head is None else "nola" if header.head.k else "frozen"
    placement = {"head_mode": mode, "head_k": (header.head and header.head.k) or 1024} | options
    plan = make_plan(
        base.model, header.method, Placement(targets=header.targets, seed=header.seed, head=base.head, **placement)
    )
    before = {name: values.clone() for name, values in base.model.state_dict().items()}
    carried = carry_parameters(predecessor, base, plan, task, allow_base_mismatch=False)
    after = base.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    adapter = attach_plan(base.model, plan, in_place=True)
    parameters = adapter.trained(base.model)
    carried.fill(parameters)
    return carried, {name: values.detach().clone() for name, values in parameters.items()}


def stored(predecessor: Predecessor, shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """The parameters in a file, decoded."""
    file = predecessor.file
    return {name: decode_tensor(name, file.tensors, tuple(s), file.header.save_dtype) for name, s in shapes.items()}


@pytest.mark.parametrize("method", [*STACKS, "head", "full"])
def test_every_stack_starts_where_the_other_ended(method: str, tmp_path: Path) -> None:
    predecessor = trained(tmp_path / "a.safetensors", method)
    base = model_of(3)
    carried, start = carry(predecessor, base, task_of("a", "b", "c"))
    assert start.keys() == predecessor.file.tensors.keys()
    assert all(torch.equal(values, predecessor.file.tensors[name]) for name, values in start.items())
    assert (carried.known, carried.new, carried.has_head) == (("a", "b", "c"), (), True)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "int4"])
def test_what_was_stored_in_fewer_bits_is_decoded(dtype: str, tmp_path: Path) -> None:
    predecessor = trained(tmp_path / "a.safetensors", "capaboost", dtype=dtype)
    _, start = carry(predecessor, model_of(3), task_of("a", "b", "c"))
    expected = stored(predecessor, {name: values.shape for name, values in start.items()})
    assert all(torch.equal(values, expected[name]) for name, values in start.items())


@pytest.mark.parametrize(
    ("labels", "known_labels", "kind", "dtype"),
    [
        (("a", "b", "c", "d", "e"), "abc", "bert", "float32"),
        (("d", "c", "a"), "ca", "bert", "int8"),
        (("c", "b", "a"), "cba", "bert", "float32"),
        (("d", "c", "a"), "ca", "roberta", "float32"),
    ],
)
def test_outputs_go_by_the_names_of_their_labels(
    labels: tuple[str, ...], known_labels: str, kind: str, dtype: str, tmp_path: Path
) -> None:
    predecessor = trained(tmp_path / "a.safetensors", "nola", kind=kind, dtype=dtype)
    base = model_of(len(labels), kind)
    new = {name: values.detach().clone() for name, values in base.named_parameters().items() if name in base.head}
    carried, start = carry(predecessor, base, task_of(*labels))
    assert carried.known == tuple(known_labels)
    assert set(carried.known) | set(carried.new) == set(labels)
    shapes = {name: values.shape for name, values in start.items()}
    last = {name for name in base.head if len(new[name]) == len(labels)}
    assert last
    assert (kind == "bert") == (last == set(base.head))
    old = stored(
        predecessor,
        shapes | {f"head:{name}": torch.Size([3, *new[name].shape[1:]]) for name in last},
    )
    for name in base.head:
        actual, before = start[f"head:{name}"], old[f"head:{name}"]
        if name not in last:
            # The layer before the outputs has no labels.
            assert torch.equal(actual, before)
            continue
        for row, label in enumerate(labels):
            assert torch.equal(actual[row], before["abc".index(label)] if label in "abc" else new[name][row])
    assert torch.equal(start["up"], old["up"])


@pytest.mark.parametrize(
    ("head", "labels"), [("full", ("x", "y", "z")), ("nola", ("x", "y", "z")), ("frozen", ("x", "y"))]
)
def test_a_head_of_other_labels_starts_anew(head: HeadMode, labels: tuple[str, ...], tmp_path: Path) -> None:
    predecessor = trained(tmp_path / "a.safetensors", "nola", head_mode=head, head_k=8)
    base = model_of(len(labels))
    new = {name: values.detach().clone() for name, values in base.named_parameters().items()}
    carried, start = carry(predecessor, base, task_of(*labels))
    assert (carried.known, carried.has_head) == ((), False)
    assert torch.equal(start["down"], predecessor.file.tensors["down"])
    assert not start.get("head", torch.zeros(1)).any()
    of_head = {name.removeprefix("head:"): values for name, values in start.items() if name.startswith("head:")}
    assert all(torch.equal(values, new[name]) for name, values in of_head.items())


def test_a_head_of_another_task_starts_anew_although_it_is_called_the_same(tmp_path: Path) -> None:
    predecessor = trained(tmp_path / "a.safetensors", "nola", modules_to_save="pooler")
    base = model_of(3)
    new = base.named_parameters()["classifier.weight"].detach().clone()
    task = TokenClassification(labels=("a", "b", "c"))
    carried, start = carry(predecessor, base, task, modules_to_save="pooler")
    assert not carried.has_head
    assert torch.equal(start["head:classifier.weight"], new)
    assert torch.equal(start["head:pooler.dense.weight"], predecessor.file.tensors["head:pooler.dense.weight"])


def test_a_file_without_labels_has_its_outputs_in_order(tmp_path: Path) -> None:
    predecessor = trained(tmp_path / "a.safetensors", "nola")
    bare = replace(predecessor.file, header=replace(predecessor.file.header, task=None))
    carried, start = carry(replace(predecessor, file=bare), model_of(3), task_of("x", "y", "z"))
    assert carried.has_head
    assert not carried.new
    assert torch.equal(start["head:classifier.weight"], predecessor.file.tensors["head:classifier.weight"])


@pytest.mark.parametrize("head", ["nola", "frozen"])
def test_a_head_that_is_not_trained_as_a_whole(head: HeadMode, tmp_path: Path) -> None:
    predecessor = trained(tmp_path / "a.safetensors", "nola", head_mode=head, head_k=8)
    _, start = carry(predecessor, model_of(3), task_of("a", "b", "c"))
    assert all(torch.equal(values, predecessor.file.tensors[name]) for name, values in start.items())

    # Its values, wherever they come from, can start one that is.
    model = model_of(3).model
    capaft.load(model, predecessor.file)
    _, whole = carry(predecessor, model_of(4), task_of("a", "b", "c", "d"), head_mode="full")
    assert torch.equal(whole["head:classifier.weight"][:3], model.classifier.weight.detach())
    assert torch.equal(whole["head:classifier.bias"][:3], model.classifier.bias.detach())
    if head == "nola":
        with pytest.raises(UsageError, match="for 3 labels, and here are 4; pass --head full"):
            carry(predecessor, model_of(4), task_of("a", "b", "c", "d"))
    else:
        # A new head's further rows are drawn after those of the known labels.
        carry(predecessor, model_of(4), task_of("a", "b", "c", "d"))
        with pytest.raises(UsageError, match=r"frozen at other values .* pass --head full"):
            carry(predecessor, model_of(4), task_of("d", "a", "b", "c"))


def test_modules_that_are_trained_beside_the_adapter(tmp_path: Path) -> None:
    predecessor = trained(tmp_path / "a.safetensors", "nola", modules_to_save="pooler")
    base = model_of(3)
    assert saved_modules(predecessor, base) == "pooler.dense"
    _, start = carry(predecessor, base, task_of("a", "b", "c"), modules_to_save="pooler.dense")
    assert torch.equal(start["head:pooler.dense.bias"], predecessor.file.tensors["head:pooler.dense.bias"])
    with pytest.raises(UsageError, match=r"has trained pooler\.dense, .* add pooler\.dense to --modules-to-save"):
        carry(predecessor, model_of(3), task_of("a", "b", "c"))


def test_another_base_or_other_layers_are_refused(tmp_path: Path) -> None:
    predecessor = trained(tmp_path / "a.safetensors", "nola")
    other = model_of(3)
    with torch.no_grad():
        other.model.bert.encoder.layer[0].attention.self.query.weight.mul_(2)
    with pytest.raises(UsageError, match=r"trained on other base weights .* or --allow-base-mismatch"):
        carry(predecessor, other, task_of("a", "b", "c"))
    base = model_of(3)
    header = predecessor.file.header
    placement = Placement(targets=replace(header.targets, modules="key"), seed=3, head=base.head)
    plan = make_plan(base.model, header.method, placement)
    with pytest.raises(UsageError, match=r"other layers .* leave --target-modules"):
        carry_parameters(predecessor, base, plan, task_of("a", "b", "c"), allow_base_mismatch=False)
