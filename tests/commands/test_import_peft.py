"""`capaft import`, and a PEFT directory in the place of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command_line import invoke

pytest.importorskip("peft")

from peft import PeftModel
from tiny_job import bert
from tiny_peft import edit_config, save_peft
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
)

import capaft
from capaft.config.open_options import OpenOptions
from capaft.training.record.saved_run import open_run

OPTIONS = {"task_type": "SEQ_CLS", "r": 4, "target_modules": ["query", "value"]}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert(tmp_path_factory.mktemp("base"), BertForSequenceClassification)


@pytest.fixture
def peft(base: Path, tmp_path: Path) -> Path:
    """A PEFT adapter of three labels on that base."""
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3, ignore_mismatched_sizes=True)
    tokenizer = AutoTokenizer.from_pretrained(base)
    save_peft(model, tmp_path / "peft", dict(tokenizer("A film.", return_tensors="pt")), **OPTIONS)
    return tmp_path / "peft"


def _logits_of_peft(base: Path, peft: Path) -> torch.Tensor:
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3, ignore_mismatched_sizes=True)
    with torch.no_grad():
        return PeftModel.from_pretrained(model.eval(), peft)(**_batch(base)).logits


def _batch(base: Path) -> dict[str, torch.Tensor]:
    return dict(AutoTokenizer.from_pretrained(base)(["A superb film.", "Dull."], padding=True, return_tensors="pt"))


def test_import_writes_an_adapter_file_with_task_and_labels(base: Path, peft: Path, tmp_path: Path) -> None:
    output = tmp_path / "adapter.safetensors"
    done = invoke("import", peft, "--output", output, "--labels", "bad,fair,good", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out) == {
        "output": str(output),
        "bytes": output.stat().st_size,
        "method": "lora",
        "sites": 4,
        "task": "text-classification",
        "labels": ["bad", "fair", "good"],
    }
    line = f"{peft} is a PEFT adapter: task text-classification, since its task_type is SEQ_CLS, with the labels bad, "
    assert line in done.err
    saved = open_run(str(output), OpenOptions(model=str(base)))
    assert saved.model.config.id2label == {0: "bad", 1: "fair", 2: "good"}
    with torch.no_grad():
        logits = saved.model(**_batch(base)).logits
    torch.testing.assert_close(logits, _logits_of_peft(base, peft), atol=1e-6, rtol=0)
    again = invoke("import", peft, "--output", output)
    assert (again.code, "exists; name another file, or replace it with --overwrite" in again.err) == (2, True)
    assert invoke("import", peft, "--output", output, "--overwrite").code == 0
    assert capaft.read(output).header.task.labels == ("LABEL_0", "LABEL_1", "LABEL_2")  # type: ignore[union-attr]


def test_a_peft_directory_is_a_run(base: Path, peft: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,label\nA film.,good\nDull.,bad\nA book.,fair\n")
    scores = invoke("eval", peft, "--data", tmp_path / "rows.csv", "--labels", "bad,fair,good", "--json")
    assert scores.code == 0, scores.err
    assert json.loads(scores.out)["examples"] == 3
    ranks = invoke("inspect-rank", peft, "--json")
    assert [site["numerical_rank"] for site in json.loads(ranks.out)["sites"]] == [4] * 4
    merged = invoke("merge", peft, "--output", tmp_path / "merged")
    assert merged.code == 0, merged.err
    assert "with the labels LABEL_0, LABEL_1, LABEL_2 (PEFT keeps no names; --labels gives some)" in merged.err
    with torch.no_grad():
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
        torch.testing.assert_close(model(**_batch(base)).logits, _logits_of_peft(base, peft), atol=1e-6, rtol=0)


def test_info_describes_a_peft_directory(base: Path, peft: Path) -> None:
    done = invoke("info", peft)
    assert done.code == 0, done.err
    assert done.out.splitlines()[1:4] == ["method    lora (rank 4, alpha 8)", f"base      {base}", "layers    4"]
    record = json.loads(invoke("info", peft, "--json").out)
    assert (record["format"], record["copies"]) == ("peft", ["classifier.bias", "classifier.weight"])


def test_labels_and_problem_come_from_the_base(base: Path, peft: Path, tmp_path: Path) -> None:
    named = bert(tmp_path / "named", BertForSequenceClassification)
    settings = json.loads((named / "config.json").read_text())
    labels = {"id2label": {"0": "x", "1": "y", "2": "z"}, "label2id": {"x": 0, "y": 1, "z": 2}}
    (named / "config.json").write_text(json.dumps(settings | labels | {"problem_type": "multi_label_classification"}))
    said: list[str] = []
    edit_config(peft, base_model_name_or_path=str(named))
    saved = open_run(str(peft), None, said.append)
    assert (saved.task.labels, saved.task.options()["problem"]) == (("x", "y", "z"), "multi")
    assert any("any number of the labels x, y, z (those of the base's config.json)" in line for line in said)


@pytest.mark.parametrize(
    ("changes", "flags", "message"),
    [
        ({}, ("--labels", "a,b"), "--labels names 2 labels, and the head has 3 outputs"),
        ({}, ("--task", "causal-lm", "--labels", "a,b,c"), "--labels: causal-lm has none"),
        ({"base_model_name_or_path": None}, (), "does not name its base model; pass --model"),
        ({"base_model_name_or_path": "/no/such/base"}, (), "names the base model /no/such/base, which is not here"),
        ({"task_type": "QUESTION_ANS"}, (), "holds no head, and"),
        ({"peft_type": "IA3"}, (), "its method is IA3"),
    ],
)
def test_what_cannot_be_imported_is_one_line(
    changes: dict[str, str], flags: tuple[str, ...], message: str, peft: Path, tmp_path: Path
) -> None:
    edit_config(peft, **changes)
    done = invoke("import", peft, "--output", tmp_path / "a.safetensors", *flags)
    assert (done.code, done.out) == (2, "")
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.err
    assert message in errors[0]
    assert not (tmp_path / "a.safetensors").exists()


def test_other_places_are_refused(run: Path, peft: Path, tmp_path: Path) -> None:
    for where, message in (
        (run, "is no directory of a PEFT adapter, with adapter_config.json and no adapter.safetensors"),
        (peft / "adapter_model.safetensors", "is no directory of a PEFT adapter"),
        (tmp_path / "nothing", "there is no run or adapter file"),
        (tmp_path, "holds no adapter"),
    ):
        done = invoke("import", where, "--output", tmp_path / "a.safetensors")
        assert (done.code, message in done.err) == (2, True), done.err
    done = invoke("import", peft, "--output", tmp_path / "a.bin")
    assert (done.code, "must end in .safetensors" in done.err) == (2, True)
    done = invoke("eval", run, "--labels", "a,b")
    assert (done.code, "--labels names those of a PEFT adapter" in done.err) == (2, True)


def test_a_task_that_nothing_tells_is_asked_for(base: Path, peft: Path, tmp_path: Path) -> None:
    headless = bert(tmp_path / "headless", BertModel)
    edit_config(peft, base_model_name_or_path=str(headless), task_type="FEATURE_EXTRACTION")
    done = invoke("import", peft, "--output", tmp_path / "a.safetensors")
    assert (done.code, "does not tell its task; name it with capaft import" in done.err) == (2, True)
    done = invoke("import", peft, "--output", tmp_path / "a.safetensors", "--task", "text-classification")
    assert done.code == 0, done.err


def test_an_adapter_without_a_head_needs_a_base_with_one(peft: Path, tmp_path: Path) -> None:
    from tiny_peft import edit_tensors

    edit_tensors(peft, "classifier.weight", None)
    edit_tensors(peft, "classifier.bias", None)
    masked = bert(tmp_path / "masked", BertForMaskedLM)
    edit_config(peft, base_model_name_or_path=str(masked))
    done = invoke("merge", peft, "--output", tmp_path / "merged")
    assert (done.code, "holds no head, and" in done.err) == (2, True)
