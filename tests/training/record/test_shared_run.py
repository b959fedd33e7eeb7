"""A run directory in other hands: what it tells of the machine that made it, and what it can make another one do."""

from __future__ import annotations

import json
import os
import pickle
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from command_line import invoke, write_reviews
from tiny_job import bert
from transformers import BertForSequenceClassification

import capaft
from capaft.training.record.saved_run import open_run

QUICK = ("--method", "lora", "--rank", "1", "--max-steps", "2", "--batch-size", "8", "--max-length", "16")
PRIVATE = {"local.json", ".gitignore", "checkpoints", "predictions.jsonl"}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with a model, data, a run on both by relative paths, and one by absolute paths, from elsewhere."""
    path = tmp_path_factory.mktemp("alice") / "project"
    (path / "data").mkdir(parents=True)
    (path / "elsewhere").mkdir()
    bert(path / "models" / "small", BertForSequenceClassification)
    write_reviews(path / "data" / "reviews.csv")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        relative = ("--model", "models/small", "--data", "data/reviews.csv", "--output", "runs/one")
        assert invoke("train", *relative, *QUICK).code == 0
        patch.chdir(path / "elsewhere")
        absolute = (
            "--model",
            path / "models/small",
            "--data",
            path / "data/reviews.csv",
            "--output",
            path / "runs/two",
        )
        assert invoke("train", *absolute, *QUICK).code == 0
        yield path


def copied(project: Path, to: Path, name: str = "one") -> Path:
    """The run as another person gets it."""
    ignored = shutil.ignore_patterns(*(project / "runs" / name / ".gitignore").read_text().replace("/", "").split())
    return Path(shutil.copytree(project / "runs" / name, to / "run", ignore=ignored))


def value(*command: object) -> float:
    done = invoke("eval", *command, "--json")
    assert done.code == 0, done.err
    return json.loads(done.out)["value"]


@pytest.mark.parametrize("name", ["one", "two"])
def test_what_is_shared_names_no_directory_of_this_machine(project: Path, name: str) -> None:
    run = project / "runs" / name
    shared = {path.name for path in run.iterdir()} - PRIVATE
    assert shared >= {"adapter.safetensors", "run.yaml", "README.md", "results.json", "metrics.jsonl", "loss.png"}
    for part in (project, project.parent, os.path.expanduser("~"), "project"):
        assert not [file for file in shared if str(part).encode() in (run / file).read_bytes()]
    expected = ("./models/small", "data/reviews.csv") if name == "one" else ("./small", "reviews.csv")
    results = json.loads((run / "results.json").read_text())
    assert (results["model"], results["data"]) == expected
    assert capaft.read(run).base.name == expected[0]
    assert set((run / ".gitignore").read_text().split()) >= {"local.json", "checkpoints/", "predictions.jsonl"}


def test_paths_resolve_where_the_run_began(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = json.loads((project / "runs/one/results.json").read_text())["value"]
    monkeypatch.chdir(tmp_path)
    # A file of the same name here is not the run's.
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "reviews.csv").write_text("text,label\na,good\nb,bad\n")
    for name in ("one", "two"):
        assert value(project / "runs" / name) == expected
    # All of it may be moved at once.
    moved = Path(shutil.copytree(project, tmp_path / "moved"))
    saved = open_run(str(moved / "runs/one"))
    assert saved.settings.model == str(moved / "models/small")
    again = invoke("train", "--config", project / "runs/one/run.yaml", "--output", tmp_path / "again")
    assert again.code == 0, again.err
    files = [(run / "adapter.safetensors").read_bytes() for run in (project / "runs/one", tmp_path / "again")]
    assert files[0] == files[1]


def test_without_its_paths_a_run_says_what_to_name(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = copied(project, tmp_path, "two")
    done = invoke("eval", run)
    assert (done.code, done.err) == (
        2,
        f"error: {run}/run.yaml names the base model ./small, which is not here; pass --model\n",
    )
    done = invoke("eval", run, "--model", project / "models/small")
    assert done.code == 2
    assert done.err.endswith("error: 'reviews.csv': no such file or directory; give an existing one with --data\n")
    value(run, "--model", project / "models/small", "--data", project / "data/reviews.csv")
    monkeypatch.chdir(project)
    value(copied(project, tmp_path / "again"))


def test_a_damaged_file_of_paths_is_one_line(project: Path, tmp_path: Path) -> None:
    run = copied(project, tmp_path)
    for text in ("[", '{"model": 3}', '{"model": {"a": 1}}', "3", "[" * 10**5):
        (run / "local.json").write_text(text)
        done = invoke("eval", run)
        assert done.code == 2
        assert done.err == f"error: {run}/local.json is damaged; remove it, and pass --model and --data\n"


def test_a_run_is_resumed_without_its_paths(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = Path(shutil.copytree(project / "runs/two", tmp_path / "run"))
    (run / "local.json").unlink()
    (run / "results.json").unlink()
    named = ("--model", project / "models/small", "--data", project / "data/reviews.csv")
    done = invoke("train", "--resume", "--output", run, *named)
    assert done.code == 0, done.err
    assert (run / "last.safetensors").read_bytes() == (project / "runs/two/last.safetensors").read_bytes()
    assert (run / "local.json").exists()
    shutil.copytree(project / "models/small", tmp_path / "other")
    done = invoke("train", "--resume", "--output", run, "--model", tmp_path / "other", *named[2:])
    assert done.code == 2
    assert f"was started with --model {project}/models/small, not {tmp_path}/other" in done.err


def test_saving_in_python_names_no_home(project: Path, tmp_path: Path) -> None:
    model = BertForSequenceClassification.from_pretrained(project / "models/small")
    capaft.attach(model, "lora", rank=1)
    capaft.save(model, tmp_path / "a.safetensors")
    assert capaft.read(tmp_path / "a.safetensors").base.name == "./small"


def test_the_paths_are_those_of_a_run_alone(project: Path, tmp_path: Path) -> None:
    # Another program's file of that name beside the user's own settings.
    (tmp_path / "local.json").write_text("[]")
    (tmp_path / "mine.yaml").write_text("rank: 2\n")
    assert invoke("train", "--config", tmp_path / "mine.yaml", "--print-config").code == 0


def test_a_run_of_the_old_form_opens(project: Path, tmp_path: Path) -> None:
    run = copied(project, tmp_path)
    text = (run / "run.yaml").read_text().split("\n", 1)[1]
    text = re.sub(r"(?m)^model: .*", f"trust_remote_code: false\nmodel: {project}/models/small", text)
    text = re.sub(r"(?m)^data: .*", f"data: {project}/data/reviews.csv", text)
    (run / "run.yaml").write_text(f'# capaft ["train", "--model", "{project}/models/small"]\n{text}')
    assert "trust" not in invoke("eval", run).err
    assert value(run) == value(project / "runs/one")


def code_of(card: Path) -> list[str]:
    return re.findall(r"```(?:python)?\n(.*?)\n```", card.read_text(), re.DOTALL)


def test_the_card_loads_and_repeats_the_run(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    use, repeat = code_of(project / "runs/one/README.md")
    scope: dict[str, object] = {}
    exec(use, scope)
    saved = open_run("runs/one")
    batch = scope["tokenizer"](["A superb film."], return_tensors="pt")  # type: ignore[operator]
    with torch.no_grad():
        expected = saved.model(**batch).logits
        assert torch.equal(scope["model"](**batch).logits, expected)  # type: ignore[operator]
    program, *arguments = shlex.split(repeat)
    assert program == "capaft"
    done = invoke(*arguments, "--output", tmp_path / "again")
    assert done.code == 0, done.err
    files = [(run / "adapter.safetensors").read_bytes() for run in (Path("runs/one"), tmp_path / "again")]
    assert files[0] == files[1]


def hostile(directory: Path, model: Path) -> Path:
    """A model that needs code of its own, which leaves a mark; beside it, pickled weights that would leave another."""
    shutil.copytree(model, directory)
    (directory / "evil.py").write_text(
        f"open({str(directory / 'marker')!r}, 'w')\n"
        "from transformers import BertConfig, BertForSequenceClassification\n"
        "class Config(BertConfig):\n    model_type = 'evil'\n"
        "class Model(BertForSequenceClassification):\n    config_class = Config\n"
    )
    settings = json.loads((directory / "config.json").read_text())
    classes = {"AutoConfig": "evil.Config", "AutoModelForSequenceClassification": "evil.Model"}
    (directory / "config.json").write_text(json.dumps(settings | {"model_type": "evil", "auto_map": classes}))
    return directory


@pytest.fixture
def stranger(project: Path, tmp_path: Path) -> Path:
    """A stranger's run, whose settings grant trust and name that model."""
    run = copied(project, tmp_path)
    model = hostile(tmp_path / "evil", project / "models/small")
    text = re.sub(r"(?m)^model: .*", f"trust_remote_code: true\nmodel: {model}", (run / "run.yaml").read_text())
    (run / "run.yaml").write_text(text)
    return run


