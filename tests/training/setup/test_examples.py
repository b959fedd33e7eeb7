"""The examples of a run: which rows are sampled, and the lines about them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from command_line import invoke, write_reviews

Row = dict[str, Any]


QUICK = ("--max-steps", "2", "--batch-size", "8", "--k", "16", "--rank", "2", "--max-length", "16")


def write(path: Path, rows: list[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_scarce_classes_are_named(tmp_path: Path) -> None:
    data = write_reviews(tmp_path / "x.csv")
    with data.open("a") as stream:
        stream.writelines(f"Nothing like number {number}.,rare{number}\n" for number in range(12))
    done = invoke("train", "--data", data, "--shots", "3", "--dry-run", *QUICK)
    assert done.code == 0, done.err
    (line,) = (line for line in done.err.splitlines() if "some classes have fewer" in line)
    assert re.fullmatch(
        r"data   some classes have fewer than 3 training rows: rare0 \([01]\), .*, rare7 \([01]\) and 2 more", line
    )


def test_answers_that_are_nowhere_are_counted(tmp_path: Path) -> None:
    answers = [{"text": ["ab"], "answer_start": [0]}, {"text": ["xy"], "answer_start": [0]}]
    rows = [{"question": "q", "context": "ab cd", "answers": answers[row == 5]} for row in range(20)]
    done = invoke("train", "--data", write(tmp_path / "x.jsonl", rows), "--dry-run", *QUICK)
    assert done.code == 0, done.err
    assert "1 of 18 training rows are left out, their answers are not in the context: row 6\n" in done.err


def test_examples_are_rows_also_where_each_is_several_pieces(tmp_path: Path) -> None:
    contexts = ["ab cd " * size for size in (1, 40)]
    rows = [
        {"question": "q", "context": contexts[row % 2], "answers": {"text": ["ab"], "answer_start": [0]}}
        for row in range(20)
    ]
    data = write(tmp_path / "x.jsonl", rows)
    done = invoke("train", "--data", data, "--dry-run", "--json", *QUICK, "--stride", "4")
    assert done.code == 0, done.err
    assert {key: json.loads(done.out)[key] for key in ("train_examples", "validation_examples")} == {
        "train_examples": 18,
        "validation_examples": 2,
    }
    (counts,) = re.findall(r"18 training and 2 validation examples, in (\d+) and (\d+) pieces\n", done.err)
    assert int(counts[0]) > 5 * 18
