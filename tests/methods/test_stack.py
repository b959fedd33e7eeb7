"""The grammar of method stacks, and the range of every option."""

from __future__ import annotations

from dataclasses import fields
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capaft.factors.basis import BASES
from capaft.factors.factor import Factor
from capaft.factors.nola import Coefficients
from capaft.methods.registry import HOSTS
from capaft.methods.stack import DEFAULT_HOST, HOSTLESS, canonical_method, parse_stack, stack_options
from capaft.support.errors import UsageError

TAILS = ((), ("nola",), ("capaboost",), ("nola", "capaboost"))
NARROW = {"+".join((host, *tail)) for host, tail in product(HOSTS, TAILS) if HOSTS[host].narrow and "capaboost" in tail}
STACKS = [name for host, tail in product(HOSTS, TAILS) if (name := "+".join((host, *tail))) not in NARROW]
PARTS = (*HOSTS, "nola", "capaboost", *HOSTLESS)


@pytest.mark.parametrize("stack", [*STACKS, *HOSTLESS])
def test_canonical_names_stay(stack: str) -> None:
    assert canonical_method(stack) == parse_stack(stack).method == stack
    assert canonical_method(f" {stack.upper()} ") == stack


@pytest.mark.parametrize("tail", TAILS[1:])
def test_the_default_host_may_be_left_out(tail: tuple[str, ...]) -> None:
    assert canonical_method("+".join(tail)) == "+".join((DEFAULT_HOST, *tail))


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_stack_is_a_host_then_nola_then_capaboost_and_nothing_else(length: int) -> None:
    for parts in product(PARTS, repeat=length):
        name = "+".join(parts)
        if name in (*STACKS, *HOSTLESS, *("+".join(tail) for tail in TAILS[1:])):
            assert canonical_method(name) in (*STACKS, *HOSTLESS)
            continue
        message = r"does not compose; a stack is host\[\+nola\]\[\+capaboost\]"
        if name in NARROW:
            message = rf"{parts[0]} has no hidden axis for capaboost to widen: .* add up to"
        with pytest.raises(UsageError, match=message):
            parse_stack(name)


@pytest.mark.parametrize(
    ("method", "hint"),
    [
        ("nolla", "there is no method nolla; did you mean nola?"),
        ("lora+capaboos", "there is no method capaboos; did you mean capaboost?"),
        ("zzz", "there is no method zzz; choose from lora"),
        ("", r"there is no method \(empty\); choose from"),
        ("lora+", r"there is no method \(empty\)"),
        ("+nola", r"there is no method \(empty\)"),
        ("lora nola", "there is no method lora nola; did you mean"),
    ],
)
def test_what_is_unknown_is_named_with_a_hint(method: str, hint: str) -> None:
    for use in (parse_stack, canonical_method, stack_options):
        with pytest.raises(UsageError, match=hint):
            use(method)


@given(
    method=st.sampled_from(STACKS),
    rank=st.integers(1, 10**6),
    alpha=st.none() | st.floats(-1e8, 1e8, allow_subnormal=False).filter(bool) | st.integers(1, 100),
    k=st.integers(1, 10**9) | st.tuples(st.integers(1, 10**9), st.integers(1, 10**9)),
    basis=st.sampled_from(list(BASES)),
    copies=st.integers(1, 64),
    density=st.floats(1e-9, 1.0),
    masks=st.sampled_from(["random", "partition"]),
)
def test_the_record_gives_the_stack_back(method: str, **options: Any) -> None:
    stack = parse_stack(method, **options)
    record = stack.record()
    assert parse_stack(**record) == stack
    assert parse_stack(**record).record() == record
    assert set(record) == stack_options(method)
    assert (stack.k is not None) == ("nola" in method)
    assert (stack.copies is not None) == ("capaboost" in method)
    if stack.copies:
        density = 1 / options["copies"] if options["masks"] == "partition" else options["density"]
        assert stack.copies.density == density


@pytest.mark.parametrize("method", HOSTLESS)
def test_methods_without_a_host_have_no_numbers(method: str) -> None:
    stack = parse_stack(method, rank=0, k=-3)
    assert stack.host is stack.k is stack.copies is None
    assert stack.record() == {"method": method}
    assert stack_options(method) == {"method"}


@pytest.mark.parametrize("host", HOSTS)
def test_a_hosts_fields_are_its_options(host: str) -> None:
    assert {field.name for field in fields(HOSTS[host])} == stack_options(host) - {"method"}


def test_defaults() -> None:
    stack = parse_stack("nola+capaboost")
    assert stack.record() == {
        "method": "lora+nola+capaboost",
        "rank": 8,
        "alpha": 16.0,
        "rslora": False,
        "rank_pattern": [],
        "k": [192, 192],
        "basis": "hadamard",
        "scope": "site",
        "copies": 2,
        "density": 0.5,
        "masks": "random",
        "mask_rescale": "none",
    }
    assert parse_stack("lora", rank=3).host.alpha == 6.0
    assert parse_stack("lora", rank=3, alpha=None, k=None) == parse_stack("lora", rank=3)


def test_the_first_k_is_of_down_type_factors() -> None:
    stack = parse_stack("nola", k=(512, 256))
    down, up = Factor("down", (8, 32), 0, "uniform", 32), Factor("up", (32, 8), 1, 0.0, 8)
    assert stack.coefficients(down) == Coefficients(512, "hadamard")
    assert stack.coefficients(up) == Coefficients(256, "hadamard")
    assert parse_stack("lora").coefficients(up) is None


NONSENSE: dict[str, tuple[str, list[Any]]] = {
    "rank": ("--rank must be a whole number of at least 1", [0, -1, 2.0, "8", True, float("nan")]),
    "alpha": (
        "--alpha must be a finite number other than 0",
        [0, 0.0, 1e9, -1e9, float("inf"), float("nan"), "1", True],
    ),
    "k": ("--k must be a whole number of at least 1", [0, -1, (0, 5), (5, 0), (), (1, 2, 3), 1.5, "192", (1.5,), True]),
    "basis": ("--basis must be one of hadamard, uniform, group", ["fourier", "", 3]),
    "copies": ("--copies must be a whole number from 1 to 64", [0, -2, 65, 2.0, "2", True]),
    "density": (r"--density must be in \(0, 1\]", [0, 0.0, -0.5, 1.0001, float("nan"), float("inf"), "half", True]),
    "masks": ("--masks must be one of random, partition", ["both", "", 1]),
    "mask_rescale": ("--mask-rescale must be one of none, variance", ["both", "", 1]),
    "scope": ("--scope must be one of site, model", ["layer", "", 1]),
    "rank_pattern": (r"--rank-pattern .* is not NAME=RANK", [("query",), ("query=0",), ("query=x",), ("=4",)]),
}


@pytest.mark.parametrize(
    ("option", "value"), [(option, value) for option, (_, values) in NONSENSE.items() for value in values]
)
def test_numbers_out_of_range(option: str, value: Any) -> None:
    with pytest.raises(UsageError, match=NONSENSE[option][0]):
        parse_stack("lora+nola+capaboost", **{option: value})


def test_an_option_that_no_method_has() -> None:
    with pytest.raises(UsageError, match="no method has an option rnak; did you mean rank"):
        parse_stack("lora", rnak=4)


def test_an_alias() -> None:
    assert canonical_method("adapter+nola") == "houlsby+nola"
