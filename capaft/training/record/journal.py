"""The journal of a run while it trains: a live line on a terminal, plain lines elsewhere, a record of every step.

Everything goes to stderr and to `metrics.jsonl`; stdout belongs to results.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeRemainingColumn

from capaft.support import strict_json
from capaft.support.console import print_line
from capaft.support.errors import TrainingError
from capaft.support.files import write_atomically
from capaft.training.accelerator import peak_memory
from capaft.training.record.metrics import EvaluationRecord, Record, StepRecord, parse_record


class Journal:
    """Use as a context manager around the training loop.

    Args:
        console: where people read, on stderr.
        file: `metrics.jsonl`.
        steps: optimizer steps in the whole run.
        done: steps done before, whose records are kept; records beyond them are dropped.
        seconds: seconds spent on those steps.
        quiet: record, but show nothing and write nothing (all processes but the first).
        track: called with the numbers of every record, and its step.
        notify: called with every record once it is written, unless quiet.
    """

    # A plain line roughly this often where there is no terminal to draw on.
    PLAIN_SECONDS = 15.0
    # Characters of the live line beside its bar.
    TEXT_WIDTH = 68

    def __init__(
        self,
        console: Console,
        file: Path,
        steps: int,
        *,
        done: int = 0,
        seconds: float = 0.0,
        quiet: bool = False,
        track: Callable[[dict[str, Any], int], None] | None = None,
        notify: Callable[[Record], None] | None = None,
    ) -> None:
        self.console = console
        self.steps = steps
        self.quiet = quiet
        self.records = _kept(file, done) if done else []
        self._done = done
        self._before = seconds
        self._track = track
        self._notify = None if quiet else notify
        self._file = file
        self._stream: TextIO | None = None
        self._started = self._spoke = time.perf_counter()
        self._examples = 0
        # A narrow terminal has room for the numbers alone.
        room = console.width - self.TEXT_WIDTH
        columns = (
            SpinnerColumn(),
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            *([BarColumn(bar_width=min(room, 40))] if room > 5 else []),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.description}"),
        )
        live = console.is_terminal and not quiet
        self._progress = Progress(*columns, console=console, transient=True) if live else None
        self._bar: TaskID | None = None

    def __enter__(self) -> Journal:
        if not self.quiet:
            write_atomically(self._file, strict_json.lines(map(asdict, self.records)), make_parents=False)
            self._stream = _open(self._file)
        self._started = self._spoke = time.perf_counter()
        if self._progress:
            self._progress.start()
            self._bar = self._progress.add_task("", total=self.steps, completed=self._done)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress:
            self._progress.stop()
        if self._stream:
            # Closing writes what is left in the buffer again; its failure has been reported.
            with suppress(OSError):
                self._stream.close()

    @property
    def seconds(self) -> float:
        """Seconds of training, those of earlier starts included."""
        return self._before + time.perf_counter() - self._started

    @property
    def examples_per_second(self) -> float:
        """Training examples per second since this start, evaluations included in the time."""
        return self._examples / max(self.seconds - self._before, 1e-9)

    def step(self, step: int, epoch: float, loss: float, lr: float, examples: int) -> None:
        """Record one optimizer step."""
        self._examples += examples
        record = StepRecord(step, round(epoch, 4), loss, lr, *self._pace(step))
        self._write(record, record.tracked())
        line = f"loss {loss:.4f}  lr {lr:.1e}  {self.examples_per_second:.0f} examples/s"
        if self._progress and self._bar is not None:
            self._progress.update(self._bar, completed=step, description=line)
        elif not self.quiet and time.perf_counter() - self._spoke > self.PLAIN_SECONDS:
            self._spoke = time.perf_counter()
            print_line(self.console, f"step {step}/{self.steps}  {line}  {record.seconds_left:.0f} s left")

    def evaluating(self, examples: int) -> Callable[[int], None]:
        """A function that is told how many more of the examples have been evaluated, for the live line."""
        done = 0

        def advance(more: int) -> None:
            nonlocal done
            done = min(done + more, examples)
            if self._progress and self._bar is not None:
                self._progress.update(self._bar, description=f"evaluating {done:,}/{examples:,}")

        return advance

    def evaluation(
        self,
        step: int,
        epoch: float,
        metric: str,
        scores: dict[str, float],
        best: bool,
        *,
        shown: str = "",
        by_loss: bool = False,
        interval: Sequence[float] | None = None,
    ) -> None:
        """Record one evaluation: all scores, that of the metric as `value`, and the loss as `validation_loss`.

        `shown` is the metric's name for people, if it has another one. If this is the best `by_loss`, the line says so:
        the score tells nothing. `interval` is that of the metric.
        """
        value, loss = scores[metric], scores["loss"]
        others: dict[str, float | None] = {name: score for name, score in scores.items() if name != "loss"}
        ends = None if interval is None else list(interval)
        record = EvaluationRecord(step, round(epoch, 4), metric, value, loss, best, others, *self._pace(step), ends)
        self._write(record, record.tracked())
        if self._progress and self._bar is not None:
            self._progress.update(self._bar, description="")
        if not self.quiet:
            why = " by loss" if by_loss else ""
            mark = f"  best so far{why}, saved" if best else ""
            line = f"epoch {epoch:.4g}  {shown or metric} {value:.4f}  validation loss {loss:.4f}{mark}"
            print_line(self.console, line)

    def keep(self) -> None:
        """Flush the records so far to the disk, where those of a checkpoint's steps must be."""
        if self._stream:
            with _writing(self._file):
                os.fsync(self._stream.fileno())

    def check_in_place(self) -> None:
        """Make sure that the records still go where the run is: a file that was removed can be written for ever.

        Raises:
            TrainingError: the file, or the directory of the run, was removed, moved or replaced.
        """
        if not self._stream:
            return
        try:
            is_there = os.path.samestat(os.stat(self._file), os.fstat(self._stream.fileno()))
        except OSError:
            is_there = False
        if not is_there:
            raise TrainingError(
                f"{self._file} was removed, moved or replaced while the run was writing it, so the run has stopped; "
                "put its directory back and go on with --resume, or start anew"
            )

    def _pace(self, step: int) -> tuple[float, float, int]:
        """Examples per second, seconds left and peak memory, which every record ends with."""
        left = (self.seconds - self._before) / max(1, step - self._done) * (self.steps - step)
        return round(self.examples_per_second, 2), round(left, 1), peak_memory()

    def _write(self, record: Record, tracked: dict[str, Any]) -> None:
        self.records.append(record)
        if self._track:
            self._track(tracked, record.step)
        if self._stream:
            self.check_in_place()
            with _writing(self._file):
                self._stream.write(strict_json.lines([asdict(record)]))
                self._stream.flush()
        if self._notify:
            self._notify(record)


@contextmanager
def _writing(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TrainingError(f"cannot write {file}: {error.strerror}; the best adapter so far is kept") from None


def _kept(file: Path, done: int) -> list[Record]:
    """The records up to a step, without damaged lines: the last may have been cut when the run died."""
    records: list[Record] = []
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    for line in lines:
        with suppress(ValueError):
            records.append(parse_record(json.loads(line)))
    return [record for record in records if record.step <= done]


def _open(file: Path) -> TextIO:
    try:
        return file.open("a", encoding="utf-8")
    except OSError as error:
        raise TrainingError(f"cannot write {file}: {error.strerror or error}") from None
