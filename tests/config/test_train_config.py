from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capaft.config.sources import dump_settings, resolve_settings
from capaft.config.train_config import TrainConfig
from capaft.support.errors import UsageError

PANELS = ["Model and data", "Task", "Method", "Optimization", "Evaluation", "Machine", "Output"]


def read(file: Path | None = None, **flags: str | bool | None) -> TrainConfig:
    return resolve_settings(TrainConfig, flags=flags, environ={}, file=file)[0]


def complaint(**flags: str | bool | None) -> str:
    with pytest.raises(UsageError) as caught:
        read(**flags)
    return str(caught.value)


def test_the_defaults_pass_their_own_checks(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(dump_settings(TrainConfig()))
    assert read(file) == TrainConfig() == read()


def test_every_field_has_a_one_sentence_help_and_panels_are_contiguous() -> None:
    panels = []
    for field in dataclasses.fields(TrainConfig):
        help = field.metadata["help"]
        assert help[0].isupper()
        assert help.endswith(".")
        assert "\n" not in help
        assert "[" not in help, "rich would take it for markup"
        assert field.default is not None or "default:" in help or field.name == "budget"
        if field.metadata["panel"] not in panels[-1:]:
            panels.append(field.metadata["panel"])
    assert panels == PANELS


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("k", "1024", (1024,)),
        ("k", "512,256", (512, 256)),
        ("budget", "50k", 50_000),
        ("lr", "5e-3", 0.005),
        ("alpha", "none", None),
        ("seed", str(2**64 - 1), 2**64 - 1),
        ("clip", "0", 0.0),
        ("density", "1", 1.0),
        ("warmup", "0", 0.0),
        ("target_modules", "qv", "qv"),
        ("baseline", False, False),
        ("lr", "1000", 1000.0),
        ("separator", "", ""),
        ("separator", " ", " "),
        ("separator", "None", None),
        ("source_prefix", " ", " "),
        ("label_separator", "\t", "\t"),
        ("output", " ", None),
    ],
)
def test_values(name: str, text: str | bool, value: Any) -> None:
    assert getattr(read(**{name: text}), name) == value


@pytest.mark.parametrize(
    ("name", "text", "range_"),
    [
        ("validation_split", "0", "in (0, 1)"),
        ("validation_split", "1", "in (0, 1)"),
        ("max_train_examples", "0", "at least 1"),
        ("max_length", "1", "at least 2"),
        ("rank", "0", "at least 1"),
        ("alpha", "0", "greater than 0"),
        ("k", "0", "one or two whole numbers of at least 1"),
        ("k", "1,0", "one or two whole numbers of at least 1"),
        ("k", "1,2,3", "one or two whole numbers of at least 1"),
        ("copies", "0", "at least 1"),
        ("density", "0", "in (0, 1]"),
        ("density", "1.1", "in (0, 1]"),
        ("budget", "0", "at least 1"),
        ("seed", "-1", "in [0, 2**64)"),
        ("seed", str(2**64), "in [0, 2**64)"),
        ("epochs", "0", "at least 1"),
        ("batch_size", "0", "at least 1"),
        ("lr", "0", "in (0, 1000]"),
        ("lr", "1e38", "in (0, 1000]"),
        ("head_lr", "-1", "in (0, 1000]"),
        ("head_lr", "1e38", "in (0, 1000]"),
        ("warmup", "-1", "at least 0"),
        ("weight_decay", "-0.1", "at least 0"),
        ("clip", "-1", "at least 0"),
        ("label_smoothing", "1", "in [0, 1)"),
        ("eval_batch_size", "0", "at least 1"),
    ],
)
def test_ranges(name: str, text: str, range_: str) -> None:
    assert complaint(**{name: text}) == f"--{name.replace('_', '-')} must be {range_}, got {text}"


