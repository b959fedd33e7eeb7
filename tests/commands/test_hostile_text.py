"""Names, labels, data and messages of a stranger reach the screen and the cards as text, from every verb."""

from __future__ import annotations

import csv
import json
import unicodedata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from command_line import QUICK, invoke
from tiny_job import bert
from transformers import BertForSequenceClassification

EVIL = "\x1b[2J\x07\x9b1m\x7f\u202ex\u2028y\nerror: forged"
LABELS = [f"good{EVIL}", "bad</script>|`*\n---\n# forged\n"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A model, a data set and a run directory whose names, labels and texts are full of escapes."""
    directory = tmp_path_factory.mktemp("hostile") / "a\x1b[31mb\u202ec\nd"
    directory.mkdir()
    data = directory / "da\x1bta.csv"
    with data.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow([f"te\x1bxt{number}" for number in range(2)] + ["label"])
        writer.writerows([f"word {number} {EVIL}", "other\x9b", LABELS[number % 2]] for number in range(24))
    model = bert(directory / "mod\x1bel\u202e", BertForSequenceClassification)
    return SimpleNamespace(directory=directory, data=data, model=model, run=directory / "run\x1b\u202e")


def plain(done: SimpleNamespace) -> SimpleNamespace:
    for text in (done.out, done.err):
        acting = {c for c in text if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")}
        assert not acting
        assert not [line for line in text.splitlines() if line.startswith("error: forged")]
    return done


def columns(place: SimpleNamespace) -> list[Any]:
    return ["--data", place.data, "--text-column", "te\x1bxt0", "--label-column", "label"]


@pytest.fixture(scope="module")
def trained(place: SimpleNamespace) -> SimpleNamespace:
    flags = ["--model", place.model, *columns(place), "--output", place.run, "--show", "2", *QUICK]
    done = plain(invoke("train", *flags))
    assert done.code == 0
    assert any(line.startswith("    error: forged") or "y\\nerror: forged" in line for line in done.err.splitlines())
    return place


def test_verbs_on_a_run(trained: SimpleNamespace, tmp_path: Path) -> None:
    for arguments in (
        ["info", trained.run],
        ["eval", trained.run, "--predictions", trained.directory / "pre\x1bdictions.jsonl"],
        ["inspect-rank", trained.run],
        ["merge", trained.run, "--output", trained.directory / "mer\x1bged"],
        ["train", "--model", trained.model, *columns(trained), "--dry-run"],
        ["train", "--model", trained.model, *columns(trained), "--print-config"],
        ["methods", "--model", trained.model],
    ):
        assert plain(invoke(*arguments)).code == 0
    for arguments in (["info", trained.run], ["eval", trained.run], ["inspect-rank", trained.run]):
        text = plain(invoke(*arguments, "--json")).out
        assert text.isascii()
        json.loads(text)


@pytest.mark.parametrize("card", ["run\x1b\u202e/README.md", "mer\x1bged2/README.md"])
def test_cards(trained: SimpleNamespace, card: str) -> None:
    if "mer" in card:
        invoke("merge", trained.run, "--output", trained.directory / "mer\x1bged2")
    text = (trained.directory / card).read_text(encoding="utf-8")
    assert all(c == "\n" or unicodedata.category(c) not in ("Cc", "Cf", "Zl", "Zp") for c in text)
    assert yaml.safe_load(text.split("---\n")[1])["library_name"]
    assert r"mod\\x1bel\\u202e" in text
    assert "</script>" not in text
    assert r"bad&lt;/script&gt;\|\`\*\\n---\\n\# forged\\n" in text


def test_errors(trained: SimpleNamespace, tmp_path: Path) -> None:
    settings = tmp_path / "se\x1bt.yaml"
    settings.write_text('"ra\\x1bnk\\nerror: forged": 3\nlr: "1\\x1b\\u202e"\nlrr: 1\n', encoding="utf-8")
    broken = tmp_path / "bro\x1bken.yaml"
    broken.write_text("lr: [\x1b", encoding="utf-8")
    file = tmp_path / "fi\x1ble.safetensors"
    file.write_bytes(b"\x1b[2J" * 9)
    train = ["train", "--model", trained.model]
    for arguments in (
        ["train", "--config", settings],
        ["train", "--config", broken],
        ["train", "--config", EVIL],
        ["train", f"--{EVIL}"],
        [EVIL],
        ["train", "--model", EVIL, "--data", trained.data],
        [*train, "--data", EVIL],
        [*train, "--data", trained.data, "--label-column", EVIL],
        [*train, *columns(trained), "--method", EVIL],
        [*train, *columns(trained), "--target-modules", EVIL],
        [*train, *columns(trained), "--rank-pattern", f"{EVIL}=3"],
        [*train, *columns(trained), "--metric", EVIL],
        ["info", file],
        ["info", EVIL],
        ["eval", trained.run, "--data", EVIL],
        ["merge", trained.run, "--output", file],
        ["inspect-rank", trained.run, "--plot", tmp_path / "no\x1bne" / EVIL],
    ):
        done = plain(invoke(*arguments))
        assert done.code in (0, 2), arguments


def test_warnings_and_logs(capsys: pytest.CaptureFixture[str]) -> None:
    import logging
    import warnings

    from capaft.commands.libraries import loading_libraries
    from capaft.commands.reporting import reporting

    shown = warnings.showwarning
    try:
        with reporting() as console:
            with loading_libraries(console):
                pass
            warnings.warn(f"about {EVIL}", stacklevel=1)
            handler = logging.StreamHandler()
            logging.getLogger("some.library").addHandler(handler)
            logging.getLogger("some.library").error("bad %s", EVIL)
    finally:
        warnings.showwarning = shown
        logging.getLogger("some.library").removeHandler(handler)
        logging.setLogRecordFactory(logging.LogRecord)
    done = plain(SimpleNamespace(**capsys.readouterr()._asdict()))
    assert done.err.count(r"\x1b[2J") == 2
