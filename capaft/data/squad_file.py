"""Flatten SQuAD's JSON, articles of paragraphs of questions, to one record a question."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from capaft.support.errors import UsageError


def is_squad(document: Any) -> bool:
    """True if a parsed JSON document looks like one of SQuAD's files."""
    articles = document.get("data") if isinstance(document, dict) else None
    return isinstance(articles, list) and any(isinstance(a, dict) and "paragraphs" in a for a in articles)


def squad_records(path: Path, document: Any) -> list[dict[str, Any]]:
    """Make records of `id`, `title`, `context`, `question` and `answers` (`text` and `answer_start`, both lists).

    A question that cannot be answered has empty lists. If the answers of all questions are withheld, the records have
    no key `answers`.

    Raises:
        UsageError: a field is missing or has another type.
    """
    rows = list(_questions(path, document["data"]))
    if all(answers is None for _, answers in rows):
        return [record for record, _ in rows]
    return [{**record, "answers": answers or {"text": [], "answer_start": []}} for record, answers in rows]


def _questions(path: Path, articles: Any) -> Iterator[tuple[dict[str, Any], dict[str, list[Any]] | None]]:
    for a, article in enumerate(articles, start=1):
        for p, paragraph in enumerate(_field(path, article, "paragraphs", list, f"article {a}"), start=1):
            where = f"article {a}, paragraph {p}"
            context = _field(path, paragraph, "context", str, where)
            for q, entry in enumerate(_field(path, paragraph, "qas", list, where), start=1):
                place = f"{where}, question {q}"
                record = {
                    "id": str(_field(path, entry, "id", (str, int), place)),
                    "title": str(article.get("title") or ""),
                    "context": context,
                    "question": _field(path, entry, "question", str, place),
                }
                is_labelled = "answers" in entry or entry.get("is_impossible")
                yield record, _answers(path, entry, place) if is_labelled else None


def _answers(path: Path, entry: dict[str, Any], where: str) -> dict[str, list[Any]]:
    # In SQuAD 2 some unanswerable questions have answers that are merely plausible.
    answers = [] if entry.get("is_impossible") else _field(path, entry, "answers", list, where)
    return {
        "text": [_field(path, answer, "text", str, where) for answer in answers],
        "answer_start": [_field(path, answer, "answer_start", int, where) for answer in answers],
    }


def _field(path: Path, record: Any, name: str, kind: type | tuple[type, ...], where: str) -> Any:
    value = record.get(name) if isinstance(record, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UsageError(f"{path}: {where} has no usable {name!r}; write it as in SQuAD's own files")
    return value
