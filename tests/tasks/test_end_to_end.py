"""Every task on the command line: trained, scored again, scored on other data, repeated, and merged."""

from __future__ import annotations

import json
import wave
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import tiny_checkpoints
import tiny_media
import tiny_speech
import torch
import transformers
from command_line import invoke
from safetensors.torch import load_file
from tiny_data import load_evaluation

from capaft.training.record.saved_run import SavedRun, open_run

QUICK = ("--method", "nola", "--k", "16", "--rank", "2", "--batch-size", "4", "--max-steps", "3", "--max-length", "96")
COLOURS = ("red", "green", "blue")


@dataclass(frozen=True)
class Case:
    """A task, a model for it, its rows, and the flags that it takes.

    Attributes:
        task: the task.
        model: see `tiny_checkpoints`.
        row: a row by its number, in the form that `write` takes.
        flags: beside those of every run.
        inferred: the task is inferred from the columns and the model.
        reports: it leaves predictions to read.
        pipeline: its name in the model card.
        write: writes the rows of some numbers.
    """

    task: str
    model: str
    row: Callable[[int], Any]
    flags: tuple[str, ...] = ()
    inferred: bool = True
    reports: bool = True
    pipeline: str = ""
    write: Callable[[Path, Callable[[int], Any], Sequence[int]], Path] | None = None


def words(i: int) -> str:
    return f"Ship {i} is {COLOURS[i % 3]} and {COLOURS[(i // 3) % 3]}."


def question(i: int, *, no_answer: bool = False) -> dict[str, Any]:
    answered = {"text": [COLOURS[i % 3]], "answer_start": [words(i).index(COLOURS[i % 3])]}
    missing: dict[str, Any] = {"text": [], "answer_start": []}
    answers = missing if no_answer and i % 2 else answered
    return {"id": f"q{i}", "question": "Which colour?", "context": words(i), "answers": answers}


def conversation(i: int) -> dict[str, Any]:
    turns = ((("user", f"Ship {i}?"), ("assistant", words(i)), ("user", "And?"), ("assistant", "No.")),)
    return {"messages": [{"role": role, "content": content} for turn in turns for role, content in turn]}


