"""Patterns, presets, exclusions and numbers of blocks."""

from __future__ import annotations

import pytest
import tiny
from torch import nn

from capaft.model.site import Site
from capaft.model.targets import Targets
from capaft.model.weight_sites import find_weight_sites
from capaft.support.errors import UsageError


def find(model: nn.Module, targets: str) -> tuple[Site, ...]:
    return find_weight_sites(model, Targets(targets))


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("query", 2),
        ("query,value", 4),
        (" query , value ,", 4),
        ("attention.self.query", 2),
        ("layer.1.attention.output.dense", 1),
        ("dense", 7),
        ("output.dense,query", 6),
        ("encoder.layer.0.attention.self.key", 1),
        (r"re:layer\.0\..*\.(query|key)$", 2),
        ("re:^encoder", 12),
        ("re:(?i)QUERY", 2),
        ("all-linear", 13),
    ],
)
def test_patterns(targets: str, expected: int) -> None:
    model = tiny.bert()
    sites = find(model, targets)
    assert len(sites) == expected
    assert not any("classifier" in site.path for site in sites)
    assert sites == tuple(sorted(sites, key=lambda site: site.path))


def test_nothing_between_commas() -> None:
    with pytest.raises(UsageError, match="--target-modules , names nothing"):
        find(tiny.bert(), ",")


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (Targets("all-linear", layers="0"), 6),
        (Targets("all-linear", layers="0-1"), 12),
        (Targets("attention", layers="1"), 4),
        (Targets("mlp"), 4),
        (Targets("attention,mlp"), 12),
        (Targets("all-linear", exclude="attention"), 5),
        (Targets("all-linear", exclude="re:dense$"), 6),
        (Targets("qv", exclude="value", layers=" 1 "), 1),
        (Targets("kv"), 4),
        (Targets("embeddings"), 3),
        (Targets("qv,embeddings"), 7),
    ],
    ids=str,
)
def test_presets_exclusions_and_blocks(targets: Targets, expected: int) -> None:
    assert len(find_weight_sites(tiny.bert(), targets)) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": "2"}, "--layers 2: the model has no block 2; the last one is 1"),
        ({"layers": "1-0"}, "--layers 1-0 is not a list of block numbers such as 0-5,11"),
        ({"layers": "x"}, "--layers x is not a list"),
        ({"layers": "0,"}, "--layers 0, is not a list"),
        ({"exclude": "re:("}, r"--exclude-modules re:\( is not a regular expression"),
        ({"exclude": "attention,query,value"}, "leave none of the layers to adapt"),
        ({"exclude": "qurey"}, "--exclude-modules qurey matches none of the layers; give names, or re:PATTERN"),
        ({"exclude": "query,qv"}, "--exclude-modules qv matches none of the layers"),
        ({"exclude": "x" * 1001}, "--exclude-modules has more than 1000 characters"),
    ],
    ids=str,
)
def test_what_cannot_be_left_out(options: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        find_weight_sites(tiny.bert(), Targets("qv", **options))


def test_a_bad_regular_expression() -> None:
    with pytest.raises(UsageError, match=r"--target-modules re:\( is not a regular expression: missing \)"):
        find(tiny.bert(), "re:(")


def test_a_regular_expression_cannot_hang() -> None:
    model = nn.Sequential()
    model.add_module("a" * 40 + "_query", nn.Linear(2, 2))
    with pytest.raises(UsageError, match="takes too long to match"):
        find(model, "re:^(a|a|aa)+$")
