from __future__ import annotations

import pytest

from capaft.methods import HOSTS
from capaft.methods.stack import combinations, parse
from capaft.recipe import recipe


@pytest.mark.parametrize("host", HOSTS)
def test_a_host_brings_the_rate_of_its_own_factors(host: str) -> None:
    for stack in (each for each in combinations(HOSTS[host]) if "nola" not in each):
        assert recipe(parse(stack)).lr == HOSTS[host].learning_rate


@pytest.mark.parametrize("host", HOSTS)
def test_coefficients_have_one_rate_wherever_they_are(host: str) -> None:
    for stack in (each for each in combinations(HOSTS[host]) if "nola" in each):
        assert recipe(parse(stack)) == recipe(parse("nola"))


def test_all_weights_move_far_more_slowly_than_an_adapter() -> None:
    assert recipe(parse("full")).lr < min(host.learning_rate for host in HOSTS.values()) / 10
    assert recipe(parse("head")).lr == recipe(parse("head")).head_lr
