"""One frozen dataclass as flags, environment variables, YAML and help.

`setting` gives a field its help, panel and range; `signature` makes options of the fields, `resolve` reads
them from every source a user may write to, `dump` writes them. All sources hand over text and one `parse`
reads it, so that `5e-3` means the same in each. YAML's own types are left aside: it takes `5e-3` for a string
and `no` for False.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeVar, get_args, get_origin

from capaft.support.errors import UsageError, did_you_mean

Count = Annotated[int, "count"]
"""A whole number that may be written 1_000, 50k or 1.5M."""
Text = Annotated[str, "text"]
"""A text that may be blank, or empty: what stands between two others, for one."""
Check = tuple[str, Callable[[Any], bool]]
"""The range of a setting: words that complete the sentence "must be ...", and whether a value is in it."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Base of the dataclasses that this module reads and writes."""

    alternatives: ClassVar[tuple[tuple[str, str], ...]] = ()
    """Settings of which one makes the other void: where both are given, the one from the stronger source counts."""

    def conflicts(self, given: Mapping[str, str]) -> list[str]:
        """Say what contradicts what, one line each; `given` maps what was set to how it was named."""
        return []


S = TypeVar("S", bound=Settings)


def setting(
    default: Any,
    help: str,
    panel: str,
    *,
    metavar: str = "",
    check: Check | None = None,
    choices: Sequence[str] = (),
    repeated: bool = False,
    marks: Collection[str] = (),
) -> Any:
    """Make a dataclass field that knows how it is shown and checked.

    Args:
        default: its default.
        help: one sentence.
        panel: the help panel.
        metavar: stands for the value in the help; by default the type's.
        check: its range.
        choices: what it can be, where its type is not a `Literal` that says so.
        repeated: a flag is given once for each entry of a tuple, instead of once with commas.
        marks: words that other rooms read, such as `task` for an option that only some tasks have.
    """
    metadata = {"help": help, "panel": panel, "metavar": metavar, "check": check}
    return dataclasses.field(
        default=default,
        metadata=metadata | {"choices": tuple(choices), "repeated": repeated, "marks": frozenset(marks)},
    )


def _count(text: str) -> int | None:
    number = Decimal(text.rstrip("kM")) * {"k": 10**3, "M": 10**6}.get(text[-1], 1)
    return int(number) if number == int(number) else None


_TRUE = ("true", "yes", "on", "1")
# The patterns are narrower than int() and float(), which take 1_0, digits of other scripts, nan and inf.
_DECIMAL = r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"
# For each type: its metavar, what it must be, the pattern of its text, and what makes it of that text.
_KINDS: dict[Any, tuple[str, str, str, Callable[[str], Any]]] = {
    str: ("text", "text that is not empty", r"(?s).+", str),
    Text: ("text", "text", r"(?s).*", str),
    Path: ("path", "a path", r"(?s).+", Path),
    int: ("int", "a whole number", r"[+-]?[0-9]{1,100}", int),
    Count: ("count", "a whole number such as 50k or 1.5M", r"[0-9][0-9_]{,12}(\.[0-9]{1,12})?[kM]?", _count),
    float: ("number", "a finite number such as 0.1 or 5e-3", _DECIMAL, float),
    bool: ("bool", "true or false", r"(?i)true|yes|on|1|false|no|off|0", lambda text: text.lower() in _TRUE),
}


def _required(kind: Any) -> Any:
    """The type without its `| None`."""
    if get_origin(kind) in (typing.Union, UnionType):
        (kind,) = (arg for arg in get_args(kind) if arg is not NoneType)
    return kind


def _as_typed(wanted: Any, text: str) -> str:
    """A text as its type sees it: blanks around it count in texts and paths alone."""
    return text if wanted in (str, Path, Text) else text.strip()


def _is_none(wanted: Any, text: str) -> bool:
    """Whether a text means None where that is allowed."""
    nothing = not text.strip() and wanted != Text
    return nothing or _as_typed(wanted, text).lower() in ("none", "null", "~")


def parse_value(kind: Any, text: str | Sequence[str]) -> Any:
    """Understand what a user wrote, wherever they wrote it.

    Args:
        kind: `str`, `Text`, `Path`, `int`, `Count`, `float`, `bool`, a `Literal` of strings, a tuple of any number
            of these, or any of them `| None` (written `none`, `null`, `~` or, but for `Text`, nothing at all).
        text: The text; for tuples, either comma separated or a sequence of texts.

    Raises:
        ValueError: The text does not fit; the message goes on after the name of the setting.
    """
    wanted = _required(kind)
    if wanted != kind and isinstance(text, str) and _is_none(wanted, text):
        return None
    if get_origin(wanted) is tuple:
        parts = [part.strip() for part in text.split(",")] if isinstance(text, str) else text
        return tuple(parse_value(get_args(wanted)[0], part) for part in parts)
    if not isinstance(text, str):
        raise ValueError("must be a single value, got a list")
    word = _as_typed(wanted, text)
    if get_origin(wanted) is Literal:
        if word in get_args(wanted):
            return word
        hint = did_you_mean(word.lower(), get_args(wanted))
        raise ValueError(f"must be one of {', '.join(get_args(wanted))}, got {text!r}{hint}")
    if wanted not in _KINDS:
        raise ValueError("has a type that cannot be written here")
    _, words, pattern, make = _KINDS[wanted]
    value = make(word) if re.fullmatch(pattern, word) else None
    if value in (None, math.inf, -math.inf):
        raise ValueError(f"must be {words}, got {text!r}")
    return value


