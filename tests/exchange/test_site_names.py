"""Names for sites that another tool chose: exactly these where there is room for them, else more."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from tiny import build, mixtral
from transformers import LlamaConfig, LlamaForCausalLM

import capaft
from capaft.exchange import site_names
from capaft.exchange.site_names import most_common, rank_pattern_of, targets_of
from capaft.model.targets import MAX_TARGETS, Targets, path_matcher
from capaft.model.weight_sites import find_weight_sites


def _deep() -> torch.nn.Module:
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    return build(LlamaForCausalLM, LlamaConfig(**sizes, num_hidden_layers=32))


def _paths(model: torch.nn.Module, targets: str) -> list[str]:
    return [site.path for site in find_weight_sites(model, Targets(targets))]


def test_any_choice_of_layers_has_a_name() -> None:
    model = _deep()
    paths = _paths(model, "all-linear,embed_tokens")
    for seed in range(6):
        chosen = random.Random(seed).sample(paths, k=(1, 3, 8, 20, 60, 150)[seed])
        targets = targets_of(model, chosen, None)
        assert len(targets.modules) <= MAX_TARGETS
        assert {site.path for site in find_weight_sites(model, targets)} >= set(chosen)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (lambda path: path.endswith(("q_proj", "v_proj")), Targets("q_proj,v_proj")),
        (lambda path: "q_proj" in path and int(path.split(".")[1]) < 30, Targets("q_proj", layers="0-29")),
        (lambda path: path == "layers.7.mlp.down_proj", Targets("7.mlp.down_proj")),
        (lambda path: path == "embed_tokens", Targets("embed_tokens")),
    ],
)
def test_usual_choices_have_usual_names(choice: object, expected: Targets) -> None:
    model = _deep()
    chosen = [path for path in _paths(model, "all-linear,embed_tokens") if choice(path)]  # type: ignore[operator]
    assert targets_of(model, chosen, None) == expected
    assert [site.path for site in find_weight_sites(model, expected)] == chosen


def test_layers_called_as_a_preset_are_named_in_full() -> None:
    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.other = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)

    model = torch.nn.ModuleDict({"0": Block(), "1": Block()})
    targets = targets_of(model, ["0.attention", "1.attention"], None)
    assert [site.path for site in find_weight_sites(model, targets)] == ["0.attention", "1.attention"]


def test_experts_are_all_of_them() -> None:
    model = mixtral()
    assert targets_of(model, _paths(model, "o_proj,experts"), None) == Targets("o_proj,experts")


def test_a_choice_without_room_is_widened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What it names beside the choice stays without an update."""
    pytest.importorskip("peft")
    from tiny_peft import TEXT, llama, save_peft

    monkeypatch.setattr(site_names, "_choices", lambda *_: iter([]))
    model = llama()
    options = {"task_type": "CAUSAL_LM", "target_modules": ["layers.0.self_attn.q_proj", "layers.2.mlp.up_proj"]}
    expected = save_peft(model, tmp_path, TEXT, **options)
    adapter = capaft.import_peft(model, tmp_path)
    assert len(adapter.plan.sites) == 6
    with torch.no_grad():
        torch.testing.assert_close(model(**TEXT).logits, expected, atol=1e-6, rtol=1e-6)


def test_a_pattern_of_ranks_means_the_same_ranks() -> None:
    paths = _paths(_deep(), "all-linear")
    for ranks in (
        {path: 2 if "q_proj" in path else 4 for path in paths},
        {path: 1 + (int(path.split(".")[1]) > 25) for path in paths},
        {path: 3 if path == "layers.3.mlp.up_proj" else 8 for path in paths},
    ):
        most = most_common(ranks)
        pattern = rank_pattern_of(ranks, most)
        assert pattern is not None
        for path, rank in ranks.items():
            entries = (entry.rpartition("=") for entry in pattern)
            assert next((int(value) for word, _, value in entries if path_matcher(word)(path)), most) == rank
    assert rank_pattern_of({path: 1 + number for number, path in enumerate(paths)}, 1) is None
