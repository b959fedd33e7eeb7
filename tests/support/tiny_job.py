"""Whole runs on tiny models, a tenth of a second each, in this process or in forks of it."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from tiny import build
from transformers import AutoTokenizer, BertConfig, PreTrainedModel

from capaft.adapter.install import attach_plan
from capaft.config.train_config import TrainConfig
from capaft.model.demo import demo_model
from capaft.training import loop
from capaft.training.accelerator import accelerator_for
from capaft.training.parallel.processes import Processes
from capaft.training.record.run_directory import RunDirectory, clear_run
from capaft.training.run import execute_run
from capaft.training.setup.job import Job
from capaft.training.setup.prepare import prepare_job
from capaft.training.trainer import Trainer


def bert(directory: Path, kind: type[PreTrainedModel], dropout: float = 0.0) -> Path:
    """Save a BERT of two small layers with the embedded model's tokenizer.

    Args:
        directory: the directory to write.
        kind: the class of the model.
        dropout: dropout of the hidden states and of the attention.
    """
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    drops = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    build(kind, BertConfig(**shape, **drops, max_position_embeddings=64)).save_pretrained(directory)
    _tokenizer().save_pretrained(directory)
    return directory


@cache
def _tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(demo_model())


def write_tags(file: Path) -> Path:
    """Write 40 sentences of one to nine words, each word with a tag, so that parts of a batch are very uneven."""
    words = ["a", "film", "of", "great", "charm", "and", "little", "sense"]
    rows = [{"tokens": [words[(start + i) % 8] for i in range(1 + 7 * start % 9)], "tags": []} for start in range(40)]
    for row in rows:
        row["tags"] = ["long" if len(word) > 4 else "short" for word in row["tokens"]]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def config(model: Path, data: Path, **changes: Any) -> TrainConfig:
    """Settings of a short run; 58 training examples of the reviews make 8 batches, the last of 2."""
    small = {"epochs": 2, "batch_size": 8, "k": (16,), "rank": 2, "max_length": 16, "baseline": False, "warmup": 0.0}
    return TrainConfig(model=str(model), data=str(data), **{**small, **changes})


def trained(settings: TrainConfig, directory: Path) -> tuple[Job, loop.Outcome, list[dict[str, Any]]]:
    """Run the training loop alone; its job, outcome and records."""
    directory.mkdir(parents=True, exist_ok=True)
    clear_run(RunDirectory(directory))
    run = trainer(settings, directory)
    return run.job, loop.train(run), records(directory)


def trainer(settings: TrainConfig, directory: Path) -> Trainer:
    """A run that is ready for the loop, among the processes that are there."""
    job = prepare_job(settings, lambda line: None)
    accelerator, processes = accelerator_for(settings), Processes.here(60)
    adapter = attach_plan(job.base.model, job.plan, dropout=settings.dropout)
    return Trainer(job, settings, RunDirectory(directory), quiet(), accelerator, processes, adapter)


def execute(settings: TrainConfig, directory: Path, **changes: Any) -> dict[str, Any]:
    """Make a whole run, as the command does; its results."""
    from dataclasses import replace

    return execute_run(replace(settings, output=str(directory), **changes), quiet()).record()


def command(settings: TrainConfig, directory: Path, **changes: Any) -> list[str]:
    """The command line of a run, with every setting that differs from its default."""
    flags = []
    for name, value in {**vars(settings), **changes}.items():
        if value == getattr(TrainConfig(), name):
            continue
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            flags += [f"--{flag}", ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
    return ["train", *flags, "--output", str(directory)]


def quiet() -> Console:
    return Console(stderr=True, quiet=True)


def records(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def losses(directory: Path) -> list[tuple[int, float]]:
    """Steps and their losses, in the order of the records."""
    return [(record["step"], record["loss"]) for record in records(directory) if "loss" in record]


def outputs(directory: Path) -> dict[str, bytes]:
    """The files that must be the same, byte by byte, however often a run was interrupted."""
    names = ("adapter.safetensors", "last.safetensors", "predictions.jsonl")
    return {name: (directory / name).read_bytes() for name in names if (directory / name).exists()}


def fork(work: Callable[[], Any]) -> int:
    """Do some work in a fork of this process; its id. It exits with 0, or with 1 and the traceback of an error."""
    sys.stdout.flush()
    sys.stderr.flush()
    if child := os.fork():
        return child
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def wait(child: int) -> int:
    """The exit code of a fork, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killing_at(moment: int, directory: Path) -> Callable[[], int]:
    """Make this process, a fork, kill itself at a given access to a directory.

    Args:
        moment: number of times that it may first open, make, move or remove something there.
        directory: the directory.

    Returns:
        A function that counts the accesses so far.
    """
    seen = 0

    def listen(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event not in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir"):
            return
        path = str(arguments[0])
        # Whole trees are removed by names relative to an open directory.
        if path.startswith(str(directory)) or (event in ("os.remove", "os.rmdir") and not os.path.isabs(path)):
            seen += 1
            if seen > moment:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(listen)
    return lambda: seen


def fresh_accelerate() -> None:
    """Make Accelerate read the environment again, which it otherwise does once per process."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def together(count: int, work: Callable[[int], Any], directory: Path) -> list[int]:
    """Do work in forks that form a process group over gloo; their exit codes.

    Args:
        count: number of forks.
        work: called with the rank of its process.
        directory: directory of the file through which the forks find each other.
    """

    def in_group(rank: int) -> None:
        meeting = f"file://{directory}/meeting"
        torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=count)
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
        fresh_accelerate()
        work(rank)

    children = [fork(lambda rank=rank: in_group(rank)) for rank in range(count)]  # type: ignore[misc]
    return [wait(child) for child in children]
