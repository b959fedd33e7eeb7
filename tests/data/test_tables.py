"""Arrow, text and nested JSON files; `test_load.py` has the other kinds."""

from __future__ import annotations

import contextlib
import json
import tracemalloc
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.feather as feather
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_reading import read

from capaft.data import column_types, lazy, spool, word_rows
from capaft.data.tables import read_rows
from capaft.support.errors import UsageError

TABLE = pa.table({"text": [f"text {i}" for i in range(3000)], "label": [i % 2 for i in range(3000)]})


def write_stream(path: Path) -> None:
    with pa.ipc.new_stream(path, TABLE.schema) as stream:
        for batch in TABLE.to_batches(max_chunksize=1000):
            stream.write_batch(batch)


def write_file(path: Path) -> None:
    with pa.ipc.new_file(path, TABLE.schema) as file:
        file.write_table(TABLE)


@pytest.mark.parametrize("suffix", [".arrow", ".feather", ".Arrow"])
@pytest.mark.parametrize("kind", ["stream", "file", "lz4", "zstd"])
def test_arrow(tmp_path: Path, suffix: str, kind: str) -> None:
    path = tmp_path / f"x{suffix}"
    if kind in ("stream", "file"):
        {"stream": write_stream, "file": write_file}[kind](path)
    else:
        feather.write_feather(TABLE, path, compression=kind)
    assert read_rows(path)[:] == TABLE.to_pydict()


def test_what_datasets_writes(tmp_path: Path) -> None:
    names = datasets.ClassLabel(names=["bad", "good"])
    rows = datasets.Dataset.from_dict(TABLE.to_pydict()).cast_column("label", names)
    rows.save_to_disk(tmp_path / "saved")
    (shard,) = (tmp_path / "saved").glob("*.arrow")
    assert read_rows(shard).features == rows.features
    assert read_rows(shard)[:] == TABLE.to_pydict()


def test_types_of_pandas_and_polars(tmp_path: Path) -> None:
    pd.DataFrame({"label": pd.Categorical(["x", "y"])}).to_feather(tmp_path / "pandas.feather")
    assert read_rows(tmp_path / "pandas.feather")["label"][:] == ["x", "y"]
    feather.write_feather(pa.table({"text": pa.array(["a", None], pa.string_view())}), tmp_path / "polars.arrow")
    assert read_rows(tmp_path / "polars.arrow").features == {"text": datasets.Value("string")}
    assert read_rows(tmp_path / "polars.arrow")["text"][:] == ["a", None]


@pytest.mark.parametrize("writer", [write_stream, write_file])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 0.99))
def test_truncated_arrow(tmp_path: Path, writer: Any, share: float) -> None:
    path = tmp_path / "x.arrow"
    writer(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    if writer is write_file:
        with pytest.raises(UsageError, match=r"x\.arrow: "):
            read_rows(path)
    else:
        # A stream may end after any batch: a truncated one looks like a shorter one.
        with contextlib.suppress(UsageError):
            assert len(read_rows(path)) % 1000 == 0


@pytest.mark.parametrize("writer", [write_stream, write_file])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_arrow(tmp_path: Path, writer: Any, data: st.DataObject) -> None:
    """Any bytes give rows or one line that says why not."""
    path = tmp_path / "x.feather"
    writer(path)
    content = bytearray(path.read_bytes())
    for at in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=5)):
        content[at] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(UsageError):
        assert read_rows(path).to_dict()


def test_arrow_of_rows_without_columns(tmp_path: Path) -> None:
    path = tmp_path / "x.arrow"
    batch = pa.RecordBatch.from_struct_array(pa.array([{}, {}], pa.struct([])))
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, batch.schema) as stream:
        stream.write_batch(batch)
    assert pa.ipc.open_stream(path.read_bytes()).read_all().num_rows == 2
    with pytest.raises(UsageError, match=r"x\.arrow: there are no rows in this file"):
        read_rows(path)


