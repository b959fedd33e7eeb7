"""docs/adapter-format.md states the tables and limits of the code, and its examples are what the code writes."""

from __future__ import annotations

import dataclasses
import re
import typing
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaModel

from capaft.adapter.bounds import LEAST_ENTRIES, LEAST_WORDS, MAX_COEFFICIENTS, MAX_HIDDEN, MAX_WORDS
from capaft.adapter.file.canonical import MAX_DEPTH, canonical_json, parse_json
from capaft.adapter.file.envelope import MAX_JSON_BYTES
from capaft.adapter.file.header_schema import MAX_EXT, MAX_OPTIONS
from capaft.adapter.file.site_list import MAX_SIDE, SiteList
from capaft.adapter.plan import Placement, make_plan
from capaft.config.choices import TASKS
from capaft.methods.registry import MAX_VERSION
from capaft.methods.stack import MAX_COPIES, parse_stack
from capaft.model.fused_projections import PROJECTION_NAMES
from capaft.model.targets import MAX_PATTERN_SECONDS, MAX_TARGETS, Targets
from capaft.tasks.base.registry import task_class
from capaft.tasks.base.task import _COMMON

PAGE = (Path(__file__).parents[3] / "docs" / "adapter-format.md").read_text(encoding="utf-8")
TYPES = {bool: "boolean", int: "integer", float: "floating point", str: "string"}


def row(name: str) -> str:
    """What a table of the page says about a name."""
    (cells,) = re.findall(rf"^\| `?{re.escape(name)}`? \| (.*) \|$", PAGE, re.MULTILINE)
    return cells


@pytest.mark.parametrize("name", TASKS)
def test_the_options_of_every_task(name: str) -> None:
    task = task_class(name)
    types = typing.get_type_hints(task)
    options = {field.name: TYPES[types[field.name]] for field in dataclasses.fields(task) if field.name not in _COMMON}
    stated = dict(re.findall(r"`(\w+)` (boolean|integer|floating point|string)", row(name)))
    if name == "causal-lm":
        stated |= dict(re.findall(r"`(\w+)` (boolean|integer|floating point|string)", row("seq2seq"))[:-1])
    assert stated == options


@pytest.mark.parametrize("letter", PROJECTION_NAMES)
def test_the_names_of_projections(letter: str) -> None:
    assert re.findall(r"`(\w+)`", row({"q": "queries", "k": "keys", "v": "values"}[letter])) == sorted(
        PROJECTION_NAMES[letter]
    )


@pytest.mark.parametrize(
    "stated",
    [
        f"`H` is at most {MAX_JSON_BYTES:,} (16 MiB",
        f"canonical JSON of at most {MAX_EXT:,} characters, nested at most {MAX_DEPTH} levels deep",
        f"at most {MAX_OPTIONS} entries",
        f"integers from 1 to 2^{MAX_SIDE.bit_length() - 1} - 1",
        f"an integer from 1 to 2^{MAX_VERSION.bit_length() - 1} - 1",
        f"have at most {MAX_TARGETS} characters each",
        f"integer, 1 to {MAX_COPIES}",
        f"`k` is at most {MAX_COEFFICIENTS} n,",
        f"hidden width is at most {MAX_HIDDEN} or four times the larger side",
        f"are at most {MAX_WORDS} P or 2^{LEAST_WORDS.bit_length() - 1}, whichever is more",
        f"are at most P or 2^{LEAST_ENTRIES.bit_length() - 1}, whichever is more",
        f"searched for {({0.5: 'half a second'})[MAX_PATTERN_SECONDS]} at most",
    ],
)
def test_the_limits(stated: str) -> None:
    assert stated in " ".join(PAGE.split())


def test_the_examples_of_numbers_and_escapes_are_canonical() -> None:
    (rules,) = re.findall(r"- All characters are ASCII\.(.*?)- `1` is an integer", PAGE, re.DOTALL)
    spans = re.findall(r"`([^`]+)`", rules)
    numbers = [span for span in spans if re.fullmatch(r"\d[\d.e+-]*", span)]
    escapes = [span for span in spans if span.startswith("\\") and span not in ("\\", "\\uxxxx")]
    assert len(numbers) == 9
    assert len(escapes) == 11
    for text in numbers + [f'"{span}"' for span in escapes]:
        assert canonical_json(parse_json(text)) == text


def test_the_size_of_a_large_site_list() -> None:
    config = LlamaConfig(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=32,
    )
    with torch.device("meta"):
        model = LlamaModel(config)
    plan = make_plan(model, parse_stack("lora", rank=1), Placement(targets=Targets("all-linear")))
    sites = SiteList.of(plan)
    text = canonical_json(sites.record())
    stated = re.search(r"the (\d+) linear layers of Llama-70B take (\d+) bytes in four groups", " ".join(PAGE.split()))
    assert stated
    assert (len(sites), len(text), len(sites.groups)) == (int(stated[1]), int(stated[2]), 4)
