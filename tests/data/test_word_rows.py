"""Tables with a word a row."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_reading import read, refusal

SENTENCES = [(["EU", "rejects", "."], ["B-ORG", "O", "O"]), (["NA", "lives"], ["B-PER", "O"])]


@pytest.mark.parametrize(
    ("names", "number"),
    [
        ("sentence_id,words,labels", "{}"),
        ("sentence_id,token,ner_tags", "s-{}"),
        ("Sentence #,Word,Tag", "Sentence: {}"),
        ("sent_id,w,t", "{}"),
    ],
)
def test_rows_of_a_sentence_are_gathered(tmp_path: Path, names: str, number: str) -> None:
    table = [f"{number.format(at)},{w},{t}\n" for at, pair in enumerate(SENTENCES) for w, t in zip(*pair, strict=True)]
    rows, said = read(tmp_path / "x.csv", f"{names}\n" + "".join(table))
    assert [tuple(row.values())[1:] for row in rows] == SENTENCES
    assert "5 rows of a word each become 2 sentences" in said[-1]


def test_a_number_at_the_first_word_only(tmp_path: Path) -> None:
    table = 'Sentence #,Word,POS,Tag\nSentence: 1,EU,NNP,B-org\n,rejects,VBZ,O\nSentence: 2,Peter,NNP,B-per\n,"",X,O\n'
    rows, _ = read(tmp_path / "x.csv", table)
    assert [row["Word"] for row in rows] == [["EU", "rejects"], ["Peter", None]]


def test_parts_of_speech(tmp_path: Path) -> None:
    rows, _ = read(tmp_path / "x.csv", "sentence_id,word,pos\n0,The,DT\n0,dog,NN\n1,A,DT\n1,cat,NN\n")
    assert rows[0] == {"sentence_id": 0, "word": ["The", "dog"], "pos": ["DT", "NN"]}


def test_numbers_that_begin_again_in_each_document(tmp_path: Path) -> None:
    table = "doc,sentence,word,tag\na,1,EU,B-ORG\na,1,x,O\nb,1,y,O\nb,1,z,O\n"
    assert [row["word"] for row in read(tmp_path / "x.csv", table)[0]] == [["EU", "x"], ["y", "z"]]


def test_what_is_not_clear_is_refused(tmp_path: Path) -> None:
    assert "add a column sentence_id" in refusal(tmp_path / "x.csv", "word,tag\nEU,B-ORG\nx,O\n")
    assert "add a column sentence_id" in refusal(tmp_path / "x.csv", "EU,B-ORG\nx,O\ny,B-PER\n")
    assert "add a column sentence_id" in refusal(tmp_path / "x.tsv", "w\tt\nEU\tB\nx\tO\ny\tI\n")
    apart = "sentence_id,word,tag\n0,EU,B-ORG\n1,x,O\n0,y,O\n1,z,B-PER\n"
    assert "stand apart; sort the rows by 'sentence_id'" in refusal(tmp_path / "x.csv", apart)


@pytest.mark.parametrize(
    "table",
    [
        "sentence,token,complexity\nA river ran.,river,0.1\nA river ran.,ran,0.3\n",
        "sentence_id,text,label\n0,a b,x\n0,c d,y\n",
        "word,blood\nx,A\ny,B\nz,O\n",
    ],
)
def test_other_tables_stay(tmp_path: Path, table: str) -> None:
    assert len(read(tmp_path / "x.csv", table)[0]) == len(table.splitlines()) - 1