def check_range(cls: type[Settings], name: str, value: Any, text: str | Sequence[str]) -> None:
    """Make sure that a value is in the range of its setting, if there is a setting of that name and it has one.

    Args:
        cls: the settings.
        name: of the setting.
        value: what the text means.
        text: what the user wrote.

    Raises:
        ValueError: it is not; the message goes on after the name of the setting.
    """
    about = {field.name: field.metadata for field in dataclasses.fields(cls)}.get(name)
    if about is None or value is None:
        return
    if (choices := about["choices"]) and value not in choices:
        hint = did_you_mean(str(value).lower(), choices)
        raise ValueError(f"must be one of {', '.join(choices)}, got {str(value)!r}{hint}")
    words, holds = about["check"] or ("", bool)
    if words and not holds(value):
        raise ValueError(f"must be {words}, got {text.strip() if isinstance(text, str) else ','.join(text)}")


class _Given(NamedTuple):
    """What a user wrote for a setting, where, how a message about it begins, and what it means."""

    name: str
    text: str | list[str]
    source: str
    label: str
    value: Any = None


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _from_flags(flags: Mapping[str, str | bool | list[str] | None]) -> list[_Given]:
    typed = {name: value for name, value in flags.items() if value is not None and value != []}
    labels = {name: _flag(f"no_{name}" if value is False else name) for name, value in typed.items()}
    return [
        _Given(name, value if isinstance(value, list) else str(value), labels[name], labels[name])
        for name, value in typed.items()
    ]


def _from_env(env: Mapping[str, str], names: Collection[str], start: str, errors: list[str]) -> list[_Given]:
    known, given = [name.upper() for name in names], []
    for variable in sorted(each for each in env if each.startswith(start)):
        if (name := variable.removeprefix(start)) in known:
            given.append(_Given(name.lower(), env[variable], variable, variable))
        else:
            errors.append(f"{variable} is not a setting{did_you_mean(name.upper(), known, '; unset it', start)}")
    return given


def _from_yaml(file: Path, kinds: Mapping[str, Any], errors: list[str]) -> list[_Given]:
    import yaml

    try:
        root = yaml.compose(file.read_text(encoding="utf-8-sig"), Loader=yaml.SafeLoader)
        if root is not None and not isinstance(root, yaml.MappingNode):
            raise yaml.MarkedYAMLError(problem="not a mapping", problem_mark=root.start_mark)
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file}:{mark.line + 1}" if mark else file
        problem = getattr(error, "strerror", getattr(error, "problem", str(error).split("\n")[0]))
        errors.append(f"{where}: cannot be read ({problem}); give a file of lines such as lr: 1e-3")
        return []
    given: dict[str, _Given] = {}
    for key, value in root.value if root else []:
        source, label = f"{file}:{key.start_mark.line + 1}", f"{file}:{key.start_mark.line + 1}: {key.value}"
        nodes = [key, value] if isinstance(value, yaml.ScalarNode) else [key, *value.value]
        if not all(isinstance(node, yaml.ScalarNode) for node in nodes):
            named = label if isinstance(key, yaml.ScalarNode) else f"{source}: a name"
            errors.append(f"{named} must be one value or a list of values, got something nested")
        elif (name := key.value.replace("-", "_")) not in kinds:
            hint = did_you_mean(name.lower(), kinds, "; see --help for those there are")
            errors.append(f"{source}: {key.value!r} is not a setting{hint}")
        elif name in given:
            errors.append(f"{label} is set twice, first at {given[name].source}; keep one")
        else:
            text = value.value if isinstance(value, yaml.ScalarNode) else [node.value for node in value.value]
            if text == "" and value.style is None and _required(kinds[name]) != kinds[name]:
                # Without quotes, nothing is YAML's null and not an empty text.
                text = "null"
            given[name] = _Given(name, text, source, label)
    return list(given.values())


