"""Bad input: one line that says what to do, exit code 2, and nothing lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import QUICK, invoke, write_reviews


def refused(*arguments: Any, code: int = 2) -> str:
    """The one line of a refused command."""
    done = invoke(*arguments)
    assert done.code == code, done.out + done.err
    assert done.out == ""
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.err
    assert "Traceback" not in done.err
    return errors[0]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--method", "nolla"), "did you mean nola"),
        (("--method", "nola+lora"), "does not compose"),
        (("--k", "0"), "--k"),
        (("--rank", "0"), "--rank"),
        (("--density", "0"), "--density"),
        (("--density", "1.5"), "--density"),
        (("--copies", "0"), "--copies"),
        (("--target-modules", "nowhere"), "linear layers are named"),
        (("--target-modules", "re:("), "not a regular expression"),
        (("--rank", "100000"), "--rank 100000 exceeds the smaller side of encoder.layer.0"),
        (("--metric", "bleu"), "--metric"),
        (("--budget", "3"), "--budget 3 is below"),
        (("--basis", "group", "--k", "3073"), "use --k 3072 or less"),
        (
            ("--method", "ia3+capaboost"),
            "ia3 has no hidden axis for capaboost to widen: it rescales outputs one by one",
        ),
        (
            ("--method", "bitfit+nola+capaboost"),
            "bitfit has no hidden axis for capaboost to widen: a bias is added once",
        ),
        (("--method", "lora+houlsby"), "does not compose"),
        (("--method", "ia3", "--budget", "50"), "--budget cannot be used with --method ia3, which has one size only"),
        (("--method", "houlsby", "--budget", "100"), "--budget 100 is below the"),
        (("--method", "houlsby", "--target-modules", "query"), "matches none of the places of the method"),
        (("--method", "houlsby", "--activation", "sine"), "--activation must be one of relu"),
        (("--method", "houlsby", "--dropout", "0.1"), "--dropout cannot be used with houlsby"),
        (("--method", "prefix", "--prefix-length", "0"), "--prefix-length must be at least 1"),
        (("--rank-pattern", "query"), "--rank-pattern query is not NAME=RANK"),
        (("--target-modules", "classifier"), "matches the output head of BertForSequenceClassification"),
        (("--target-modules", "experts"), "has no experts that can be reached"),
        (("--exclude-modules", "re:("), "--exclude-modules re:( is not a regular expression"),
        (("--exclude-modules", "query,value"), "leave none of the layers to adapt"),
        (("--layers", "0-99"), "--layers 0-99: the model has no block 6; the last one is 5"),
        (("--layers", "one"), "--layers one is not a list of block numbers"),
        (("--modules-to-save", "nothing"), "the model has no module of that name"),
        (("--modules-to-save", "query"), "is both adapted and trained directly"),
        (("--method-option", "gain=4"), "nola has no option gain"),
    ],
)
def test_methods(flags: tuple[str, ...], says: str, reviews: Path, tmp_path: Path) -> None:
    assert says in refused("train", "--data", reviews, *flags)
    assert list(tmp_path.iterdir()) == []


def test_all_errors_at_once() -> None:
    done = invoke("train", "--rank", "0", "--density", "2", "--lr", "fast")
    assert done.code == 2
    assert sum(line.startswith("error: ") for line in done.err.splitlines()) == 3


def test_unknown_model_path() -> None:
    assert "no such directory" in refused("train", "--model", "./nowhere")


def test_no_network_is_one_line_and_prompt() -> None:
    code = "from capaft.commands.app import app; app(['train', '--model', 'roberta-base'])"
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    # An endpoint where nothing listens stands for a machine without network.
    environment["HF_ENDPOINT"] = "http://127.0.0.1:9"
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert "cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr
    assert time.perf_counter() - started < 60


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("text,stars\nfine,5\nbad,1\n", "label"),
        ("", "empty"),
        ("text,label\n", "row"),
        ("text,label\na nice one,x\nanother one,x\nmore of it,x\n", "class"),
    ],
)
def test_data(content: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "data.csv"
    file.write_text(content)
    flags = ("--label-column", "label") if "stars" in content else ()
    assert says in refused("train", "--data", file, *flags)


def test_labels_in_validation_that_training_lacks(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\n" + "good thing,a\nbad thing,b\n" * 4)
    (tmp_path / "validation.csv").write_text("text,label\nodd thing,c\n")
    assert "'c'" in refused("train", "--data", tmp_path)


def test_an_output_directory_that_holds_something_else(run: Path, reviews: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    assert "something else" in refused("train", "--data", reviews, "--output", other)
    assert "something else" in refused("train", "--data", reviews, "--output", other, "--overwrite")
    assert "something else" in refused("merge", run, "--output", other)
    assert (other / "thesis.tex").read_text() == "years of work"
    assert "--overwrite" in refused("train", "--data", reviews, "--output", run)


def test_damaged_adapters(run: Path, tmp_path: Path) -> None:
    whole = (run / "adapter.safetensors").read_bytes()
    file = tmp_path / "adapter.safetensors"
    file.write_bytes(whole[: len(whole) // 2])
    assert "truncated" in refused("eval", file, "--data", "x.csv")
    flipped = bytearray(whole)
    flipped[-7] ^= 4
    file.write_bytes(flipped)
    assert "damaged" in refused("merge", file, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert "no run or adapter file" in refused("eval", "nothing-here")


def added(directory: Path, *tokens: str) -> Path:
    """A checkpoint whose tokenizer was given tokens, and whose embedding was not."""
    from tiny_checkpoints import encoder_tokenizer, save

    save("roberta", directory)
    tokenizer = encoder_tokenizer()
    tokenizer.add_tokens(list(tokens))
    tokenizer.save_pretrained(directory)
    return directory


def test_a_tokenizer_larger_than_the_embedding(reviews: Path, tmp_path: Path) -> None:
    quick = ("--max-steps", "2", "--batch-size", "8", "--k", "8", "--rank", "2", "--max-length", "48", "--no-baseline")
    command = ("train", "--data", reviews, *quick, "--output", tmp_path / "run", "--model")
    says = refused(*command, added(tmp_path / "base", " superb"))
    assert "the tokenizer has 264 tokens, and the model embeddings for 263: there is none for token 263" in says
    assert "--resize-embeddings" in says
    assert not (tmp_path / "run").exists()
    # Tokens that the data do not have are no trouble.
    assert invoke(*command, added(tmp_path / "other", "xyzzy"), "--dry-run").code == 0

    done = invoke(*command, tmp_path / "base", "--resize-embeddings", "--json")
    assert done.code == 0, done.err
    trained = json.loads(done.out)["value"], json.loads(done.out)["scores"]["loss"]
    again = json.loads(invoke("eval", tmp_path / "run", "--json").out)
    assert (again["value"], again["loss"]) == pytest.approx(trained)
    alone = tmp_path / "adapter.safetensors"
    alone.write_bytes((tmp_path / "run" / "adapter.safetensors").read_bytes())
    assert "--resize-embeddings" in refused("eval", alone, "--data", reviews)
    assert invoke("eval", alone, "--data", reviews, "--resize-embeddings").code == 0

    assert invoke("merge", tmp_path / "run", "--output", tmp_path / "merged").code == 0
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["vocab_size"] == 264


def test_an_adapter_for_another_architecture(run: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    from capaft.model.demo import demo_model

    small = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    BertForSequenceClassification(small).save_pretrained(tmp_path / "small")
    AutoTokenizer.from_pretrained(demo_model()).save_pretrained(tmp_path / "small")
    assert "was trained on other sites than" in refused("eval", run, "--model", tmp_path / "small")


def test_other_weights_of_the_same_architecture(run: Path, tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    from capaft.model.demo import demo_model

    model = AutoModel.from_pretrained(demo_model())
    with torch.no_grad():
        for layer in model.encoder.layer:
            layer.attention.self.query.weight.mul_(1.5)
    model.save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(demo_model()).save_pretrained(tmp_path / "other")
    assert "--allow-base-mismatch" in refused("eval", run, "--model", tmp_path / "other")
    assert invoke("eval", run, "--model", tmp_path / "other", "--allow-base-mismatch").code == 0


def test_a_full_disk_keeps_what_was_there(reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from capaft.support import files

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    def command(output: str) -> tuple[Any, ...]:
        return ("train", "--data", reviews, "--output", tmp_path / output, *QUICK)

    assert invoke(*command("first")).code == 0
    before = (tmp_path / "first" / "adapter.safetensors").read_bytes()
    monkeypatch.setattr(files.os, "fsync", full)
    assert "No space left on device" in refused(*command("second"), code=1)
    assert (tmp_path / "first" / "adapter.safetensors").read_bytes() == before
    assert not list((tmp_path / "second").glob("*.safetensors"))
    again = invoke(*command("first"), "--overwrite")
    assert again.code == 1
    assert f"the earlier run in {tmp_path / 'first'} has been put back\n" in again.err
    assert (tmp_path / "first" / "adapter.safetensors").read_bytes() == before
    assert (tmp_path / "first" / "results.json").exists()


def test_nan_loss_stops_and_keeps_the_last_good_adapter(
    reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from capaft.tasks.labels import single_label

    real = torch.nn.functional.cross_entropy
    calls = {"training": 0}

    def poisoned(logits: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        calls["training"] += 1
        loss = real(logits, *args, **kwargs)
        return loss * float("nan") if calls["training"] > 12 else loss

    monkeypatch.setattr(single_label.F, "cross_entropy", poisoned)
    line = refused("train", "--data", reviews, "--output", tmp_path / "run", *QUICK, code=1)
    assert "at step 1" in line
    assert "--lr" in line
    assert invoke("info", tmp_path / "run").code == 0


def test_interrupt_saves_and_exits_130(tmp_path: Path) -> None:
    reviews = write_reviews(tmp_path / "reviews.csv")
    command = [sys.executable, "-m", "capaft", "train", "--data", str(reviews), "--output", str(tmp_path / "run")]
    process = subprocess.Popen(
        [*command, "--epochs", "500", "--no-baseline"], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == ""
    assert "stopped at step" in err
    assert json.loads(invoke("info", tmp_path / "run", "--json").out)["bytes"] > 0


@pytest.mark.parametrize("name", ["x" * 300, "loop"])
def test_paths_that_cannot_be(name: str, run: Path) -> None:
    Path("loop").symlink_to("loop")
    for command in (
        ("train", "--print-config", "--config", name),
        ("train", "--print-config", "--resume", "--output", name),
        ("methods", "--model", name),
        ("info", name),
        ("eval", run, "--predictions", name),
        ("inspect-rank", run, "--plot", name),
        ("merge", run, "--output", name),
    ):
        assert "choose another path" in refused(*command)
    assert [path.name for path in Path().iterdir()] == ["loop"]


def test_a_rename_that_matches_nothing(run: Path) -> None:
    assert "has no module quary; did you mean query?" in refused("eval", run, "--rename", "q=quary")