def pictures(directory: Path, row: Callable[[int], Any], numbers: Sequence[int]) -> Path:
    """Folders of classes."""
    for i in numbers:
        path = directory / COLOURS[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        row(i).save(path)
    return directory


def recordings(directory: Path, row: Callable[[int], Any], numbers: Sequence[int]) -> Path:
    for i in numbers:
        path = directory / COLOURS[i % 2] / f"{i}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        with wave.open(str(path), "wb") as stream:
            stream.setparams((1, 2, tiny_media.RATE, 0, "NONE", ""))
            stream.writeframes((row(i) * 2**15).astype(np.int16).tobytes())
    return directory


def spoken(i: int) -> str:
    return " ".join("low high"[4 * (i >> bit & 1) :][:4].strip() for bit in range(5))


def speech(directory: Path, row: Callable[[int], Any], numbers: Sequence[int]) -> Path:
    """A table of recordings with their transcripts."""
    directory.mkdir()
    lines = []
    for i in numbers:
        (directory / f"{i}.wav").write_bytes(tiny_media.wav(tiny_speech.said(row(i))))
        lines.append(json.dumps({"audio": f"{i}.wav", "transcription": f"{row(i)}"}) + "\n")
    (directory / "rows.jsonl").write_text("".join(lines))
    return directory / "rows.jsonl"


CASES = {
    "single": Case("text-classification", "roberta", lambda i: {"text": words(i), "label": COLOURS[i % 2]}),
    "multi": Case(
        "text-classification",
        "roberta",
        lambda i: {"text": words(i), "labels": [COLOURS[i % 3], COLOURS[(i // 3) % 3]]},
    ),
    "columns": Case(
        "text-classification",
        "roberta",
        lambda i: {"text": words(i), "rude": i % 2, "loud": (i // 2) % 2},
        ("--label-column", "rude,loud"),
    ),
    "regression": Case("text-classification", "deberta", lambda i: {"text": words(i), "score": i / 7}),
    "pair": Case(
        "text-classification",
        "deberta",
        lambda i: {"premise": words(i), "hypothesis": COLOURS[(i // 2) % 3], "label": i % 2},
    ),
    "tokens": Case(
        "token-classification",
        "roberta",
        lambda i: {"tokens": words(i).split(), "ner_tags": ["O", "B-x" if i % 2 else "O", "O", "B-y", "O", "I-y"]},
    ),
    "answers": Case("question-answering", "deberta", question, ("--stride", "8", "--max-length", "40")),
    "no-answers": Case("question-answering", "roberta", lambda i: question(i, no_answer=True)),
    "choices": Case(
        "multiple-choice",
        "roberta",
        lambda i: {"sent1": words(i), "ending0": "red", "ending1": "green", "ending2": "blue", "label": i % 3},
    ),
    "text": Case("causal-lm", "llama", lambda i: {"text": words(i)}, reports=False, pipeline="text-generation"),
    "prompts": Case(
        "causal-lm",
        "gpt2",
        lambda i: {"prompt": f"Ship {i}?", "completion": words(i)},
        ("--metric", "bleu", "--max-new-tokens", "4", "--num-beams", "2", "--separator", " || "),
        pipeline="text-generation",
    ),
    "chats": Case("causal-lm", "chats", conversation, reports=False, pipeline="text-generation"),
    "summaries": Case(
        "seq2seq",
        "t5",
        lambda i: {"document": words(i), "summary": f"A {COLOURS[i % 3]} ship, {i}"},
        ("--max-new-tokens", "4", "--source-prefix", "sum: "),
        pipeline="text2text-generation",
    ),
    "masks": Case("masked-lm", "roberta", lambda i: {"text": words(i)}, reports=False, pipeline="fill-mask"),
    "images": Case("image-classification", "vit", lambda i: tiny_media.picture(20, 16, seed=i), write=pictures),
    "audio": Case(
        "audio-classification", "wav2vec2", lambda i: tiny_media.tone(200 + 900 * (i % 2), 0.3), write=recordings
    ),
    "speech": Case("speech-recognition", "ctc", spoken, write=speech, pipeline="automatic-speech-recognition"),
    "decoded speech": Case(
        "speech-recognition",
        "whisper",
        spoken,
        ("--language", "en", "--max-new-tokens", "4", "--max-seconds", "2"),
        write=speech,
        pipeline="automatic-speech-recognition",
    ),
}


def write_rows(path: Path, row: Callable[[int], Any], numbers: Sequence[int]) -> Path:
    path = path.with_suffix(".jsonl")
    path.write_text("".join(json.dumps(row(i)) + "\n" for i in numbers))
    return path


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    made: dict[str, str] = {}

    def find(kind: str) -> str:
        if kind not in made:
            path = tmp_path_factory.mktemp(kind)
            if kind in ("vit", "wav2vec2"):
                made[kind] = getattr(tiny_media, kind)(path)
            elif kind in ("ctc", "whisper"):
                made[kind] = getattr(tiny_speech, kind)(path)
            else:
                made[kind] = str(
                    tiny_checkpoints.save("llama" if kind == "chats" else kind, path, chats=kind == "chats")
                )
        return made[kind]

    return find


def outputs(saved: SavedRun, model: Any, rows: datasets.Dataset, columns: Any) -> list[torch.Tensor]:
    """The outputs of a model for a batch of rows."""
    features = saved.task.features(saved.base, rows, columns, training=False)
    batch = saved.task.collate(saved.base, features, range(min(4, len(features))), training=False)
    with torch.no_grad():
        results = model(**batch.inputs)
    return [value for name, value in results.items() if name.endswith("logits")]


def trained(model: str, rows: Path, run: Path, *flags: Any) -> dict[str, Any]:
    done = invoke("train", "--model", model, "--data", rows, "--output", run, "--json", *QUICK, *flags)
    assert done.code == 0, done.err
    return json.loads(done.out)


@pytest.mark.parametrize("name", CASES)
def test_a_task_goes_the_whole_way(name: str, model: Callable[[str], str], tmp_path: Path) -> None:
    case = CASES[name]
    write = case.write or write_rows
    rows, others = (
        write(tmp_path / label, case.row, n) for label, n in (("rows", range(24)), ("others", range(30, 36)))
    )
    run, flags = tmp_path / "run", () if case.inferred else ("--task", case.task)
    done = invoke(
        "train", "--model", model(case.model), "--data", rows, "--output", run, "--json", *QUICK, *flags, *case.flags
    )
    assert done.code == 0, done.err
    results = json.loads(done.out)
    # The file does not tell where on this machine the run lies.
    written = json.loads((run / "results.json").read_text())
    assert (written.pop("output"), written.pop("next")[0]) == ("run", "capaft eval run")
    assert {name: value for name, value in results.items() if name in written} == written
    assert results["task"] == case.task
    assert ("inferred from the data and the model" in done.err) == case.inferred

    again = invoke("train", "--config", run / "run.yaml", "--output", tmp_path / "again")
    assert again.code == 0, again.err
    for file in ("adapter.safetensors", "last.safetensors"):
        assert (tmp_path / "again" / file).read_bytes() == (run / file).read_bytes()

    scored = json.loads(invoke("eval", run, "--json", "--predictions", tmp_path / "own.jsonl").out or "null")
    if case.reports:
        assert (tmp_path / "own.jsonl").read_bytes() == (run / "predictions.jsonl").read_bytes()
    else:
        assert scored is None
        assert not (run / "predictions.jsonl").exists()
        scored = json.loads(invoke("eval", run, "--json").out)
    assert (scored["metric"], scored["value"]) == (results["metric"], results["value"])
    assert scored["scores"] == results["scores"]

    alone = tmp_path / "adapter.safetensors"
    alone.write_bytes((run / "adapter.safetensors").read_bytes())
    named = [word for flag in ("--label-column",) if flag in case.flags for word in (flag, *case.flags[1:2])]
    elsewhere = invoke("eval", alone, "--model", model(case.model), "--data", others, "--json", *named)
    assert elsewhere.code == 0, elsewhere.err
    assert json.loads(elsewhere.out)["scores"].keys() == results["scores"].keys()
    if named:
        # A run keeps the named columns, so they need not be named again.
        assert invoke("eval", run, "--data", others, "--json").out == elsewhere.out

    merged = invoke("merge", run, "--output", tmp_path / "merged", "--json")
    assert merged.code == 0, merged.err
    saved = open_run(str(run))
    plain = (
        getattr(transformers, saved.task.auto_class_for(saved.base.model.config))
        .from_pretrained(tmp_path / "merged")
        .eval()
    )
    getattr(transformers, saved.task.processor).from_pretrained(tmp_path / "merged")
    unseen = load_evaluation(str(others))
    columns = saved.task.recognise(unseen, {"label": named[1]} if named else {})
    expected, logits = (outputs(saved, m, unseen, columns) for m in (saved.model, plain))
    assert expected
    for reference, value in zip(expected, logits, strict=True):
        torch.testing.assert_close(value, reference, atol=1e-4, rtol=1e-4)

    card = (run / "README.md").read_text()
    use = card.partition("```python\n")[2].partition("```")[0]
    for shown, path in ((saved.file.base.name, model(case.model)), ("run", run)):
        assert f'("{shown}")' in use or f', "{shown}")' in use
        use = use.replace(f'"{shown}"', repr(str(path)))
    scope: dict[str, Any] = {}
    exec(use, scope)
    for reference, value in zip(expected, outputs(saved, scope["model"].eval(), unseen, columns), strict=True):
        torch.testing.assert_close(value, reference, atol=1e-4, rtol=1e-4)
    assert (f"pipeline_tag: {case.pipeline or case.task}\n" in card) == (case.task != "multiple-choice")
    metric = results["score_names"].get(results["metric"], results["metric"])
    assert f"| {metric} on validation | {results['value']:.4f} " in card


# RoBERTa's head by hand: a dense layer of 64 x 64, then 2 outputs of 64, each with biases.
HEADS = {"full": 64 * 64 + 64 + 2 * 64 + 2, "nola": 64 + 64 + 64 + 2, "frozen": 0}


@pytest.mark.parametrize("head", HEADS)
def test_a_head_is_trained_as_wanted(head: str, model: Callable[[str], str], tmp_path: Path) -> None:
    rows, run = write_rows(tmp_path / "rows", CASES["single"].row, range(24)), tmp_path / "run"
    results = trained(model("roberta"), rows, run, "--head", head, "--head-k", "64", "--head-init", "seeded")
    assert results["head_parameters"] == HEADS[head]
    tensors = load_file(run / "adapter.safetensors")
    assert sum(tensor.numel() for tensor in tensors.values()) == results["adapter_parameters"] + HEADS[head]
    # Four bytes a parameter, and a header.
    size = (run / "adapter.safetensors").stat().st_size
    assert 4 * results["trainable_parameters"] < size < 4 * results["trainable_parameters"] + 2500
    scored = json.loads(invoke("eval", run, "--json").out)
    assert (scored["value"], scored["loss"]) == (results["value"], results["scores"]["loss"])
    assert invoke("merge", run, "--output", tmp_path / "merged").code == 0
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    saved, unseen = open_run(str(run)), load_evaluation(str(rows))
    columns = saved.task.recognise(unseen, {})
    (expected,), (logits,) = (outputs(saved, m, unseen, columns) for m in (saved.model, plain))
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    again = invoke("train", "--config", run / "run.yaml", "--output", tmp_path / "again")
    assert again.code == 0, again.err
    assert (tmp_path / "again" / "adapter.safetensors").read_bytes() == (run / "adapter.safetensors").read_bytes()


def test_examples_are_counted_and_shown(model: Callable[[str], str], tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows", CASES["single"].row, range(40))
    flags = ("--shots", "3", "--max-eval-examples", "2", "--show", "2")
    command = ("train", "--model", model("roberta"), "--data", rows, "--output", tmp_path / "run", *QUICK, *flags)
    done = invoke(*command, "--json")
    results = json.loads(done.out)
    assert (results["train_examples"], results["validation_examples"]) == (6, 2)
    shown = [line for line in done.err.splitlines() if line.startswith("example ")]
    assert [line.split(":")[0] for line in shown] == ["example 1", "example 2"]
    assert all(line.endswith((" -> red", " -> green")) for line in shown)
    # The same two again.
    scored = json.loads(invoke("eval", tmp_path / "run", "--json").out)
    assert (scored["value"], scored["examples"]) == (results["value"], 2)
    assert len((tmp_path / "run" / "predictions.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("kind", "flags", "message"),
    [
        ("roberta", ("--task", "question-answering"), "no column of a usual name holds questions"),
        ("roberta", ("--task", "token-classification"), "no column holds lists of words"),
        ("roberta", ("--task", "image-classification"), "none has a usual name or is of type Image"),
        ("roberta", ("--task", "audio-classification"), "none has a usual name or is of type Audio"),
        ("roberta", ("--task", "multiple-choice"), "cannot tell the columns of choices"),
        ("roberta", ("--task", "seq2seq"), "cannot tell source and target"),
        ("roberta", ("--task", "causal-lm"), "causal-lm needs a model that reads from left to right"),
        ("llama", ("--task", "masked-lm"), "transformers has no AutoModelForMaskedLM for its architecture"),
        ("llama", ("--task", "causal-lm", "--shots", "2"), "--shots cannot be used with this causal-lm"),
        (
            "roberta",
            ("--problem", "regression"),
            "--problem regression: column 'label' does not hold one number per row",
        ),
        ("roberta", ("--metric", "bleu"), "--metric must be one of accuracy, f1, matthews"),
        ("roberta", ("--task", "text-clasification"), "did you mean text-classification?"),
        ("roberta", ("--text-column", "txt"), "--text-column txt: there is no such column"),
    ],
)
def test_what_does_not_fit_is_one_line(
    kind: str, flags: tuple[str, ...], message: str, model: Callable[[str], str], tmp_path: Path
) -> None:
    rows = write_rows(tmp_path / "rows", CASES["single"].row, range(12))
    done = invoke("train", "--model", model(kind), "--data", rows, "--output", tmp_path / "run", *QUICK, *flags)
    assert done.code == 2
    (line,) = (line for line in done.err.splitlines() if line.startswith("error: "))
    assert message in line
    assert done.err.endswith(f"{line}\n")
    assert not (tmp_path / "run").exists()