@pytest.mark.parametrize("file", ["", "adapter.safetensors", "last.safetensors"])
@pytest.mark.parametrize("verb", ["eval", "merge", "inspect-rank", "train"])
def test_a_strangers_run_runs_no_code(verb: str, file: str, project: Path, stranger: Path, tmp_path: Path) -> None:
    output: tuple[object, ...] = () if verb not in ("merge", "train") else ("--output", tmp_path / "out")
    named = ("--config", stranger / "run.yaml") if verb == "train" else (stranger / file,)
    if verb == "train" and file == "last.safetensors":
        output, named = ("--output", stranger), ("--resume",)
        (stranger / "results.json").unlink()
    data = ("--data", project / "data/reviews.csv") if verb in ("eval", "train") else ()
    done = invoke(verb, *named, *output, *data)
    assert done.code == 2
    lines = done.err.splitlines()
    assert re.fullmatch(r".*run\.yaml:\d+: trust_remote_code is ignored; set --trust-remote-code yourself.*", lines[0])
    named_line = f"loading the base model {tmp_path / 'evil'} that run.yaml names"
    assert named_line in lines
    assert lines.index(named_line) < len(lines) - 1
    assert "needs Python code of its own" in lines[-1]
    assert "set --trust-remote-code yourself" in lines[-1]
    assert not (tmp_path / "evil" / "marker").exists()


