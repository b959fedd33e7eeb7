"""Settings from flags, variables, files and presets: their order, mistakes in them, and YAML that reads back."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_settings import Oven

from capaft.config.settings import Settings, setting
from capaft.config.sources import dump_settings, resolve_settings
from capaft.support.errors import UsageError

NONE_WORDS = ("none", "null", "~")


def read(
    yaml: str | None = None,
    tmp_path: Path | None = None,
    environ: dict[str, str] | None = None,
    **flags: str | bool | None,
) -> tuple[Oven, dict[str, str]]:
    file = None
    if yaml is not None:
        assert tmp_path is not None
        file = tmp_path / "run.yaml"
        file.write_text(yaml, encoding="utf-8")
    return resolve_settings(Oven, flags=flags, environ=environ or {}, file=file, prefix="OVEN_")


def complaints(*args: Any, tmp_path: Path | None = None, **kwargs: Any) -> list[str]:
    with pytest.raises(UsageError) as caught:
        read(*args, tmp_path=tmp_path, **kwargs)
    return str(caught.value).replace(f"{tmp_path}{os.sep}", "").split("\n")


# Sources and their order.


def test_precedence_and_sources(tmp_path: Path) -> None:
    yaml = "minutes: 1\nheat: 100\ndish: no\n"
    oven, sources = read(yaml, tmp_path, {"OVEN_MINUTES": "2", "OVEN_HEAT": "200", "HOME": "/"}, minutes="3")
    assert oven == Oven(minutes=3, heat=200.0, dish="no")
    assert sources["minutes"] == "--minutes"
    assert sources["heat"] == "OVEN_HEAT"
    assert sources["dish"] == f"{tmp_path / 'run.yaml'}:3"
    assert sources["mode"] == "default"
    assert list(sources) == [field.name for field in dataclasses.fields(Oven)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("heat", "5e-3"),
        ("dish", "no"),
        ("dish", "0x1F"),
        ("note", "12:30"),
        ("note", "none"),
        ("seeds", "1.5M"),
        ("sizes", "10,20"),
        ("light", "yes"),
    ],
)
def test_a_text_means_the_same_in_every_source(tmp_path: Path, name: str, text: str) -> None:
    by_flag, _ = read(**{name: text})
    by_variable, _ = read(environ={f"OVEN_{name.upper()}": text})
    by_file, _ = read(f"{name}: {text}", tmp_path)
    assert by_flag == by_variable == by_file != dataclasses.replace(by_flag, **{name: "?"})


@pytest.mark.parametrize("text", ["", " ", "\t", "\n\n"])
def test_blanks_are_kept_in_every_source(tmp_path: Path, text: str) -> None:
    by_flag, _ = read(between=text)
    by_variable, _ = read(environ={"OVEN_BETWEEN": text})
    by_file, _ = read(f"between: {json.dumps(text)}", tmp_path)
    assert by_flag == by_variable == by_file == Oven(between=text)


def test_a_preset_is_the_weakest_source(tmp_path: Path) -> None:
    preset = tmp_path / "preset.yaml"
    preset.write_text("minutes: 1\nheat: 100\ndish: cake\nsizes: 1,2\n")
    file = tmp_path / "run.yaml"
    file.write_text("minutes: 2\nheat: 200\ndish: pie\n")
    environ = {"OVEN_MINUTES": "3", "OVEN_HEAT": "300"}
    flags = {"minutes": "4"}
    oven, sources = resolve_settings(Oven, flags=flags, environ=environ, file=file, preset=preset, prefix="OVEN_")
    assert oven == Oven(minutes=4, heat=300.0, dish="pie", sizes=(1, 2))
    named = (sources[name] for name in ("minutes", "heat", "dish", "sizes", "mode"))
    assert list(named) == ["--minutes", "OVEN_HEAT", f"{file}:3", f"{preset}:4", "default"]
    preset.write_text("minutes: 1\nheta: 2\n")
    with pytest.raises(UsageError, match=r"preset.yaml:2: 'heta' is not a setting; did you mean heat\?"):
        resolve_settings(Oven, flags={}, environ={}, preset=preset)


def test_a_stronger_source_takes_the_place_of_the_alternative_in_a_weaker_one(tmp_path: Path) -> None:
    preset = tmp_path / "preset.yaml"
    preset.write_text("note: x\nheat: 100\n")

    def made(environ: dict[str, str] | None = None, **flags: str | None) -> tuple[Oven, dict[str, str]]:
        return resolve_settings(Oven, flags=flags, environ=environ or {}, preset=preset, prefix="OVEN_")

    oven, sources = made(seeds="5")
    assert oven == Oven(seeds=5, heat=100.0)
    assert (sources["note"], sources["seeds"]) == ("default", "--seeds")
    # None excludes no alternative.
    assert made(seeds="none")[0] == Oven(note="x", heat=100.0)
    assert made({"OVEN_SEEDS": "5"}, note="y")[0] == Oven(note="y", heat=100.0)
    # Two of one source are both kept, for `conflicts` to judge.
    assert made(seeds="5", note="y")[0] == Oven(seeds=5, note="y", heat=100.0)
    assert made({"OVEN_MINUTES": "5"}, light="true")[0] == Oven(note="x", heat=100.0, minutes=5, light=True)
    # A default counts too if it is typed.
    assert read("timer: true", tmp_path, minutes="30")[0] == Oven(minutes=30)


def test_flags_left_out_and_switches() -> None:
    assert read(minutes=None, light=None)[0] == Oven()
    oven, sources = read(light=True, timer=False)
    assert (oven.light, oven.timer) == (True, False)
    assert (sources["light"], sources["timer"]) == ("--light", "--no-timer")


def test_none_overrides_a_lower_source(tmp_path: Path) -> None:
    assert read("note: x", tmp_path, note="none")[0].note is None


@pytest.mark.parametrize("yaml", ["", "# nothing\n", "{}"])
def test_an_empty_file_changes_nothing(tmp_path: Path, yaml: str) -> None:
    assert read(yaml, tmp_path)[0] == Oven()


@pytest.mark.parametrize(
    ("yaml", "oven"),
    [
        ("note:", Oven(note=None)),
        ("note: null", Oven(note=None)),
        ("between:", Oven(between=None)),
        ("between: ''", Oven(between="")),
        ("sizes: [1, 2]", Oven(sizes=(1, 2))),
        ("sizes:\n- 1\n- 2\n", Oven(sizes=(1, 2))),
        ("sizes: 1,2", Oven(sizes=(1, 2))),
        ("toppings: [ham, 'a,b']", Oven(toppings=("ham", "a,b"))),
        ("minutes: &m 5\nheat: *m\n", Oven(minutes=5, heat=5.0)),
        ("\ufeffminutes: 5\r\nlight: on\r\n", Oven(minutes=5, light=True)),
    ],
)
def test_yaml_forms(tmp_path: Path, yaml: str, oven: Oven) -> None:
    assert read(yaml, tmp_path)[0] == oven


# Mistakes.


def test_all_mistakes_at_once_each_with_its_source(tmp_path: Path) -> None:
    yaml = "minutes: soon\nheet: 3\nheat: 301\nheat: 5\nmode: [fan]\ndish: {a: b}\nsizes: [1, [2]]\n? [a]\n: 1\n"
    environ = {"OVEN_HEAT": "nan", "OVEN_MINUTE": "3", "OVEN_ZZZ": "", "OTHER": "x"}
    assert complaints(yaml, tmp_path=tmp_path, environ=environ, minutes="0", mode="gril", sizes="1,x") == [
        "run.yaml:2: 'heet' is not a setting; did you mean heat?",
        "run.yaml:4: heat is set twice, first at run.yaml:3; keep one",
        "run.yaml:6: dish must be one value or a list of values, got something nested",
        "run.yaml:7: sizes must be one value or a list of values, got something nested",
        "run.yaml:8: a name must be one value or a list of values, got something nested",
        "OVEN_MINUTE is not a setting; did you mean OVEN_MINUTES?",
        "OVEN_ZZZ is not a setting; unset it",
        "run.yaml:1: minutes must be a whole number, got 'soon'",
        "run.yaml:3: heat must be in (0, 300], got 301",
        "run.yaml:5: mode must be a single value, got a list",
        "OVEN_HEAT must be a finite number such as 0.1 or 5e-3, got 'nan'",
        "--minutes must be at least 1, got 0",
        "--mode must be one of fan, grill, got 'gril'; did you mean grill?",
        "--sizes must be a whole number, got 'x'",
    ]


def test_hyphens_and_underscores_are_one_name(tmp_path: Path) -> None:
    @dataclasses.dataclass(frozen=True)
    class Wide(Settings):
        batch_size: int = setting(8, "Size.", "P")

    file = tmp_path / "run.yaml"
    file.write_text("batch-size: 3")
    assert resolve_settings(Wide, flags={}, environ={}, file=file)[0] == Wide(3)
    file.write_text("batch-size: 3\nbatch_size: 4")
    with pytest.raises(UsageError, match=r"run.yaml:2: batch_size is set twice, first at .*run.yaml:1; keep one"):
        resolve_settings(Wide, flags={}, environ={}, file=file)
    with pytest.raises(UsageError, match=r"CAPAFT_BATCHSIZE is not a setting; did you mean CAPAFT_BATCH_SIZE?"):
        resolve_settings(Wide, flags={}, environ={"CAPAFT_BATCHSIZE": "3"})
    with pytest.raises(UsageError, match=r"^--batch-size must be a whole number, got 'x'$"):
        resolve_settings(Wide, flags={"batch_size": "x"}, environ={})


@pytest.mark.parametrize(
    ("content", "start"),
    [
        (b"minutes: 3\nsizes: [1", "run.yaml:2: cannot be read ("),
        (b"minutes: 3\n\theat: 3", "run.yaml:2: cannot be read ("),
        (b"- minutes\n- heat", "run.yaml:1: cannot be read (not a mapping)"),
        (b"\n\nminutes", "run.yaml:3: cannot be read (not a mapping)"),
        (b"minutes: 1\n---\nminutes: 2", "run.yaml:2: cannot be read ("),
        (b"minutes: *x", "run.yaml:1: cannot be read (found undefined alias"),
        (b"minutes: \x00", "run.yaml: cannot be read (unacceptable character"),
        (b"dish: \xff", "run.yaml: cannot be read ('utf-8'"),
        (b"dish: " + b"[" * 600, "run.yaml: cannot be read (maximum recursion"),
    ],
)
def test_a_file_that_is_no_yaml_is_one_line_beside_the_others(tmp_path: Path, content: bytes, start: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        resolve_settings(Oven, flags={"heat": "hot"}, environ={}, file=file)
    first, second = str(caught.value).replace(f"{tmp_path}{os.sep}", "").splitlines()
    assert first.startswith(start)
    assert first.endswith("write lines such as lr: 1e-3")
    assert second == "--heat must be a finite number such as 0.1 or 5e-3, got 'hot'"


def test_a_missing_file_or_a_directory(tmp_path: Path) -> None:
    for file in (tmp_path, tmp_path / "none.yaml"):
        with pytest.raises(UsageError, match=r"cannot be read .* write lines such as"):
            resolve_settings(Oven, flags={}, environ={}, file=file)


def test_yaml_tags_make_nothing(tmp_path: Path) -> None:
    oven, _ = read("dish: !!python/object/apply:os.system ['true']\n".replace("['true']", "x"), tmp_path)
    assert oven.dish == "x"


def test_a_mistake_counts_even_where_another_source_overrides_it() -> None:
    assert complaints(environ={"OVEN_MINUTES": "x"}, minutes="3") == ["OVEN_MINUTES must be a whole number, got 'x'"]


def test_conflicts(tmp_path: Path) -> None:
    conflict = ["--heat and --mode grill cannot go together"]
    assert complaints(heat="20", mode="grill") == conflict
    assert complaints("heat: 20\nmode: grill", tmp_path=tmp_path) == conflict
    assert complaints("mode: grill", tmp_path=tmp_path, heat="180") == conflict
    read("heat: 180\nmode: grill", tmp_path)


def test_what_a_preset_says_conflicts_with_nothing(tmp_path: Path) -> None:
    preset = tmp_path / "preset.yaml"
    preset.write_text("heat: 20\n")
    assert resolve_settings(Oven, flags={"mode": "grill"}, environ={}, preset=preset)[0] == Oven(
        heat=20.0, mode="grill"
    )
    with pytest.raises(UsageError, match="cannot go together"):
        resolve_settings(Oven, flags={"mode": "grill", "heat": "20"}, environ={}, preset=preset)


# Writing.


@settings(deadline=None)
@given(
    st.builds(
        Oven,
        dish=st.text(min_size=1),
        note=st.none() | st.text().filter(lambda text: text.strip() and text.lower() not in NONE_WORDS),
        between=st.none() | st.text(" \t\n\r") | st.text().filter(lambda text: text.lower() not in NONE_WORDS),
        toppings=st.lists(st.text(min_size=1)).map(tuple),
        sizes=st.lists(st.integers(-(10**30), 10**30)).map(tuple),
        seeds=st.none() | st.integers(0, 10**12),
        heat=st.floats(0, 300, exclude_min=True),
        minutes=st.integers(1, 10**20),
        light=st.booleans(),
        timer=st.none() | st.booleans(),
        recipe=st.none() | st.just(Path("a/b c: #.yaml")),
    )
)
def test_dump_reads_back_the_same(tmp_path_factory: pytest.TempPathFactory, oven: Oven) -> None:
    file = tmp_path_factory.getbasetemp() / "dump.yaml"
    file.write_text(dump_settings(oven), encoding="utf-8")
    assert resolve_settings(Oven, flags={}, environ={}, file=file)[0] == oven


def test_dump_comments_every_setting() -> None:
    lines = dump_settings(Oven(sizes=(1, 2), note="é")).splitlines()
    assert lines[:5] == ["# What to bake.", "dish: bread", "", "# A note (default: none).", "note: é"]
    assert "sizes: [1, 2]" in lines
    assert "light: false" in lines
    assert "timer: null" in lines
    for field in dataclasses.fields(Oven):
        assert f"# {field.metadata['help']}" in lines
