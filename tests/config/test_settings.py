from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from capaft.config.settings import Settings, setting
from capaft.config.signature import signature
from capaft.config.sources import dump_settings, resolve_settings
from capaft.config.values import Count, Text, parse_value
from capaft.support.errors import UsageError

NONE_WORDS = ("none", "null", "~")


@dataclasses.dataclass(frozen=True)
class Oven(Settings):
    """Small, and with every type that a setting may have."""

    alternatives: ClassVar = (("minutes", "timer"), ("note", "seeds"))

    dish: str = setting("bread", "What to bake.", "Food", metavar="dish")
    note: str | None = setting(None, "A note (default: none).", "Food")
    toppings: tuple[str, ...] = setting((), "What goes on top.", "Food")
    sizes: tuple[int, ...] = setting((20, 30), "Sizes of the tins.", "Food")
    seeds: Count | None = setting(None, "Seeds to sow.", "Food")  # noqa: RUF009
    between: Text | None = setting(None, "What goes between layers (default: none).", "Food")  # noqa: RUF009
    heat: float = setting(180.0, "Degrees.", "Machine", check=("in (0, 300]", lambda heat: 0 < heat <= 300))
    minutes: int = setting(30, "Minutes.", "Machine", check=("at least 1", lambda minutes: minutes >= 1))
    mode: Literal["fan", "grill"] = setting("fan", "Where the heat comes from.", "Machine")
    light: bool = setting(False, "Switch the light on.", "Machine")
    timer: bool | None = setting(None, "Ring at the end (default: by day).", "Machine")
    recipe: Path | None = setting(None, "File of the recipe.", "Machine")  # noqa: RUF009

    def conflicts(self, given: Mapping[str, str]) -> list[str]:
        return ["--heat and --mode grill cannot go together"] if "heat" in given and self.mode == "grill" else []


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


# Parsing.


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (str, "no", "no"),
        (str, " none ", " none "),
        (str | None, "none", None),
        (str | None, "Null", None),
        (str | None, "", None),
        (str | None, " \t", None),
        (str | None, "nonesuch", "nonesuch"),
        (str | None, " none", " none"),
        (Path | None, " ", None),
        *((Text | None, text, text) for text in ("", " ", "\t", "\n\n", " || ", " none", "~ ", "nonesuch")),
        *((Text | None, text, None) for text in ("none", "NULL", "~")),
        (Text, "none", "none"),
        (int | None, " ", None),
        (int | None, " None ", None),
        (int, "8", 8),
        (int, " -3 ", -3),
        (int | None, "~", None),
        (Count, "50k", 50_000),
        (Count, "1.5M", 1_500_000),
        (Count, "1_000", 1_000),
        (Count, "7", 7),
        (Count | None, "50k", 50_000),
        (float, "5e-3", 0.005),
        (float, ".5", 0.5),
        (float, "3", 3.0),
        (float | None, "none", None),
        (bool, "true", True),
        (bool, "Yes", True),
        (bool, "on", True),
        (bool, "1", True),
        (bool, "FALSE", False),
        (bool, "no", False),
        (bool, "off", False),
        (bool, "0", False),
        (bool | None, "null", None),
        (Path, "a b/c", Path("a b/c")),
        (Literal["a", "b"], "b", "b"),
        (Literal["a", "b"] | None, "none", None),
        (tuple[str, ...], "q, v", ("q", "v")),
        (tuple[str, ...], ["q{1,2}"], ("q{1,2}",)),
        (tuple[int, ...], "512", (512,)),
        (tuple[int, ...], "512,256", (512, 256)),
        (tuple[int, ...], [], ()),
    ],
)
def test_parse(kind: Any, text: str | list[str], value: Any) -> None:
    parsed = parse_value(kind, text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        *((int, text) for text in ("3.0", "1_000", "50k", "", "0x10", "٣", "1e3", "none", "9" * 5000)),
        *((Count, text) for text in ("50K", "1.5", "0.0001k", "-5", "k", "", ".5k", "1e3", "9" * 500 + "k")),
        *((float, text) for text in ("nan", "inf", "-inf", "1e999", "1_0", "1,5", "", "٣", "0x1p3", "e3", ".")),
        *((bool, text) for text in ("", "2", "maybe", "truee")),
        *((kind, "") for kind in (str, Path)),
        *((Literal["a", "b"], text) for text in ("c", "A", "", "a,b")),
        *((tuple[int, ...], text) for text in ("1,,2", "1,", "", "1;2", ["1", "x"])),
        *((kind, ["1"]) for kind in (int, int | None, str, bool)),
    ],
)
def test_parse_refuses(kind: Any, text: str | list[str]) -> None:
    with pytest.raises(ValueError, match=r"^must "):
        parse_value(kind, text)


KINDS = st.sampled_from(
    [str, Text, Path, int, Count, float, bool, Literal["a", "b"], tuple[int, ...], float | None, Text | None]
)


