"""Every kind of data set that a user may name, and every way in which one can be wrong."""

from __future__ import annotations

import codecs
import csv
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from huggingface_hub import HfApi
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_data import load, load_evaluation

from capaft.data.sampling import sample_shots
from capaft.data.splits import WantedSplits
from capaft.data.tables import read_rows
from capaft.support import hub
from capaft.support.errors import UsageError

Row = dict[str, Any]
ROWS: list[Row] = [{"text": f"text {i}", "label": i % 2} for i in range(20)]
ODD_TEXTS = [
    "NA",
    "null",
    "None",
    "",
    "nan",
    "N/A",
    "NULL",
    "true",
    "-",
    "007",
    "1e5",
    "#N/A",
    "é—日本",
    '"q"',
    "a,b",
]


def write_csv(path: Path, rows: list[Row]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_tsv(path: Path, rows: list[Row]) -> None:
    lines = ["\t".join(rows[0]), *("\t".join(map(str, row.values())) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="")


def write_jsonl(path: Path, rows: list[Row]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8", newline="")


def write_json(path: Path, rows: list[Row]) -> None:
    path.write_text(json.dumps(rows, indent=1), encoding="utf-8")


def write_parquet(path: Path, rows: list[Row]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path)


def write_arrow(path: Path, rows: list[Row]) -> None:
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_stream(path, table.schema) as stream:
        stream.write_table(table)


def write_feather(path: Path, rows: list[Row]) -> None:
    feather.write_feather(pa.Table.from_pylist(rows), path)


WRITERS: dict[str, Callable[[Path, list[Row]], None]] = {
    ".csv": write_csv,
    ".tsv": write_tsv,
    ".jsonl": write_jsonl,
    ".ndjson": write_jsonl,
    ".json": write_json,
    ".parquet": write_parquet,
    ".arrow": write_arrow,
    ".feather": write_feather,
}
every_kind = pytest.mark.parametrize("suffix", WRITERS)


def write(path: Path, rows: list[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    WRITERS[path.suffix](path, rows)
    return path


def fails(source: Path | str, *parts: str) -> None:
    """Check that loading fails with one line that has all the parts, in this order."""
    with pytest.raises(UsageError, match=".*".join(map(re.escape, parts))) as caught:
        load(str(source))
    assert "\n" not in str(caught.value)


# Files


@every_kind
def test_file(tmp_path: Path, suffix: str) -> None:
    splits = load(str(write(tmp_path / f"reviews{suffix}", ROWS)))
    assert set(splits) == {"train", "validation"}
    assert (len(splits["train"]), len(splits["validation"])) == (18, 2)
    assert sorted([*splits["train"], *splits["validation"]], key=ROWS.index) == ROWS


@every_kind
def test_text_stays_text(tmp_path: Path, suffix: str) -> None:
    rows = [{"text": text, "label": i % 2} for i, text in enumerate(ODD_TEXTS)]
    assert list(read_rows(write(tmp_path / f"x{suffix}", rows))) == rows


line_free = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r"))
tab_free = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\t"))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.tuples(tab_free, tab_free), min_size=1, max_size=8), data=st.data())
def test_kinds_agree(tmp_path: Path, texts: list[tuple[str, str]], data: st.DataObject) -> None:
    classes = data.draw(st.lists(st.integers(-(2**50), 2**50), min_size=len(texts), max_size=len(texts)))
    # In CSV and TSV a column of nothing but numbers becomes one of numbers, hence a word that is none.
    rows = [{"text": f"{a} word", "pair": f"word{b}", "label": c} for (a, b), c in zip(texts, classes, strict=True)]
    for suffix in WRITERS:
        assert list(read_rows(write(tmp_path / f"x{suffix}", rows))) == rows


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=8))
def test_kinds_that_carry_lines_agree(tmp_path: Path, texts: list[str]) -> None:
    rows = [{"text": f"{text} word", "label": "x"} for text in texts]
    for suffix in (".csv", ".jsonl", ".json", ".parquet", ".arrow", ".feather"):
        assert list(read_rows(write(tmp_path / f"x{suffix}", rows))) == rows


def test_numbers_of_a_csv(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("i,f,gap,zip,long,word\n1,0.5,,007,99999999999999999999,1\n-2,1,3,100,1,a\n")
    dataset = read_rows(path)
    assert {name: feature.dtype for name, feature in dataset.features.items()} == {
        "i": "int64",
        "f": "float64",
        "gap": "int64",
        "zip": "string",
        "long": "string",
        "word": "string",
    }
    assert dataset["gap"][:] == [None, 3]


def test_tsv_knows_no_quotes(tmp_path: Path) -> None:
    path = tmp_path / "x.tsv"
    path.write_text('sentence\tlabel\n"open and never closed\t0\nsays "so"\t1\n')
    assert read_rows(path)["sentence"][:] == ['"open and never closed', 'says "so"']


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json"])
def test_byte_order_mark(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"x{suffix}", ROWS)
    path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    assert list(read_rows(path)) == ROWS


def test_windows_line_ends(tmp_path: Path) -> None:
    for suffix in (".csv", ".tsv", ".jsonl"):
        path = write(tmp_path / f"x{suffix}", ROWS)
        path.write_bytes(path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n") + b"\r\n")
        assert list(read_rows(path)) == ROWS


def test_long_cells(tmp_path: Path) -> None:
    rows = [{"text": "long " * 100_000, "label": 0}]
    assert list(read_rows(write(tmp_path / "x.csv", rows))) == rows


def test_index_of_pandas_and_categories(tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": ["a", "b"], "label": pd.Categorical(["x", "y"])})
    frame.to_csv(tmp_path / "x.csv")
    assert read_rows(tmp_path / "x.csv").column_names == ["Unnamed: 0", "text", "label"]
    frame.to_parquet(tmp_path / "x.parquet")
    assert read_rows(tmp_path / "x.parquet")["label"][:] == ["x", "y"]


def test_parquet_keeps_class_names_and_ignores_directories(tmp_path: Path) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(num_classes=2)})
    directory = tmp_path / "seed=3"
    directory.mkdir()
    datasets.Dataset.from_list(ROWS, features=features).to_parquet(directory / "x.parquet")
    assert read_rows(directory / "x.parquet").features == features


def test_missing_json_keys_are_missing_values(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "a"}\n\n{"label": 1, "text": "b"}\n')
    assert list(read_rows(path)) == [{"text": "a", "label": None}, {"text": "b", "label": 1}]


def test_a_changed_file_is_read_anew(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", [{"text": "a", "label": 0}, {"text": "b", "label": 1}])
    before = os.stat(path)
    assert "a" in read_rows(path)["text"][:]
    write(path, [{"text": "c", "label": 0}, {"text": "d", "label": 1}])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert sorted(text for split in load(str(path)).values() for text in split["text"]) == ["c", "d"]


def test_nothing_is_cached(tmp_path: Path) -> None:
    """Reading works and leaves nothing behind where the home directory is not writable (it is a file)."""
    home = tmp_path / "home"
    home.write_text("")
    directory = tmp_path / "data"
    write(directory / "train.jsonl", ROWS)
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    code = (
        "import sys; from capaft.data.load import load_data; [load_data(a, say=print).train[:] for a in sys.argv[1:]]"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "XDG_"))} | {"HOME": str(home)}
    command = [sys.executable, "-c", code, str(directory), str(tmp_path / "saved")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert home.read_text() == ""


# Files that are wrong


@pytest.mark.parametrize("suffix", WRITERS)
def test_empty_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(b"")
    fails(path, path.name, "the file is empty")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", b"text,label\n", "header but no rows"),
        ("x.csv", b"\n\n", "the file is empty"),
        (
            "x.csv",
            b"text,label\na,0\nb,c,1\n",
            "line 3 has 3 field(s), the header has 2; quote text that has commas",
        ),
        ("x.csv", b"text,label\na,0\nb\n", "line 3 has 1 field(s), the header has 2"),
        ("x.csv", b'text,label\n"a,0\nb,1\n', "line 3 is malformed (unexpected end of data)"),
        ("x.csv", b'text,label\n"a" b,0\n', "line 2 is malformed"),
        ("x.csv", b"text,label\ncaf\xe9,0\n", "line 2 is not UTF-8; save the file as UTF-8"),
        ("x.csv", b"text;label\na;0\nb\n", "separated by semicolons"),
        ("x.csv", b"text\tlabel\na\t0\nb\n", "separated by tabs"),
        ("x.tsv", b"text,label\na,0\nb\n", "separated by commas"),
        ("x.csv", b"text,text\na,0\n", "names column 'text' twice"),
        ("x.tsv", b"text\tlabel\na\tb\t0\n", "line 2 has 3 field(s), the header has 2; check its tabs"),
        ("x.jsonl", b'{"text": "a"}\n{"text": \n', "line 2 is not JSON"),
        ("x.jsonl", b'{"text": "a"}\n3\n', "line 2 is not a record"),
        ("x.jsonl", b'{"text": "\xe9"}\n', "line 1 is not UTF-8"),
        (
            "x.jsonl",
            b'{"text": "a"}\n{"text": [3]}\n',
            "column 'text' cannot be read as one type (it mixes list and str)",
        ),
        ("x.jsonl", b'{"a": ' + b"[" * 100_000 + b"\n", "line 1 is not JSON"),
        ("x.json", b'[{"text": "a"},\n {"text": }]', "the list is not JSON"),
        ("x.json", b'[{"text": "a"}, 3]', "record 2 is not a record"),
        ("x.json", b"[]", "no rows"),
        ("x.json", b"  \n", "the file is empty"),
        ("x.json", b'{\n"text": "a"\n}', "one list of records"),
        ("x.parquet", b"PAR1 and then nothing of the kind", "cannot read this file"),
        ("x.arrow", b"ARROW1 and then nothing of the kind", "cannot read this file"),
        ("x.arrow", b"nothing of the kind", "cannot read this file"),
        ("x.feather", b"FEA1 and more", "Feather version 1 is not supported; write the file again"),
        ("x.txt", b"", "the file is empty"),
        ("x.txt", b" \n\n", "no rows"),
        ("x.txt", b"a\ncaf\xe9\n", "line 2 is not UTF-8; save the file as UTF-8"),
        ("x.xls", b"PK", "not a data file that capaft reads; give one of .csv .tsv"),
        ("noext", b"text,label\na,0\n", "not a data file that capaft reads"),
    ],
)
def test_malformed_file(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    fails(tmp_path / name, name, message)


def test_parquet_without_rows(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "x.parquet")
    fails(tmp_path / "x.parquet", "no rows")


def test_no_such_file(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", ROWS)
    fails(tmp_path / "trian.csv", "trian.csv", "no such file or directory", "did you mean", "train.csv")
    fails("./nowhere", "'./nowhere': no such file or directory")
    fails("~nobody-here/x", "no such file")
    fails("data.jsonl", "'data.jsonl': no such file")
    fails("my data", "'my data': no such file")
    fails("", "no such file")


# Directories


@every_kind
def test_directory_of_splits(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / f"train{suffix}", ROWS[:12])
    write(tmp_path / f"dev{suffix}", ROWS[12:])
    (tmp_path / "README.md").write_text("# notes")
    splits = load(str(tmp_path))
    assert (list(splits["train"]), list(splits["validation"])) == (ROWS[:12], ROWS[12:])
    assert list(load_evaluation(str(tmp_path))) == ROWS[12:]


@pytest.mark.parametrize(
    "name", ["validation", "valid", "val", "dev", "Validation-v1.1", "validation_matched", "eval", "evaluation", "test"]
)
def test_names_of_the_validation_split(tmp_path: Path, name: str) -> None:
    write(tmp_path / "train.csv", ROWS[:12])
    write(tmp_path / f"{name}.csv", ROWS[12:])
    write(tmp_path / "validation_mismatched.csv", ROWS[:1])
    assert list(load(str(tmp_path))["validation"]) == ROWS[12:]


def test_validation_goes_before_test(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", ROWS[:10])
    write(tmp_path / "valid.csv", ROWS[10:12])
    (tmp_path / "test.csv").write_text("not looked at")
    assert list(load(str(tmp_path))["validation"]) == ROWS[10:12]


def test_files_are_splits_by_name(tmp_path: Path) -> None:
    for at, name in enumerate(("train_sft.jsonl", "train_gen-0-of-2.jsonl", "train_gen-1-of-2.jsonl", "odd.jsonl")):
        write(tmp_path / name, ROWS[at : at + 3])
    fails(tmp_path, "several files could be the train split: train_gen-0-of-2.jsonl, train_gen-1-of-2.jsonl, train_sft")
    splits = load(str(tmp_path), choice=WantedSplits("train_sft", "odd"))
    assert (list(splits["train"]), list(splits["validation"])) == (ROWS[:3], ROWS[3:6])
    assert list(load(str(tmp_path), choice=WantedSplits("train_gen", "odd"))["train"]) == [*ROWS[1:4], *ROWS[2:5]]
    assert list(load_evaluation(str(tmp_path), choice=WantedSplits("train_sft", "odd"))) == ROWS[3:6]
    with pytest.raises(UsageError, match="no split 'x' in this data set; it has odd, train_gen, train_sft, train"):
        load(str(tmp_path), choice=WantedSplits("train_sft", "x"))
    assert len(load(f"{tmp_path}[:2]", choice=WantedSplits("train_sft", "odd"))["train"]) == 2


def test_a_name_goes_before_the_role_it_begins_with(tmp_path: Path) -> None:
    for at, name in enumerate(("train.csv", "test.csv", "test_hard.csv")):
        write(tmp_path / name, ROWS[4 * at : 4 * at + 4])
    assert list(load(str(tmp_path), choice=WantedSplits(evaluation="test"))["validation"]) == ROWS[4:8]
    assert list(load(str(tmp_path), choice=WantedSplits(evaluation="test_hard"))["validation"]) == ROWS[8:12]


def test_files_without_a_role_are_splits_by_name(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", ROWS[:12])
    write(tmp_path / "b.csv", ROWS[12:])
    assert list(load_evaluation(str(tmp_path), choice=WantedSplits(evaluation="b"))) == ROWS[12:]
    assert list(load(str(tmp_path), choice=WantedSplits("a", "b"))["train"]) == ROWS[:12]


def test_directory_with_one_file(tmp_path: Path) -> None:
    write(tmp_path / "reviews.tsv", ROWS)
    write(tmp_path / "._reviews.tsv", ROWS)
    assert len(load(str(tmp_path))["train"]) == 18
    assert list(load_evaluation(str(tmp_path))) == ROWS


def test_shards(tmp_path: Path) -> None:
    write(tmp_path / "train-00000-of-00002.parquet", ROWS[:8])
    write(tmp_path / "train-00001-of-00002.parquet", ROWS[8:12])
    write(tmp_path / "validation-00000-of-00001.parquet", ROWS[12:])
    assert list(load(str(tmp_path))["train"]) == ROWS[:12]


def test_columns_are_typed_alike(tmp_path: Path) -> None:
    write(tmp_path / "train_0.csv", [{"text": "a", "label": "x"}, {"text": "b", "label": "1"}])
    write(tmp_path / "train_1.csv", [{"text": "1", "label": "2"}])
    write(tmp_path / "dev.csv", [{"text": "2.50", "label": "1"}])
    splits = load(str(tmp_path))
    assert splits["train"]["text"][:] == ["a", "b", "1"]
    assert list(splits["validation"]) == [{"text": "2.50", "label": "1"}]


def test_a_hub_like_name_that_exists_is_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "glue" / "sst2" / "train.jsonl", ROWS)
    monkeypatch.chdir(tmp_path)
    assert len(load("glue/sst2")["train"]) == 18
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(load("~/glue/sst2")["train"]) == 18


def test_saved_to_disk(tmp_path: Path) -> None:
    train, other = datasets.Dataset.from_list(ROWS[:12]), datasets.Dataset.from_list(ROWS[12:])
    train.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": train, "dev": other, "more": other}).save_to_disk(tmp_path / "several")
    datasets.DatasetDict({"a": train, "b": other}).save_to_disk(tmp_path / "foreign")
    assert len(load(str(tmp_path / "one"))["validation"]) == 1
    splits = load(str(tmp_path / "several"))
    assert set(splits) == {"train", "validation"}
    assert list(splits["validation"]) == ROWS[12:]
    fails(tmp_path / "foreign", "no train split among a, b")
    with pytest.raises(UsageError, match="no validation or train split among a, b"):
        load_evaluation(str(tmp_path / "foreign"))


def test_saved_to_disk_and_damaged(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "x")
    next((tmp_path / "x").glob("*.arrow")).write_bytes(b"nothing")
    fails(tmp_path / "x", "x: cannot read this save_to_disk directory")


def test_directory_without_data(tmp_path: Path) -> None:
    fails(tmp_path, "needs files named train", "this one holds nothing")
    (tmp_path / "notes.md").write_text("")
    fails(tmp_path, "or class directories of images or recordings", "this one holds notes.md")
    write(tmp_path / "a.csv", ROWS)
    write(tmp_path / "b.csv", ROWS)
    fails(tmp_path, "or exactly one data file", "this one holds a.csv, b.csv, notes.md")


def test_directory_without_train(tmp_path: Path) -> None:
    write(tmp_path / "dev.csv", ROWS)
    fails(tmp_path, "no train split among dev")
    assert list(load_evaluation(str(tmp_path))) == ROWS


def test_several_files_for_one_split(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", ROWS)
    write(tmp_path / "train.jsonl", ROWS)
    fails(tmp_path, "several files could be the train split: train.csv, train.jsonl")
    (tmp_path / "train.jsonl").unlink()
    write(tmp_path / "train_more.csv", ROWS)
    fails(tmp_path, "several files could be the train split: train.csv, train_more.csv")


def test_columns_may_differ(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [{"mr": "a", "ref": "b"}] * 3)
    write(tmp_path / "test.jsonl", [{"mr": "a", "refs": ["b", "c"]}])
    splits = load(str(tmp_path))
    assert splits["train"].column_names == ["mr", "ref"]
    assert list(splits["validation"]) == [{"mr": "a", "refs": ["b", "c"]}]


def test_text_files_are_data_where_there_is_no_other(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("one\ntwo\n")
    (tmp_path / "valid.txt").write_text("three\n")
    splits = load(str(tmp_path))
    assert (splits["train"]["text"][:], splits["validation"]["text"][:]) == (["one", "two"], ["three"])
    write(tmp_path / "train.csv", ROWS)
    assert len(load(str(tmp_path))["train"]) == 18
    (tmp_path / "train.csv").rename(tmp_path / "reviews.csv")
    assert len(load(str(tmp_path))["train"]) == 18


# Slices


def test_slice_of_a_file(tmp_path: Path) -> None:
    path = write(tmp_path / "reviews.csv", ROWS)
    splits = load(f"{path}[5:15]")
    assert sorted([*splits["train"], *splits["validation"]], key=ROWS.index) == ROWS[5:15]
    assert list(load_evaluation(f"{path}[-25%:]")) == ROWS[15:]
    assert len(load_evaluation(f"{path}[:]")) == 20


def test_slice_leaves_the_validation_split_whole(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", ROWS[:12])
    write(tmp_path / "dev.csv", ROWS[12:])
    splits = load(f"{tmp_path}[:3]")
    assert (list(splits["train"]), list(splits["validation"])) == (ROWS[:3], ROWS[12:])
    assert list(load_evaluation(f"{tmp_path}[:3]")) == ROWS[12:]


def test_slice_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = {"train": ROWS, "test": ROWS[:3]}, {"train": ROWS, "validation": ROWS[:4]}
    fake_hub(monkeypatch, {("owner/imdb", None): one, ("owner/glue", "sst2"): two})
    for spec, counts in {"imdb[:25%]": (5, 3), "glue/sst2[:7]": (7, 4), "glue/sst2[3:-3]": (14, 4)}.items():
        splits = load(spec)
        assert (len(splits["train"]), len(splits["validation"])) == counts


def test_a_file_of_the_name_goes_before_a_slice(tmp_path: Path) -> None:
    directory = tmp_path / "odd[:5]"
    write(directory / "reviews.csv", ROWS)
    assert len(load(str(directory))["train"]) == 18
    assert len(load(f"{directory}[:10]")["train"]) == 9
    assert len(load(f"{write(tmp_path / 'x[1].csv', ROWS)}[:10]")["train"]) == 9


@pytest.mark.parametrize("slice_", ["[5%]", "[:5", "[]", "[1:2:3]", "[:101%]", "[:-101%]", "[a:b]", "[:1.5]", "[: 3]"])
@pytest.mark.parametrize("source", ["imdb", "glue/sst2", "FILE"])
def test_bad_slice(tmp_path: Path, source: str, slice_: str) -> None:
    spec = source.replace("FILE", str(write(tmp_path / "x.csv", ROWS))) + slice_
    fails(spec, f"{spec}: write the slice as [a:b]", "such as [:1000]")


def test_slice_that_takes_too_few(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", ROWS)
    fails(f"{path}[20:]", "x.csv[20:]: this slice takes none of the 20 training rows")
    fails(f"{path}[:1]", "x.csv[:1]: 1 row(s) cannot be split")
    fails(f"{tmp_path / 'y.csv'}[:1]", "no such file", "did you mean", "x.csv")


# Images and recordings


def test_encoded_columns_are_not_decoded(tmp_path: Path) -> None:
    features = datasets.Features(image=datasets.Image(), audio=datasets.Audio(sampling_rate=8000))
    file = {"bytes": b"whatever", "path": None}
    table = pa.table({name: pa.array([file] * 4, datasets.Image.pa_type) for name in features})
    rows = datasets.Dataset(table, datasets.DatasetInfo(features=features))
    rows.save_to_disk(tmp_path / "saved")
    rows.to_parquet(tmp_path / "x.parquet")
    for source in (tmp_path / "saved", tmp_path / "x.parquet"):
        splits = load(str(source))
        assert splits["train"][0] == {"image": file, "audio": file}
        assert splits["train"].features["audio"].sampling_rate == 8000


# Samples


@settings(max_examples=60, deadline=None)
@given(classes=st.lists(st.integers(-1, 4), max_size=50), count=st.integers(1, 12), seed=st.integers(0, 2**64 - 1))
def test_shots_of_every_class(classes: list[int], count: int, seed: int) -> None:
    rows = datasets.Dataset.from_dict({"row": list(range(len(classes)))})
    chosen = sample_shots(rows, classes, count, seed)["row"][:]
    assert chosen == sorted(set(chosen))
    for label in set(classes):
        assert sum(classes[row] == label for row in chosen) == min(count, classes.count(label))
    assert sample_shots(rows, classes, count, seed)["row"][:] == chosen
    assert set(chosen) <= set(sample_shots(rows, classes, count + 1, seed)["row"][:])


def test_shots_of_a_class_depend_on_that_class_alone() -> None:
    rows = datasets.Dataset.from_dict({"row": list(range(60))})
    few = [0] * 30 + [1] * 30
    many = [0] * 30 + [1, 2] * 15
    of_class_0 = [[row for row in sample_shots(rows, classes, 5, 3)["row"] if row < 30] for classes in (few, many)]
    assert of_class_0[0] == of_class_0[1] == [5, 12, 16, 26, 28]
    assert sample_shots(rows, few, 5, 4)["row"][:] != sample_shots(rows, few, 5, 3)["row"][:]


def test_a_scarce_class_gives_all_its_rows() -> None:
    rows = datasets.Dataset.from_dict({"row": list(range(10))})
    assert len(sample_shots(rows, [0] * 8 + [1] * 2, 4, 0)) == 6
    with pytest.raises(UsageError, match="must be 1 or more, got 0"):
        sample_shots(rows, [0] * 10, 0, 0)
    with pytest.raises(ValueError, match="3 classes were given for 10 rows"):
        sample_shots(rows, [0] * 3, 1, 0)


def test_shards_differ(tmp_path: Path) -> None:
    write(tmp_path / "train-0.jsonl", ROWS)
    write(tmp_path / "train-1.jsonl", [{"text": "a", "label": "x"}])
    fails(tmp_path, "train-1.jsonl: its columns or their types differ from those of train-0.jsonl")


# The validation split that is cut from train


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(count=st.integers(2, 60), share=st.floats(0.01, 0.99), seed=st.integers(0, 2**64 - 1))
def test_cut_is_disjoint_complete_and_ordered(tmp_path: Path, count: int, share: float, seed: int) -> None:
    path = write(tmp_path / "x.csv", [{"text": f"t{i}", "label": i} for i in range(count)])
    splits = load(str(path), validation_split=share, seed=seed)
    train, validation = splits["train"]["label"][:], splits["validation"]["label"][:]
    assert sorted(train + validation) == list(range(count))
    assert train == sorted(train)
    assert validation == sorted(validation)
    assert len(validation) == min(max(round(share * count), 1), count - 1)
    again = load(str(path), validation_split=share, seed=seed)
    assert again["validation"]["label"][:] == validation


def test_cut_depends_on_the_seed_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", [{"text": f"t{i}", "label": i} for i in range(100)])
    assert load(str(path))["validation"]["label"][:] == [10, 13, 20, 21, 24, 26, 51, 56, 72, 77]
    assert load(str(path), seed=1)["validation"]["label"][:] != load(str(path))["validation"]["label"][:]


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 2.0, float("nan")])
def test_share_out_of_range(tmp_path: Path, share: float) -> None:
    path = write(tmp_path / "x.csv", ROWS)
    with pytest.raises(UsageError, match="--validation-split must lie between 0 and 1"):
        load(str(path), validation_split=share)


def test_one_row_cannot_be_cut(tmp_path: Path) -> None:
    fails(write(tmp_path / "x.csv", ROWS[:1]), "x.csv: 1 row(s) cannot be split into train and validation")


# The hub


def owner(self: HfApi, name: str) -> SimpleNamespace:
    """Answer as the hub does to a name without an owner."""
    return SimpleNamespace(id=f"owner/{name}")


def fake_hub(monkeypatch: pytest.MonkeyPatch, content: dict[tuple[str, str | None], dict[str, list[Row]]]) -> None:
    def load_dataset(path: str, name: str | None, revision: str | None) -> datasets.DatasetDict:
        if (path, name) not in content:
            raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{path}' doesn't exist on the Hub.")
        splits = content[path, name].items()
        return datasets.DatasetDict({split: datasets.Dataset.from_list(rows) for split, rows in splits})

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "offline", lambda: False)
    monkeypatch.setattr(HfApi, "dataset_info", owner)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


UNLABELLED: list[Row] = [{"text": "a", "label": -1}] * 3


@pytest.mark.parametrize(
    ("splits", "count"),
    [
        ({"validation": ROWS[:3], "test": ROWS[:4]}, 3),
        ({"validation_mismatched": ROWS[:4], "validation_matched": ROWS[:5]}, 5),
        ({"dev": ROWS[:6], "test": ROWS[:4]}, 6),
        ({"test": ROWS[:7], "unsupervised": UNLABELLED}, 7),
        ({}, 2),
    ],
)
def test_hub_split(monkeypatch: pytest.MonkeyPatch, splits: dict[str, list[Row]], count: int) -> None:
    fake_hub(monkeypatch, {("owner/some-name", None): {"train": ROWS, **splits}})
    assert len(load("some-name")["validation"]) == count


def test_empty_split_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_hub(monkeypatch, {("owner/some-name", None): {"train": ROWS, "validation": []}})
    fails("some-name", "no rows in the split validation")


def test_hub_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "glue").mkdir(parents=True)
    one, two, three = ({"train": ROWS[: n + 10], "validation": ROWS[:n]} for n in (1, 2, 3))
    # A directory named like the repository, without the configuration inside, is not mistaken for it.
    keys = [("hf://datasets/owner/glue", "sst2"), ("user/name", None), ("user/name", "config")]
    fake_hub(monkeypatch, dict(zip(keys, (one, two, three), strict=True)))
    assert [len(load(i)["validation"]) for i in ("glue/sst2", "user/name", "user/name/config")] == [1, 2, 3]
    fails("glue/ssst2", "cannot get 'glue/ssst2' from the Hugging Face hub", "check the id")


def test_hub_errors_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*args: Any, **kwargs: Any) -> None:
        raise ValueError("Couldn't cast\na: string\nto\na: int64")

    monkeypatch.setattr(hub, "offline", lambda: False)
    monkeypatch.setattr(HfApi, "dataset_info", owner)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    fails("glue", "cannot load 'glue'", "Couldn't cast a: string to a: int64")


@pytest.mark.parametrize("name", ["imdb-of-nobody", "nobody-at-all/no-data", "nobody-at-all/no-data/no-config"])
def test_no_network(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The real client fails at a closed port, before its retries."""
    hub.offline.cache_clear()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("capaft.support.hub.getproxies", dict)
    start = time.perf_counter()
    fails(
        name,
        f"{name!r} is not on this machine",
        "cannot reach the Hugging Face hub to fetch it; pass a local file",
    )
    assert time.perf_counter() - start < 5
    assert not datasets.config.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE")
    hub.offline.cache_clear()


def test_offline_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    hub.offline.cache_clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    fails("glue/sst2-of-nobody", "cannot reach the Hugging Face hub")
    hub.offline.cache_clear()


def test_progress_bars_are_silent_and_left_as_they_were(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    datasets.enable_progress_bars()
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    capsys.readouterr()
    load(str(tmp_path / "saved"))
    assert capsys.readouterr().err == ""
    assert not datasets.are_progress_bars_disabled()
