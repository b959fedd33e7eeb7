"""What a run tells while it trains: a live line on a terminal, plain lines elsewhere, and a record of every step.

Everything goes to stderr and to `metrics.jsonl`; stdout belongs to results.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeRemainingColumn

from capaft.errors import TrainingError


class Journal:
    """Use as a context manager around the training loop.

    Args:
        console: where people read, on stderr.
        file: `metrics.jsonl`.
        steps: optimiser steps in the whole run.
        quiet: record, but show nothing (all processes but the first).
    """

    # A plain line roughly this often where there is no terminal to draw on.
    PLAIN_SECONDS = 15.0

    def __init__(self, console: Console, file: Path, steps: int, *, quiet: bool = False) -> None:
        self.console = console
        self.steps = steps
        self.quiet = quiet
        self.records: list[dict[str, Any]] = []
        self._file = file
        self._stream: TextIO | None = None
        self._started = self._spoke = time.perf_counter()
        self._examples = 0
        columns = (
            SpinnerColumn(),
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
        )
        live = console.is_terminal and not quiet
        self._progress = Progress(*columns, console=console, transient=True) if live else None
        self._bar: TaskID | None = None

    def __enter__(self) -> Journal:
        self._stream = None if self.quiet else _open(self._file)
        self._started = self._spoke = time.perf_counter()
        if self._progress:
            self._progress.start()
            self._bar = self._progress.add_task("", total=self.steps)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress:
            self._progress.stop()
        if self._stream:
            self._stream.close()

    @property
    def seconds(self) -> float:
        """Seconds since training began."""
        return time.perf_counter() - self._started

    @property
    def examples_per_second(self) -> float:
        """Training examples per second, evaluations included in the time."""
        return self._examples / max(self.seconds, 1e-9)

    def step(self, step: int, epoch: float, loss: float, lr: float, examples: int) -> None:
        """Record one optimiser step."""
        self._examples += examples
        left = self.seconds / step * (self.steps - step)
        self._write(
            step=step,
            epoch=round(epoch, 4),
            loss=loss,
            lr=lr,
            examples_per_second=round(self.examples_per_second, 2),
            seconds_left=round(left, 1),
        )
        said = f"loss {loss:.4f}  lr {lr:.1e}  {self.examples_per_second:.0f} examples/s"
        if self._progress and self._bar is not None:
            self._progress.update(self._bar, completed=step, description=said)
        elif not self.quiet and time.perf_counter() - self._spoke > self.PLAIN_SECONDS:
            self._spoke = time.perf_counter()
            self.console.print(f"step {step}/{self.steps}  {said}  {left:.0f} s left", highlight=False)

    def evaluation(self, step: int, epoch: float, metric: str, value: float, loss: float, best: bool) -> None:
        """Record one evaluation."""
        self._write(step=step, epoch=round(epoch, 4), metric=metric, value=value, validation_loss=loss, best=best)
        if not self.quiet:
            mark = "  best so far, saved" if best else ""
            self.console.print(
                f"epoch {epoch:g}  {metric} {value:.4f}  validation loss {loss:.4f}{mark}", highlight=False
            )

    def _write(self, **record: Any) -> None:
        self.records.append(record)
        if self._stream:
            try:
                self._stream.write(json.dumps(record) + "\n")
                self._stream.flush()
            except OSError as error:
                raise TrainingError(
                    f"cannot write {self._file}: {error.strerror}; the best adapter so far is kept"
                ) from None


def _open(file: Path) -> TextIO:
    try:
        return file.open("w", encoding="utf-8")
    except OSError as error:
        raise TrainingError(f"cannot write {file}: {error.strerror or error}") from None
