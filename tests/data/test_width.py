"""Limits on columns: whatever the format, too many of them are one line, before any is built."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from capaft.data.load import load_data
from capaft.data.tables import read_rows
from capaft.data.width import MOST_COLUMNS, ValueWidth, check_classes, check_records
from capaft.support.errors import UsageError

NAMES = [f"c{at}" for at in range(MOST_COLUMNS + 1)]
TABLE = {name: [1] for name in NAMES}


def write_arrow(file: Path) -> None:
    table = pa.table(TABLE)
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def write_workbook(file: Path) -> None:
    from openpyxl import Workbook

    book = Workbook(write_only=True)
    sheet = book.create_sheet()
    sheet.append(NAMES)
    sheet.append([1] * len(NAMES))
    book.save(file)


def text(content: str) -> Callable[[Path], Any]:
    return lambda file: file.write_text(content)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.csv", text(f"{','.join(NAMES)}\n{','.join('1' * len(NAMES))}\n")),
        ("semicolons.csv", text(f"{';'.join(NAMES)}\n{';'.join('1' * len(NAMES))}\n")),
        ("a.tsv", text("\t".join(NAMES) + "\n" + "\t".join("1" * len(NAMES)) + "\n")),
        ("a.json", text(json.dumps([dict.fromkeys(NAMES, 1)]))),
        ("columns.json", text(json.dumps({name: [1, 2] for name in NAMES}))),
        ("own.jsonl", text("".join(json.dumps({"text": "a", name: 1}) + "\n" for name in NAMES))),
        ("a.parquet", lambda file: pq.write_table(pa.table(TABLE), file)),
        ("nested.parquet", lambda file: pq.write_table(pa.table({"a": [dict.fromkeys(NAMES, 1)]}), file)),
        ("a.arrow", write_arrow),
        ("a.xlsx", write_workbook),
        ("a.conll", text(f"{' '.join(NAMES)}\n\n{' '.join(NAMES)}\n")),
    ],
)
def test_too_many_columns(name: str, write: Callable[[Path], Any], tmp_path: Path) -> None:
    write(tmp_path / name)
    with pytest.raises(UsageError, match=rf"{name}: this has 2,00[1-3] columns, and capaft reads at most 2,000; keep"):
        read_rows(tmp_path / name)


def test_a_table_of_labels_beside_images(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "metadata.csv").write_text(
        f"file_name,{','.join(NAMES)}\na.png,{','.join('1' * len(NAMES))}\n"
    )
    with pytest.raises(UsageError, match="this has 2,002 columns"):
        load_data(str(tmp_path), say=lambda line: None)


class Keys(dict[str, int]):
    """A record that counts how often it is read."""

    reads = 0

    def get(self, *args: Any) -> Any:
        Keys.reads += 1
        return super().get(*args)


def test_records_with_keys_of_their_own_are_counted_once() -> None:
    records = [Keys({f"k{row}": row}) for row in range(50_000)]
    with pytest.raises(UsageError, match="this has 50,000 columns"):
        check_records("a.jsonl", records)
    assert Keys.reads == 0


def test_a_table_that_would_be_nearly_empty() -> None:
    records = [{f"k{row % 1500}": row} for row in range(20_000)]
    with pytest.raises(UsageError, match=r"20,000 rows have 1,500 different keys.*same keys"):
        check_records("a.jsonl", records)
    assert list(check_records("a.jsonl", records[:100])) == [f"k{row}" for row in range(100)]


@pytest.mark.parametrize("wrap", [lambda record: record, lambda record: [[record]], lambda record: {"a": record}])
def test_records_in_a_column(wrap: Callable[[Any], Any]) -> None:
    values = [wrap({f"k{row}": row}) for row in range(MOST_COLUMNS + 5)]
    with pytest.raises(UsageError, match=r"records in column 'meta' have more than .* different keys; drop the column"):
        ValueWidth("a.jsonl", "meta", len(values)).check(values)


@pytest.mark.parametrize("levels", [40, 900, 100_000])
@pytest.mark.parametrize(("begin", "end"), [("[", "]"), ('{"a":', "}")])
def test_values_within_values(levels: int, begin: str, end: str, tmp_path: Path) -> None:
    line = f'{{"text": "a", "label": 0, "meta": {begin * levels}1{end * levels}}}\n'
    (tmp_path / "deep.jsonl").write_text(2 * line)
    with pytest.raises(UsageError, match=r"within one another; drop it|recursion"):
        read_rows(tmp_path / "deep.jsonl")


def test_an_endless_name(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"{'x' * 100_000},label\na,b\n")
    with pytest.raises(UsageError, match=r"a name of 100,000 characters.*line of names missing\?"):
        read_rows(tmp_path / "a.csv")


def test_a_message_lists_some_of_many_columns(tmp_path: Path) -> None:
    from capaft.tasks.base.columns import list_columns

    (tmp_path / "a.csv").write_text(",".join(["y" * 500, *NAMES[:1000]]) + "\n" + ",".join("1" * 1001) + "\n")
    message = list_columns(read_rows(tmp_path / "a.csv"))
    assert message.endswith(" and 981 more")
    assert len(message) < 500


def test_kilobytes_of_parquet_that_stand_for_gigabytes(tmp_path: Path) -> None:
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 3_000_000, pa.int8()), pa.array(["word " * 1000]))
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 30_000
    before = pa.total_allocated_bytes()
    with pytest.raises(UsageError, match="take more than 256 MiB, too much for a Parquet file of this size"):
        read_rows(tmp_path / "a.parquet")
    assert pa.total_allocated_bytes() - before < 2**28


def test_a_column_that_declares_endless_classes() -> None:
    names = [str(number) for number in range(100_001)]
    features = datasets.Features({"tags": datasets.List(datasets.ClassLabel(names=names))})
    with pytest.raises(UsageError, match="'tags' declares 100,001 classes, and capaft takes at most 100,000"):
        check_classes("a", features)
