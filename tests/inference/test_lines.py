"""Lines of a stream: those that are there are one window; the run and the first line tell what a line means."""

from __future__ import annotations

import io
import os
import threading

import pytest
import tiny_answers
from tiny_job import bert
from transformers import BertForSequenceClassification

from capaft.inference import lines as module
from capaft.inference.lines import line_source
from capaft.inference.opened import Opened
from capaft.tasks.text_classification import TextClassification


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(bert(tmp_path_factory.mktemp("model"), BertForSequenceClassification))


def opened(model: str, **columns: str) -> Opened:
    return tiny_answers.opened(TextClassification(("no", "yes")), model, **columns)


def test_lines_are_texts_and_blank_ones_are_none(model: str) -> None:
    source = line_source(opened(model).saved, io.BytesIO("One\tline\r\n\n \nTwo é\n\xff".encode("latin-1")), print)
    assert source
    (window,) = source.windows
    assert source.names == ("text",)
    assert window.rows["text"][:] == ["One\tline", None, None]
    assert window.faults == {1: "the line is not UTF-8", 2: "the line is not UTF-8"}


def test_a_tab_parts_a_pair(model: str) -> None:
    run = opened(model, text_column="premise", pair_column="hypothesis")
    source = line_source(run.saved, io.BytesIO(b"a\tb\tc\nd\n"), print)
    assert source
    (window,) = source.windows
    assert source.columns.pair == "hypothesis"
    assert window.rows.to_dict() == {"premise": ["a", "d"], "hypothesis": ["b\tc", None]}


def test_records_if_the_first_line_is_one(model: str) -> None:
    run = opened(model, text_column="story")
    source = line_source(run.saved, io.BytesIO(b'{"story": "a", "id": 1}\n{"story": "b"}\nc\n'), print)
    assert source
    (window,) = source.windows
    assert window.rows["story"][:] == ["a", "b", None]
    assert window.faults == {2: "the line is not a JSON object, as the first line is"}
    # An object of other names is a text.
    source = line_source(run.saved, io.BytesIO(b'{"text": "a"}\n'), print)
    assert source
    assert next(source.windows).rows["story"][:] == ['{"text": "a"}']
    assert line_source(run.saved, io.BytesIO(b"\n"), print) is None


def test_a_line_is_there_before_the_next_one_is_written(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOW", 2)
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as stream, os.fdopen(writing, "wb", buffering=0) as sink:
        sink.write(b"first\n")
        source = line_source(opened(model).saved, stream, print)
        assert source
        assert next(source.windows).rows["text"][:] == ["first"]
        threading.Thread(target=lambda: (sink.write(b"second\nthird\nfourth\n"), sink.close())).start()
        later = [(window.first, window.rows["text"][:]) for window in source.windows]
    assert [text for _, texts in later for text in texts] == ["second", "third", "fourth"]
    assert later[0][0] == 2
    assert all(len(texts) <= 2 for _, texts in later)


def test_later_lines_are_as_the_first(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOW", 2)
    records = ['{"text": "a"}', '{"text": "b"}', '{"id": 1}', '{"id": 2}', '{"text": 5}', '{"text": true}']
    records += ['{"text": ["a"]}', '{"text": {"a": 1}}', '{"text": "c", "id": [1]}', '{"text": "d", "id": 1}']
    said: list[str] = []
    # Some programs put a mark before the first line.
    stream = io.BytesIO(b"\xef\xbb\xbf " + "\n".join(records).encode())
    source = line_source(opened(model, text_column="text").saved, stream, said.append)
    assert source
    windows = [*source.windows]
    texts = [text for window in windows for text in window.rows["text"][:]]
    assert texts == ["a", "b", None, None, "5", "true", None, None, "c", "d"]
    faults = {window.first + at: reason for window in windows for at, reason in window.faults.items()}
    assert faults == dict.fromkeys((7, 8), "'text' is not of the type that it has in the first line")
    assert said == ["id: the first lines have no such column, so the records do not either"]


def test_numbers_in_the_first_lines_are_texts(model: str) -> None:
    source = line_source(opened(model, text_column="text").saved, io.BytesIO(b'{"text": 5}\n{"text": 6}\n'), print)
    assert source
    assert next(source.windows).rows["text"][:] == ["5", "6"]
