"""`capaft predict`: rows from files, stdin and the command line; a record for each in their order, come what may."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from command_line import invoke
from typer.testing import CliRunner

import capaft
from capaft.inference import rows as row_module

TEXTS = ["A superb film, from beginning to end.", "Tedious.", "What a gripping book, and what a long title it has!"]


@pytest.fixture(scope="module")
def expected(run: Path) -> list[dict[str, Any]]:
    return [{"text": text, **record} for text, record in zip(TEXTS, capaft.open(run).predict(TEXTS), strict=True)]


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def piped(text: bytes, *arguments: Any) -> Any:
    from capaft.commands.app import app

    return CliRunner().invoke(app, list(map(str, arguments)), input=text)


def test_every_form_of_rows_gives_the_same(run: Path, expected: list[dict[str, Any]], tmp_path: Path) -> None:
    table = pd.DataFrame({"text": TEXTS})
    table.to_csv(tmp_path / "a.csv", index=False)
    table.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    table.to_parquet(tmp_path / "a.parquet")
    (tmp_path / "a.txt").write_text("\n".join(TEXTS))
    for name in ("a.csv", "a.jsonl", "a.parquet", "a.txt"):
        done = invoke("predict", run, "--data", tmp_path / name)
        assert (done.code, done.err) == (0, "")
        assert records(done.out) == expected
    assert records(invoke("predict", run, *(word for text in TEXTS for word in ("--text", text))).out) == expected
    lines = "\n\n".join(TEXTS).encode()
    assert records(piped(lines, "predict", run, "--data", "-").stdout) == expected
    assert records(piped((tmp_path / "a.jsonl").read_bytes(), "predict", run).stdout) == expected


def test_rows_stay_in_order_over_windows(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_module, "WINDOW", 7)
    texts = [f"{at} " + "long " * (at * 7 % 13) for at in range(24)]
    (tmp_path / "a.csv").write_text("no,text\n" + "".join(f"{at},{text}\n" for at, text in enumerate(texts)))
    done = invoke("predict", run, "--data", tmp_path / "a.csv", "--batch-size", "3")
    assert done.code == 0, done.err
    singly = capaft.open(run).predict(texts, batch_size=1)
    for at, (record, alone) in enumerate(zip(records(done.out), singly, strict=True)):
        assert (record["no"], record["text"], record["label"]) == (at, texts[at], alone["label"])
        assert record["probability"] == pytest.approx(alone["probability"], abs=1e-5)


def test_columns_pass_through_to_csv(run: Path, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('id,when,text,label\n7,2024-05-01,"Superb, really",good\n8,,Awful,bad\n')
    out = tmp_path / "new" / "p.csv"
    done = invoke("predict", run, "--data", tmp_path / "a.csv", "--output", out, "--top", "2")
    assert (done.code, done.out) == (0, f"2 records in {out}\n")
    with out.open(newline="") as stream:
        first, second = csv.DictReader(stream)
    assert list(first) == ["id", "when", "text", "input_label", "label", "probability", "probabilities", "error"]
    assert (first["id"], first["when"], first["text"], first["error"]) == ("7", "2024-05-01", "Superb, really", "")
    assert (first["input_label"], second["input_label"]) == ("good", "bad")
    assert json.loads(first["probabilities"])[first["label"]] == float(first["probability"])
    for keep, names in (("id,when", ["id", "when"]), ("", [])):
        done = invoke("predict", run, "--data", tmp_path / "a.csv", "--keep", keep)
        assert [list(record) for record in records(done.out)] == [[*names, "label", "probability"]] * 2


def test_a_bad_row_is_a_record_with_its_error(run: Path, expected: list[dict[str, Any]], tmp_path: Path) -> None:
    lines = [
        json.dumps({"text": TEXTS[0]}),
        "{",
        '{"text": null}',
        json.dumps({"text": TEXTS[1]}),
        '{"text": 5}',
        '{"te',
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    out = tmp_path / "p.jsonl"
    done = invoke("predict", run, "--data", tmp_path / "a.jsonl", "--output", out)
    assert done.code == 1
    assert done.err.splitlines()[-1].startswith("error: 3 of 6 rows have no answer (row 2: line 2 is not JSON (")
    written = records(out.read_text())
    assert [written[0]["label"], written[3]["label"]] == [record["label"] for record in expected[:2]]
    assert [record.get("error", "")[:25] for record in written] == [
        "",
        "line 2 is not JSON (Expec",
        "there is nothing in colum",
        "",
        "",
        "line 6 is not JSON (Unter",
    ]
    (tmp_path / "a.csv").write_text("id,text\n" + "".join(f"{at},A film{',' * (at == 2)}\n" for at in range(5)))
    done = invoke("predict", run, "--data", tmp_path / "a.csv", "--keep", "id")
    assert done.code == 1
    assert [record["id"] for record in records(done.out)] == [0, 1, None, 3, 4]
    assert records(done.out)[2]["error"] == "line 4 has 3 field(s), the header has 2; quote text that has commas"
    done = piped(b"A superb film\ncaf\xe9\n", "predict", run)
    assert done.exit_code == 1
    assert [record.get("error") for record in records(done.stdout)] == [None, "the line is not UTF-8"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "{}/none.csv"), "no such file or directory"),
        (("--data", "{}/empty.csv"), "the file is empty"),
        (("--data", "/dev/null"), "/dev/null"),
        (("--data", "{}/two.csv"), "cannot tell which column is the text"),
        (("--data", "{}/two.csv", "--text-column", "c"), "--text-column c: there is no such column"),
        (("--data", "{}/good.csv", "--keep", "idd"), "--keep idd: there is no such column"),
        (("--data", "{}/good.csv", "--text", "a"), "--data and --text both name rows"),
        (("--text", "a", "--pair-text", "b"), "this adapter takes one input a row"),
        (("--text", "a", "--text", "b", "--pair-text", "c"), "--pair-text is given 1 times and --text 2 times"),
        (("--text", "a", "--text-column", "b"), "--text-column: --text has no columns"),
        (("--text", "a", "--top", "0"), "--top must be at least 1, got 0"),
        (("--text", "a", "--set", "beams=4"), "--set beams: text-classification has no option beams"),
        (("--text", "a", "--split", "test"), "--split needs a data set with splits"),
        ((), "there are no rows; name a file with --data"),
    ],
)
def test_what_cannot_be_read_is_one_line(run: Path, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "two.csv").write_text("a,b\nA film,Of two\nA book,Of three\n")
    (tmp_path / "good.csv").write_text("text\nA film\n")
    done = invoke("predict", run, *(word.format(tmp_path) for word in arguments))
    assert (done.code, done.out) == (2, "")
    assert message in done.err.splitlines()[-1]


def test_a_stream_without_lines_is_no_mistake(run: Path) -> None:
    done = piped(b"\n", "predict", run, "--data", "-")
    assert (done.exit_code, done.stdout) == (0, "")


def test_eval_says_where_unlabelled_rows_belong(run: Path, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,text\n1,A film\n2,A book\n")
    done = invoke("eval", run, "--data", tmp_path / "a.csv", "--predictions", tmp_path / "p.jsonl")
    assert done.code == 2
    assert done.err.splitlines()[-1].endswith(
        f"to answer rows without labels: capaft predict {run} --data {tmp_path}/a.csv"
    )


def test_control_characters_of_texts_do_not_reach_the_terminal(run: Path) -> None:
    done = invoke("predict", run, "--text", "A \x1b[31mfilm\x9b \u202e é")
    assert "\\u001b[31mfilm\\u009b \\u202e é" in done.out
    assert records(done.out)[0]["text"] == "A \x1b[31mfilm\x9b \u202e é"


def test_an_interrupted_file_is_told_from_a_whole_one(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from capaft.inference import answers

    answer = answers.Answerer.answer

    def stop(self: Any, rows: Any, columns: Any, first: int = 1, *rest: Any) -> Any:
        if first > 1:
            raise KeyboardInterrupt
        return answer(self, rows, columns, first, *rest)

    monkeypatch.setattr(row_module, "WINDOW", 2)
    monkeypatch.setattr(answers.Answerer, "answer", stop)
    (tmp_path / "a.txt").write_text("\n".join(TEXTS))
    out = tmp_path / "out" / "p.jsonl"
    out.parent.mkdir()
    out.write_text("before")
    done = invoke("predict", run, "--data", tmp_path / "a.txt", "--output", out)
    assert done.code == 130
    assert f"stopped after 2 rows; their records are in {out}.part" in done.err
    assert out.read_text() == "before"
    assert [record["text"] for record in records(Path(f"{out}.part").read_text())] == TEXTS[:2]
    assert sorted(path.name for path in out.parent.iterdir()) == ["p.jsonl", "p.jsonl.part"]


@pytest.mark.slow
def test_piped_lines_are_answered_before_the_end(run: Path) -> None:
    command = [sys.executable, "-m", "capaft", "predict", str(run), "--data", "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ) as process:
        assert process.stdin
        assert process.stdout
        for text in TEXTS:
            process.stdin.write(f"{text}\n".encode())
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["text"] == text
        process.stdin.close()
        assert process.wait(60) == 0


def test_what_is_read_is_not_replaced(run: Path, reviews: Path, tmp_path: Path) -> None:
    own, data = tmp_path / "run", tmp_path / "a.csv"
    own.mkdir()
    for file in run.iterdir():
        if file.is_file():
            (own / file.name).write_bytes(file.read_bytes())
    data.write_bytes(reviews.read_bytes())
    before = {file: file.read_bytes() for file in (data, *own.iterdir())}
    (tmp_path / "link.csv").symlink_to(data)
    for command, option in (("predict", "--output"), ("eval", "--predictions")):
        for out in (data, tmp_path / "link.csv", own / "adapter.safetensors", own / "run.yaml"):
            done = invoke(command, own, "--data", data, option, out)
            assert (done.code, done.out) == (2, "")
            assert done.err == f"error: {option} {out} would replace what is read; name another file\n"
    assert {file: file.read_bytes() for file in before} == before
