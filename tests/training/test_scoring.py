"""Scoring a saved adapter: on which rows, by which columns, with which options of its task."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import tiny_checkpoints
import tiny_speech
import torch
from command_line import GOOD, QUICK, invoke
from tiny_data import ignore
from tiny_media import wav

from capaft.config.open_options import EvalOptions
from capaft.support.errors import UsageError
from capaft.training import scoring
from capaft.training.record.saved_run import SavedRun, open_run
from capaft.training.scoring import score_run


def score(saved: SavedRun, data: str | None = None, **options: Any) -> dict[str, Any]:
    return asdict(score_run(saved, EvalOptions(data=data, **options), say=ignore))


@pytest.fixture(scope="module")
def saved(run: Path) -> SavedRun:
    return open_run(str(run))


def predicted(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def by_hand(records: list[dict[str, Any]]) -> dict[str, float]:
    """Accuracy, and F1 of the class "good", which is second in the alphabet."""
    pairs = [(record["predicted"], record["label"]) for record in records]
    of_classes = []
    for label in ("good", "bad"):
        hits = sum(pair == (label, label) for pair in pairs)
        misses = sum(label in pair and pair[0] != pair[1] for pair in pairs)
        of_classes.append(2 * hits / max(2 * hits + misses, 1))
    return {"accuracy": sum(a == b for a, b in pairs) / len(pairs), "f1": sum(of_classes) / 2}


def test_the_own_validation_split(saved: SavedRun, run: Path, tmp_path: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    scores = score(saved, None, predictions=tmp_path / "p.jsonl")
    assert scores["scores"] == results["scores"]
    assert (scores["metric"], scores["value"], scores["examples"]) == ("accuracy", results["value"], 6)
    assert (tmp_path / "p.jsonl").read_bytes() == (run / "predictions.jsonl").read_bytes()
    expected = by_hand(predicted(tmp_path / "p.jsonl"))
    assert {name: scores["scores"][name] for name in expected} == pytest.approx(expected)


def test_other_data_with_other_names(saved: SavedRun, tmp_path: Path) -> None:
    file = tmp_path / "other.csv"
    with file.open("w", newline="") as stream:
        rows = [(f"What a {word} story!", "no", "good") for word in GOOD] + [("So long.", "no", "bad")]
        csv.writer(stream).writerows([("story", "spoiler", "verdict"), *rows])
    chosen = {"text_column": "story", "label_column": "verdict", "predictions": tmp_path / "p.jsonl"}
    scores = score(saved, str(file), **chosen, metric="f1")
    expected = by_hand(predicted(tmp_path / "p.jsonl"))
    assert scores["examples"] == len(GOOD) + 1
    assert (scores["metric"], scores["value"]) == ("f1", scores["scores"]["f1"])
    assert {name: scores["scores"][name] for name in expected} == pytest.approx(expected)
    assert [record["text"] for record in predicted(tmp_path / "p.jsonl")] == [row[0] for row in rows]
    with pytest.raises(UsageError, match="--text-column tale: there is no such column"):
        score(saved, str(file), text_column="tale")


def test_a_sample_is_the_same_each_time(saved: SavedRun, reviews: Path, tmp_path: Path) -> None:
    for name in "ab":
        scores = score(saved, str(reviews), max_examples=5, predictions=tmp_path / name)
        assert scores["examples"] == 5
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert score(saved, str(reviews), max_examples=500)["examples"] == 64


def test_a_file_alone_needs_data(run: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes((run / "adapter.safetensors").read_bytes())
    with pytest.raises(UsageError, match="an adapter file alone does not name its data; pass --data"):
        score(open_run(str(alone)), None)


def test_options_change_what_is_scored(saved: SavedRun, tmp_path: Path) -> None:
    whole = score(saved, None)
    short = score(saved, None, set=("max-length=4",))
    assert short["loss"] != whole["loss"]
    assert score(saved, None, set=("max_length=32",)) == whole
    assert saved.task.max_length == 32


def test_a_base_of_fewer_bits_than_in_the_training(run: Path) -> None:
    options = EvalOptions(base_dtype="bfloat16")
    scores = score_run(open_run(str(run), options), options, say=ignore)
    whole = score_run(open_run(str(run)), say=ignore)
    assert scores.loss is not None
    assert whole.loss is not None
    # Half a percent for the eight bits of bfloat16's significand, in each of a few layers.
    assert scores.loss == pytest.approx(whole.loss, rel=0.05)
    assert scores.loss != whole.loss


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is an accelerator")
def test_a_base_in_float16_is_refused_without_an_accelerator(run: Path) -> None:
    done = invoke("eval", run, "--base-dtype", "float16")
    assert done.code == 2
    expected = "error: --base-dtype float16 needs an accelerator; choose bfloat16 or float32"
    assert done.err.splitlines()[-1] == expected


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("max_lenth=8", "--set max_lenth: text-classification has no option max_lenth; did you mean max_length?"),
        ("num_beams=8", "--set num_beams: text-classification has no option num_beams"),
        ("labels=a", "--set labels: text-classification has no option labels"),
        ("max-length=x", "--set max-length must be a whole number, got 'x'"),
        ("max_length=1", "--set max_length must be at least 2, got 1"),
        ("max_length=-3", "--set max_length must be at least 2, got -3"),
        ("problem=several", "--problem must be single, multi or regression, got several"),
        ("max_length", "--set max_length must be name=value"),
        ("=3", "--set =3 must be name=value"),
    ],
)
def test_wrong_options_are_one_line(option: str, message: str, run: Path) -> None:
    done = invoke("eval", run, "--set", option)
    assert done.code == 2
    assert done.err == f"error: {message}\n"


def test_a_wrong_metric_is_one_line(run: Path) -> None:
    done = invoke("eval", run, "--metric", "bleu")
    assert done.code == 2
    assert done.err.startswith(
        "error: --metric must be one of accuracy, f1, matthews, top5, precision, recall for text"
    )


ROWS = {
    "gpt2": lambda i: {"prompt": f"Ship {i}?", "completion": f"It is {i}"},
    "t5": lambda i: {"document": f"A long ship of {i}", "summary": f"A ship, {i}"},
    "roberta": lambda i: {"text": f"a ship of {i} sails"},
}
TASKS = {"gpt2": "causal-lm", "t5": "seq2seq", "roberta": "masked-lm"}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Finished runs of tasks on text, by model."""
    runs = {}
    for kind, row in ROWS.items():
        home = tmp_path_factory.mktemp(kind)
        (home / "rows.jsonl").write_text("".join(json.dumps(row(i)) + "\n" for i in range(16)))
        model = tiny_checkpoints.save(kind, home / "model")
        options = ("--task", TASKS[kind], *(("--max-new-tokens", "3") if kind != "roberta" else ()))
        files = ("--model", model, "--data", home / "rows.jsonl", "--output", home / "run")
        done = invoke("train", *files, *QUICK, "--epochs", "1", *options)
        assert done.code == 0, done.err
        runs[kind] = home / "run"
    return runs


