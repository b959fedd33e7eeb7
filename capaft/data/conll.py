"""Read files with a word and its tags a line and a blank line between sentences, as the CoNLL shared tasks used them.

CoNLL-2000, -2002 and -2003 and CoNLL-U (Buchholz and Marsi, 2006; universaldependencies.org/format.html) differ in
their columns, and in whether tabs or blanks separate them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from capaft.data.reading import Reading
from capaft.data.tag_scheme import are_chunk_tags
from capaft.data.width import check_names
from capaft.support.errors import UsageError
from capaft.support.faults import leave_out

CONLL_SUFFIXES = (".conll", ".conllu", ".bio", ".iob")

_COMMENT = re.compile(
    r"#\s*(id|sent_id|text|newdoc|newpar|source|doc\w*|global\.columns|generator)\b|#\s+https?:|#.*\s=\s"
)
_DOCUMENT = "-DOCSTART-"
_TOKEN_NUMBER = re.compile(r"\d+")
# A contraction, whose parts follow, or a word that the sentence leaves out.
_NO_TOKEN = re.compile(r"\d+[-.]\d+")
_CONLLU_WIDTH = 10
_CONLLU = ("tokens", "lemmas", "upos", "xpos")
# Columns between the words and the last one, by their number.
_BETWEEN = {0: (), 1: ("pos_tags",), 2: ("pos_tags", "chunk_tags"), 3: ("lemmas", "pos_tags", "chunk_tags")}
_SAMPLE = 2000

Line = tuple[int, list[str]]
"""The number of a line, from 1, and its fields."""


def is_conll(lines: Iterable[str]) -> bool:
    """True if lines are words with tags in a chunking scheme, in sentences with blank lines between.

    The first line may name the columns.
    """
    sentences = list(_sentences(list(islice(lines, _SAMPLE))))
    rows = [fields for sentence in sentences for _, fields in sentence]
    if len(sentences) < 2 or len(rows) < 3 or not are_chunk_tags([rows[-1][-1]]):
        return False
    widths = {len(fields) for fields in rows}
    tags = {fields[-1] for fields in rows[1:]}
    return len(widths) == 1 and widths != {1} and tags != {"O"} and are_chunk_tags(tags)


def read_conll(path: Path, lines: Iterable[str], reading: Reading) -> dict[str, list[list[str]]]:
    """The columns: `tokens`, the tags in the last column as `ner_tags` or `tags`, and those between.

    A few sentences with a line of another number of columns are left out.

    Raises:
        UsageError: there are many, or each line has but a word.
    """
    sentences = list(_sentences(lines))
    widths = Counter(len(fields) for sentence in sentences for _, fields in sentence)
    width = widths.most_common(1)[0][0] if widths else 0
    if width < 2:
        raise UsageError(f"{path}: a line needs a word and a tag, with a tab or a blank between; add the tags")
    check_names(path, [""] * width)
    faults: list[str] = []
    whole: list[list[list[str]]] = []
    for sentence in sentences:
        faulty = next(((n, f) for n, f in sentence if len(f) != width or not f[0]), None)
        if faulty is None:
            whole.append([fields for _, fields in sentence])
        else:
            number, fields = faulty
            reason = "no word" if len(fields) == width else f"{len(fields)} of {width} columns"
            faults.append(f"line {number} has {reason}")
    if faults:
        leave_out(faults, len(sentences), f"sentences of {path}", strict=reading.strict, say=reading.say)
    names = _take_header(whole) or _column_names(whole, width)
    columns = {
        name: [[fields[at] for fields in sentence] for sentence in whole]
        for at, name in enumerate(names)
        if name is not None
    }
    reading.say(f"{path}: {len(whole)} sentences, a word a line, with {', '.join(columns)}")
    return columns


def _sentences(lines: Iterable[str]) -> Iterator[list[Line]]:
    """The lines of each sentence."""
    tabs = [line for line in islice((line for line in lines if line.strip()), _SAMPLE) if not line.startswith("#")]
    separator = "\t" if tabs and sum("\t" in line for line in tabs) > len(tabs) / 2 else None
    sentence: list[Line] = []
    for number, line in enumerate(lines, start=1):
        fields = line.rstrip("\r\n").split(separator) if separator else line.split()
        ends = not line.strip() or fields[0] == _DOCUMENT
        if ends and sentence:
            yield sentence
            sentence = []
        if ends or (line.startswith("#") and not sentence and _COMMENT.match(line)):
            continue
        if len(fields) == _CONLLU_WIDTH and _NO_TOKEN.fullmatch(fields[0]):
            continue
        sentence.append((number, fields))
    if sentence:
        yield sentence


def _take_header(sentences: list[list[list[str]]]) -> list[str | None] | None:
    """Take the column names from the first sentence, if they stand there."""
    first, *others = [fields for sentence in sentences for fields in sentence]
    named = are_chunk_tags([fields[-1] for fields in others]) and not are_chunk_tags([first[-1]])
    if not named or len(set(first)) < len(first):
        return None
    del sentences[0][0]
    if not sentences[0]:
        del sentences[0]
    return list(first)


def _column_names(sentences: list[list[list[str]]], width: int) -> list[str | None]:
    """A name for each column; None for numbers of tokens and for empty columns."""
    numbered = width > 2 and all(sentence[0][0] in ("0", "1") for sentence in sentences)
    numbered = numbered and all(_TOKEN_NUMBER.fullmatch(fields[0]) for sentence in sentences for fields in sentence)
    if numbered and width == _CONLLU_WIDTH:
        filled = {at for sentence in sentences for fields in sentence for at, text in enumerate(fields) if text != "_"}
        names = [name if at in filled else None for at, name in enumerate(_CONLLU, start=1)]
        return [None, *names, *[None] * (width - 1 - len(names))]
    start = int(numbered)
    last = [fields[-1] for sentence in sentences for fields in sentence]
    between = _BETWEEN.get(width - start - 2) or tuple(f"column_{at}" for at in range(start + 2, width))
    return [*[None] * start, "tokens", *between, "ner_tags" if are_chunk_tags(last) else "tags"]
