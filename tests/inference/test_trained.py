"""`capaft.train`: the job of the command line, from Python."""

from __future__ import annotations

import json
import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
import transformers
from accelerate import Accelerator
from command_line import invoke
from datasets import Dataset, DatasetDict
from tiny_job import bert, fresh_accelerate
from transformers import BertModel

import capaft
from capaft.inference.passed_rows import splits_of
from capaft.training import validation
from capaft.training.record.metrics import EvaluationRecord, StepRecord

WORDS = (("great", "good"), ("poor", "bad"))
ROWS = [{"text": f"a {word} film {n}", "label": label} for n in range(10) for word, label in WORDS]
TEST = [{"text": "one great film", "label": "good"}, {"text": "one poor film", "label": "bad"}]
SMALL: dict[str, Any] = {"epochs": 2, "batch_size": 8, "k": 16, "rank": 2, "max_length": 16}
FLAGS = ["--epochs", 2, "--batch-size", 8, "--k", 16, "--rank", 2, "--max-length", 16]


@pytest.fixture(autouse=True)
def _no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "draw_losses", lambda *_: b"")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert(tmp_path_factory.mktemp("models") / "bert", BertModel, dropout=0.1)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rows as the command line reads them."""
    directory = tmp_path_factory.mktemp("data") / "films"
    directory.mkdir()
    for name, rows in (("train", ROWS), ("test", TEST)):
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


@pytest.fixture(scope="module")
def by_command(model: Path, files: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The adapter file that the command line leaves."""
    run = tmp_path_factory.mktemp("runs") / "command"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation, "draw_losses", lambda *_: b"")
        done = invoke("train", "--model", model, "--data", files, "--output", run, *FLAGS)
    assert done.code == 0, done.err
    return (run / "adapter.safetensors").read_bytes()


