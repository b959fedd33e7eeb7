"""What a server answers: the adapters of a directory, followed as files come and go, on one base model."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from capaft.adapter.file.adapter_file import AdapterFile, read
from capaft.config.serve_options import ServeOptions
from capaft.data.load import Say
from capaft.inference.bank.asking import BankAnswers, OpenBank
from capaft.inference.bank.directory import BankDirectory
from capaft.inference.rows import input_names
from capaft.inference.serving.batching import Batcher, Request, Value
from capaft.inference.values import rows_of_values
from capaft.support.errors import UsageError
from capaft.tasks.base.columns import Columns
from capaft.tasks.base.task import Task
from capaft.tasks.base.task_answers import Record
from capaft.tasks.language.generation import Generation
from capaft.training.record.saved_run import task_of_record

# Seconds between two looks at the directory, and the share of the time that they may take.
LOOK, SHARE = 1.0, 0.05
_COLUMN = "adapter"
Seen = tuple[int, int, int]


class Service:
    """The adapters of a directory on one base model, and the thread that answers.

    Args:
        options: the directory's settings.
        directory: the directory.
        say: called with a line for each decision, and for each file that comes, goes, or cannot be used.
        observe: called with the numbers of inputs and of adapters of each batch.

    Raises:
        UsageError: no adapter of the directory can be served, or the base model cannot be loaded.
    """

    def __init__(
        self, options: ServeOptions, directory: BankDirectory, say: Say, observe: Callable[[int, int], None]
    ) -> None:
        self._say, self._observe, self._directory = say, observe, directory
        self._size = options.max_batch
        self._seen: dict[str, Seen] = {}
        self.open = _opened(directory, options, say)
        for name, seen in self._files().items():
            self._take(name, seen, self._read(name))
        if not len(self.open.bank):
            raise UsageError(f"{directory.path} holds no adapter that can be served")
        self.batcher = Batcher(self.answer, options.window_ms / 1000, options.max_batch, options.queue)
        self._stopped = threading.Event()
        self._watch = threading.Thread(target=self._follow, name="capaft-directory", daemon=True)
        self._watch.start()

    def close(self) -> None:
        """Answer what waits, and stop."""
        self._stopped.set()
        self._watch.join()
        self.batcher.close()

    def adapters(self) -> list[dict[str, Any]]:
        """The adapters, each with its task and its labels."""
        entries = []
        for name in self.open.bank.names:
            try:
                task = self.open.bank.task(name)
                entries.append(
                    {"name": name, "task": task.name if task else "", "labels": list(task.labels if task else ())}
                )
            except UsageError:
                continue  # It has gone meanwhile.
        return entries

    def answer(self, requests: Sequence[Request]) -> list[list[Record]]:
        """The records of some requests, whatever their adapters; called by one thread."""
        results: list[list[Record]] = [[] for _ in requests]
        for paired, top in {(_is_paired(request), request.top) for request in requests}:
            places = [at for at, request in enumerate(requests) if (_is_paired(request), request.top) == (paired, top)]
            records = iter(self._together([requests[at] for at in places], paired, top))
            for at in places:
                results[at] = [next(records) for _ in requests[at].values]
        return results

    def _together(self, requests: Sequence[Request], paired: bool, top: int | None) -> list[Record]:
        names = [request.adapter for request in requests for _ in request.values]
        values: list[Value] = [value for request in requests for value in request.values]
        text, pair = input_names(self.open.saved, paired=paired)
        rows, _ = rows_of_values(values, (text, pair if paired else None), None)
        rows = rows.add_column(_COLUMN, names)
        here = sorted({name for name in names if name in self.open.bank})
        gone = {name: f"there is no adapter {name}" for name in names if name not in here}
        answers = BankAnswers(_COLUMN, self.open.answerers(here, _COLUMN, top, self._size), gone)
        self._observe(len(values), len(set(names)))
        return answers.answer(rows, Columns(text, pair if paired else None, None), 1, lambda rows: None)

    def _files(self) -> dict[str, Seen]:
        """The files of the directory, each with what changes when it does."""
        seen = {}
        for name, path in self._directory.files().items():
            try:
                status = path.stat()
            except OSError:
                continue
            seen[name] = (status.st_mtime_ns, status.st_size, status.st_ino)
        return seen

    def _read(self, name: str) -> AdapterFile | str:
        """An adapter's file, or the reason why it cannot be read."""
        try:
            return read(self._directory.file(name))
        except UsageError as error:
            return str(error)

    def _take(self, name: str, seen: Seen, file: AdapterFile | str) -> None:
        """Take in an adapter, in place of an earlier one of its name; say why if it cannot be used."""
        self._seen[name] = seen
        problem: str | None = file if isinstance(file, str) else None
        if isinstance(file, AdapterFile):
            problem = _unservable(file) or self.open.take_in(name, file, replace=True)
        if problem is not None:
            if name in self.open.bank:
                self.open.bank.remove(name)
            self._say(f"{name} is not served: {problem}")

    def _drop(self, name: str) -> None:
        self._seen.pop(name, None)
        if name in self.open.bank:
            self.open.bank.remove(name)
            self._say(f"{name} has gone")

    def _follow(self) -> None:
        """Look at the directory again and again; what changed is read here, and taken in between two batches."""
        pause = LOOK
        while not self._stopped.wait(pause):
            started = time.monotonic()
            try:
                files = self._files()
            except UsageError:
                continue  # The directory is being replaced.
            for name in self._seen.keys() - files.keys():
                self._apply(partial(self._drop, name))
            for name, seen in files.items():
                if self._seen.get(name) != seen:
                    file = self._read(name)
                    self._apply(partial(self._take, name, seen, file))
            pause = max(LOOK, (time.monotonic() - started) / SHARE)

    def _apply(self, change: Callable[[], None]) -> None:
        """Have a change made by the thread that calls the model, and wait for it."""
        done = threading.Event()

        def act() -> None:
            try:
                change()
            except Exception as error:
                self._say(f"a file could not be taken in: {error}")
            finally:
                done.set()

        self.batcher.between(act)
        while not done.wait(0.1) and not self._stopped.is_set():
            pass


def _is_paired(request: Request) -> bool:
    return any(isinstance(value, tuple) for value in request.values)


def _unservable(file: AdapterFile) -> str | None:
    """The reason why the task of a file is not served; None if it is."""
    try:
        return unservable(task_of_record(file.task, file.path))
    except UsageError as error:
        return str(error)


def unservable(task: Task) -> str | None:
    """The reason why a task is not served; None if it is."""
    if isinstance(task, Generation):
        return (
            f"{task.name} writes texts, which vLLM serves; export it with capaft export RUN --to peft (docs/serving.md)"
        )
    if getattr(task, "medium", None):
        return f"{task.name} reads files, and a server answers texts alone"
    try:
        task.check_answers()
    except UsageError as error:
        return str(error)
    return None


def _opened(directory: BankDirectory, options: ServeOptions, say: Say) -> OpenBank:
    """The base model of the first adapter that can be served.

    Raises:
        UsageError: there is none.
    """
    reason = f"{directory.path} holds no adapter file"
    for path in directory.files().values():
        try:
            return OpenBank.of(directory, read(path), options, say, check=unservable)
        except UsageError as error:
            reason = str(error)
    raise UsageError(f"nothing can be served: {reason}")