def resolve_settings(
    cls: type[S],
    *,
    flags: Mapping[str, str | bool | list[str] | None],
    environ: Mapping[str, str],
    file: Path | None = None,
    preset: Path | None = None,
    prefix: str = "CAPAFT_",
) -> tuple[S, dict[str, str]]:
    """Read settings from flags, else the environment, else a YAML file, else a preset, else the defaults.

    Args:
        cls: The dataclass to make.
        flags: Values by field name, as `signature` hands them to a command; None is not given.
        environ: Variables; those that start with `prefix` must go on with a setting's name in capitals.
        file: A YAML mapping from names (with `_` or `-`) to values.
        preset: Another, which `file` overrides.
        prefix: What the variables of `cls` start with.

    Returns:
        The instance, and where each value came from: `--lr`, `CAPAFT_LR`, `run.yaml:3` or `default`.

    Raises:
        UsageError: Whatever is wrong in any source, also in one that another overrides; one line each.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls, include_extras=True)
    kinds = {name: hints[name] for name in fields}
    errors: list[str] = []
    files = [_from_yaml(source, kinds, errors) if source else [] for source in (preset, file)]
    layers = [*files, _from_env(environ, kinds, prefix, errors), _from_flags(flags)]
    for layer in layers:
        for place, each in enumerate(layer):
            try:
                value = parse_value(kinds[each.name], each.text)
                check_range(cls, each.name, value, each.text)
                layer[place] = each._replace(value=value)
            except ValueError as error:
                errors.append(f"{each.label} {error}")
    if errors:
        raise UsageError("\n".join(errors))

    layers = _without_rivals(layers, cls.alternatives)
    given = {each.name: each for layer in layers for each in layer}
    instance = cls(**{name: each.value for name, each in given.items()})
    # What a preset says gives way. A saved file spells out every default, so there a default is not the user's wish;
    # a typed one is.
    _, written, *typed = layers
    changed = [each for each in written if each.value != fields[each.name].default]
    wishes = {each.name: each for layer in (changed, *typed) for each in layer}
    if conflicts := instance.conflicts({name: each.label for name, each in wishes.items() if each.value is not None}):
        raise UsageError("\n".join(conflicts))
    return instance, dict.fromkeys(fields, "default") | {name: each.source for name, each in given.items()}


def _without_rivals(layers: Sequence[list[_Given]], alternatives: Sequence[tuple[str, str]]) -> list[list[_Given]]:
    """What was given in each source, the weakest first, without what an alternative in a stronger one makes void."""
    kept = list(layers)
    for pair in alternatives:
        levels = [n for n, layer in enumerate(kept) if any(e.name in pair and e.value is not None for e in layer)]
        for level in range(max(levels, default=0)):
            kept[level] = [each for each in kept[level] if each.name not in pair]
    return kept


@dataclasses.dataclass(frozen=True)
class _Unset:
    """A default that `--help` shows and that reaches the command as None, as what was not typed.

    Typer calls a default that can be called; to show it, it takes its `str`, or the truth of a switch's.
    """

    default: Any

    def __call__(self) -> None:
        return None

    def __str__(self) -> str:
        return ",".join(map(str, self.default)) if isinstance(self.default, tuple) else str(self.default)

    def __bool__(self) -> bool:
        return bool(self.default)


def _metavar(kind: Any) -> str:
    return f"{_metavar(get_args(kind)[0])},..." if get_origin(kind) is tuple else _KINDS[kind][0]


def signature(cls: type[Settings]) -> Callable[[Any], Any]:
    """Decorate a Typer command: options for the fields, after its own, take the place of `**flags`.

    Values stay text, so that `resolve` can report every mistake at once; only booleans are switches.
    """
    import typer

    kinds = {name: _required(kind) for name, kind in typing.get_type_hints(cls, include_extras=True).items()}

    def parameter(field: dataclasses.Field[Any]) -> inspect.Parameter:
        kind, option, about = kinds[field.name], _flag(field.name), field.metadata
        switch = kind is bool
        choices = about["choices"] or (get_args(kind) if get_origin(kind) is Literal else ())
        metavar = about["metavar"] or "|".join(choices) or _metavar(kind)
        info = typer.Option(
            f"{option}/{_flag(f'no_{field.name}')}" if switch else option,
            help=about["help"],
            rich_help_panel=about["panel"],
            metavar=None if switch else f"<{metavar}>",
            autocompletion=(lambda: list(choices)) if choices else None,
        )
        default = None if field.default is None else _Unset(field.default)
        hint: Any = bool | None if switch else list[str] | None if about["repeated"] else str | None
        where = inspect.Parameter.KEYWORD_ONLY
        return inspect.Parameter(field.name, where, default=default, annotation=Annotated[hint, info])

    def decorate(command: Any) -> Any:
        own = inspect.signature(command, eval_str=True).parameters.values()
        kept = [each for each in own if each.kind is not inspect.Parameter.VAR_KEYWORD]
        command.__signature__ = inspect.Signature([*kept, *map(parameter, dataclasses.fields(cls))])
        return command

    return decorate


def dump_settings(instance: Settings) -> str:
    """Write settings as commented YAML that `resolve` reads back to an equal instance.

    This holds for what `resolve` made; a text such as "none" reads back as None where None is allowed.
    """
    import yaml

    entries = []
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        plain = str(value) if isinstance(value, Path) else value
        flow = None if isinstance(value, tuple) else False
        # What repr escapes, U+2028 for one, YAML may take for a line break.
        asis = "\\" not in repr(plain)
        line = yaml.safe_dump({field.name: plain}, default_flow_style=flow, allow_unicode=asis, width=10**6)
        entries.append(f"# {field.metadata['help']}\n{line}")
    return "\n".join(entries)
