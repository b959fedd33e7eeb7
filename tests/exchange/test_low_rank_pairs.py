"""The pairs of factors of adapted weights, against the updates of the slow second implementation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import naive
import pytest
import tiny
import torch
from torch import Tensor

import capaft
from capaft.adapter.module import Adapter
from capaft.exchange.low_rank_pairs import low_rank_pairs
from capaft.support.errors import UsageError


def updates(adapter: Adapter, model: Any) -> dict[tuple[str, str, int | None], Tensor]:
    """The change of every adapted weight, `(out, in)`, in float64, one site after another."""
    sums: dict[tuple[str, str, int | None], Tensor] = {}
    for site in adapter.plan.sites:
        whole = site.stored(model).shape
        width = whole[-1] if site.transposed else whole[0 if site.index is None else 1]
        change = torch.zeros(width, site.in_features, dtype=torch.float64)
        change[naive.rows(site, width)] = naive.update(adapter, site)
        key = site.module, site.parameter, site.index
        sums[key] = sums.get(key, 0) + change
    return sums


CASES = [
    (tiny.bert, "all-linear"),
    (tiny.gpt2, "qv"),
    (tiny.gpt2, "c_fc"),
    (tiny.neox, "qv"),
    (tiny.mixtral, "experts"),
    (tiny.kernels, "words,line,picture"),
]


@pytest.mark.parametrize("host", ["lora", "vera"])
@pytest.mark.parametrize(("make", "targets"), CASES)
def test_a_pair_multiplies_to_the_update_of_its_weight(make: Callable[[], Any], targets: str, host: str) -> None:
    for tail in ("", "+nola", "+capaboost", "+nola+capaboost"):
        model = make()
        copies = 3 if "capaboost" in tail else 1
        options: dict[str, Any] = {"k": 8} if "nola" in tail else {}
        options |= {"copies": 3} if "capaboost" in tail else {}
        adapter = tiny.scramble(capaft.attach(model, host + tail, rank=4, targets=targets, **options))
        expected = updates(adapter, model)
        slices: dict[tuple[str, str, int | None], int] = defaultdict(int)
        for site in adapter.plan.sites:
            slices[site.module, site.parameter, site.index] += 1
        pairs = {(pair.site.module, pair.site.parameter, pair.site.index): pair for pair in low_rank_pairs(model)}
        assert pairs.keys() == expected.keys()
        for key, pair in pairs.items():
            assert pair.rank == 4 * copies * slices[key]
            assert pair.down.dtype == pair.up.dtype == torch.float32
            change, size = expected[key], expected[key].abs().max()
            assert (pair.up.double() @ pair.down.double() - change).abs().max() < 1e-6 * size
            wide = pair.padded(pair.rank + 3)
            assert torch.equal(wide.up @ wide.down, wide.padded(wide.rank).up @ wide.down)
            assert (wide.up.double() @ wide.down.double() - change).abs().max() < 1e-6 * size


def test_slices_of_one_projection_are_one_pair() -> None:
    model = tiny.gpt2()
    capaft.attach(model, "lora", rank=4, targets="qv")
    assert [pair.site.path for pair in low_rank_pairs(model)] == ["h.0.attn.c_attn", "h.1.attn.c_attn"]
    assert {(len(pair.up), pair.rank) for pair in low_rank_pairs(model)} == {(96, 8)}


def test_every_rank_of_a_pattern_is_its_own() -> None:
    model = tiny.bert()
    capaft.attach(model, "lora", rank=4, targets="qv", rank_pattern=("value=2",))
    assert sorted(pair.rank for pair in low_rank_pairs(model)) == [2, 2, 4, 4]


def test_an_inactive_adapter_has_pairs_too() -> None:
    model = tiny.bert()
    tiny.scramble(capaft.attach(model, "nola", rank=4, k=8))
    active = low_rank_pairs(model)
    capaft.attach(model, "ia3", name="other")
    for before, after in zip(active, low_rank_pairs(model, "default"), strict=True):
        assert torch.equal(before.up, after.up)
        assert torch.equal(before.down, after.down)


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("dora", "more than a product of two factors"),
        ("ia3", "more than a product of two factors"),
        ("bitfit", "more than a product of two factors"),
        ("houlsby", "has an activation between its projections"),
        ("prefix", "virtual tokens are not part of any weight"),
        ("head", "has no low-rank update"),
    ],
)
def test_a_method_without_pairs_says_why(method: str, reason: str) -> None:
    model = tiny.bert()
    capaft.attach(model, method, head=["classifier.weight", "classifier.bias"])
    with pytest.raises(UsageError, match=reason):
        low_rank_pairs(model)


def test_numbers_that_are_not_finite_are_refused() -> None:
    model = tiny.bert()
    adapter = tiny.scramble(capaft.attach(model, "nola", k=8, rank=2))
    adapter.role_parameters["up"].data[0] = float("nan")
    with pytest.raises(UsageError, match="that are not finite; its training has diverged"):
        low_rank_pairs(model)
