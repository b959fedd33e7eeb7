"""The commands that make sense after another one, ready to be pasted into a shell."""

from __future__ import annotations

import shlex

from capaft.config.command_line import flag_words
from capaft.config.open_options import OpenOptions
from capaft.methods.host import Host
from capaft.methods.stack import Stack
from capaft.tasks.base.columns import Columns
from capaft.tasks.base.task import Task
from capaft.tasks.language.generation import Generation


def command_to_describe(run: str) -> str:
    """The command that describes a run's adapter file."""
    return _command("info", run)


def command_to_score(run: str, options: OpenOptions | None = None) -> str:
    """The command that scores a run again; `options` open it as before."""
    return _command("eval", run, *_flags(options))


def command_to_predict(run: str, data: str, options: OpenOptions | None = None) -> str:
    """The command that answers the rows of a data set."""
    return _command("predict", run, "--data", data, *_flags(options))


def command_to_try(run: str, task: Task, options: OpenOptions | None = None, *, has_pairs: bool = False) -> str | None:
    """The command that answers one text, or one pair; None for a task that gives no answers, or reads no texts."""
    if isinstance(task, Generation):
        return _command("generate", run, "your prompt", *_flags(options))
    if not task.answer_fields() or task.processor != "AutoTokenizer":
        return None
    pair = ["--pair-text", "its second one"] if has_pairs else []
    return _command("predict", run, "--text", "your text", *pair, *_flags(options))


def command_to_merge(
    run: str, output: str, stack: Stack, options: OpenOptions | None = None, *, quantised: bool = False
) -> str | None:
    """The command that merges a run into a directory; None if its method cannot be merged."""
    if stack.host is not None and stack.host.unmergeable:
        return None
    return _command(
        "merge", run, "--output", output, *(["--quantised", "dequantise"] if quantised else []), *_flags(options)
    )


def command_to_inspect(run: str, stack: Stack, options: OpenOptions | None = None, plot: str = "") -> str | None:
    """The command that reports the ranks of a run, with a picture if named; None if its updates are of no low rank."""
    if stack.host is None or type(stack.host).product is Host.product:
        return None
    return _command("inspect-rank", run, *(["--plot", plot] if plot else []), *_flags(options))


def commands_after_training(
    run: str, stack: Stack, *, quantised: bool, task: Task | None = None, columns: Columns | None = None
) -> list[str]:
    """What to do with a finished run of a task whose rows have these columns."""
    merge = command_to_merge(run, f"{run}/merged", stack, quantised=quantised)
    predict = task and command_to_try(run, task, has_pairs=columns is not None and columns.pair is not None)
    commands = [command_to_score(run), predict, merge, command_to_inspect(run, stack)]
    return [command for command in commands if command]


def command_to_resume(run: str) -> str:
    """The command that goes on with an interrupted run."""
    return shlex.join(["capaft", "train", "--resume", "--output", run])


def _command(verb: str, run: str, *arguments: str) -> str:
    """A command, quoted for a shell; no leading dash turns a RUN into an option."""
    return shlex.join(["capaft", verb, f"./{run}" if run.startswith("-") else run, *arguments])


def _flags(options: OpenOptions | None) -> list[str]:
    """The flags that open a run as before; those of the verb itself are left out."""
    return flag_words(options, OpenOptions) if options else []
