"""The commands that make sense after another one, ready to be pasted into a shell."""

from __future__ import annotations

import shlex
from dataclasses import fields

from capaft.config.open_options import OpenOptions
from capaft.config.settings import flag_of
from capaft.methods.host import Host
from capaft.methods.stack import Stack


def info_command(run: str) -> str:
    """The command that describes a run's adapter file."""
    return _command("info", run)


def eval_command(run: str, options: OpenOptions | None = None) -> str:
    """The command that scores a run again; `options` open it as before."""
    return _command("eval", run, *_flags(options))


def merge_command(
    run: str, output: str, stack: Stack, options: OpenOptions | None = None, *, quantised: bool = False
) -> str | None:
    """The command that merges a run into a directory; None if its method cannot be merged."""
    if stack.host is not None and stack.host.unmergeable:
        return None
    return _command("merge", run, "--output", output, *(["--dequantise"] if quantised else []), *_flags(options))


def inspect_command(run: str, stack: Stack, options: OpenOptions | None = None, plot: str = "") -> str | None:
    """The command that reports the ranks of a run, with a picture if named; None if its updates are of no low rank."""
    if stack.host is None or type(stack.host).product is Host.product:
        return None
    return _command("inspect-rank", run, *(["--plot", plot] if plot else []), *_flags(options))


def commands_after_training(run: str, stack: Stack, *, quantised: bool) -> list[str]:
    """What to do with a finished run."""
    merge = merge_command(run, f"{run}/merged", stack, quantised=quantised)
    commands = [eval_command(run), merge, inspect_command(run, stack)]
    return [command for command in commands if command]


def resume_command(run: str) -> str:
    """The command that goes on with an interrupted run."""
    return shlex.join(["capaft", "train", "--resume", "--output", run])


def _command(verb: str, run: str, *arguments: str) -> str:
    """A command, quoted for a shell; no leading dash turns a RUN into an option."""
    return shlex.join(["capaft", verb, f"./{run}" if run.startswith("-") else run, *arguments])


def _flags(options: OpenOptions | None) -> list[str]:
    """The flags of options that are not the default."""
    flags: list[str] = []
    for field in fields(OpenOptions) if options else ():
        value = getattr(options, field.name)
        if value is True:
            flags.append(flag_of(field.name))
        elif value and value != field.default:
            values = value if isinstance(value, tuple) else (value,)
            flags += [part for entry in values for part in (flag_of(field.name), str(entry))]
    return flags
