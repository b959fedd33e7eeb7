"""Settings from flags, variables, YAML files and defaults, and back to YAML.

YAML's own types are ignored, since it reads `5e-3` as a string and `no` as False.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from capaft.config.local_paths import PLACES, LocalPaths
from capaft.config.settings import Settings, check_range, flag_of, setting_types
from capaft.config.values import parse_value, required_type
from capaft.support.console import say_nothing
from capaft.support.errors import UsageError, did_you_mean

Flags = Mapping[str, str | bool | list[str] | None]
"""The flags of a command, by name of the setting; None for one that was not typed."""

MADE_BY = "# capaft "
"""Start of the first line of a run's settings, in which capaft has made every choice that was left to it."""
SAVED_TITLE = f"{MADE_BY}has made every choice; `capaft train --config` repeats the run\n\n"
"""The first line of a run's settings, as it is written now."""

S = TypeVar("S", bound=Settings)

_OFF = ("false", "no", "off", "0")
_MOST_BYTES = 2**20


class _Entry(NamedTuple):
    """One setting in one source: its text, the source, the start of a message about it, and its value."""

    name: str
    text: str | list[str]
    source: str
    label: str
    value: Any = None


def resolve_settings(
    cls: type[S],
    *,
    flags: Flags,
    environ: Mapping[str, str],
    file: Path | None = None,
    preset: Path | None = None,
    begun: Path | None = None,
    prefix: str = "CAPAFT_",
    say: Callable[[str], None] = say_nothing,
) -> tuple[S, dict[str, str]]:
    """Read settings from flags, else the environment, else a YAML file, else a preset, else a run, else the defaults.

    Args:
        cls: the dataclass to make.
        flags: values by field name, as `signature` passes them to a command; None if not typed.
        environ: variables; after `prefix`, the name of each is that of a setting in capitals.
        file: a YAML mapping from names (with `_` or `-`) to values.
        preset: another such file, which `file` overrides.
        begun: the file of a run that is resumed, which `preset` overrides.
        prefix: start of the names of variables.
        say: called with a line for each permission that a file claims; only the user can give one.

    Returns:
        The instance, and the source of each value: `--lr`, `CAPAFT_LR`, `run.yaml:3` or `default`.

    Raises:
        UsageError: a source has a mistake, even one that another source overrides; one line for each mistake.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}
    kinds = setting_types(cls)
    if not cls.nullable:
        kinds = {name: required_type(kind) for name, kind in kinds.items()}
    errors: list[str] = []
    written = (begun, preset, file)
    files = [_without_permissions(cls, _from_yaml(path, kinds, errors), say) if path else [] for path in written]
    # The weakest source comes first.
    layers = [*files, _from_env(environ, kinds, prefix, errors), _from_flags(flags)]
    for layer in layers:
        for index, entry in enumerate(layer):
            try:
                value = parse_value(kinds[entry.name], entry.text)
                check_range(cls, entry.name, value, entry.text)
                layer[index] = entry._replace(value=value)
            except ValueError as error:
                errors.append(f"{entry.label} {error}")
    if errors:
        raise UsageError(*errors)

    layers = _without_overridden(layers, cls.alternatives)
    entries = {entry.name: entry for layer in layers for entry in layer}
    instance = cls(**{name: entry.value for name, entry in entries.items()})
    # Presets give way, so they conflict with nothing. A saved file spells out every default, so a default counts as the
    # user's choice only if it was typed.
    *_, from_file, from_env, from_flags = layers
    changed = [entry for entry in from_file if entry.value != fields[entry.name].default]
    chosen = {entry.name: entry for layer in (changed, from_env, from_flags) for entry in layer}
    labels = {name: entry.label for name, entry in chosen.items() if entry.value is not None}
    if conflicts := instance.conflicts(labels):
        variables = {name: label for name, label in labels.items() if label.startswith(prefix)}
        raise UsageError(*(with_labels(line, variables) for line in conflicts))
    return instance, dict.fromkeys(fields, "default") | {name: entry.source for name, entry in entries.items()}


def user_labels(instance: Settings, sources: Mapping[str, str], file: Path | None = None) -> dict[str, str]:
    """The user's names for the settings that the user set, by name: `--lr`, `CAPAFT_LR` or `run.yaml:3: lr`.

    Args:
        instance: the settings.
        sources: the source of each, as `resolve_settings` gives them.
        file: the user's YAML file. A saved one spells out every default, which is nobody's choice.
    """
    labels = {}
    for field in dataclasses.fields(instance):
        source = sources[field.name]
        if file is not None and source.startswith(f"{file}:"):
            if getattr(instance, field.name) != field.default:
                labels[field.name] = f"{source}: {field.name}"
        elif source != "default" and not _is_line(source):
            labels[field.name] = source
    return labels


def _is_line(source: str) -> bool:
    """True if a source is a line of a file."""
    return source.rpartition(":")[2].isdecimal()


def with_labels(message: str, labels: Mapping[str, str]) -> str:
    """A message that names settings as the user did, where it names their flags."""
    for name, label in labels.items():
        flag, shown = re.escape(flag_of(name)), label.replace("\\", r"\\")
        if not label.startswith("--"):
            message = re.sub(rf"\bdrop {flag}(?![\w-])", withdrawal(shown), message)
            message = re.sub(rf"(?<![\w-]){flag}(?![\w-])", shown, message)
    return message


def withdrawal(label: str) -> str:
    """The advice to take a setting back, by the user's name for it: `--lr`, `CAPAFT_LR` or `run.yaml:3: lr`."""
    if label.startswith("--"):
        return f"drop {label}"
    return f"remove {label}" if ":" in label else f"unset {label}"