def test_text(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes('\ufeffone\r\n\n  \n two, "é"\u2028three\tfour \nNA'.encode())
    assert list(read_rows(path)) == [{"text": "one"}, {"text": ' two, "é"\u2028three\tfour '}, {"text": "NA"}]


MESSAGES = [
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
    {"messages": [{"role": "user", "content": "Bye"}]},
]
NESTED: list[list[dict[str, Any]]] = [
    [{"answers": {"text": ["a"], "answer_start": [0]}}, {"answers": {"text": [], "answer_start": []}}],
    MESSAGES,
    [{"refs": ["a", "b"]}, {"refs": []}, {"refs": ["c"]}],
    [{"tokens": ["a", "b"], "tags": [0, 1]}],
]


@pytest.mark.parametrize("rows", NESTED)
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_nested_json(tmp_path: Path, suffix: str, rows: list[dict[str, Any]]) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_text(json.dumps(rows) if suffix == ".json" else "\n".join(map(json.dumps, rows)))
    assert list(read_rows(path)) == rows


def test_records_in_lists_keep_their_own_fields(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    rows = [[{"b": 1, "a": {"c": None}}], [{"a": "x"}, {"b": 1.5}], [], None]
    path.write_text("\n".join(json.dumps({"column": row}) for row in rows))
    assert json.dumps(read_rows(path)["column"][:]) == json.dumps(rows)
    path.write_text('{"column": [{"a": "\\ud83d"}]}')
    assert read_rows(path)["column"][:] == [[{"a": "\ufffd"}]]


@pytest.mark.parametrize("values", [["a", ["b"]], [{"text": "a"}, {"text": ["b"]}], [["a"], [3]], [{"a": 1}, "b"]])
def test_nested_json_of_several_types(tmp_path: Path, values: list[Any]) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(json.dumps({"column": value}) for value in values))
    with pytest.raises(UsageError, match="column 'column' cannot be read as one type") as caught:
        read_rows(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 2**64, None], ["1", "18446744073709551616", None]),
        ([-(2**63) - 1, 2], ["-9223372036854775809", "2"]),
        (["a", 3, 0.5, True, None], ["a", "3", "0.5", "true", None]),
        ([1, 0.5], [1.0, 0.5]),
    ],
)
def test_values_of_several_types_are_text(tmp_path: Path, values: list[Any], expected: list[Any]) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps({"id": value, "text": "a"}) + "\n" for value in values))
    assert read_rows(path)["id"][:] == expected


def test_a_nan_among_texts_or_lists_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(
        '{"a": "NaN", "b": [1], "c": 0.5}\n{"a": NaN, "b": NaN, "c": NaN}\n{"a": 1.5, "b": [NaN], "c": 1}\n'
    )
    rows = read_rows(path)
    assert rows["a"][:] == ["NaN", None, "1.5"]
    assert rows["b"][:] == [[1], None, [None]]
    assert [value == value for value in rows["c"]] == [True, False, True]


def written_rows(path: Path, rows: int) -> None:
    """Rows of 40 characters and a number."""
    texts = [f"{row} {'abcdefgh ' * 4}" for row in range(rows)]
    match path.suffix:
        case ".csv":
            path.write_text("text,score\n" + "".join(f"{text},{len(text)}\n" for text in texts))
        case ".jsonl":
            path.write_text("".join(json.dumps({"text": text, "score": len(text)}) + "\n" for text in texts))
        case _:
            path.write_text("".join(f"{text}\n" for text in texts))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".txt"])
def test_memory_does_not_grow_with_the_rows(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "KEPT", 2**16)
    monkeypatch.setattr(word_rows, "_AT_A_TIME", 1_000)
    peaks = []
    for rows in (2_500, 6_000):
        path = tmp_path / f"x{suffix}"
        written_rows(path, rows)
        tracemalloc.start()
        read = read_rows(path)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(read) == rows
        assert read[rows - 1]["text"].startswith(f"{rows - 1} a")
    assert peaks[1] < peaks[0] + 60 * 3_500


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.csv", "text,score,tags\na,1,[1]\nb,2.5,[]\ntext,score,tags\nc,,\n"),
        ("x.csv", 'a, b\n1, "x, y"\n2, "z"\n3, w\n'),
        ("x.csv", "sep=;\na;b\n1;x\n2;y\n3;z\n"),
        ("x.jsonl", '{"a": 1}\n\n{"a": 2.5, "b": [1]}\noops\n' + '{"a": null, "b": []}\n' * 9),
        ("x.jsonl", '{"a": "x\\ud800"}\n{"a": 1}\n{"a": "y"}\n'),
        ("x.json", '{"text": "a", "entities": []}\n{"text": "b c", "entities": [[0, 1, "X"]]}\n'),
        ("x.txt", "a\n\nb\nc\n"),
    ],
)
def test_parts_are_read_as_the_whole(tmp_path: Path, name: str, content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read(tmp_path / name, content)
    monkeypatch.setattr(lazy, "ROWS", 2)
    monkeypatch.setattr(column_types, "ROWS", 2)
    monkeypatch.setattr(spool, "KEPT", 0)
    assert read(tmp_path / name, content) == whole
