"""Slices of fused projections: the rows that become queries and values, whatever their order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny
from tiny_families import GROUPED, model_of
from torch import Tensor, nn

from capaft.model.site import Site
from capaft.model.targets import Targets
from capaft.model.weight_sites import find_weight_sites
from capaft.support.errors import UsageError


def find(model: nn.Module, targets: str) -> tuple[Site, ...]:
    return find_weight_sites(model, Targets(targets))


CODEGEN = {"n_embd": 32, "n_head": 4, "n_layer": 2, "rotary_dim": 4}
FUSED: list[tuple[str, dict[str, Any], str]] = [
    ("GPT2LMHeadModel", {}, "c_proj"),
    ("GPT2LMHeadModel", {"add_cross_attention": True, "hidden_size": 48}, "c_proj"),
    ("OpenAIGPTLMHeadModel", {}, "c_proj"),
    ("Phi3ForCausalLM", GROUPED, "o_proj"),
    ("Phi3ForCausalLM", {"num_key_value_heads": 1}, "o_proj"),
    ("ModernBertForMaskedLM", {"cls_token_id": 1, "sep_token_id": 2}, "Wo"),
    ("MptForCausalLM", {"d_model": 32, "n_heads": 4, "n_layers": 2}, "out_proj"),
    ("GPTNeoXForCausalLM", {}, "dense"),
    ("BloomForCausalLM", {"n_head": 4, "n_layer": 2}, "dense"),
    ("PersimmonForCausalLM", {}, "dense"),
    ("FalconForCausalLM", {"multi_query": False, "new_decoder_architecture": False}, "dense"),
    ("FalconForCausalLM", {"multi_query": True, "new_decoder_architecture": False}, "dense"),
    ("FalconForCausalLM", {"num_kv_heads": 2, "new_decoder_architecture": True}, "dense"),
    ("GPTBigCodeForCausalLM", {"multi_query": False}, "c_proj"),
    ("GPTBigCodeForCausalLM", {"multi_query": True}, "c_proj"),
]


@pytest.mark.parametrize(
    ("name", "options", "output"), FUSED, ids=lambda value: value if isinstance(value, str) else ""
)
def test_slices_are_the_rows_of_query_and_value(name: str, options: dict[str, Any], output: str) -> None:
    """A changed value reaches all later positions, a changed query only its own; without values the output is 0."""
    model = model_of(name, "cpu", **options)
    sites = [site for site in find(model, "qv") if ".0." in site.path and "cross" not in site.path]
    assert [site.path.rpartition("#")[2] for site in sites] == ["q", "v"]
    module = model.get_submodule(sites[0].module)
    around = model.get_submodule(sites[0].module.rpartition(".")[0])
    seen: list[Tensor] = []
    around.get_submodule(output).register_forward_pre_hook(lambda _, args: seen.append(args[0]))

    def attended(change: Callable[[Tensor], None] | None = None) -> Tensor:
        """Input of the first attention's output projection, `(batch, tokens, width)`."""
        seen.clear()

        def hook(_: nn.Module, args: Any, result: Tensor) -> Tensor:
            result = result.clone()
            if change:
                change(result)
            return result

        handle = module.register_forward_hook(hook)
        model(tiny.IDS)
        handle.remove()
        return seen[0].reshape(*tiny.IDS.shape, -1)

    def changed_at(site: Site, position: int) -> list[int]:
        """Positions whose output changes when the site's part of one position does."""
        assert site.rows is not None

        def change(result: Tensor) -> None:
            part = site.rows.view(result, -1)[:, position]
            part.copy_(part * 3 + 1)

        return (attended(change) - attended()).abs().amax((0, 2)).nonzero().flatten().tolist()

    query, value = sites
    assert changed_at(query, 3) == [3]
    assert set(changed_at(value, 3)) >= {3, 4, 5, 6, 7}
    assert attended(lambda result: value.rows.view(result, -1).zero_()).abs().max() == 0
    assert (query.weight(model).shape, value.weight(model).shape) == (
        (query.rows.count, 32 if "hidden_size" not in options else 48),
        (value.rows.count, query.in_features),
    )


@pytest.mark.parametrize(("name", "options", "layer"), [("CodeGenForCausalLM", CODEGEN, "qkv_proj")])
def test_other_orders_of_heads_are_not_sliced(name: str, options: dict[str, Any], layer: str) -> None:
    model = model_of(name, **options)
    with pytest.raises(UsageError, match=rf"no layer of {name} matches query and value.*named: .*\b{layer}\b"):
        find(model, "qv")
    assert {site.path.rsplit(".", 1)[-1] for site in find(model, layer)} == {layer}
