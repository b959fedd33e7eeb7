"""The user's choice of layers: presets, names, a regular expression, block numbers, and exclusions."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import regex

from capaft.model.site import Site
from capaft.support.errors import UsageError

TARGET_PRESETS = ("qv", "kv", "all-linear", "attention", "mlp", "conv", "embeddings", "experts")

# A pattern may come from a stranger's adapter file, so its length, its compiled size and the run time of all patterns
# together are bounded.
MAX_TARGETS = 1000
MAX_PATTERN_COST = 200_000
MAX_PATTERN_SECONDS = 0.5


@dataclass(frozen=True)
class Targets:
    """Layers that the user asked to adapt.

    Attributes:
        modules: presets, module names or path endings, separated by commas; or `re:<regular expression>`, searched in
            canonical paths. Empty leaves the choice to the host.
        exclude: layers to leave out, in the same language.
        layers: numbers of the blocks to adapt, such as `0-5,11`; empty for all.
    """

    modules: str = ""
    exclude: str = ""
    layers: str = ""

    def __post_init__(self) -> None:
        texts = {"target-modules": self.modules, "exclude-modules": self.exclude, "layers": self.layers}
        for option, text in texts.items():
            if not isinstance(text, str):
                raise UsageError(f"--{option} must be one text, with commas between its parts, got {text!r}")
            if len(text) > MAX_TARGETS:
                raise UsageError(f"--{option} has more than {MAX_TARGETS} characters; shorten it")
        if self.modules and not self.words:
            raise UsageError(f"--target-modules {self.modules} names nothing; give names, a preset or re:PATTERN")
        self.blocks()

    def __str__(self) -> str:
        excluded = f" without {self.exclude}" if self.exclude else ""
        return (
            (self.modules or "the method's own places")
            + excluded
            + (f" in blocks {self.layers}" if self.layers else "")
        )

    @property
    def words(self) -> tuple[str, ...]:
        """The words of `modules`; a regular expression is one word."""
        return pattern_words(self.modules)

    def blocks(self) -> frozenset[int] | None:
        """The numbers that `layers` names, or None for all.

        Raises:
            UsageError: `layers` is not a list of numbers and ranges.
        """
        if not self.layers:
            return None
        numbers: set[int] = set()
        for piece in self.layers.split(","):
            match = re.fullmatch(r"\s*([0-9]{1,4})(?:-([0-9]{1,4}))?\s*", piece)
            if not match or int(match[2] or match[1]) < int(match[1]):
                raise UsageError(f"--layers {self.layers} is not a list of block numbers such as 0-5,11")
            numbers |= set(range(int(match[1]), int(match[2] or match[1]) + 1))
        return frozenset(numbers)

    def allow(self, paths: Iterable[str]) -> Callable[[str], bool]:
        """A predicate on canonical paths that is true for sites that are not left out.

        Args:
            paths: the paths of all candidates, to report blocks and exclusions that match none of them.

        Raises:
            UsageError: a block does not exist, or an exclusion matches nothing or cannot be used.
        """
        blocks = self.blocks()
        if blocks is not None:
            numbers = {number for path in paths if (number := block_number(path)) is not None}
            if missing := sorted(blocks - numbers):
                last = f"the last one is {max(numbers)}" if numbers else "it has no numbered blocks"
                raise UsageError(f"--layers {self.layers}: the model has no block {missing[0]}; {last}")
        excluded = [path_matcher(word, "exclude-modules") for word in pattern_words(self.exclude)]
        for word, match in zip(pattern_words(self.exclude), excluded, strict=True):
            if not word.startswith("re:") and not any(match(path) or match(path.partition("#")[0]) for path in paths):
                raise UsageError(f"--exclude-modules {word} matches none of the layers; give names, or re:PATTERN")
        return lambda path: (
            (blocks is None or block_number(path) in blocks)
            and not any(match(path) or match(path.partition("#")[0]) for match in excluded)
        )


def select_sites(targets: Targets, sites: list[Site], places: str) -> tuple[Site, ...]:
    """The sites that targets choose among all that a method has in the model, sorted by path.

    Args:
        targets: the user's choice; no words mean all.
        sites: every site that the method has.
        places: word for these in a message.

    Raises:
        UsageError: no site is left.
    """
    matches = [path_matcher(word) for word in targets.words]
    matching = [site for site in sites if not matches or any(match(site.path) for match in matches)]
    if not matching:
        ends = ", ".join(sorted({site.path.rsplit(".", 1)[-1] for site in sites}))
        raise UsageError(f"--target-modules {targets.modules} matches none of the {places}, which are named: {ends}")
    allowed = targets.allow([site.path for site in matching])
    kept = sorted((site for site in matching if allowed(site.path)), key=lambda site: site.path)
    if not kept:
        raise UsageError(f"--exclude-modules and --layers leave none of the {places} to adapt; exclude less")
    return tuple(kept)


def pattern_words(text: str) -> tuple[str, ...]:
    """The words of a pattern, each once; a regular expression is one word, commas and all."""
    if text.startswith("re:"):
        return (text,)
    return tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def block_number(path: str) -> int | None:
    """The first number in a path: that of the block that a module is in."""
    return next((int(piece) for piece in path.partition("#")[0].split(".") if piece.isdecimal()), None)


def in_attention(path: str) -> bool:
    """True if a module is part of an attention, by its own name or that of a module around it."""
    return any("attn" in piece or "attention" in piece for piece in path.lower().split("."))


def path_matcher(word: str, option: str = "target-modules") -> Callable[[str], bool]:
    """A predicate on canonical paths for one word: `attention`, `mlp`, a name or ending, or a regular expression.

    Raises:
        UsageError: the regular expression does not compile, or takes too long.
    """
    if word == "all-linear":
        return lambda path: True
    if word == "attention":
        return in_attention
    if word == "mlp":
        return lambda path: block_number(path) is not None and not in_attention(path)
    if word.startswith("re:"):
        return _search(word, option)
    return lambda path: path == word or path.endswith("." + word)


class _Clock:
    """Seconds that regular expressions have been searched for, and may still be."""

    def __init__(self) -> None:
        self.left = MAX_PATTERN_SECONDS

    def search(self, pattern: regex.Pattern[str], path: str) -> bool:
        """Search a path.

        Raises:
            TimeoutError: there is no time left.
        """
        if self.left <= 0:
            raise TimeoutError
        started = time.perf_counter()
        try:
            return pattern.search(path, timeout=self.left) is not None
        finally:
            self.left -= time.perf_counter() - started


_clock: ContextVar[_Clock | None] = ContextVar("_clock", default=None)


@contextmanager
def shared_pattern_time() -> Iterator[None]:
    """One time limit for all regular expressions that are searched for meanwhile, however many there are."""
    token = _clock.set(_Clock())
    try:
        yield
    finally:
        _clock.reset(token)


def _search(word: str, option: str) -> Callable[[str], bool]:
    """A regular expression's search, bounded in time and memory.

    Only `regex` has a time limit, but nested repetitions grow exponentially when it compiles them, and its recursive
    patterns can fill memory; so the repetitions are counted first, and `re`, which has no recursion, must compile it.
    """
    text = word[3:]
    repeats = re.findall(r"[*+?]|\{[^}]*", text)
    counts = [int(count) for repeat in repeats for count in re.findall(r"\d+", repeat)]
    if len(text) * 2 ** len(repeats) * math.prod(max(count, 1) for count in counts) > MAX_PATTERN_COST:
        raise UsageError(f"--{option} {word} repeats too much to be searched safely; simplify it")
    try:
        re.compile(text)
        pattern = regex.compile(text)
    except (re.error, regex.error, RecursionError, OverflowError) as error:
        raise UsageError(f"--{option} {word} is not a regular expression: {error}") from None
    clock = _clock.get() or _Clock()

    def match(path: str) -> bool:
        try:
            return clock.search(pattern, path)
        except TimeoutError:
            raise UsageError(f"--{option} {word} takes too long to match {path}; simplify it") from None

    return match
