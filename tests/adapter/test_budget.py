"""The largest size within a budget, against trying them all."""

from __future__ import annotations

from functools import partial
from itertools import product
from math import prod
from typing import Any

import naive
import pytest
import tiny

import capaft
from capaft.adapter.budget import count_trainable, fit_to_budget
from capaft.adapter.plan import Placement, make_plan
from capaft.methods.stack import Stack, parse_stack
from capaft.model.targets import Targets
from capaft.support.errors import UsageError

COPIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "d=2": {"copies": 2},
    "d=3": {"copies": 3, "density": 0.35},
    "partition": {"copies": 2, "masks": "partition"},
}
BASE = tiny.bert()
PLACEMENT = Placement(Targets("query,intermediate.dense"), seed=3)


def stack_of(parameterisation: str, copies: str, **options: Any) -> Stack:
    transform = "" if copies == "plain" else "+capaboost"
    return parse_stack(f"lora{parameterisation}{transform}", alpha=12.0, **options, **COPIES[copies])


def counted(stack: Stack) -> int:
    plan = make_plan(BASE, stack, PLACEMENT)
    return sum(naive.count(plan, site, role) for site in plan.sites for role in naive.shapes(plan, site))


@pytest.mark.parametrize("copies", COPIES)
@pytest.mark.parametrize("parameterisation", ["", "+nola"])
def test_trained_numbers_are_those_of_the_adapter(parameterisation: str, copies: str) -> None:
    stack = stack_of(parameterisation, copies, rank=4, k=(16, 8))
    adapter = capaft.attach(tiny.bert(), stack, targets=PLACEMENT.targets, seed=PLACEMENT.seed)
    trainable = sum(parameter.numel() for parameter in adapter.role_parameters.values())
    assert count_trainable(adapter.plan) == trainable == counted(stack)


@pytest.mark.parametrize("copies", COPIES)
def test_the_rank_is_the_largest_within_the_budget(copies: str) -> None:
    stack = stack_of("", copies, rank=8)
    ranks = range(1, 32 // COPIES[copies].get("copies", 1) + 1)
    counts = [counted(stack_of("", copies, rank=rank)) for rank in ranks]
    for budget in (*counts, *(count - 1 for count in counts[1:]), 10**9):
        fitted = fit_to_budget(BASE, stack, budget, PLACEMENT)
        assert fitted.host.rank == max(rank for rank, count in zip(ranks, counts, strict=True) if count <= budget)
        assert fitted.host.alpha / fitted.host.rank == stack.host.alpha / stack.host.rank
        assert fitted.copies == stack.copies


@pytest.mark.parametrize(("copies", "budget"), list(product(COPIES, (8, 9, 100, 1023))))
def test_k_is_the_largest_within_the_budget(copies: str, budget: int) -> None:
    stack = stack_of("+nola", copies, rank=4, k=(64, 32))
    fitted = fit_to_budget(BASE, stack, budget, PLACEMENT)
    sites = make_plan(BASE, stack, PLACEMENT).sites
    assert fitted.k == (budget // (2 * len(sites)),) * 2
    assert counted(fitted) <= budget < counted(fitted) + 2 * len(sites)
    assert fitted.host == stack.host


@pytest.mark.parametrize(("basis", "per_entry"), [("hadamard", 4), ("group", 1)])
def test_k_stops_where_a_factor_has_no_room(basis: str, per_entry: int) -> None:
    fitted = fit_to_budget(BASE, stack_of("+nola", "plain", rank=1, k=1, basis=basis), 10**9, PLACEMENT)
    plan = make_plan(BASE, fitted, PLACEMENT)
    entries = min(factor.size for groups in plan.groups().values() for factor, _ in groups)
    assert fitted.k == (per_entry * entries,) * 2


@pytest.mark.parametrize(("parameterisation", "copies"), list(product(("", "+nola"), COPIES)))
def test_a_budget_below_the_smallest_size(parameterisation: str, copies: str) -> None:
    stack = stack_of(parameterisation, copies)
    size = {"k": 1} if parameterisation else {"rank": 1}
    smallest = counted(stack_of(parameterisation, copies, **size))
    fit_to_budget(BASE, stack, smallest, PLACEMENT)
    for budget in (smallest - 1, 0, -5):
        with pytest.raises(
            UsageError, match=f"--budget {budget} is below the {smallest} trainable parameters of the smallest"
        ):
            fit_to_budget(BASE, stack, budget, PLACEMENT)


@pytest.mark.parametrize("method", ["head", "full"])
def test_methods_without_a_size(method: str) -> None:
    with pytest.raises(UsageError, match=f"--budget cannot be used with --method {method}"):
        fit_to_budget(BASE, parse_stack(method), 1000)


def test_counting_draws_nothing_where_nothing_is_random(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("capaft.factors.rng.words", lambda *_: pytest.fail("a stream was drawn"))
    for stack in (
        parse_stack("lora"),
        parse_stack("nola"),
        parse_stack("nola+capaboost"),
        parse_stack("capaboost", masks="partition"),
    ):
        plan = make_plan(BASE, stack)
        shapes = [shape for site in plan.sites for shape in naive.shapes(plan, site).values()]
        expected = 192 * len(shapes) if stack.k else sum(map(prod, shapes))
        assert count_trainable(plan) == expected


@pytest.mark.parametrize("host", ["houlsby", "pfeiffer", "vera", "prefix", "dora"])
@pytest.mark.parametrize("copies", COPIES)
def test_other_hosts_are_fitted_too(host: str, copies: str) -> None:
    stack = parse_stack(f"{host}{'' if copies == 'plain' else '+capaboost'}", **COPIES[copies])
    fitted = fit_to_budget(tiny.bert(), stack, 3000)
    size = getattr(fitted.host, fitted.host.size)
    sized = partial(parse_stack, fitted.method, **COPIES[copies])
    assert count_trainable(make_plan(tiny.bert(), fitted)) <= 3000
    if host in ("houlsby", "pfeiffer", "prefix") or (size + 1) * COPIES[copies].get("copies", 1) <= 32:
        assert count_trainable(make_plan(tiny.bert(), sized(**{fitted.host.size: size + 1}))) > 3000
