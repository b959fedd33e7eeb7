"""Requests of different adapters, answered in joint batches by the one thread that calls the model."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from capaft.support.errors import CapaftError, TrainingError, one_line
from capaft.tasks.base.task_answers import Record

Value = str | tuple[str, str]


@dataclass(frozen=True)
class Request:
    """One request's inputs.

    Attributes:
        adapter: the name of the adapter.
        values: the inputs, texts or pairs of texts.
        top: number of the likeliest classes to list; None for none.
        records: the answers, when they are there.
    """

    adapter: str
    values: tuple[Value, ...]
    top: int | None = None
    records: Future[list[Record]] = field(default_factory=Future)


class Full(Exception):  # noqa: N818 - it is no error
    """More inputs are waiting than may wait."""


class Batcher:
    """Collects requests for a moment and has them answered together.

    Args:
        answer: answers requests in one go: a list of records for each.
        window: seconds to wait for further requests after the first.
        most: inputs in one go at most; one request may have more.
        waiting: inputs that may wait at most.
    """

    def __init__(
        self, answer: Callable[[Sequence[Request]], list[list[Record]]], window: float, most: int, waiting: int
    ) -> None:
        self._answer, self._window, self._most, self._limit = answer, window, most, waiting
        self._queue: queue.Queue[Request | Callable[[], Any] | None] = queue.Queue()
        self._lock = threading.Lock()
        self.waiting = 0
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name="capaft-batches", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> None:
        """Have a request answered, by its `records`.

        Raises:
            Full: too many inputs wait.
        """
        with self._lock:
            if self._is_closed or (self.waiting and self.waiting + len(request.values) > self._limit):
                raise Full
            self.waiting += len(request.values)
            self._queue.put(request)

    def between(self, action: Callable[[], Any]) -> None:
        """Have something done between two batches, when no forward is under way."""
        self._queue.put(action)

    def close(self) -> None:
        """Answer what waits, and stop."""
        with self._lock:
            self._is_closed = True
            self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            if not isinstance(item, Request):
                item()
                continue
            requests, actions, is_last = self._gathered(item)
            with self._lock:
                self.waiting -= sum(len(request.values) for request in requests)
            self._settle([request for request in requests if request.records.set_running_or_notify_cancel()])
            for action in actions:
                action()
            if is_last:
                return

    def _gathered(self, first: Request) -> tuple[list[Request], list[Callable[[], Any]], bool]:
        """The requests that come within the window, what is to be done after them, and whether they are the last."""
        requests, actions, count = [first], list[Callable[[], Any]](), len(first.values)
        until = time.monotonic() + self._window
        while count < self._most:
            try:
                item = self._queue.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if item is None:
                return requests, actions, True
            if not isinstance(item, Request):
                actions.append(item)
                continue
            requests.append(item)
            count += len(item.values)
        return requests, actions, False

    def _settle(self, requests: list[Request]) -> None:
        """Answer requests; where they cannot be answered together, one by one."""
        if not requests:
            return
        try:
            for request, records in zip(requests, self._answer(requests), strict=True):
                request.records.set_result(records)
        except Exception as error:
            if len(requests) > 1:
                for request in requests:
                    self._settle([request])
                return
            known = (
                error if isinstance(error, CapaftError) else TrainingError(f"{type(error).__name__}: {one_line(error)}")
            )
            requests[0].records.set_exception(known)