def dump_settings(instance: Settings) -> str:
    """Write settings as commented YAML that `resolve_settings` reads back to an equal instance, without permissions.

    That holds for instances that it made; a text "none" reads back as None where None is allowed.
    """
    import yaml

    entries = []
    for field in dataclasses.fields(instance):
        if _is_permission(field):
            continue
        value = getattr(instance, field.name)
        plain = str(value) if isinstance(value, Path) else value
        flow = None if isinstance(value, tuple) else False
        # YAML may read characters that repr escapes, such as U+2028, as line breaks.
        is_verbatim = "\\" not in repr(plain)
        line = yaml.safe_dump({field.name: plain}, default_flow_style=flow, allow_unicode=is_verbatim, width=10**6)
        entries.append(f"# {field.metadata['help']}\n{line}")
    return "\n".join(entries)


def _from_flags(flags: Flags) -> list[_Entry]:
    typed = {name: value for name, value in flags.items() if value is not None and value != []}
    labels = {name: flag_of(f"no_{name}" if value is False else name) for name, value in typed.items()}
    return [
        _Entry(name, value if isinstance(value, list) else str(value), labels[name], labels[name])
        for name, value in typed.items()
    ]


def _from_env(environ: Mapping[str, str], names: Collection[str], prefix: str, errors: list[str]) -> list[_Entry]:
    variables, entries = [name.upper() for name in names], []
    for variable in sorted(name for name in environ if name.startswith(prefix)):
        if (name := variable.removeprefix(prefix)) in variables:
            entries.append(_Entry(name.lower(), environ[variable], variable, variable))
        else:
            hint = did_you_mean(name.upper(), variables, "; unset it", prefix)
            errors.append(f"{variable} is not a setting{hint}")
    return entries


def _from_yaml(file: Path, kinds: Mapping[str, Any], errors: list[str]) -> list[_Entry]:
    import yaml

    try:
        with file.open("rb") as stream:
            content = stream.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise yaml.YAMLError(f"more than {_MOST_BYTES:,} bytes")
        root = yaml.compose(content.decode("utf-8-sig"), Loader=yaml.SafeLoader)
        if root is not None and not isinstance(root, yaml.MappingNode):
            raise yaml.MarkedYAMLError(problem="not a mapping", problem_mark=root.start_mark)
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{file}:{mark.line + 1}" if mark else file
        problem = getattr(error, "strerror", getattr(error, "problem", str(error).split("\n")[0]))
        errors.append(f"{place}: cannot be read ({problem}); write lines such as lr: 1e-3")
        return []
    try:
        local = LocalPaths.beside(file)
    except UsageError as error:
        errors.append(str(error))
        return []
    entries: dict[str, _Entry] = {}
    for key, value in root.value if root else []:
        source, label = f"{file}:{key.start_mark.line + 1}", f"{file}:{key.start_mark.line + 1}: {key.value}"
        nodes = [key, value] if isinstance(value, yaml.ScalarNode) else [key, *value.value]
        if not all(isinstance(node, yaml.ScalarNode) for node in nodes):
            subject = label if isinstance(key, yaml.ScalarNode) else f"{source}: a name"
            errors.append(f"{subject} must be one value or a list of values, got something nested")
        elif (name := key.value.replace("-", "_")) not in kinds:
            hint = did_you_mean(name.lower(), kinds, "; see --help for the settings")
            errors.append(f"{source}: {key.value!r} is not a setting{hint}")
        elif name in entries:
            errors.append(f"{label} is set twice, first at {entries[name].source}; keep one")
        else:
            text = value.value if isinstance(value, yaml.ScalarNode) else [node.value for node in value.value]
            if text == "" and value.style is None and required_type(kinds[name]) != kinds[name]:
                # In YAML, a missing value without quotes is null, not an empty text.
                text = "null"
            if name in PLACES and isinstance(text, str):
                text = local.locate(name, text)
            entries[name] = _Entry(name, text, source, label)
    return list(entries.values())


def _is_permission(field: dataclasses.Field[Any]) -> bool:
    """True if a setting permits what a stranger's file must not: it holds for the command that it was typed for."""
    return "permission" in field.metadata["marks"]


def _without_permissions(cls: type[Settings], entries: list[_Entry], say: Callable[[str], None]) -> list[_Entry]:
    """The entries of a file without permissions, each of which is said to be ignored unless it is off."""
    permissions = {field.name for field in dataclasses.fields(cls) if _is_permission(field)}
    for entry in entries:
        if entry.name in permissions and str(entry.text).strip().lower() not in _OFF:
            say(f"{entry.label} is ignored; set {flag_of(entry.name)} yourself to allow it")
    return [entry for entry in entries if entry.name not in permissions]


def _without_overridden(layers: Sequence[list[_Entry]], alternatives: Sequence[tuple[str, str]]) -> list[list[_Entry]]:
    """The layers, the weakest first, without settings that an alternative in a stronger layer overrides."""
    kept = list(layers)
    for pair in alternatives:
        levels = [n for n, layer in enumerate(kept) if any(e.name in pair and e.value is not None for e in layer)]
        for level in range(max(levels, default=0)):
            kept[level] = [entry for entry in kept[level] if entry.name not in pair]
    return kept
