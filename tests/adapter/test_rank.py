"""The rank report, against dense singular values in float64."""

from __future__ import annotations

from math import exp, log, sqrt
from typing import Any

import naive
import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import capaft
from capaft.adapter.module import Adapter
from capaft.adapter.rank import SiteRank, inspect_ranks, singular_values, summarise_ranks
from capaft.support.errors import UsageError

STACKS = ("lora", "nola", "capaboost", "lora+nola+capaboost")


def one_layer(values: list[float], wide_out: int = 24, wide_in: int = 20) -> tuple[nn.Module, SiteRank]:
    """A layer whose update has these singular values, and its report."""
    model = nn.ModuleDict({"query": nn.Linear(wide_in, wide_out)})
    adapter = capaft.attach(model, "lora", rank=len(values), alpha=float(len(values)))
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, len(values), generator=generator))[0] for n in (wide_out, wide_in))
    adapter.role_parameters["up"].data = (left * torch.tensor(values)).flatten()
    adapter.role_parameters["down"].data = right.T.flatten()
    (report,) = inspect_ranks(model)
    return model, report


@pytest.mark.parametrize("hidden", [1, 4, 9, 30])
@pytest.mark.parametrize(("wide_out", "wide_in"), [(16, 16), (24, 10), (10, 24)])
def test_singular_values_equal_the_dense_ones(wide_out: int, wide_in: int, hidden: int) -> None:
    generator = torch.Generator().manual_seed(hidden)
    left = torch.randn(wide_out, hidden, generator=generator)
    right = torch.randn(hidden, wide_in, generator=generator)
    dense = torch.linalg.svdvals(left.double() @ right.double())
    values = singular_values(left, right)
    assert values.dtype == torch.float64
    together = min(len(values), len(dense))
    assert torch.allclose(values[:together], dense[:together], rtol=1e-12, atol=1e-12 * float(dense[0]))
    assert values[together:].abs().sum() + dense[together:].abs().sum() < 1e-12 * dense[0]


@pytest.mark.parametrize("method", STACKS)
@pytest.mark.parametrize("make", [tiny.bert, tiny.gpt2])
def test_the_report_equals_a_dense_one(make: Any, method: str) -> None:
    model = make()
    adapter = tiny.scramble(capaft.attach(model, method, rank=4, k=16))
    reports = inspect_ranks(model)
    assert [report.site for report in reports] == [site.path for site in adapter.plan.sites]
    for report, site in zip(reports, adapter.plan.sites, strict=True):
        delta = naive.update(adapter, site).numpy()
        values = np.linalg.svd(delta, compute_uv=False)
        share = [value / values.sum() for value in values if value > 1e-12]
        weight = site.weight(model).detach().double().numpy()
        width = 8 if "capaboost" in method else 4
        assert (report.rank, report.hidden_width, report.numerical_rank) == (4, width, width)
        assert report.spectrum == pytest.approx(values[:width], rel=1e-4)
        assert report.effective_rank == pytest.approx(exp(-sum(p * log(p) for p in share)), rel=1e-4)
        assert report.stable_rank == pytest.approx((delta**2).sum() / values[0] ** 2, rel=1e-4)
        assert report.top_r_energy == pytest.approx((values[:4] ** 2).sum() / (values**2).sum(), rel=1e-4)
        assert report.delta_norm == pytest.approx(sqrt((delta**2).sum()), rel=1e-4)
        assert report.relative_norm == pytest.approx(sqrt((delta**2).sum() / (weight**2).sum()), rel=1e-4)


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_equal_values_count_fully(count: int) -> None:
    _, report = one_layer([0.5] * count)
    assert report.numerical_rank == count
    assert report.effective_rank == pytest.approx(count, rel=1e-5)
    assert report.stable_rank == pytest.approx(count, rel=1e-5)
    assert report.top_r_energy == pytest.approx(1)
    assert report.delta_norm == pytest.approx(0.5 * sqrt(count), rel=1e-5)


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=8))
def test_a_known_spectrum(values: list[float]) -> None:
    model, report = one_layer(values)
    assert report.spectrum == pytest.approx(sorted(values, reverse=True), rel=1e-3, abs=1e-5 * max(values))
    entropy = -sum(value / sum(values) * log(value / sum(values)) for value in values)
    energy = sum(value**2 for value in values)
    assert report.effective_rank == pytest.approx(exp(entropy), rel=1e-3)
    assert report.stable_rank == pytest.approx(energy / max(values) ** 2, rel=1e-3)
    assert 1 - 1e-6 <= report.stable_rank <= len(values) + 1e-3
    assert report.relative_norm == pytest.approx(sqrt(energy) / float(model["query"].weight.norm()), rel=1e-3)


def test_what_is_lost_in_float32_is_no_rank() -> None:
    _, report = one_layer([1.0, 0.1, 1e-8])
    assert report.numerical_rank == 2


def test_an_update_of_zero() -> None:
    model = tiny.bert()
    capaft.attach(model, "lora", rank=4)
    for report in inspect_ranks(model):
        record = report.record()
        assert (record.pop("site"), record.pop("rank"), record.pop("hidden_width")) == (report.site, 4, 4)
        assert set(record.values()) == {0}
    assert summarise_ranks(inspect_ranks(model))["mean_effective_rank"] == 0


@pytest.mark.parametrize(("method", "rank"), [("lora", 4), ("capaboost", 8), ("lora+nola+capaboost", 8)])
def test_training_reaches_the_hidden_width_at_every_site(method: str, rank: int) -> None:
    model = tiny.bert()
    capaft.attach(model, method, rank=4, k=64, copies=2)
    tiny.train(model, steps=4)
    reports = inspect_ranks(model)
    assert [report.numerical_rank for report in reports] == [rank] * 4
    assert summarise_ranks(reports)["min_numerical_rank"] == summarise_ranks(reports)["max_numerical_rank"] == rank


def test_the_summary_is_the_mean() -> None:
    model = tiny.bert()
    tiny.scramble(capaft.attach(model, "capaboost", rank=4))
    reports = inspect_ranks(model)
    summary = summarise_ranks(reports)
    assert summary["sites"] == 4
    for name in ("effective_rank", "stable_rank", "top_r_energy", "delta_norm", "relative_norm"):
        assert summary[f"mean_{name}"] == pytest.approx(np.mean([report.record()[name] for report in reports]))


class Largest(TorchDispatchMode):
    """Keeps the size of the largest tensor that any operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for output in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(output, Tensor):
                self.size = max(self.size, output.numel())
        return made


def test_the_update_is_never_formed() -> None:
    wide_out, wide_in, hidden = 300, 200, 4
    with Largest() as largest:
        singular_values(torch.randn(wide_out, hidden), torch.randn(hidden, wide_in))
    assert largest.size <= wide_out * hidden


def test_methods_without_an_update() -> None:
    model = tiny.bert()
    assert isinstance(capaft.attach(model, "full"), Adapter)
    with pytest.raises(UsageError, match="method full has no low-rank update to inspect"):
        inspect_ranks(model)
