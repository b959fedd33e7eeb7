"""Data that look like one thing and would be trained as another: the user is asked, instead of a guess being trained.

Only what was inferred is doubted: `--task`, or the columns named, settle it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from capaft.data.media.folder import MEDIA_KINDS
from capaft.support.errors import UsageError
from capaft.tasks.base.columns import cell_kind, column_values, is_id, is_text, plain_name

if TYPE_CHECKING:
    from datasets import Dataset

# Names, plain, of columns that say where a text comes from; a language model need not read them.
_NOTE = re.compile(
    "ur[il]|link|source|title|author|publisher|date|time|timestamp|created|added|updated|version|lang|language|meta"
    "|metadata|subset|split|domain|license|dump|file|filename|filepath|path|page|section|chapter"
)
_LANGUAGE = re.compile(
    "(a[fmrz]|b[egns]|c[asy]|d[ae]|e[lnotsu]|f[air]|g[alu]|h[eiruy]|i[dst]|ja|k[akmno]|l[otv]|m[klnrsy]|n[elo]|p[alst]"
    "|r[ou]|s[ikloqrvw]|t[aehlr]|u[krz]|vi|xh|yo|z[hu])([-_].*)?"
)
_POSITIVES, _NEGATIVES = ("positive", "pos", "positives"), ("negative", "neg", "negatives")
_QUERIES = ("anchor", "query", "sentence", "question")

_LONGEST_NAME = 5
_SAMPLE = 200
_FEWEST_ROWS = 3
# A word and its tag on each line need many lines to be told from short lines.
_FEWEST_WORDS = 20
_MOST_TAGS = 4
_DATE_OR_NUMBER = re.compile(
    r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([T ,]+\d.*)?|\d{1,2}:\d{2}(:\d{2}.*)?|[+-]?\d+([.,]\d+)?"
)
_HASH = re.compile(r"[0-9a-fA-F]{8,}|[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_NUMBER = re.compile(r"[+-]?\d+([.,]\d+)?")
_URL = re.compile(r"(https?|ftp|s3|gs)://\S+")
_FILE = re.compile(r"\S+\.(txt|csv|tsv|jsonl?|parquet|xml|html?|pdf|docx?|md|npy|npz|pt|zip|gz)", re.IGNORECASE)
_TAG = re.compile(r"[A-Z$.,:'`()#-][\w$.,:'`()#|-]*")
_SPECIAL_TOKEN = re.compile(r"<\|[^|<>]*\|>")
_FASTTEXT = re.compile(r"__label__\S+\s+\S.*")


def refuse_other_purposes(rows: Dataset, named: Mapping[str, str | None]) -> None:
    """Refuse rows for a purpose that no task has, unless the user names their text and their label.

    Raises:
        UsageError: they hold preferences, ratings of answers, triples for embeddings, or languages side by side.
    """
    if named.get("text") and named.get("label"):
        return
    names = {plain_name(name): name for name in rows.column_names}
    if {"chosen", "rejected"} <= names.keys():
        chosen, prompt = names["chosen"], _first(names, ("prompt", "question", "instruction"))
        use = f"--text-column {chosen}"
        if prompt is not None and is_text(rows.features[chosen]):
            use = f"--text-column {prompt} --label-column {chosen}"
        listed = ", ".join(name for name in (prompt, chosen, names["rejected"]) if name)
        raise UsageError(
            f"columns {listed} look like preferences, which no task learns; to learn the chosen answers, say --task "
            f"causal-lm {use}"
        )
    if {"prompt", "completion", "label"} <= names.keys() and cell_kind(rows.features[names["label"]]) == "bool":
        raise UsageError(
            "columns prompt, completion, label look like answers rated good or bad, which no task learns; keep the "
            "good ones and drop the label, or say --task causal-lm to learn them all"
        )
    if {"completions", "labels"} <= names.keys():
        raise UsageError("columns completions, labels look like rated steps, which no task learns; choose with --task")
    positive, negative, query = (_first(names, group) for group in (_POSITIVES, _NEGATIVES, _QUERIES))
    # Beside no `neg`, `pos` is as well a part of speech.
    if positive and (negative or (query and plain_name(positive) != "pos")) and _hold_texts(rows, positive):
        triple = ", ".join(name for name in (query, positive, negative) if name)
        raise UsageError(
            f"columns {triple} look like pairs or triples for embeddings, which no task learns; for another task "
            "choose with --task, --text-column and --label-column"
        )
    texts = [name for name, feature in rows.features.items() if is_text(feature) and not is_id(name)]
    texts = [name for name in texts if not _NOTE.fullmatch(plain_name(name))]
    if texts and not named.get("text") and all(map(_is_sentence, texts)):
        raise _headless(texts)
    if len(texts) > 1 and all(_LANGUAGE.fullmatch(name.lower()) for name in texts):
        raise UsageError(
            f"columns {', '.join(texts)} look like a translation; say which is which with --text-column {texts[0]} "
            f"--label-column {texts[1]}, and the task, --task seq2seq or --task causal-lm"
        )


def refuse_doubtful_text(rows: Dataset, text: str, task: str, *, plain: bool) -> None:
    """Refuse a column of text, not named by the user, that holds something else.

    Args:
        rows: the rows.
        text: the column.
        task: the name of the inferred task.
        plain: the task learns the texts themselves, and no labels.

    Raises:
        UsageError: it holds names of files, or dates and numbers; or for plain text, addresses, hashes, or rows of a
            table.
    """
    texts = [value.strip() for value in column_values(rows.select(range(min(len(rows), _SAMPLE))), text) if value]
    if len(texts) < _FEWEST_ROWS:
        return
    kinds = _KINDS if plain else _KINDS[:2]
    looks = next((looks for looks, fits in kinds if fits(texts)), None)
    if looks is not None:
        raise UsageError(
            f"column {text!r} looks like {looks}, not like text; if it is the text, say --text-column {text!r} "
            f"--task {task}"
        )


def refuse_unread_columns(rows: Dataset, text: str, task: str, *, scalars: bool) -> None:
    """Refuse plain text beside columns that may well be its labels.

    Args:
        rows: the rows.
        text: the column of text.
        task: the name of the inferred task.
        scalars: doubt also columns of single values, and not only lists.

    Raises:
        UsageError: there are such columns.
    """
    unread = [
        name
        for name, feature in rows.features.items()
        if name != text
        and not is_id(name)
        and not _NOTE.fullmatch(plain_name(name))
        and any(value not in (None, "", []) for value in column_values(rows, name))
    ]
    refuse_headless(rows, text, unread)
    unread = [name for name in unread if scalars or cell_kind(rows.features[name]) == "list"]
    if unread:
        raise UsageError(
            f"this looks like plain text in {text!r}, but {', '.join(map(repr, unread[:5]))} would not be read; say "
            f"--task {task} if that is right, or name the label with --label-column"
        )


def refuse_headless(rows: Dataset, text: str, others: Collection[str]) -> None:
    """Refuse columns that were found by type and whose names are the cells of a first row.

    Raises:
        UsageError: one of the others is called by a number or by one of its own classes, and the text by no usual name.
    """
    numbered = [name for name in rows.column_names if not name.startswith("Unnamed: ")]
    if re.fullmatch(r"[^\W\d]\w*", text) or numbered == [str(number) for number in range(len(numbered))]:
        return
    for name in others:
        is_class = is_text(rows.features[name]) and name in rows.unique(name)
        if is_class or _NUMBER.fullmatch(name):
            raise _headless([text, name])


def _headless(names: Sequence[str]) -> UsageError:
    listed = " and ".join(repr(name if len(name) <= 40 else f"{name[:37]}...") for name in names)
    return UsageError(
        f"{'the columns are' if len(names) > 1 else 'the column is'} called {listed}, as if the first row stood in "
        "place of names; add a line of names, such as text,label, or choose with --text-column and --label-column"
    )


def _is_sentence(name: str) -> bool:
    return len(name.split()) > _LONGEST_NAME or name.rstrip().endswith((".", "!", "?"))


def _first(names: Mapping[str, str], wanted: Collection[str]) -> str | None:
    return next((names[name] for name in wanted if name in names), None)


def _hold_texts(rows: Dataset, name: str) -> bool:
    feature = rows.features[name]
    return is_text(getattr(feature, "feature", feature))


def _all_match(*patterns: re.Pattern[str]) -> Callable[[Sequence[str]], bool]:
    return lambda texts: all(any(pattern.fullmatch(text) for pattern in patterns) for text in texts)


def _are_files(texts: Sequence[str]) -> bool:
    return all(_FILE.fullmatch(text) or text[text.rfind(".") :].lower() in MEDIA_KINDS for text in texts)


def _are_json(texts: Sequence[str]) -> bool:
    try:
        return all(isinstance(json.loads(text), dict | list) for text in texts)
    except (ValueError, RecursionError):
        return False


def _are_table(texts: Sequence[str]) -> bool:
    """True if the same separator divides each text into as many parts; for commas and the like, beside a short part."""
    for separator in ("\t", ";", "|", ","):
        # The bars of special tokens, as in <|im_end|>, divide nothing.
        rows = [_SPECIAL_TOKEN.sub("", text).split(separator) for text in texts]
        if len({len(row) for row in rows}) > 1 or len(rows[0]) < 2:
            continue
        spaced = any(part[:1].isspace() for row in rows for part in row)
        if separator == "\t" or (not spaced and any(all(_is_cell(row[at]) for row in rows) for at in (0, -1))):
            return True
    return False


def _is_cell(text: str) -> bool:
    """True for what may well be a class or the name of a column."""
    return 0 < len(text) <= 20 and text.count(" ") < 2


def _are_words_with_tags(texts: Sequence[str]) -> bool:
    """True if each text is a word and what may well be its part of speech or its entity."""
    parts = [text.split() for text in texts]
    alike = len({len(part) for part in parts}) == 1 and 2 <= len(parts[0]) <= _MOST_TAGS + 1
    tags = {part[-1] for part in parts}
    return alike and len(texts) >= _FEWEST_WORDS and len(tags) * 3 <= len(texts) and all(map(_TAG.fullmatch, tags))


_KINDS: tuple[tuple[str, Callable[[Sequence[str]], Any]], ...] = (
    ("names of files", _are_files),
    ("dates or numbers", _all_match(_DATE_OR_NUMBER)),
    ("addresses", _all_match(_URL)),
    ("hashes", _all_match(_HASH)),
    ("JSON", _are_json),
    ("fastText's lines of a label and a text (give columns text and label)", _all_match(_FASTTEXT)),
    ("rows of a table (name the file .csv or .tsv, with a line of column names)", _are_table),
    ("a word and its tag a line (name the file .conll)", _are_words_with_tags),
)