@pytest.fixture(scope="module")
def instructed(texts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs that were trained on instructions with a further input, by model."""
    runs = {}
    for kind in ("gpt2", "t5"):
        home = tmp_path_factory.mktemp(kind)
        rows = [{"instruction": f"Add {i}", "input": f"{i} and 1", "output": f"It is {i}"} for i in range(16)]
        (home / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        files = ("--model", texts[kind].parent / "model", "--data", home / "rows.jsonl", "--output", home / "run")
        options = ("--task", TASKS[kind], "--max-new-tokens", "2", "--max-length", "64")
        assert invoke("train", *files, *QUICK, "--epochs", "1", *options).code == 0
        runs[kind] = home / "run"
    return runs


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
@pytest.mark.parametrize("is_alone", [False, True], ids=["run", "file alone"])
@pytest.mark.parametrize("target", ["", "output"])
@pytest.mark.parametrize(
    ("text", "further", "flags"),
    [
        ("instruction", "input", ()),
        ("instruction", "input", ("--text-column", "instruction")),
        ("task", "more", ("--text-column", "task", "--pair-column", "more")),
    ],
)
def test_both_inputs_are_read_with_and_without_targets(
    kind: str,
    is_alone: bool,
    target: str,
    text: str,
    further: str,
    flags: tuple[str, ...],
    instructed: dict[str, Path],
    texts: dict[str, Path],
    tmp_path: Path,
) -> None:
    row = {text: "Add 5", further: "5 and 1"} | ({target: "6"} if target else {})
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    run = instructed[kind]
    if is_alone:
        run = tmp_path / "alone.safetensors"
        run.write_bytes((instructed[kind] / "adapter.safetensors").read_bytes())
    files = ("--data", tmp_path / "rows.jsonl", "--predictions", tmp_path / "p.jsonl", "--metric", "bleu")
    named = ("--label-column", target) if target and flags else ()
    done = invoke("eval", run, "--model", texts[kind].parent / "model", *files, *flags, *named)
    assert done.code == 0, done.err
    assert [record["source"] for record in predicted(tmp_path / "p.jsonl")] == ["Add 5\n5 and 1"]
    # What a run does not know for sure is said.
    assert (f"input from '{text}' and '{further}'" in done.err) == (is_alone or text != "instruction")


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
@pytest.mark.parametrize("flags", [(), ("--text-column", "instruction")])
def test_fewer_inputs_than_in_training_are_refused(
    kind: str, flags: tuple[str, ...], instructed: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"instruction": "Add 5", "id": 3}\n')
    files = ("--data", tmp_path / "rows.jsonl", "--predictions", tmp_path / "p.jsonl", "--metric", "bleu")
    done = invoke("eval", instructed[kind], *files, *flags)
    assert done.code == 2
    assert done.err.splitlines()[-1] == (
        "error: the training data had two inputs, 'instruction' and 'input', and these rows only 'instruction'; "
        "name the second with --pair-column among instruction (string), id (int64)"
    )


@pytest.mark.parametrize("flags", [(), ("--text-column", "premise", "--pair-column", "hypothesis")])
def test_two_inputs_are_refused_where_the_training_had_one(flags: tuple[str, ...], run: Path, tmp_path: Path) -> None:
    rows = ({"premise": f"a {at}", "hypothesis": f"b {at}", "label": "good" if at % 2 else "bad"} for at in range(8))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = invoke("eval", run, "--data", tmp_path / "rows.jsonl", *flags)
    assert done.code == 2
    assert "had one input, 'text', and these rows would be read as two, 'premise' and 'hypothesis'; name" in done.err


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """Texts without targets."""
    file = tmp_path / "sources.jsonl"
    file.write_text('{"story": "one ship"}\n{"story": "two"}\n')
    return file


@pytest.mark.parametrize(("kind", "metric"), [("gpt2", "bleu"), ("t5", "rougeL")])
def test_without_targets_texts_are_written_and_not_scored(
    kind: str, metric: str, texts: dict[str, Path], sources: Path, tmp_path: Path
) -> None:
    file = tmp_path / "p.jsonl"
    flags = ("--data", sources, "--text-column", "story", "--metric", metric, "--predictions", file)
    done = invoke("eval", texts[kind], *flags, "--json")
    assert done.code == 0, done.err
    scores = {"metric": metric, "value": None, "loss": None, "scores": {}, "examples": 2, "score_names": {}}
    assert json.loads(done.out) == scores | {"interval": None, "interval_method": None}
    assert [(record["source"], record["references"]) for record in predicted(file)] == [("one ship", []), ("two", [])]
    assert invoke("eval", texts[kind], *flags).out == (
        f"2 predictions in {file}; there are no targets to compare them with\n"
    )


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
@pytest.mark.parametrize(("metric", "also"), [("bleu", ""), ("loss", " and --metric bleu"), ("perplexity", " and ")])
def test_without_targets_there_is_nothing_to_score(
    kind: str, metric: str, also: str, texts: dict[str, Path], sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "evaluate", None)
    done = invoke("eval", texts[kind], "--data", sources, "--text-column", "story", "--metric", metric)
    assert done.code == 2
    assert done.err.splitlines()[-1].startswith(
        "error: there are no targets to compare with; name their column with --label-column, or write the texts with "
        f"--predictions FILE{also}"
    )
    assert done.out == ""


@pytest.mark.parametrize(("kind", "metric"), [("gpt2", "loss"), ("t5", "perplexity"), ("roberta", "loss")])
def test_predictions_of_what_predicts_nothing_are_refused_before_scoring(
    kind: str, metric: str, texts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "evaluate", None)
    done = invoke("eval", texts[kind], "--metric", metric, "--predictions", tmp_path / "p.jsonl")
    assert done.code == 2
    assert f"--predictions cannot be used with {TASKS[kind]} with --metric {metric}" in done.err
    assert not (tmp_path / "p.jsonl").exists()


def test_options_without_effect_on_the_scores_are_named(texts: dict[str, Path], tmp_path: Path) -> None:
    done = invoke("eval", texts["gpt2"], "--set", "num_beams=4", "--set", "packing=false")
    assert done.code == 0, done.err
    assert [line for line in done.err.splitlines() if "no effect" in line] == [
        "data   --set num_beams has no effect with --metric perplexity and is ignored",
        "data   --set packing has no effect with prompts and completions and is ignored",
    ]


def test_speech_scored_by_its_loss_alone(tmp_path: Path) -> None:
    model = tiny_speech.ctc(tmp_path / "model")
    for at, text in enumerate(("low", "high", "low high", "high low")):
        (tmp_path / f"{at}.wav").write_bytes(wav(tiny_speech.said(text)))
    lines = [f"{at}.wav,{text}" for at, text in enumerate(("LOW", "HIGH", "LOW HIGH", "HIGH LOW"))]
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,transcription", *lines]))
    run, source = tmp_path / "run", tmp_path / "metadata.csv"
    options = ("--method", "lora", "--rank", 1, "--max-steps", 1)
    assert invoke("train", "--model", model, "--data", source, *options, "--output", run).code == 0
    done = invoke("eval", run, "--metric", "loss")
    assert done.code == 0
    assert re.fullmatch(r"loss \d+\.\d{4} on 1 example\n", done.out)
    done = invoke("eval", run, "--metric", "loss", "--predictions", tmp_path / "p.jsonl")
    assert "--predictions cannot be used with speech-recognition with --metric loss" in done.err