@settings(deadline=None)
@given(KINDS, st.text() | st.text("0123456789.eEkM_+-,") | st.lists(st.text()))
def test_parse_answers_any_text_with_a_value_or_one_line(kind: Any, text: str | list[str]) -> None:
    try:
        parse_value(kind, text)
    except ValueError as error:
        assert str(error).startswith("must ")  # noqa: PT017
        assert len(str(error).splitlines()) == 1  # noqa: PT017


@settings(deadline=None)
@given(st.integers(-(10**50), 10**50), st.floats(allow_nan=False, allow_infinity=False), st.integers(0, 10**6))
def test_parse_reads_what_python_prints(whole: int, real: float, thousands: int) -> None:
    assert parse_value(int, str(whole)) == whole
    assert parse_value(float, repr(real)) == real
    assert parse_value(Count, f"{thousands}k") == thousands * 1000


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
    given = {"environ": {"OVEN_MINUTES": "3", "OVEN_HEAT": "300"}, "flags": {"minutes": "4"}}
    oven, sources = resolve_settings(Oven, **given, file=file, preset=preset, prefix="OVEN_")  # type: ignore[arg-type]
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
    # What is none is no alternative to anything.
    assert made(seeds="none")[0] == Oven(note="x", heat=100.0)
    assert made({"OVEN_SEEDS": "5"}, note="y")[0] == Oven(note="y", heat=100.0)
    # Of one source both are left, for `conflicts` to judge.
    assert made(seeds="5", note="y")[0] == Oven(seeds=5, note="y", heat=100.0)
    assert made({"OVEN_MINUTES": "5"}, light="true")[0] == Oven(note="x", heat=100.0, minutes=5, light=True)
    # A default that is typed is a wish too.
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
    assert first.endswith("give a file of lines such as lr: 1e-3")
    assert second == "--heat must be a finite number such as 0.1 or 5e-3, got 'hot'"


def test_a_missing_file_or_a_directory(tmp_path: Path) -> None:
    for file in (tmp_path, tmp_path / "none.yaml"):
        with pytest.raises(UsageError, match=r"cannot be read .* give a file"):
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


# The command line.


def bake_app() -> typer.Typer:
    app = typer.Typer()

    @app.command()
    @signature(Oven)
    def bake(
        config: Annotated[Path | None, typer.Option("--config", help="Settings to start from.")] = None,
        **flags: str | bool | None,
    ) -> None:
        """Bake."""
        try:
            oven, sources = resolve_settings(Oven, flags=flags, environ={}, file=config)
        except UsageError as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(error.exit_code) from None
        typer.echo(f"{oven}\n{sources}")

    return app


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERMINAL_WIDTH", "200")
    return CliRunner()


def row(output: str, flag: str) -> str:
    return next(line for line in output.splitlines() if flag in line.split())


def test_help(runner: CliRunner) -> None:
    result = runner.invoke(bake_app(), ["--help"])
    assert result.exit_code == 0
    for panel in ("Options", "Food", "Machine"):
        assert f"─ {panel} ─" in result.output
    assert result.output.index("--config") < result.output.index("--dish") < result.output.index("--heat")
    for flag, metavar, default in [
        ("--dish", "<dish>", "bread"),
        ("--sizes", "<int,...>", "20,30"),
        ("--heat", "<number>", "180.0"),
        ("--mode", "<fan|grill>", "fan"),
        ("--light", "<bool>", "no-light"),
    ]:
        assert metavar in row(result.output, flag)
        assert f"[default: {default}]" in row(result.output, flag)
    for flag, metavar in [("--note", "<text>"), ("--seeds", "<count>"), ("--recipe", "<path>")]:
        assert metavar in row(result.output, flag)
        assert "[default" not in row(result.output, flag)
    assert "--no-timer" in row(result.output, "--timer")


def test_a_command_gets_text_and_only_what_was_typed(runner: CliRunner, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("minutes: 5\nlight: true")
    config = ["--config", str(tmp_path / "run.yaml")]
    result = runner.invoke(bake_app(), [*config, "--no-light", "--heat", "1e2", "--sizes", "1,2"])
    assert result.exit_code == 0
    assert str(Oven(minutes=5, heat=100.0, sizes=(1, 2))) in result.output
    assert "'light': '--no-light'" in result.output
    assert "'dish': 'default'" in result.output


def test_mistakes_on_the_command_line(runner: CliRunner) -> None:
    unknown = runner.invoke(bake_app(), ["--haet", "3"])
    assert unknown.exit_code == 2
    assert "--heat" in unknown.output
    several = runner.invoke(bake_app(), ["--heat", "0", "--minutes", "x"])
    assert several.exit_code == 2
    assert several.stderr.splitlines() == [
        "--heat must be in (0, 300], got 0",
        "--minutes must be a whole number, got 'x'",
    ]


def test_completion_offers_the_choices(runner: CliRunner) -> None:
    environ = {"_BAKE_COMPLETE": "complete_bash", "COMP_WORDS": "bake --mode g", "COMP_CWORD": "2"}
    result = runner.invoke(bake_app(), prog_name="bake", env=environ)
    assert result.output.split() == ["grill"]