def test_choices() -> None:
    assert complaint(basis="hadamrd") == (
        "--basis must be one of hadamard, uniform, group, got 'hadamrd'; did you mean hadamard?"
    )
    assert complaint(lr="nan").startswith("--lr must be a finite number")


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"budget": "50k", "k": "1024"}, ("--budget", "--k")),
        ({"budget": "50k", "k": "192"}, ("--budget", "--k")),
        ({"budget": "50k", "method": "lora", "rank": "4"}, ("--budget", "--rank")),
        ({"masks": "partition", "copies": "3", "density": "0.5"}, ("--density", "--masks", "1/3")),
    ],
)
def test_conflicts_name_the_flags(flags: dict[str, str], named: tuple[str, ...]) -> None:
    message = complaint(**flags)
    assert len(message.splitlines()) == 1
    assert all(name in message for name in named)


def test_conflicts_name_what_the_user_wrote(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("rank: 8\nmethod: lora\nk: 64\nrevision: x\n")
    with pytest.raises(UsageError) as caught:
        resolve_settings(TrainConfig, flags={"budget": "50k"}, environ={"CAPAFT_RANK": "4"}, file=file)
    assert str(caught.value).splitlines() == [
        f"--budget and {file}:3: k cannot be used together: a budget picks it; drop one",
        "--budget and CAPAFT_RANK cannot be used together: a budget picks it; drop one",
    ]


@pytest.mark.parametrize(
    "flags",
    [
        {"budget": "50k", "rank": "4"},
        {"budget": "50k", "method": "lora"},
        {"masks": "partition", "copies": "3"},
        {"masks": "partition", "copies": "3", "density": "0.333"},
        {"masks": "partition", "copies": "2", "density": "0.5"},
        {"data": "x.csv"},
    ],
)
def test_no_conflict(flags: dict[str, str]) -> None:
    read(**flags)


def test_a_saved_run_with_a_budget_or_partition_masks_reads_back(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    for config in (TrainConfig(budget=50_000), TrainConfig(masks="partition", copies=3)):
        file.write_text(dump_settings(config))
        assert read(file) == config
    with pytest.raises(UsageError, match="--density"):
        read(file, density="0.9")


NONE_WORDS = ("none", "null", "~")
text = st.text().filter(lambda text: text.strip() and text.lower() not in NONE_WORDS)
blanks = st.none() | st.text(" \t\n\r") | st.text().filter(lambda text: text.lower() not in NONE_WORDS)
positive = st.floats(0, exclude_min=True, allow_infinity=False)


@settings(deadline=None, max_examples=50)
@given(
    st.builds(
        TrainConfig,
        model=st.none() | text,
        data=st.none() | text,
        text_column=st.none() | text,
        validation_split=st.floats(0, 1, exclude_min=True, exclude_max=True),
        method=text,
        k=st.lists(st.integers(1, 10**9), min_size=1, max_size=2).map(tuple),
        alpha=st.none() | positive,
        seed=st.integers(0, 2**64 - 1),
        lr=st.none() | st.floats(0, 1000, exclude_min=True),
        label_separator=blanks,
        source_prefix=blanks,
        separator=blanks,
        basis=st.sampled_from(["uniform", "hadamard", "group"]),
        baseline=st.none() | st.booleans(),
        overwrite=st.booleans(),
        epochs=st.none() | st.integers(1, 10**6),
        target_modules=text,
        save_dtype=st.sampled_from(["float32", "int4"]),
    )
)
def test_dump_reads_back_the_same(tmp_path_factory: pytest.TempPathFactory, config: TrainConfig) -> None:
    file = tmp_path_factory.getbasetemp() / "config.yaml"
    file.write_text(dump_settings(config), encoding="utf-8")
    assert read(file) == config


def test_importing_it_is_fast_and_imports_nothing_heavy() -> None:
    code = (
        "import sys, time; start = time.process_time(); import capaft.config; "
        "print(time.process_time() - start); print(*sys.modules)"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in range(3)
    ]
    seconds = sorted(float(run.splitlines()[0]) for run in runs)
    modules = set(runs[0].splitlines()[1].split())
    assert seconds[0] < 0.15
    assert not modules & {"torch", "transformers", "datasets", "numpy", "accelerate", "typer", "yaml"}
