r"""Many paths as few templates: `layer.{0-11}.attention.self.{query,value}` is 24 of them.

A template is text in which braces hold alternatives, separated by commas; a range such as `0-11` is every number in
it. Before `{`, `}`, `,` and `\`, a backslash takes away their meaning. docs/adapter-format.md has the grammar and the
algorithm, so that the same paths always give the same templates.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from itertools import product

MAX_PATHS = 2**18
MAX_CHARACTERS = 2**25
TOO_MANY = f"it names more than {MAX_PATHS:,} sites, or sites of more than {MAX_CHARACTERS:,} characters in all"

_TOKEN = re.compile(r"[0-9]+|[.#]|[^0-9.#]+")
_NUMBER = re.compile("0|[1-9][0-9]{0,8}")
_RANGE = re.compile(f"({_NUMBER.pattern})-({_NUMBER.pattern})")
_SPECIAL = re.compile(r"[{},\\]")
# A character, or one with its backslash; alternatives of these in braces.
_CHARACTER = r"(?:[^{},\\]|\\[{},\\])"
_PIECE = re.compile(rf"(?P<literal>{_CHARACTER}+)|\{{(?P<slot>{_CHARACTER}+(?:,{_CHARACTER}+)*)\}}")
_ALTERNATIVE = re.compile(f"{_CHARACTER}+")

Slots = tuple[tuple[str, ...], ...]


def path_templates(paths: Collection[str]) -> list[str]:
    """The templates of distinct paths, sorted.

    A path is cut into numbers, dots, hashes and the names between them, each of which is a slot with one alternative.
    From the last slot to the first, templates that differ in this slot alone become one.
    """
    by_length: dict[int, list[Slots]] = defaultdict(list)
    for path in paths:
        tokens = _TOKEN.findall(path)
        by_length[len(tokens)].append(tuple((token,) for token in tokens))
    templates: list[str] = []
    for length, merged in by_length.items():
        for position in reversed(range(length)):
            alike: dict[tuple[Slots, Slots], list[str]] = defaultdict(list)
            for slots in merged:
                alike[slots[:position], slots[position + 1 :]].extend(slots[position])
            merged = [(*before, tuple(sorted(items)), *after) for (before, after), items in alike.items()]
        templates += ["".join(map(_slot, slots)) for slots in merged]
    return sorted(templates)


def count_paths(template: str) -> tuple[int, int]:
    """Number of paths that a template stands for, and of characters in all of them, without expanding it.

    Raises:
        ValueError: it is no template, or stands for more than `MAX_PATHS` paths or `MAX_CHARACTERS` characters.
    """
    count, characters = 1, 0
    for slot in _slots(template):
        size, length = 0, 0
        for item in slot:
            size += len(item) if isinstance(item, range) else 1
            length += _digits(item) if isinstance(item, range) else len(item)
        count, characters = count * size, characters * size + length * count
        if count > MAX_PATHS or characters > MAX_CHARACTERS:
            raise ValueError(TOO_MANY)
    return count, characters


def expand(template: str) -> Iterator[str]:
    """The paths that a template stands for; the last slot runs through its alternatives first.

    Raises:
        ValueError: as `count_paths`.
    """
    count_paths(template)
    return map("".join, product(*map(_alternatives, _slots(template))))


def number_ranges(numbers: Iterable[int]) -> list[str]:
    """Ascending numbers as texts, two or more in a row as one range: `0-5`, `11`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return [str(first) if first == last else f"{first}-{last}" for first, last in runs]


def _slot(items: tuple[str, ...]) -> str:
    """The text of one slot: numbers first, ascending, two or more in a row as a range; then other text, sorted."""
    if len(items) == 1:
        return _escaped(items[0])
    texts = number_ranges(sorted(int(item) for item in items if _NUMBER.fullmatch(item)))
    texts += sorted(_escaped(item) for item in items if not _NUMBER.fullmatch(item))
    return "{" + ",".join(texts) + "}"


def _escaped(text: str) -> str:
    return _SPECIAL.sub(r"\\\g<0>", text)


def _slots(template: str) -> Iterator[list[str | range]]:
    """The slots of a template, each with its alternatives; plain text is a slot with one."""
    position = 0
    while position < len(template):
        piece = _PIECE.match(template, position)
        if piece is None:
            raise ValueError(f"{template} is no template of paths")
        position = piece.end()
        if piece["literal"] is not None:
            yield [_unescaped(piece["literal"])]
            continue
        if piece["slot"].count(",") > MAX_PATHS:
            raise ValueError(TOO_MANY)
        yield [_item(text) for text in _ALTERNATIVE.findall(piece["slot"])]


def _alternatives(slot: list[str | range]) -> list[str]:
    return [text for item in slot for text in (map(str, item) if isinstance(item, range) else (item,))]


def _item(text: str) -> str | range:
    bounds = _RANGE.fullmatch(text)
    if bounds is None:
        return _unescaped(text)
    first, last = int(bounds[1]), int(bounds[2])
    if first >= last:
        raise ValueError(f"{text} is no range")
    return range(first, last + 1)


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)


def _digits(numbers: range) -> int:
    """Number of digits in all the numbers of a range."""
    return sum(
        max(min(numbers.stop, 10**length) - max(numbers.start, 10 ** (length - 1) if length > 1 else 0), 0) * length
        for length in range(1, 10)
    )
