"""Label Studio's export of texts with spans: tasks with data and with annotations, each a list of results."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

Columns = Mapping[str, Collection[Any]]

_ANNOTATIONS = ("annotations", "completions")


def unwrapped(columns: Columns) -> Columns:
    """The columns `text` and `spans` of an export of tasks; anything else is unchanged.

    A task that several people annotated counts as the first of them did it, without those that were cancelled.
    """
    name = next((name for name in _ANNOTATIONS if name in columns), None)
    tasks = columns.get("data")
    if name is None or tasks is None or not all(isinstance(task, Mapping) for task in tasks):
        return columns
    tasks = list(tasks)
    results = [_results(annotations) for annotations in columns[name]]
    if not _flat(results):
        return columns
    keys = {result.get("to_name") for result in _flat(results)} | {"text"}
    sources = {key for task in tasks for key, value in task.items() if isinstance(value, str)}
    text = next((key for key in ("text", *sorted(map(str, keys)), *sorted(sources)) if key in sources), None)
    if text is None or not all("start" in result.get("value", {}) for result in _flat(results)):
        return columns
    spans = [None if of_task is None else [_span(result["value"]) for result in of_task] for of_task in results]
    kept = [row for row, of_task in enumerate(spans) if of_task is not None]
    return {"text": [tasks[row].get(text) for row in kept], "spans": [spans[row] for row in kept]}


def _results(annotations: Any) -> list[Mapping[str, Any]] | None:
    """What a person marked, without relations between spans; None if nobody looked at the text."""
    finished = [a for a in annotations or () if isinstance(a, Mapping) and not a.get("was_cancelled")]
    if not finished:
        return None
    return [result for result in finished[0].get("result") or () if result.get("type", "labels") == "labels"]


def _flat(results: list[Any]) -> list[Any]:
    return [result for of_task in results for result in of_task or ()]


def _span(value: Mapping[str, Any]) -> dict[str, Any]:
    return {"start": value["start"], "end": value.get("end"), "labels": value.get("labels")}
