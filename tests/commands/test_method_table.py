"""The table of methods, and their counts on a model of which only the configuration is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from command_line import invoke
from transformers import BertConfig, GPT2Config, PretrainedConfig, ResNetConfig

from capaft.adapter.budget import count_stack, count_trainable
from capaft.adapter.plan import make_plan
from capaft.commands.method_table import method_rows
from capaft.methods.registry import HOSTS
from capaft.methods.stack import HOSTLESS, parse_stack, stack_options, stacks_of
from capaft.model.load import load_skeleton
from capaft.support.errors import UsageError

# Of the tiny BERT: blocks, its width, and that of its feed-forward parts.
BLOCKS, WIDE, INNER = 2, 32, 64


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny BERT as a directory without weights, so that reading them fails."""
    directory = tmp_path_factory.mktemp("bert")
    tiny.bert().save_pretrained(directory)
    (directory / "model.safetensors").unlink()
    return directory


@pytest.fixture(scope="module")
def counted(saved: Path) -> dict[str, dict[str, Any]]:
    """The counts of every stack on it, as the command line prints them."""
    done = invoke("methods", "--model", saved, "--json")
    assert done.code == 0, done.err
    return {stack: count for row in json.loads(done.out) for stack, count in row["model"].items()}


def test_every_method_has_its_record() -> None:
    rows = {row["name"]: row for row in json.loads(invoke("methods", "--json").out)}
    assert list(rows) == [*HOSTS, "nola", "capaboost", *HOSTLESS]
    for name, host in HOSTS.items():
        row = rows[name]
        assert row["stacks"] == stacks_of(host)
        assert {option["name"] for option in row["options"]} == stack_options(name) - {"method"}
        assert (row["narrow"], row["unmergeable"]) == (host.narrow or None, host.unmergeable or None)
        assert all(row[key] for key in ("kind", "summary", "equation", "paper"))
    assert not any("model" in row for row in rows.values())


def test_defaults_give_the_stack_that_nothing_gives() -> None:
    rows = {row["name"]: row["options"] for row in method_rows()}
    for name, host in HOSTS.items():
        for method in stacks_of(host):
            options = [option for part in method.split("+") for option in rows[part]]
            assert parse_stack(method, **{option["name"]: option["value"] for option in options}) == parse_stack(
                method
            ), name


def test_flags_are_those_of_train() -> None:
    text = invoke("train", "--help", environ={"COLUMNS": "400"}).out
    for row in method_rows():
        for option in row["options"]:
            assert option["flag"] in text


def test_low_rank_counts(counted: dict[str, Any]) -> None:
    """Two projections a block, each `(WIDE, WIDE)`."""
    sites, size, k = 2 * BLOCKS, 8 * WIDE, 192
    assert counted["lora"] == {"sites": sites, "numbers": [sites * 2 * size] * 2}
    assert counted["lora+nola"] == {"sites": sites, "numbers": [sites * 2 * k] * 2}
    assert counted["lora+capaboost"] == {"sites": sites, "numbers": [sites * size, sites * 2 * size]}
    assert counted["lora+nola+capaboost"] == counted["lora+nola"]


def test_ia3_counts(counted: dict[str, Any]) -> None:
    """Keys and values are rescaled at their outputs, inner activations at the input of the next layer."""
    one = BLOCKS * (2 * WIDE + INNER)
    assert counted["ia3"] == {"sites": 3 * BLOCKS, "numbers": [one, one]}
    # A vector has no more entries than it would have coefficients, so it is trained directly.
    assert counted["ia3+nola"] == counted["ia3"]
    assert "ia3+capaboost" not in counted


def test_without_a_host(counted: dict[str, Any]) -> None:
    weights = sum(parameter.numel() for parameter in tiny.bert().parameters())
    assert counted["head"] == {"sites": 0, "numbers": [0, 0]}
    assert counted["full"] == {"sites": 0, "numbers": [weights, weights]}


def test_a_real_model_comes_to_the_same(counted: dict[str, Any]) -> None:
    assert counted.keys() == {stack for host in HOSTS.values() for stack in stacks_of(host)} | HOSTLESS.keys()
    for method, count in counted.items():
        if method in HOSTLESS:
            continue
        plan = make_plan(tiny.bert(), parse_stack(method))
        low, high = count["numbers"]
        assert low <= count_trainable(plan) <= high, method
        assert count["sites"] == len(plan.sites), method