FORMS: dict[str, Callable[[Path], Any]] = {
    "path": lambda files: files,
    "lists": lambda files: {"train": ROWS, "test": TEST},
    "datasets": lambda files: DatasetDict(train=Dataset.from_list(ROWS), test=Dataset.from_list(TEST)),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_same_job_to_the_same_bytes(
    form: str, model: Path, files: Path, by_command: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    trained = capaft.train(model=model, data=FORMS[form](files), output=tmp_path / "run", **SMALL)
    assert (trained.run / "adapter.safetensors").read_bytes() == by_command
    assert trained.results.record() == json.loads((trained.run / "results.json").read_text()) | {
        "output": str(tmp_path / "run"),
        "next": trained.results.next,
    }
    out = capfd.readouterr()
    assert (out.out, out.err) == ("", "")


def test_every_form_has_the_rows_of_a_file() -> None:
    frames = {"train": pd.DataFrame(ROWS), "test": pd.DataFrame(TEST)}
    columns = {name: [row[name] for row in ROWS] for name in ("text", "label")}
    assert {name: rows.to_list() for name, rows in splits_of(frames).items()} == {"train": ROWS, "test": TEST}
    for form in (columns, pa.Table.from_pylist(ROWS), pd.DataFrame(ROWS, index=range(5, 25)), ROWS):
        assert {name: rows.to_list() for name, rows in splits_of(form).items()} == {"train": ROWS}
    # A number among texts is a text, as it is in a file of JSON.
    assert splits_of([{"label": "a"}, {"label": 3}])["train"]["label"][:] == ["a", "3"]
    streamed = Dataset.from_list(ROWS).to_iterable_dataset()
    for wrong in (streamed, {"text": ["a", "b"], "label": ["c"]}, pd.DataFrame(), 3, [1, 2], {}):
        with pytest.raises(capaft.UsageError, match=r"^--data"):
            splits_of(wrong)


def test_rows_without_splits_and_what_remains_of_them(model: Path, tmp_path: Path) -> None:
    trained = capaft.train(model=model, data=ROWS, output=tmp_path / "run", **SMALL)
    assert (trained.results.data, trained.results.train_examples) == ("rows passed in Python", 18)
    records = trained.opened.predict(["a great film 3", "a poor film 4"])
    assert trained.opened is trained.opened
    assert {record["label"] for record in records} <= {"good", "bad"}
    assert trained.opened.saved.run is not None
    done = invoke("eval", tmp_path / "run")
    assert done.code == 2
    assert done.err.endswith("\nerror: the rows of this run were passed in Python; name the data with --data\n")
    done = invoke("train", "--config", tmp_path / "run" / "run.yaml", "--output", tmp_path / "again")
    assert done.code == 2
    assert done.err.endswith("\nerror: the rows of this run were passed in Python; name the data with --data\n")
    assert "which were passed in Python" in (tmp_path / "run" / "README.md").read_text()
    # The same rows repeat it, and go on with it.
    again = capaft.train(config=tmp_path / "run" / "run.yaml", data=Dataset.from_list(ROWS), output=tmp_path / "again")
    assert (again.run / "adapter.safetensors").read_bytes() == (trained.run / "adapter.safetensors").read_bytes()
    with pytest.raises(capaft.UsageError, match=r"^resume=True: the training data of .* has changed"):
        capaft.train(data=ROWS[2:], resume=True, output=tmp_path / "run")


def test_progress_and_lines(model: Path, tmp_path: Path) -> None:
    records: list[Any] = []
    lines: list[str] = []
    trained = capaft.train(
        model=model, data=ROWS, output=tmp_path / "run", progress=records.append, say=lines.append, head_k=8, **SMALL
    )
    kinds = [type(record) for record in records]
    assert kinds.count(StepRecord) == trained.results.steps == 6
    assert kinds.count(EvaluationRecord) == 2
    assert lines[0] == "task   text-classification, inferred from the data and the model (task overrides)"
    assert "       warning: head_k has no effect with head full and is ignored" in lines
    assert not any("--" in line for line in lines)


def test_warnings_are_heard_without_a_callback(model: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="^head_k has no effect with head full and is ignored$"):
        capaft.train(model=model, data=ROWS, output=tmp_path / "run", head_k=8, **SMALL | {"epochs": 1})


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"rnk": 4}, "rnk is not a setting; did you mean rank?"),
        ({"lr": -1}, "lr must be"),
        ({"method": "nolla"}, "method nolla: there is no method nolla; did you mean nola?"),
        ({"model": torch.nn.Linear(2, 2)}, "model must be a name or a path"),
        ({"data": 3}, "data must be a name, a path, a datasets.Dataset, .*, got int"),
        ({"data": []}, "data: there are no rows in it"),
        ({"data": "nothing.csv"}, "'nothing.csv': no such file or directory; give an existing one with data"),
        (
            {"data": {"test": ROWS}},
            "rows passed in Python: there is no train split among test; choose",
        ),
        ({"processes": 2}, "processes must be 1 in Python"),
        ({"overwrite": True, "resume": True, "output": "x"}, "resume=True and overwrite=True cannot be used together"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_mistakes_are_one_line_in_the_words_of_python(
    keywords: dict[str, Any], message: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(capaft.UsageError, match=f"^{message}") as raised:
        capaft.train(**{"model": model, "data": ROWS, **keywords})
    assert len(str(raised.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_the_process_is_left_as_it_was(model: Path, tmp_path: Path) -> None:
    fresh_accelerate()
    accelerator = Accelerator(mixed_precision="bf16", cpu=True)
    transformers.logging.set_verbosity_info()
    torch.manual_seed(3)
    np.random.seed(4)
    random.seed(5)

    def state() -> list[Any]:
        handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
        generators = [torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()]
        reports = [transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()]
        threads = [torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype()]
        return [handlers, generators, reports, threads, accelerator.mixed_precision]

    try:
        with torch.no_grad():
            before = state()
            capaft.train(model=model, data=ROWS, output=tmp_path / "run", **SMALL)
            assert state() == before
    finally:
        transformers.logging.set_verbosity_warning()
        fresh_accelerate()


def test_a_thread_that_is_not_the_main_one(model: Path, by_command: bytes, tmp_path: Path) -> None:
    runs: list[Any] = []
    data = {"train": ROWS, "test": TEST}
    thread = threading.Thread(
        target=lambda: runs.append(capaft.train(model=model, data=data, output=tmp_path / "run", **SMALL))
    )
    thread.start()
    thread.join()
    assert (runs[0].run / "adapter.safetensors").read_bytes() == by_command


def test_an_interrupted_run_says_how_it_goes_on(model: Path, tmp_path: Path) -> None:
    data = {"train": ROWS, "test": TEST}

    def interrupt(record: Any) -> None:
        if record.step == 2:
            signal.raise_signal(signal.SIGINT)

    run = tmp_path / "run"
    with pytest.raises(capaft.Interrupted) as raised:
        capaft.train(model=model, data=data, output=run, progress=interrupt, eval_steps=1, **SMALL)
    assert str(raised.value).endswith(f"resume with capaft.train(resume=True, output='{run}')")
    capaft.train(data=data, resume=True, output=run)
    whole = capaft.train(model=model, data=data, output=tmp_path / "whole", eval_steps=1, **SMALL)
    assert (run / "adapter.safetensors").read_bytes() == (whole.run / "adapter.safetensors").read_bytes()


def test_an_error_of_the_callback_is_the_callers_own(model: Path, tmp_path: Path) -> None:
    def fail(record: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        capaft.train(model=model, data=ROWS, output=tmp_path / "run", progress=fail, **SMALL)


def test_carrying_on_in_python(model: Path, tmp_path: Path) -> None:
    first = capaft.train(model=model, data=ROWS, output=tmp_path / "first", **SMALL)
    more = [*ROWS, *({"text": f"a strange film {n}", "label": "odd"} for n in range(8))]
    second = capaft.train(data=more, init_from=first.run, epochs=1, output=tmp_path / "second")
    assert second.results.labels == ["bad", "good", "odd"]
    assert second.results.method == "lora+nola"
    with pytest.raises(capaft.UsageError, match=r"^init_from .*: it was trained with rank 2, not 4; drop rank, or"):
        capaft.train(data=more, init_from=first.run, rank=4)
