"""Files with a word a line."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_reading import read, refusal

ROWS = [
    {"tokens": ["EU", "rejects", "."], "ner_tags": ["B-ORG", "O", "O"]},
    {"tokens": ["Peter"], "ner_tags": ["B-PER"]},
]


def lines(separator: str, start: str = "", end: str = "\n") -> str:
    sentences = (zip(row["tokens"], row["ner_tags"], strict=True) for row in ROWS)
    return start + "\n".join("".join(f"{w}{separator}{t}{end}" for w, t in sentence) for sentence in sentences)


@pytest.mark.parametrize("name", ["x.txt", "x.conll", "x.bio", "x.iob", "x.tsv", "x.csv"])
@pytest.mark.parametrize(
    "content",
    [
        lines("\t"),
        lines(" "),
        lines(" ", "-DOCSTART- O\n\n"),
        lines("  ", "-DOCSTART- -X- O O\n\n", " \r\n"),
        lines("\t", "# id 1\n"),
        lines(" ", "# text = EU rejects .\n"),
    ],
)
def test_two_columns(tmp_path: Path, name: str, content: str) -> None:
    assert read(tmp_path / name, content)[0] == ROWS


def test_four_columns(tmp_path: Path) -> None:
    rows, said = read(tmp_path / "x.txt", "EU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\nPeter NNP B-NP B-PER\n")
    assert list(rows[0]) == ["tokens", "pos_tags", "chunk_tags", "ner_tags"]
    assert rows[0]["chunk_tags"] == ["B-NP", "B-VP"]
    assert "2 sentences, a word a line" in said[0]


def test_a_line_of_names(tmp_path: Path) -> None:
    rows, _ = read(tmp_path / "x.tsv", "word\ttag\n" + lines("\t"))
    assert rows[0] == {"word": ["EU", "rejects", "."], "tag": ["B-ORG", "O", "O"]}


def test_universal_dependencies(tmp_path: Path) -> None:
    blanks = "\t_\t_\t_\t_\t_\n"
    content = (
        "# sent_id = 1\n# text = dog's\n1-2\tdog's\t_\t_\t_"
        + blanks
        + "1\tdog\tdog\tNOUN\tNN"
        + blanks
        + "2\t's\t's\tPART\tPOS"
        + blanks
        + "2.1\tis\tbe\tAUX\t_"
        + blanks
        + "\n1\t#\t#\tSYM\tSYM"
        + blanks
    )
    rows, _ = read(tmp_path / "x.conllu", content)
    assert rows[0] == {
        "tokens": ["dog", "'s"],
        "lemmas": ["dog", "'s"],
        "upos": ["NOUN", "PART"],
        "xpos": ["NN", "POS"],
    }
    assert rows[1]["tokens"] == ["#"]


def test_numbered_words(tmp_path: Path) -> None:
    rows, _ = read(
        tmp_path / "x.tsv", "#\thttp://a.b [2009]\n1\tHans\tB-PER\tO\n2\tlief\tO\tB-X\n\n1\tEr\tO\tO\n2\tging\tO\tO\n"
    )
    assert rows[0]["tokens"] == ["Hans", "lief"]
    assert rows[0]["ner_tags"] == ["O", "B-X"]


def test_parts_of_speech_need_the_suffix(tmp_path: Path) -> None:
    content = "The DT\ndog NN\n\nA DT\ncat NN\n"
    assert read(tmp_path / "x.conll", content)[0][0] == {"tokens": ["The", "dog"], "tags": ["DT", "NN"]}
    assert len(read(tmp_path / "x.txt", content)[0]) == 4


@pytest.mark.parametrize("content", ["two words\nand two\n\nonce more\n", "O O\n\nO O\n", "Plan B\n\nPlan O\nPlan C\n"])
def test_prose_is_prose(tmp_path: Path, content: str) -> None:
    assert "text" in read(tmp_path / "x.txt", content)[0][0]


def test_a_few_sentences_with_odd_lines_are_left_out(tmp_path: Path) -> None:
    content = "a O\nb\n\n" + "c O\nd B-X\n\n" * 8
    rows, said = read(tmp_path / "x.conll", content)
    assert len(rows) == 8
    assert said[0].endswith("is left out: line 2 has 1 of 2 columns")
    assert "--strict" in refusal(tmp_path / "x.conll", content, strict=True)
    assert "too many" in refusal(tmp_path / "x.conll", "a O\nb\n\nc O\nd B\n\n")
    assert "line 1 has no word" in refusal(tmp_path / "x.conll", "\tO\nx\tO\n\ny\tB-X\n")
    assert "a line needs a word and a tag" in refusal(tmp_path / "x.conll", "a\nb\n\nc\n")
