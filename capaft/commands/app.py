"""The command line: the verbs, and how a wrong command line is reported. Nothing heavy is imported before one runs.

Results go to stdout and everything else to stderr, so that a script can read the one and a person the other.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from capaft import __version__
from capaft.commands.average import average_command
from capaft.commands.bank import bank_app
from capaft.commands.env import env_command
from capaft.commands.evaluate import eval_command
from capaft.commands.export import export_command
from capaft.commands.generate import generate_command
from capaft.commands.help_text import WIDTH, Verb, VerbGroup, examples_text
from capaft.commands.import_peft import import_command
from capaft.commands.info import info_command
from capaft.commands.inspect_rank import inspect_rank_command
from capaft.commands.merge import merge_command
from capaft.commands.methods import methods_command
from capaft.commands.predict import predict_command
from capaft.commands.presets import presets_command
from capaft.commands.push import push_command
from capaft.commands.reporting import escape_unprintable, unexpected
from capaft.commands.serve import serve_command
from capaft.commands.train import train_command
from capaft.support.console import print_error, print_result
from capaft.support.errors import UsageError


class _Commands(VerbGroup):
    """The verbs: listed in plain text, and a wrong command line reported in one line."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of the verbs, as listed: the bank before its server."""
        # Typer puts groups of verbs behind all others.
        names = [name for name in super().list_commands(ctx) if name != "bank"]
        place = names.index("serve")
        return [*names[:place], "bank", *names[place:]]

    def main(self, args: Sequence[str] | None = None, *, standalone_mode: bool = True, **extra: Any) -> Any:  # type: ignore[override] # the rest is passed by name
        escape_unprintable()
        try:
            result = super().main(args, standalone_mode=False, **extra)
            sys.stdout.flush()
        except OSError as error:
            if not standalone_mode:
                raise
            if _stdout_takes_more():
                print_error(unexpected(error))
                sys.exit(1)
            # The reader of stdout has gone, as in `capaft info RUN | head -1`, or the disk under it is full.
            if error.errno != errno.EPIPE:
                print_error(f"cannot write to stdout: {error.strerror}")
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except Exception as error:
            # Errors of Typer, or of click where Typer builds on it, have this method; no others do.
            if not standalone_mode:
                raise
            if not hasattr(error, "format_message"):
                # Typer makes an Abort of an EOFError.
                print_error(unexpected(error.__cause__ or error))
                sys.exit(1)
            context = getattr(error, "ctx", None)
            command = context.command_path if context else "capaft"
            message = " ".join(error.format_message().split()).rstrip(".?")
            print_error(f"{message}; see {command} --help")
            sys.exit(UsageError.exit_code)
        if standalone_mode:
            sys.exit(result if isinstance(result, int) else 0)
        return result


def _stdout_takes_more() -> bool:
    """True if it was not stdout that failed."""
    try:
        print(flush=True)  # noqa: T201 - nothing is shown
    except OSError:
        return False
    return True


app = typer.Typer(
    cls=_Commands,
    help="Fine-tune any Hugging Face checkpoint with adapters of a few kilobytes.",
    epilog="Start with `capaft train`: it needs no model, no data and no network.",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": WIDTH},
)


def _print_version(is_given: bool) -> None:
    if is_given:
        print_result(__version__)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Fine-tune any Hugging Face checkpoint with adapters of a few kilobytes."""


_VERBS: tuple[tuple[str, Callable[..., None], tuple[str, ...]], ...] = (
    (
        "train",
        train_command,
        (
            "capaft train",
            "capaft train --model roberta-base --data glue/sst2 --method nola --k 1024",
            "capaft train --model ./dir --data reviews.csv --method capaboost",
        ),
    ),
    (
        "eval",
        eval_command,
        ("capaft eval runs/lora+nola-1", "capaft eval adapter.safetensors --data test.csv"),
    ),
    (
        "predict",
        predict_command,
        (
            "capaft predict runs/reviews --data new.csv --output predictions.csv",
            'capaft predict runs/reviews --text "What a film!" --top 3',
            "grep ERROR app.log | capaft predict runs/logs --data -",
        ),
    ),
    (
        "generate",
        generate_command,
        ('capaft generate runs/chat "Who are you?"', "capaft generate runs/chat --compare --do-sample"),
    ),
    (
        "merge",
        merge_command,
        (
            "capaft merge runs/lora+nola-1 --output merged",
            "capaft merge runs/one runs/two --weights 0.7,0.3 --output merged",
        ),
    ),
    ("average", average_command, ("capaft average runs/one runs/two --output adapter.safetensors",)),
    (
        "export",
        export_command,
        (
            "capaft export runs/lora+nola-1 --to peft --output peft",
            "capaft export runs/chat --to gguf --output chat.gguf",
        ),
    ),
    ("import", import_command, ("capaft import peft_dir --output adapter.safetensors",)),
    ("push", push_command, ("capaft push runs/lora+nola-1 user/name", "capaft eval user/name")),
    ("serve", serve_command, ("capaft serve adapters", "capaft serve adapters --port 0 --token-file token.txt")),
    ("inspect-rank", inspect_rank_command, ("capaft inspect-rank runs/lora+nola-1 --plot rank.png",)),
    ("info", info_command, ("capaft info runs/lora+nola-1",)),
    ("methods", methods_command, ("capaft methods", "capaft methods --model ./dir")),
    ("presets", presets_command, ("capaft train --preset nola-glue-rte --print-config",)),
    ("env", env_command, ("capaft env",)),
)

app.add_typer(bank_app, name="bank")
for _name, _command, _examples in _VERBS:
    app.command(_name, cls=Verb, epilog=examples_text(_examples))(_command)
