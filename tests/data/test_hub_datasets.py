"""Models and data by their ids on the hub: whole commands, with the real clients, against a hub on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import BAD, GOOD, THINGS, invoke_apart
from tiny_hub import MAIN, serving
from tiny_job import bert
from transformers import BertForQuestionAnswering, BertModel

SENTENCES = [(f"A {word} {thing}.", int(word in GOOD)) for thing in THINGS for word in GOOD + BAD]
CONFIGURATIONS = """---
configs:
- config_name: cola
  data_files:
  - {split: train, path: cola/train-*}
- config_name: sst2
  data_files:
  - {split: train, path: sst2/train-*}
  - {split: validation, path: sst2/validation-*}
  - {split: test, path: sst2/test-*}
dataset_info:
- config_name: cola
  features:
  - {name: sentence, dtype: string}
  - {name: label, dtype: {class_label: {names: {'0': unacceptable, '1': acceptable}}}}
  - {name: idx, dtype: int32}
- config_name: sst2
  features:
  - {name: sentence, dtype: string}
  - {name: label, dtype: {class_label: {names: {'0': negative, '1': positive}}}}
  - {name: idx, dtype: int32}
---
"""


def write(file: Path, **columns: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), file)


def write_sentences(file: Path, column: str, labels: Sequence[int] | None = None) -> None:
    texts = pa.array([text for text, _ in SENTENCES])
    numbers = pa.array(labels or [label for _, label in SENTENCES], pa.int64())
    write(file, **{column: texts, "label": numbers, "idx": pa.array(range(len(texts)), pa.int32())})


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """GLUE with two configurations, SQuAD, IMDB, a script, and two revisions of a tiny model, as on the hub."""
    root = tmp_path_factory.mktemp("hub")
    glue = root / "datasets" / "nyu-mll" / "glue" / MAIN
    for split in ("train", "validation"):
        write_sentences(glue / "sst2" / f"{split}-00000-of-00001.parquet", "sentence")
    write_sentences(glue / "sst2" / "test-00000-of-00001.parquet", "sentence", [-1] * len(SENTENCES))
    write_sentences(glue / "cola" / "train-00000-of-00001.parquet", "sentence")
    (glue / "README.md").write_text(CONFIGURATIONS)
    for split in ("train", "test", "unsupervised"):
        labels = [-1] * len(SENTENCES) if split == "unsupervised" else None
        imdb = root / "datasets" / "stanfordnlp" / "imdb" / MAIN / "plain_text"
        write_sentences(imdb / f"{split}-00000-of-00001.parquet", "text", labels)
    for split in ("train", "validation"):
        context = "The tower was built in 1889 by an engineer."
        write(
            root / "datasets" / "rajpurkar" / "squad" / MAIN / "plain_text" / f"{split}-00000-of-00001.parquet",
            id=[str(number) for number in range(16)],
            title=["Tower"] * 16,
            context=[context] * 16,
            question=["When was it built?"] * 16,
            answers=[{"text": ["1889"], "answer_start": [context.index("1889")]}] * 16,
        )
    script = root / "datasets" / "somebody" / "reviews"
    (script / MAIN).mkdir(parents=True)
    (script / MAIN / "reviews.py").write_text("import datasets\n")
    for split in ("train", "validation"):
        for configuration in ("short", "long"):
            write_sentences(script / "refs%2Fconvert%2Fparquet" / configuration / split / "0000.parquet", "text")
    bert(root / "models" / "somebody" / "tiny" / MAIN, BertModel)
    bert(root / "models" / "somebody" / "tiny" / "v2", BertForQuestionAnswering)
    with serving(root) as address:
        yield address


def invoke(directory: Path, hub: str, commands: Iterable[str], offline: bool = False) -> dict[str, SimpleNamespace]:
    """Run commands one after the other in one fresh process; return their results."""
    changes = {"HF_ENDPOINT": hub, "HF_HOME": str(directory / "cache"), "HF_HUB_DISABLE_XET": "1"}
    done = invoke_apart([command.split() for command in commands], directory, changes, offline=offline)
    return dict(zip(commands, done, strict=True))


TRAIN = "train --epochs 1 --batch-size 8 --k 16 --rank 2 --max-length 32 --json"
CONFIGURATION = f"{TRAIN} --model somebody/tiny --data glue/sst2 --output one"
SLICE = f"{TRAIN} --model tiny --data imdb[:50%] --output two"
SCRIPT = f"{TRAIN} --model tiny --data reviews/short --output three"
REVISION = f"{TRAIN} --model somebody/tiny --revision v2 --data squad --output four"
SCRIPT_AGAIN = "train --config three/run.yaml --output five --json"
REPEATED = "train --config one/run.yaml --output again --json"
WRONG = {
    "train --data glue/ssst2": "ssst2",
    "train --data glue": "--data glue/NAME with one of cola, sst2",
    "train --data somebody/reviews": "--data somebody/reviews/NAME with one of long, short",
    "train --data somebody/reviews/tall": "tall",
    "train --data nobody/nothing": "nobody/nothing",
    "train --data imdb --model nobody/nothing": "nobody/nothing",
    "train --data imdb --model somebody/tiny --revision v3": "v3",
}
MERGED = "merge one --output merged"
RUNS = (CONFIGURATION, SLICE, SCRIPT, SCRIPT_AGAIN, REVISION, REPEATED)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def online(hub: str, place: Path) -> dict[str, SimpleNamespace]:
    return invoke(place, hub, (*RUNS, "eval one --json", "eval four --json", MERGED, *WRONG))


@pytest.mark.parametrize("command", [*RUNS, MERGED])
def test_it_is_found(command: str, online: dict[str, SimpleNamespace]) -> None:
    assert online[command].code == 0, online[command].err


def test_a_configuration(online: dict[str, SimpleNamespace]) -> None:
    results = json.loads(online[CONFIGURATION].out)
    assert results["labels"] == ["negative", "positive"]
    assert results["train_examples"] == results["validation_examples"] == len(SENTENCES)
    for again in ("eval one --json", REPEATED):
        assert json.loads(online[again].out)["value"] == results["value"]


def test_a_slice(online: dict[str, SimpleNamespace]) -> None:
    assert f"{len(SENTENCES) // 2} of {len(SENTENCES)} training rows" in online[SLICE].err


def test_of_a_script_what_the_hub_made_of_it(online: dict[str, SimpleNamespace]) -> None:
    results = json.loads(online[SCRIPT].out)
    assert results["train_examples"] == results["validation_examples"] == len(SENTENCES)


def test_questions_and_a_revision_of_the_model(online: dict[str, SimpleNamespace]) -> None:
    results = json.loads(online[REVISION].out)
    assert results["task"] == "question-answering"
    assert json.loads(online["eval four --json"].out)["value"] == results["value"]


@pytest.mark.parametrize("command", WRONG)
def test_what_is_not_there(command: str, online: dict[str, SimpleNamespace]) -> None:
    (line,) = (text for text in online[command].err.splitlines() if text.startswith("error: "))
    assert online[command].code == 2
    assert WRONG[command] in line


def test_what_was_fetched_is_there_without_a_network(hub: str, place: Path, online: dict[str, SimpleNamespace]) -> None:
    fetched = (CONFIGURATION, SLICE, SCRIPT)
    repeated = [f"{command} --overwrite" for command in fetched]
    results = invoke(place, hub, (*repeated, "train --data glue/cola"), offline=True)
    for command, before in zip(repeated, fetched, strict=True):
        assert results[command].code == 0, results[command].err
        assert json.loads(results[command].out)["value"] == json.loads(online[before].out)["value"]
    assert results["train --data glue/cola"].code == 2
