"""Templates of paths stand for exactly the paths that they were made from, whatever these are, and always alike."""

from __future__ import annotations

import random
import time
from pathlib import Path

import naive_reader
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from capaft.adapter.file import site_list
from capaft.adapter.file.path_templates import MAX_CHARACTERS, MAX_PATHS, count_paths, expand, path_templates
from capaft.adapter.file.site_list import SiteList
from capaft.adapter.plan import Plan
from capaft.methods.stack import Stack
from capaft.model.site import Site
from capaft.model.targets import Targets
from capaft.support.errors import UsageError

DOCUMENT = (Path(__file__).parents[3] / "docs" / "adapter-format.md").read_text(encoding="utf-8")
# Few pieces, so that templates have something to unite, and all that means something in one.
PIECES = [
    "0",
    "1",
    "2",
    "7",
    "10",
    "00",
    "999999999",
    "1234567890",
    ".",
    "#",
    "a",
    "layer",
    "w",
    "-",
    "_",
    "{",
    "}",
    ",",
]
PATHS = st.lists(st.sampled_from([*PIECES, "\\", "é", "٣", "😀", " ", "0-3"]), max_size=7).map("".join) | st.text(
    max_size=9
)


def expanded(templates: list[str]) -> list[str]:
    return [path for template in templates for path in expand(template)]


@given(st.sets(PATHS, max_size=40))
@settings(max_examples=200, deadline=None)
@example({""})
@example({"", "0", "a"})
@example({f"a.{number}" for number in range(12)} | {"a.00", "a.x"})
def test_the_paths_come_back(paths: set[str]) -> None:
    templates = path_templates(paths)
    assert sorted(expanded(templates)) == sorted(paths)
    # In any order.
    shuffled = random.Random(0).sample(sorted(paths), len(paths))
    assert path_templates(shuffled) == templates == sorted(templates)
    for template in templates:
        texts = list(expand(template))
        assert count_paths(template) == (len(texts), sum(map(len, texts)))
    header = {"sites": [[template, 1, 1, 0, ""] for template in templates]}
    assert [site.path for site in naive_reader.sites_of(header)] == sorted(paths)


@given(st.text(alphabet="a0129{},-\\.", max_size=12))
@settings(max_examples=300, deadline=None)
def test_both_readers_take_any_text_alike(template: str) -> None:
    try:
        slow = [site.path for site in naive_reader.sites_of({"sites": [[template, 1, 1, 0, ""]]})]
    except naive_reader.Damaged as error:
        if str(error) != "a site twice":
            with pytest.raises(ValueError, match=r"."):
                expand(template)
        return
    assert sorted(expand(template)) == slow


# Every example of the page, and some that it has no room for.
GOLDEN: dict[str, list[str]] = {
    "layer.{0-11}.attention.self.{query,value}": [
        f"layer.{number}.attention.self.{name}" for number in range(12) for name in ("query", "value")
    ],
    "h.{0-3,7}.attn.c_attn#{q,v}": [f"h.{number}.attn.c_attn#{part}" for number in (0, 1, 2, 3, 7) for part in "qv"],
    "layers.{0,1}.experts#down_proj.{0-63}": [],
    "layers.{0-1}.experts#down_proj.{0-63}": [
        f"layers.{number}.experts#down_proj.{index}" for number in (0, 1) for index in range(64)
    ],
    "layer{1-4}.0.conv{1-3}": [f"layer{number}.0.conv{index}" for number in range(1, 5) for index in range(1, 4)],
    "{0,10,2,00,a}": [],
    "{0,2,10,00,a}": ["0", "2", "10", "00", "a"],
    r"a\{b\,c\}": ["a{b,c}"],
}


@pytest.mark.parametrize("template", GOLDEN)
def test_golden_templates(template: str) -> None:
    if GOLDEN[template]:
        assert path_templates(GOLDEN[template]) == [template]
        assert list(expand(template)) == GOLDEN[template]
    else:  # The same paths in another form than a writer's.
        assert path_templates(list(expand(template))) != [template]


def test_unlike_paths_stay_apart() -> None:
    paths = ["a.0.x", "a.0.y", "a.1.x", "b.0.x"]
    assert path_templates(paths) == ["a.0.{x,y}", "a.1.x", "b.0.x"]


WRONG = ["{", "}", "{}", "{a", "a}", "{a,}", "{,a}", "{a,,b}", "{a{b}}", "a,b", "a\\", r"\a", "{1-0}", "{1-1}"]


@pytest.mark.parametrize("template", [*WRONG, "{0-999999999}", "{0-99}" * 9, "{0-1}" * 10**5, "a" * 2**16 + "{0-9999}"])
def test_what_is_no_template_or_too_much_is_refused_soon(template: str) -> None:
    start = time.perf_counter()
    with pytest.raises(ValueError, match=r"template|range|more than"):
        expand(template)
    assert time.perf_counter() - start < 2


def test_the_page_states_the_limits() -> None:
    assert f"{MAX_PATHS:,} sites" in DOCUMENT
    assert f"{MAX_CHARACTERS:,} characters" in DOCUMENT
    for template, paths in GOLDEN.items():
        assert not paths or f"`{template}`" in DOCUMENT


def test_a_plan_of_too_many_sites_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(Stack("lora"), 0, Targets(), tuple(Site(f"h.{number:02}", "", 2, 3) for number in range(100)), ())
    assert len(SiteList.of(plan)) == 100
    monkeypatch.setattr(site_list, "MAX_PATHS", 99)
    with pytest.raises(UsageError, match=r"cannot hold these sites: it names more than .* sites.*; narrow"):
        SiteList.of(plan)
