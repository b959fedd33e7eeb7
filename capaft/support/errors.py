"""The exceptions that a user sees: a line that says what is wrong and what to do, and an exit code."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Callable, Collection
from typing import Any, ParamSpec, TypeVar

from capaft.support.printable import printable

P = ParamSpec("P")
R = TypeVar("R")

_FLAG = re.compile(r"(?<![^\s(])--([a-z]+(?:-[a-z]+)*)(?![\w-])")
_KEYWORDS = {
    "allow-base-mismatch": "allow_base_mismatch=True",
    "exclude-modules": "exclude",
    "head": "head_mode",
    "save-dtype": "dtype",
    "target-modules": "targets",
}
"""Keywords of the functions in Python, where they differ from the flags of the command line."""


class CapaftError(Exception):
    """Base of every error that capaft raises on purpose. `exit_code` is what the command line returns.

    Its arguments are its lines, as a rule one: a line break within one is foreign, and is not shown as such.
    """

    exit_code = 1

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))

    def respell(self, spelling: Callable[[str], str]) -> None:
        """Change each line."""
        self.args = tuple(spelling(str(line)) for line in self.args)


class UsageError(CapaftError):
    """The command, the configuration or the data cannot be used as given. Nothing was written."""

    exit_code = 2


class AdapterFileError(UsageError):
    """An adapter file is damaged, foreign, or does not belong to the model at hand.

    A message may quote a foreign file, so it is kept to one short line without terminal codes.
    """

    def __init__(self, message: str) -> None:
        shown = printable(message)
        super().__init__(shown if len(shown) <= 600 else f"{shown[:400]} ... {shown[-200:]}")


class TrainingError(CapaftError):
    """A run that had started could not go on (NaN loss, out of memory, a full disk)."""


class PeerError(TrainingError):
    """Another process of this run could not go on; that process, or its launcher, reports the reason."""


class Interrupted(CapaftError):  # noqa: N818 - an interruption is not an error
    """Ctrl-C: the run saved what it had and stopped."""

    exit_code = 130


def check_type(option: str, value: object, kind: Any, words: str) -> None:
    """Check the type of a value from Python, where nothing has parsed it.

    Raises:
        UsageError: it is another.
    """
    if not isinstance(value, kind):
        raise UsageError(f"{option} must be {words}, got {value!r:.200}")


def did_you_mean(word: str, choices: Collection[str], otherwise: str = "", start: str = "") -> str:
    """The end of a message: the choice closest to a wrong word, after `start`, or else `otherwise`."""
    close = difflib.get_close_matches(word, choices, n=1)
    return f"; did you mean {start}{close[0]}?" if close else otherwise


def one_line(error: BaseException) -> str:
    """A foreign library's message, on one line of at most 200 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


def in_python(function: Callable[P, R]) -> Callable[P, R]:
    """Have the errors of a function that people call in Python name its keywords instead of flags.

    Messages are written for the command line, so this is the one place that respells them.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except CapaftError as error:
            error.respell(with_keywords)
            raise

    return call


def with_keywords(message: str) -> str:
    """A message that names the keywords of Python instead of the flags of the command line."""
    message = message.replace("--rename old=new", 'rename={"old": "new"}')
    message = message.replace("--quantised dequantise", 'quantised="dequantise"')
    return _FLAG.sub(lambda flag: _KEYWORDS.get(flag[1], flag[1].replace("-", "_")), message)
