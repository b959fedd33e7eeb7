"""Directories of images and recordings whose names are their classes."""

from __future__ import annotations

import os
from pathlib import Path

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_data import load, load_evaluation

from capaft.data.media.decode import open_audio, open_image
from capaft.data.media.folder import MEDIA_SUFFIXES, read_unlabelled_media
from capaft.support.errors import UsageError

CLASSES = ("cat", "dog")


def make(root: Path, *files: str) -> Path:
    """Create empty files: nothing opens them before they are used."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


def some(split: str = "", count: int = 10, suffix: str = ".png") -> list[str]:
    return [f"{split}{name}/{i}{suffix}" for name in CLASSES for i in range(count)]


def files_and_labels(rows: datasets.Dataset, root: Path) -> list[tuple[str, str]]:
    names = rows.features["label"].names
    column = next(name for name in rows.column_names if name != "label")
    assert all(row[column]["bytes"] is None for row in rows)
    return [(os.path.relpath(row[column]["path"], root), names[row["label"]]) for row in rows]


def fails(source: Path, *parts: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(str(source))
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "suffix"), [(kind, suffix) for kind in MEDIA_SUFFIXES for suffix in MEDIA_SUFFIXES[kind]]
)
def test_classes(tmp_path: Path, kind: str, suffix: str) -> None:
    make(tmp_path, *some(suffix=suffix), *some(suffix=suffix.upper()), "dog/.hidden.png", ".cache/x/1.png")
    splits = load(str(tmp_path))
    feature = {"image": datasets.Image(decode=False), "audio": datasets.Audio(decode=False)}[kind]
    assert splits["train"].features == {kind: feature, "label": datasets.ClassLabel(names=list(CLASSES))}
    assert (len(splits["train"]), len(splits["validation"])) == (36, 4)
    rows = files_and_labels(load_evaluation(str(tmp_path)), tmp_path)
    assert sorted(rows) == sorted((file, file[:3]) for file in some(suffix=suffix) + some(suffix=suffix.upper()))


@pytest.mark.parametrize("name", ["validation", "val", "valid", "dev", "test", "Test"])
def test_splits(tmp_path: Path, name: str) -> None:
    make(tmp_path, *some("train/"), f"{name}/dog/1.jpg", "README.txt")
    splits = load(str(tmp_path))
    assert files_and_labels(splits["train"], tmp_path) == [(file, file[6:9]) for file in sorted(some("train/"))]
    assert files_and_labels(splits["validation"], tmp_path) == [(f"{name}/dog/1.jpg", "dog")]
    assert splits["validation"].features == splits["train"].features
    assert len(load(f"{tmp_path}[:5]")["train"]) == 5


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    counts=st.dictionaries(st.text("abXY 0é", min_size=1).filter(str.strip), st.integers(1, 4), min_size=1, max_size=5)
)
def test_names_are_sorted_and_rows_ordered(tmp_path_factory: pytest.TempPathFactory, counts: dict[str, int]) -> None:
    root = tmp_path_factory.mktemp("data")
    files = [f"{name}/{i}.png" for name in sorted(counts) for i in range(counts[name])]
    rows = load_evaluation(str(make(root, *files)))
    assert rows.features["label"].names == sorted(counts)
    assert [path for path, _ in files_and_labels(rows, root)] == files


def test_validation_goes_before_test_and_test_is_not_looked_at(tmp_path: Path) -> None:
    make(tmp_path, *some("train/"), *some("val/", 2), "test/unknown/1.wav")
    assert len(load(str(tmp_path))["validation"]) == 4


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    make(tmp_path, "train/1.png", "car/1.png", "test/2.png")
    assert load_evaluation(str(tmp_path)).features["label"].names == ["car", "test", "train"]


def test_paths_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "pets", *some())
    monkeypatch.chdir(tmp_path)
    assert load("pets")["train"][0]["image"]["path"].startswith(str(tmp_path))


def test_files_are_opened_when_they_are_used(tmp_path: Path) -> None:
    make(tmp_path, *some())
    Image.new("RGB", (4, 5)).save(tmp_path / "cat" / "0.png")
    first, second = list(load_evaluation(str(tmp_path)))[:2]
    assert open_image(first["image"]).size == (4, 5)
    with pytest.raises(UsageError, match=r"cat/1\.png: cannot read this image"):
        open_image(second["image"])
    make(tmp_path / "sounds", *some(suffix=".wav"))
    row = load_evaluation(str(tmp_path / "sounds"))[0]
    with pytest.raises(UsageError, match=r"cat/0\.wav: cannot read this recording"):
        open_audio(row["audio"])


def test_what_is_left_aside_is_said(tmp_path: Path) -> None:
    lines: list[str] = []
    make(tmp_path, *some("train/"), "train/cat/list.heic", "test/1.png")
    assert len(load(str(tmp_path), say=lines.append)["validation"]) == 2
    assert f"{tmp_path}/train/cat: 1 file of other kinds is ignored" in lines
    assert f"{tmp_path}/test: its files have no class and are ignored" in lines


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["1.png"], "1.png: this file has no class; put the files of each class into a directory"),
        (["1.png", *some()], "1.png: this file has no class"),
        (["train/1.png", "test/1.png"], "1.png: this file has no class"),
        (["train/1.png", *some("train/")], "1.png: this file has no class"),
        (["train/1.wav"], "1.wav: this file has no class"),
        (["cat/1.png", "dog/more/1.png"], "dog/more: its image files are nested too deep"),
        (
            some("data/"),
            "data/cat: its image files are nested too deep",
        ),
        ([*some("train/"), "extra/1.png"], "extra: not a split, but beside directories of splits"),
        ([*some("train/"), *some("extra/")], "extra: not a split, but beside directories of splits"),
        ([*some("val/"), *some("validation/")], "validation: there is another directory for the validation split"),
        ([*some("train/"), "val/Cat/1.png"], "val/Cat: the train split has no class Cat (did you mean cat?)"),
        ([*some(), "dog/1.wav"], "holds images and recordings ("),
        ([*some("train/"), "val/cat/1.wav"], "holds images and recordings ("),
        ([*some(), "a.csv"], "both a.csv and the directories cat, dog could be the data"),
        ([*some("test/")], "there is no train split among test"),
        (
            ["cat/.keep", "dog/.keep"],
            "needs files named train",
        ),
        (["cat/notes.doc"], "or class directories of images or recordings; this one holds cat"),
    ],
)
def test_places_that_say_nothing(tmp_path: Path, files: list[str], message: str) -> None:
    fails(make(tmp_path, *files), str(tmp_path), message)


def test_odd_names(tmp_path: Path) -> None:
    make(tmp_path, "cat/a\nb.png", "cat/3.04\u202fPM.png")
    for row in load_evaluation(str(tmp_path)):
        with pytest.raises(UsageError, match=r"cat/(a\\nb|3\.04\u202fPM)\.png: cannot read this image") as caught:
            open_image(row["image"])
        assert "\n" not in str(caught.value)
    make(tmp_path, os.fsdecode(b"cat/a\xff.png"), *some())
    fails(tmp_path, "a\\udcff.png': the name of this file is not UTF-8; rename it")


def test_pictures_beside_data_do_not_matter(tmp_path: Path) -> None:
    make(tmp_path, "loss.png", "images/1.png", "images/deep/2.png")
    (tmp_path / "reviews.csv").write_text("text,label\n" + "a,0\nb,1\n" * 10)
    assert len(load(str(tmp_path))["train"]) == 18
    (tmp_path / "reviews.csv").rename(tmp_path / "train.csv")
    assert len(load(str(tmp_path))["train"]) == 18
    (tmp_path / "train.csv").unlink()
    (tmp_path / "train.txt").write_text("a\n" * 10)
    assert len(load(str(tmp_path))["train"]) == 9


def test_notes_beside_pictures_do_not_matter(tmp_path: Path) -> None:
    make(tmp_path, *some(), "README.txt", "train.txt")
    assert len(load(str(tmp_path))["train"]) == 18
    for file in (*some(), "README.txt"):
        (tmp_path / file).unlink()
    make(tmp_path, "1.png")
    (tmp_path / "train.txt").rename(tmp_path / "LICENSE.txt")
    fails(tmp_path, "1.png: this file has no class")


def test_files_without_classes(tmp_path: Path) -> None:
    root = make(tmp_path, "b/2.PNG", "a.jpg", "b/c/1.png", ".hidden/3.png", "note.txt")
    rows = read_unlabelled_media(root)
    assert rows is not None
    assert [os.path.relpath(value["path"], root) for value in rows["image"][:]] == ["a.jpg", "b/2.PNG", "b/c/1.png"]
    assert rows.column_names == ["image"]
    single = read_unlabelled_media(root / "a.jpg")
    assert single is not None
    assert len(single) == 1
    assert read_unlabelled_media(make(tmp_path / "texts", "a.txt")) is None
    with pytest.raises(UsageError, match="holds images and recordings"):
        read_unlabelled_media(make(tmp_path, "b/4.wav"))