def test_trust_is_the_flag_of_this_command(stranger: Path, tmp_path: Path) -> None:
    invoke("inspect-rank", stranger, "--trust-remote-code")
    assert (tmp_path / "evil" / "marker").exists()


def test_a_claim_of_trust_that_is_not_needed_is_ignored(project: Path, tmp_path: Path) -> None:
    run = copied(project, tmp_path)
    (run / "run.yaml").write_text((run / "run.yaml").read_text() + "\ntrust_remote_code: yes\n")
    done = invoke("inspect-rank", run, "--model", project / "models/small")
    assert done.code == 0
    assert done.err.count("trust_remote_code is ignored") == 1


def test_pickled_weights_run_no_code(project: Path, stranger: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'marker'}",)

    model = tmp_path / "pickled"
    shutil.copytree(project / "models/small", model)
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Bomb()}))
    with suppress(pickle.UnpicklingError):
        assert invoke("inspect-rank", stranger, "--model", model, "--trust-remote-code").code == 2
    assert not (tmp_path / "marker").exists()


def test_two_base_models_are_both_named(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = copied(project, tmp_path)
    text = re.sub(r"(?m)^model: .*", f"model: {project}/models/small", (run / "run.yaml").read_text())
    (run / "run.yaml").write_text(text)
    done = invoke("inspect-rank", run)
    assert done.code == 0
    assert done.err.splitlines()[:-1] == [
        f"warning: {run}/run.yaml names the base model {project}/models/small, and {run}/adapter.safetensors "
        "./models/small",
        f"loading the base model {project}/models/small that run.yaml names",
    ]


def test_data_and_hub_ids_that_files_name_are_said(project: Path, tmp_path: Path) -> None:
    run = copied(project, tmp_path)
    text = re.sub(r"(?m)^data: .*", f"data: {project}/data/reviews.csv", (run / "run.yaml").read_text())
    (run / "run.yaml").write_text(text)
    done = invoke("eval", run, "--model", project / "models/small")
    assert f"data   reading the data {project}/data/reviews.csv that run.yaml names" in done.err.splitlines()
    (run / "run.yaml").write_text(re.sub(r"(?m)^model: .*", "model: nobody/evil", text))
    done = invoke("inspect-rank", run)
    assert done.code == 2
    assert "loading the base model nobody/evil that run.yaml names from the Hugging Face hub" in done.err.splitlines()


def test_a_file_replaces_no_run(project: Path, tmp_path: Path) -> None:
    mine, stranger = copied(project, tmp_path), copied(project, tmp_path / "other")
    before = (mine / "README.md").read_bytes()
    text = (stranger / "run.yaml").read_text().replace("output: null", f"output: {mine}")
    (stranger / "run.yaml").write_text(text.replace("overwrite: false", "overwrite: true"))
    done = invoke("train", "--config", stranger / "run.yaml", "--model", project / "models/small")
    assert done.code == 2
    assert "overwrite is ignored; set --overwrite yourself to replace a run" in done.err
    assert (mine / "README.md").read_bytes() == before


@pytest.mark.parametrize("part", ["checkpoints", "trackers"])
def test_a_run_that_leads_elsewhere_is_not_written_to(part: str, project: Path, tmp_path: Path) -> None:
    run = copied(project, tmp_path)
    other = tmp_path / "other"
    (other / "step-000000001").mkdir(parents=True)
    (run / part).symlink_to(other)
    for flag in ("--resume", "--overwrite"):
        places = ("--model", project / "models/small", "--data", project / "data/reviews.csv")
        done = invoke("train", flag, "--output", run, *places, *QUICK)
        assert done.code == 2
        assert f"{run / part} is a link to {other}; remove it" in done.err
    assert [path.name for path in other.iterdir()] == ["step-000000001"]


def test_a_directory_with_one_adapter_file_is_a_run(project: Path, tmp_path: Path) -> None:
    model = ("--model", project / "models/small")
    for name in ("adapter.safetensors", "mine.safetensors"):
        directory = tmp_path / name
        directory.mkdir()
        shutil.copy(project / "runs/one/adapter.safetensors", directory / name)
        assert invoke("info", directory).code == 0
        assert invoke("inspect-rank", directory, *model).code == 0
        value(directory, *model, "--data", project / "data/reviews.csv")
        assert invoke("merge", directory, *model, "--output", directory / "merged").code == 0
        done = invoke("eval", directory)
        assert (
            done.err
            == (f"error: {directory / name} names the base model ./models/small, which is not here; pass --model\n")
            or Path("models/small").exists()
        )
        loaded = BertForSequenceClassification.from_pretrained(project / "models/small")
        assert capaft.load(loaded, directory).plan.stack.method == "lora"
    shutil.copy(project / "runs/one/adapter.safetensors", directory / "other.safetensors")
    for command in ("info", "eval", "inspect-rank"):
        done = invoke(command, directory)
        assert done.code == 2
        assert done.err == f"error: {directory} holds 2 adapter files (mine.safetensors, other.safetensors); name one\n"
    with pytest.raises(capaft.UsageError, match="holds 2 adapter files"):
        capaft.read(directory)
    with pytest.raises(capaft.UsageError, match=r"holds no adapter\.safetensors or other adapter file"):
        capaft.load(loaded, project / "models/small")


def test_a_merged_model_names_no_directory_of_this_machine(project: Path, tmp_path: Path) -> None:
    assert invoke("merge", project / "runs/two", "--output", tmp_path / "merged").code == 0
    texts = {path.name: path.read_bytes() for path in (tmp_path / "merged").iterdir()}
    assert "base_model" not in texts["README.md"].decode()
    assert not [name for name, text in texts.items() if str(project).encode() in text]
