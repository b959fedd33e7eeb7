"""`capaft train` from Python: the same job, to the same bytes."""

from __future__ import annotations

import inspect
import io
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import IO, Any, cast

from rich.console import Console
from torch import nn

from capaft.config.keywords import keyword_flags, with_keywords_of
from capaft.config.local_paths import PASSED
from capaft.config.train_config import TrainConfig
from capaft.inference.aside import leaving_no_trace
from capaft.inference.opened import Opened
from capaft.inference.opened import open as open_adapter
from capaft.inference.passed_rows import splits_of
from capaft.support.errors import CapaftError, UsageError
from capaft.training.record.metrics import Record
from capaft.training.record.results import Results
from capaft.training.run import Caller, execute_run
from capaft.training.setup.resolved_run import resolve_run

Progress = Callable[[Record], None]
_OTHERS = ("data", "config", "preset", "progress", "say")


@dataclass(frozen=True)
class Trained:
    """A finished run.

    Attributes:
        results: what `results.json` holds: the score before and after, sizes, speed, settings.
        run: the run directory.
        trust_remote_code: the run was permitted to run the base model's code, and so is opening it.
    """

    results: Results
    run: Path
    trust_remote_code: bool = field(default=False, repr=False)

    @cached_property
    def opened(self) -> Opened:
        """The best adapter on its base model, ready to predict; opened when it is first asked for."""
        return open_adapter(self.run, trust_remote_code=self.trust_remote_code)


def train(
    *,
    data: Any = None,
    config: str | os.PathLike[str] | None = None,
    preset: str | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
    **settings: Any,
) -> Trained:
    """Train an adapter: what `capaft train` does, to the same bytes, and as quietly as a function should.

    Nothing is printed, and random generators, signals and the settings of other libraries are left as they were. Ctrl-C
    in the main thread saves and stops; `capaft.train(resume=True, output=...)` goes on.

    Args:
        data: a path or a hub id, as `--data` takes it; or rows: a `datasets.Dataset`, a list of dicts, a
            `pandas.DataFrame`, or a mapping from names of splits to such, as a `DatasetDict` is. None for the demo.
        config: a YAML file of settings; that of a run repeats it.
        preset: name of a published experiment whose settings to use.
        progress: called with the record of every step and every evaluation: a `StepRecord` or an `EvaluationRecord`.
        say: called with each line that the command would print for people. Without it only warnings are heard, as
            Python's own.
        **settings: the settings of `capaft train`, by their names: `model="roberta-base", method="nola", k=1024`.
            `CAPAFT_*` variables are not read.

    Returns:
        The results, the run directory, and the adapter, opened when it is first asked for.

    Raises:
        UsageError: a setting or the data cannot be used; nothing was written.
        TrainingError: the run could not go on; the best adapter so far is in its directory.
        Interrupted: Ctrl-C, once the run can be resumed.

    Example:
        >>> rows = [{"text": "a great film", "label": "good"}, {"text": "a poor film", "label": "bad"}] * 20
        >>> run = capaft.train(data=rows, method="nola", k=64, epochs=1, output="runs/mine")  # doctest: +SKIP
        >>> run.opened.predict(["what a film"])  # doctest: +SKIP
    """
    try:
        return _train(data, config, preset, progress, say, settings)
    except CapaftError as error:
        error.respell(lambda line: with_keywords_of(TrainConfig, line))
        raise


def _train(
    data: Any,
    config: str | os.PathLike[str] | None,
    preset: str | None,
    progress: Progress | None,
    say: Callable[[str], None] | None,
    settings: dict[str, Any],
) -> Trained:
    if isinstance(settings.get("model"), nn.Module):
        raise UsageError(
            "model must be a name or a path, so that the run can be repeated; to train a loaded model, use "
            "capaft.attach with a loop or a trainer of your own"
        )
    has_rows = not (data is None or isinstance(data, str | os.PathLike))
    named = {} if data is None else {"data": PASSED if has_rows else data}
    flags = keyword_flags(TrainConfig, settings | named, _OTHERS)
    lines = _Lines(say or _warn)
    wanted = resolve_run(flags, {}, None if config is None else Path(config), preset, lines.line)
    if wanted.settings.processes > 1:
        raise UsageError("processes must be 1 in Python; start several with torchrun, or capaft train --processes")
    with leaving_no_trace():
        caller = Caller(splits_of(data) if has_rows else None, progress)
        results = execute_run(wanted, Console(file=cast(IO[str], lines), width=120, color_system=None), caller)
    return Trained(results, Path(results.output), wanted.settings.trust_remote_code)


class _Lines(io.TextIOBase):
    """A stream that passes on whole lines."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._begun = ""

    def line(self, line: str) -> None:
        """Pass one line on."""
        self._say(with_keywords_of(TrainConfig, line))

    def write(self, text: str) -> int:
        """Pass on the lines that end here."""
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self.line(line)
        return len(text)


def _warn(line: str) -> None:
    """Warn, if a line is a warning."""
    _, mark, warning = line.partition("warning: ")
    if mark:
        warnings.warn(warning, stacklevel=2)


# `help` and completion know the settings by the fields that the flags are made from.
_SETTINGS = [setting for setting in fields(TrainConfig) if setting.name != "data"]
_LAST = "`CAPAFT_*` variables are not read.\n"
_HELP = (f"{setting.name}: {with_keywords_of(TrainConfig, setting.metadata['help'])}\n" for setting in _SETTINGS)
train.__doc__ = str(train.__doc__).replace(_LAST, _LAST + "".join(f"            {line}" for line in _HELP))
train.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [
        *(parameter for name, parameter in inspect.signature(train).parameters.items() if name != "settings"),
        *(inspect.Parameter(s.name, inspect.Parameter.KEYWORD_ONLY, default=s.default) for s in _SETTINGS),
    ],
    return_annotation=Trained,
)
