from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_job import bert, config
from transformers import BertForSequenceClassification

from capaft.adapter.budget import count_trainable
from capaft.adapter.plan import make_plan
from capaft.methods.registry import HOSTS
from capaft.methods.stack import parse_stack, stacks_of
from capaft.model.demo import demo_model
from capaft.training.setup.prepare import prepare_job
from capaft.training.setup.recipe import choose_recipe


@pytest.mark.parametrize("host", HOSTS)
def test_a_host_brings_the_rate_of_its_own_factors(host: str) -> None:
    for stack in (name for name in stacks_of(HOSTS[host]) if "nola" not in name):
        assert choose_recipe(parse_stack(stack), HOSTS[host].tuned_parameters).lr == HOSTS[host].learning_rate


@pytest.mark.parametrize("host", HOSTS)
def test_coefficients_have_one_rate_wherever_they_are(host: str) -> None:
    for stack in (name for name in stacks_of(HOSTS[host]) if "nola" in name):
        assert choose_recipe(parse_stack(stack), 1000) == choose_recipe(parse_stack("nola"), 1000)


def test_all_weights_move_far_more_slowly_than_an_adapter() -> None:
    assert choose_recipe(parse_stack("full"), 1).lr < min(host.learning_rate for host in HOSTS.values()) / 10
    assert choose_recipe(parse_stack("head"), 0).lr == choose_recipe(parse_stack("head"), 0).head_lr


@pytest.mark.parametrize("method", [*HOSTS, "nola"])
def test_each_rate_was_tuned_with_as_many_parameters_as_the_defaults_train(method: str) -> None:
    """On the base model of the sweep in docs/log.md, on which the rates have to be those that were found."""
    from transformers import AutoModel

    stack = parse_stack(method)
    parameters = count_trainable(make_plan(AutoModel.from_pretrained(demo_model()), stack))
    assert stack.host is not None
    assert choose_recipe(stack, parameters).lr == (1e-2 if stack.k else stack.host.learning_rate)
    assert choose_recipe(stack, 2 * parameters).lr < choose_recipe(stack, parameters).lr


@given(st.sampled_from([*HOSTS, "nola", "full"]), st.integers(0, 10**11))
def test_a_step_is_never_longer_than_the_one_that_was_found(method: str, parameters: int) -> None:
    rates = choose_recipe(parse_stack(method), parameters), choose_recipe(parse_stack(method), 4 * parameters)
    assert 0 < rates[1].lr <= rates[0].lr <= choose_recipe(parse_stack(method), 0).lr
    if rates[0].lr < choose_recipe(parse_stack(method), 0).lr:
        # Four times the numbers, half the rate: to two digits.
        assert math.isclose(rates[1].lr, rates[0].lr / 2, rel_tol=0.1)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert(tmp_path_factory.mktemp("model"), BertForSequenceClassification)


@pytest.mark.parametrize(
    ("method", "changes", "rates"),
    [
        ("head", {}, (2e-3, 2e-3)),
        ("head", {"lr": 3e-4}, (3e-4, 3e-4)),
        ("head", {"lr": 3e-4, "head_lr": 5e-4}, (3e-4, 5e-4)),
        ("lora", {"lr": 3e-4}, (3e-4, 2e-3)),
        ("full", {"lr": 3e-4}, (3e-4, 1e-3)),
    ],
)
def test_one_rate_is_the_heads_where_nothing_else_is_trained(
    method: str, changes: dict, rates: tuple[float, float], small: Path, reviews: Path
) -> None:
    made = prepare_job(config(small, reviews, method=method, **changes), lambda line: None)
    assert (made.rates.lr, made.rates.head_lr) == rates
