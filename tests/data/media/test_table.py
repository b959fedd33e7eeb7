"""Tables that name images or recordings by their paths."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import datasets
import pytest
import tiny_media
from command_line import invoke
from PIL import Image
from tiny_data import load, load_evaluation

from capaft.support.errors import UsageError

COLOURS = ("red", "blue")
QUICK = ("--max-steps", "2", "--batch-size", "4", "--k", "16", "--rank", "2", "--method", "nola")


def pictures(directory: Path, count: int = 8) -> list[tuple[str, str]]:
    """Save images of one colour each; return their names and colours."""
    directory.mkdir(parents=True, exist_ok=True)
    rows = [(f"{row}.png", COLOURS[row % 2]) for row in range(count)]
    for name, colour in rows:
        Image.new("RGB", (8, 8), colour).save(directory / name)
    return rows


def table(path: Path, rows: list[tuple[str, str]], column: str = "file_name") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        path.write_text(f"{column},label\n" + "".join(f"{file},{label}\n" for file, label in rows))
    else:
        path.write_text("".join(json.dumps({column: file, "label": label}) + "\n" for file, label in rows))
    return path


def files_and_labels(rows: datasets.Dataset, root: Path) -> list[tuple[str, str]]:
    assert rows.features["image"] == datasets.Image(decode=False)
    return [(os.path.relpath(row["image"]["path"], root), row["label"]) for row in rows]


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_metadata_beside_the_files(tmp_path: Path, name: str) -> None:
    rows = pictures(tmp_path)
    table(tmp_path / name, rows)
    assert files_and_labels(load_evaluation(str(tmp_path)), tmp_path) == rows


def test_metadata_above_the_files(tmp_path: Path) -> None:
    rows = [(f"{group}/{name}", colour) for group in ("a", "b") for name, colour in pictures(tmp_path / group)]
    table(tmp_path / "metadata.csv", rows)
    assert files_and_labels(load_evaluation(str(tmp_path)), tmp_path) == rows


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_metadata_of_each_split(tmp_path: Path, name: str) -> None:
    first, second = pictures(tmp_path / "train"), pictures(tmp_path / "val", 4)
    table(tmp_path / "train" / name, first)
    table(tmp_path / "val" / name, second)
    splits = load(str(tmp_path))
    assert files_and_labels(splits["train"], tmp_path / "train") == first
    assert files_and_labels(splits["validation"], tmp_path / "val") == second


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl"])
def test_paths_start_from_the_table(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(f"../files/{file}", label) for file, label in pictures(tmp_path / "files")]
    file = table(tmp_path / "tables" / name, [*rows, ("", "red")], "picture")
    monkeypatch.chdir(tmp_path)
    read = load_evaluation(str(file.relative_to(tmp_path)))
    assert read.column_names == ["picture", "label"]
    assert [row["picture"]["path"] for row in list(read)[:-1]] == [str(tmp_path / "files" / row[0][9:]) for row in rows]
    assert read[len(rows)]["picture"] is None


def test_recordings(tmp_path: Path) -> None:
    (tmp_path / "a.wav").touch()
    read = load_evaluation(str(table(tmp_path / "metadata.csv", [("a.wav", "x"), ("b.wav", "y")])))
    assert read.features["audio"] == datasets.Audio(decode=False)


@pytest.mark.parametrize(
    "paths",
    [
        ["http://example.org/a.png", "http://example.org/b.png"],
        ["nowhere.png", "0.png"],
        ["0.png", "1.wav"],
        ["0.png", "what is this?"],
        ["what is this?", "0.png"],
        ["", ""],
    ],
)
def test_what_is_no_file_stays_text(tmp_path: Path, paths: list[str]) -> None:
    pictures(tmp_path)
    rows = load_evaluation(str(table(tmp_path / "x.jsonl", [(path, "x") for path in paths])))
    assert rows["file_name"][:] == paths


def test_a_table_trains_like_a_folder_of_classes(tmp_path: Path) -> None:
    model = tiny_media.vit(tmp_path / "model")
    folder, tables = tmp_path / "folder", tmp_path / "tables"
    for split, count in (("train", 8), ("test", 4)):
        rows = sorted(pictures(tables / split, count), key=lambda row: row[1])
        table(tables / split / "metadata.csv", rows)
        for file, colour in rows:
            (folder / split / colour).mkdir(parents=True, exist_ok=True)
            os.link(tables / split / file, folder / split / colour / file)
    runs: list[dict[str, Any]] = []
    for data in (folder, tables):
        run = tmp_path / f"run-{data.name}"
        done = invoke("train", "--model", model, "--data", data, "--output", run, "--json", *QUICK)
        assert done.code == 0, done.err
        runs.append(json.loads(done.out))
    assert runs[0]["scores"] == runs[1]["scores"]
    assert runs[1]["task"] == "image-classification"


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    rows = [*pictures(tmp_path), ("gone.png", "red")]
    table(tmp_path / "metadata.csv", rows)
    done = invoke("train", "--model", tiny_media.vit(tmp_path / "model"), "--data", tmp_path, *QUICK)
    assert done.code == 2
    assert str(tmp_path / "gone.png") in done.err.splitlines()[-1]


def test_metadata_twice(tmp_path: Path) -> None:
    rows = pictures(tmp_path)
    for name in ("metadata.csv", "metadata.jsonl"):
        table(tmp_path / name, rows)
    with pytest.raises(UsageError, match=r"metadata\.csv, metadata\.jsonl; keep one"):
        load_evaluation(str(tmp_path))
