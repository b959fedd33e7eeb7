"""Sizes that a layer or a model has no room for are refused before anything is drawn."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
from torch import nn

import capaft
from capaft.adapter.budget import fit_to_budget
from capaft.adapter.plan import Placement, make_plan
from capaft.methods.stack import parse_stack
from capaft.model.targets import Targets
from capaft.support.errors import UsageError


def gated() -> nn.Module:
    """A model with a gate of one output in each block, beside wider layers."""
    blocks = [nn.ModuleDict({"gate": nn.Linear(32, 1), "query": nn.Linear(32, 32)}) for _ in range(2)]
    return nn.ModuleDict({"layer": nn.ModuleList(blocks), "words": nn.Embedding(5000, 32)})


@pytest.fixture
def _nothing_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("capaft.factors.rng.words", lambda *_: pytest.fail("a stream was drawn"))


def planned(model: nn.Module, method: str, targets: str = "", **options: Any) -> None:
    make_plan(model, parse_stack(method, **options), Placement(Targets(targets)))


@pytest.mark.usefixtures("_nothing_is_drawn")
@pytest.mark.parametrize(
    ("method", "options", "targets", "message"),
    [
        (
            "lora",
            {},
            "gate,query",
            r"--rank 8 exceeds the smaller side of layer\.0\.gate and layer\.1\.gate \(1 x 32\); use --rank-pattern "
            "gate=1, --exclude-modules gate or --rank 1 or less$",
        ),
        ("nola", {}, "gate,query", r"1 x 32.; use --exclude-modules gate or --rank 1 or less$"),
        ("dora", {}, "all-linear", "1 x 32.; use --exclude-modules gate or --rank 1 or less$"),
        (
            "nola",
            {"k": 1, "rank": 33},
            "words",
            r"--rank 33 exceeds the smaller side of words \(32 x 5000\); use --rank 32 or less$",
        ),
        ("lora", {"rank_pattern": ["query=33"]}, "query", r"--rank 33 .* use --rank-pattern query=32$"),
        ("capaboost", {"copies": 5}, "query", "a hidden width of 40 .* exceeds the layer layer.0.query"),
        ("vera", {"rank": 4097}, "query", "a hidden width of 4097 .* has room for 4096"),
        (
            "vera",
            {"rank": 4096},
            "words",
            "needs 21 million entries of factors, more than the 8 million .* lower --rank",
        ),
        (
            "nola",
            {"k": 1025, "rank": 8},
            "query",
            "--k 1025 is more than 4 times the 256 entries of up at layer.0.query",
        ),
        (
            "nola",
            {"rank": 1, "k": 128},
            "gate,query",
            "--k 128 is more than 4 times the 1 entry of up at layer.0.gate",
        ),
        (
            "nola",
            {"k": 257, "rank": 8, "basis": "group"},
            "query",
            "--k 257 is more than --basis group has room for in the 256 entries of up at layer.0.query .* --k 256 or",
        ),
        (
            "nola",
            {"rank": 32, "k": 2000, "basis": "uniform"},
            "words",
            "needs 81 million random words, more than the 67 million .* choose --basis hadamard, or lower --k",
        ),
    ],
)
def test_what_has_no_room(method: str, options: dict[str, Any], targets: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        planned(gated(), method, targets, **options)


def test_the_advice_can_be_typed() -> None:
    planned(gated(), "lora", "all-linear", rank_pattern=["gate=1"])
    make_plan(gated(), parse_stack("dora"), Placement(Targets("all-linear", exclude="gate")))
    planned(gated(), "nola", "query", rank=8, k=1024)


def test_python_names_its_keywords() -> None:
    with pytest.raises(
        UsageError, match=r"^rank 8 exceeds .* use rank_pattern gate=1, exclude gate or rank 1 or less$"
    ):
        capaft.attach(gated(), "lora", targets="all-linear")


def test_names_in_the_advice_match_no_wider_layer() -> None:
    model = nn.ModuleDict({name: nn.ModuleDict({"out": nn.Linear(32, width)}) for name, width in (("a", 4), ("b", 32))})
    with pytest.raises(UsageError, match=r"use --rank-pattern a.out=4, --exclude-modules a.out or"):
        planned(model, "lora", "all-linear")


def test_a_head_is_bounded_too() -> None:
    model = tiny.bert()
    model.bert.pooler.dense = nn.Linear(32, 60_000)
    head = ["pooler.dense.weight"]
    with pytest.raises(UsageError, match=r"random words.* choose --basis hadamard, or lower --k, or lower --head-k"):
        make_plan(
            model,
            parse_stack("nola", rank=1, k=1, basis="uniform"),
            Placement(head=head, head_mode="nola", head_k=1024),
        )


def test_a_file_beyond_the_bounds_is_refused(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("capaft.adapter.bounds.MAX_COEFFICIENTS", 10**9)
    model, path = gated(), tmp_path / "adapter.safetensors"
    capaft.attach(model, "nola", rank=1, k=4000, targets="query", scope="model")
    capaft.save(model, path)
    monkeypatch.undo()
    with pytest.raises(capaft.AdapterFileError, match=r"k 4000 is more than 4 times the 32 entries of up at layer"):
        capaft.load(gated(), path)


def test_every_host_passes_with_its_defaults_on_a_tiny_model() -> None:
    for host in ("lora", "dora", "vera", "houlsby", "pfeiffer", "parallel", "prefix"):
        for tail in ("", "+nola", "+capaboost", "+nola+capaboost"):
            planned(tiny.bert(), host + tail)


def test_a_budget_says_where_the_rank_stops() -> None:
    with pytest.warns(UserWarning, match=r"the rank stops at 1, the most that layer.0.gate has room for"):
        fitted = fit_to_budget(gated(), parse_stack("lora"), 5000, Placement(Targets("all-linear")))
    assert fitted.host == parse_stack("lora", rank=1).host
    assert fit_to_budget(gated(), parse_stack("nola"), 10**9, Placement(Targets("query"))).k == (1024, 1024)


def test_ranks_are_resolved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(tiny.bert(), parse_stack("lora", rank=2, rank_pattern=("value=5", "re:query|value=3")))
    monkeypatch.setattr("capaft.methods.lora.path_matcher", lambda *_: pytest.fail("matched again"))
    assert [plan.stack.host.factors(site)[0].shape[0] for site in plan.sites] == [3, 5, 3, 5]  # type: ignore[union-attr]


def test_all_patterns_share_one_limit_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.ModuleDict({"query": nn.Linear(8, 8)})
    monkeypatch.setattr("capaft.model.targets.MAX_PATTERN_SECONDS", 0.1)
    monkeypatch.setattr("capaft.model.targets.time.perf_counter", iter(0.01 * tick for tick in range(1000)).__next__)
    planned(model, "lora", "re:query", rank_pattern=["re:que=3"] * 5)
    with pytest.raises(UsageError, match="takes too long to match"):
        planned(model, "lora", "re:query", rank_pattern=["re:que=3"] * 15)
