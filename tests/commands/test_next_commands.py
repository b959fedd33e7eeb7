"""The commands that each verb suggests at its end do what they say when they are pasted."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from command_line import invoke

from capaft.config.open_options import OpenOptions
from capaft.methods.stack import Stack
from capaft.tasks.causal_lm import CausalLM
from capaft.tasks.text_classification import TextClassification
from capaft.training.record.next_commands import (
    command_to_merge,
    command_to_score,
    command_to_try,
    commands_after_training,
)


def suggested(done: SimpleNamespace) -> str:
    """The command at the end of what a verb says on stderr."""
    assert done.code == 0, done.err
    return done.err.splitlines()[-1].removeprefix("next: ")


def pasted(command: str) -> SimpleNamespace:
    """The command, run as a shell would split it."""
    program, *arguments = shlex.split(command)
    if program == "python":
        exec(arguments[1], {})
        return SimpleNamespace(code=0, err="")
    done = invoke(*arguments)
    assert done.code == 0, done.err
    return done


def test_the_way_from_info_to_a_plain_model(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run, "it's mine; $HOME")
    evaluation = suggested(invoke("info", "it's mine; $HOME"))
    assert shlex.split(evaluation) == ["capaft", "eval", "it's mine; $HOME"]
    merge = suggested(pasted(evaluation))
    assert shlex.split(merge)[3:] == ["--output", "it's mine; $HOME/merged"]
    load = suggested(pasted(merge))
    assert load.startswith("python -c ")
    pasted(load)
    # Nothing is listed without a value.
    assert "options   problem single\n" in invoke("info", run).out


def test_the_way_from_ranks_to_a_picture(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    drawing = suggested(invoke("inspect-rank", run))
    assert drawing.endswith("--plot rank.png")
    merge = suggested(pasted(drawing))
    assert Path("rank.png").exists()
    pasted(merge)


def test_a_file_alone_is_merged_next(run: Path, tmp_path: Path) -> None:
    alone = shutil.copy(run / "adapter.safetensors", tmp_path / "a.safetensors")
    assert suggested(invoke("info", alone)) == f"capaft merge {alone} --output merged"


def test_lists_lead_to_a_run() -> None:
    assert suggested(invoke("methods")) == "capaft train --method capaboost --dry-run"
    assert pasted(suggested(invoke("presets"))).out.count("\nmodel: roberta-base\n") == 1
    assert suggested(invoke("env")) == "capaft train"


@pytest.mark.parametrize("verb", [("info",), ("methods",), ("presets",), ("env",), ("eval",), ("inspect-rank",)])
def test_json_comes_alone(verb: tuple[str, ...], run: Path) -> None:
    arguments = (*verb, run) if verb[0] in ("info", "eval", "inspect-rank") else verb
    done = invoke(*arguments, "--json")
    assert done.code == 0
    assert "next:" not in done.out + done.err


def test_the_base_that_was_named_is_named_again() -> None:
    options = OpenOptions(model="my model", rename=("a=b", "c=d"), allow_base_mismatch=True, base_dtype="bfloat16")
    command = command_to_score("-run", options)
    flags = "--model 'my model' --rename a=b --rename c=d --allow-base-mismatch --base-dtype bfloat16"
    assert command == f"capaft eval ./-run {flags}"


def test_a_language_model_is_given_a_prompt_and_others_a_text() -> None:
    assert command_to_try("r", CausalLM()) == "capaft generate r 'your prompt'"
    assert command_to_try("r", TextClassification()) == "capaft predict r --text 'your text'"


def test_only_what_a_method_can_do_comes_next() -> None:
    nola, prefix, ia3 = (Stack.parse(method) for method in ("nola", "prefix", "ia3"))
    verbs = [
        [line.split()[1] for line in commands_after_training("r", s, quantised=False)] for s in (nola, prefix, ia3)
    ]
    assert verbs == [["eval", "merge", "inspect-rank"], ["eval"], ["eval", "merge"]]
    assert command_to_merge("r", "m", nola, quantised=True) == "capaft merge r --output m --quantised dequantise"