def directory(config: PretrainedConfig, where: Path) -> str:
    config.save_pretrained(where)
    return str(where)


def test_what_a_model_cannot_take_has_a_reason(tmp_path: Path) -> None:
    name = directory(ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1]), tmp_path)
    rows = json.loads(invoke("methods", "--model", name, "--json").out)
    for row in rows:
        for stack, count in row["model"].items():
            assert ("reason" in count) == (stack not in HOSTLESS), stack
            assert "\n" not in count.get("reason", "")
    text = invoke("methods", "--model", name, environ={"COLUMNS": "200"}).out
    # A reason that all stacks of a host share is printed once.
    assert sum("no linear layers to adapt" in line for line in text.splitlines()) <= len(HOSTS)


def test_a_wide_default_on_a_narrow_model(tmp_path: Path) -> None:
    """Each stack has an answer of its own."""
    config = BertConfig(vocab_size=64, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    model = load_skeleton(directory(config, tmp_path))
    assert count_stack(model, "lora")["sites"] == 2
    assert "a hidden width of 16 (rank times copies) exceeds" in count_stack(model, "lora+capaboost")["reason"]


@pytest.mark.parametrize(
    ("architectures", "expected"),
    [
        (["GPT2LMHeadModel"], "GPT2LMHeadModel"),
        (None, "GPT2Model"),
        (["NobodysModel"], "GPT2Model"),
        (["pipeline"], "GPT2Model"),
    ],
)
def test_the_architecture_that_the_configuration_names(
    architectures: list[str] | None, expected: str, tmp_path: Path
) -> None:
    config = GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=4, architectures=architectures)
    model = load_skeleton(directory(config, tmp_path))
    assert type(model).__name__ == expected
    assert all(parameter.is_meta for parameter in model.parameters())


def test_large_models_are_counted_without_memory(tmp_path: Path) -> None:
    from transformers import LlamaConfig

    config = LlamaConfig(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=16,
        num_attention_heads=64,
        num_key_value_heads=8,
        architectures=["LlamaForCausalLM"],
    )
    model = load_skeleton(directory(config, tmp_path))
    expected = 16 * 8 * (8192 + 8192 + 8192 + 1024)
    assert count_stack(model, "lora") == {"sites": 32, "numbers": [expected, expected]}
    low, high = count_stack(model, "lora+capaboost")["numbers"]
    assert (low, high) == (expected // 2, expected)


def test_text_is_readable_at_100_columns(saved: Path) -> None:
    wide = {"COLUMNS": "200"}
    alone, beside = (invoke("methods", *more, environ=wide).out for more in ((), ("--model", saved)))
    assert beside.startswith(alone.rstrip())
    assert max(map(len, beside.splitlines())) <= 100
    for part in (
        "y = W x + (alpha/r) U D x   (arXiv 2106.09685)",
        "options: --rank 8, --alpha auto (16.0), --no-rslora, --rank-pattern none",
        "stacks:  lora, lora+nola, lora+capaboost, lora+nola+capaboost",
        "no capaboost: a bias is added once",
        "merge:   no: virtual tokens",
        "--basis hadamard (or uniform, group)",
        "--masks random (or partition)",
    ):
        assert part in alone
    assert "BertForSequenceClassification" in beside
    assert "between 1,024 and 2,048" in beside
    assert max(map(len, invoke("methods", environ={"COLUMNS": "60"}).out.splitlines())) <= 60


def test_what_is_no_model_says_so(tmp_path: Path) -> None:
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "config.json").write_text('{"model_type": "bert", "hidden_size": "wide"}')
    for name, says in (
        ("./nowhere", "no such directory"),
        (str(tmp_path), "no config.json"),
        ("no-such-user/no-such-model", "cannot be reached"),
        (str(tmp_path / "strange"), "cannot be loaded"),
    ):
        done = invoke("methods", "--model", name, "--json")
        assert (done.code, done.out) == (2, "")
        assert done.err.startswith("error: --model")
        assert done.err.count("\n") == 1
        with pytest.raises(UsageError, match=says):
            load_skeleton(name)
