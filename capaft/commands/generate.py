"""`capaft generate`: a text from a prompt, or a conversation."""

from __future__ import annotations

import codecs
import sys
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from capaft.commands.libraries import loading_libraries
from capaft.commands.reporting import Json, Run, reporting
from capaft.config.generate_options import GenerateOptions
from capaft.config.signature import signature
from capaft.config.sources import resolve_settings
from capaft.support import strict_json
from capaft.support.activity import activity
from capaft.support.console import print_line, print_result
from capaft.support.errors import UsageError
from capaft.support.signals import unwind_from_here

if TYPE_CHECKING:
    from rich.console import Console

    from capaft.inference.writing import Answer, Writer

BASE, ADAPTER = "base", "adapter"
_MOST_BYTES = 2**24


@signature(GenerateOptions)
def generate_command(
    run: Run,
    prompt: Annotated[
        str | None,
        typer.Argument(
            help="The prompt; - reads it from stdin. Without one, a terminal starts a chat.", metavar="PROMPT"
        ),
    ] = None,
    json: Json = False,
    **flags: str | bool | list[str] | None,
) -> None:
    """Write text from a prompt, or chat."""
    with reporting() as console:
        options, _ = resolve_settings(GenerateOptions, flags=flags, environ={})
        is_chat = prompt is None and sys.stdin.isatty()
        if json and is_chat:
            raise UsageError("--json needs a prompt: give one, or - and pipe it in")
        text = "" if is_chat else _read(prompt)
        with loading_libraries(console):
            from capaft.inference.writing import Writer
            from capaft.training.record.saved_run import open_run

        unwind_from_here()
        say = partial(print_line, console)
        with activity(console, "loading the base model and the adapter"):
            writer = Writer(open_run(run, options, say), options, say)
        sides = {BASE: False, ADAPTER: True} if options.compare else {BASE: False} if options.base else {ADAPTER: True}
        if is_chat:
            from capaft.commands.chat import Chat

            Chat(writer, console, sides).hold()
        elif json:
            print_result(strict_json.document(_record(writer, text, sides, console)))
        else:
            _write(writer, text, sides, console)


def _read(prompt: str | None) -> str:
    """The prompt, from the command line or from stdin.

    Raises:
        UsageError: there is none, or it is no text.
    """
    if prompt is not None and prompt != "-":
        return prompt
    content = sys.stdin.buffer.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise UsageError(f"stdin is a prompt of more than {_MOST_BYTES:,} bytes; shorten it")
    try:
        text = content.removeprefix(codecs.BOM_UTF8).decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise UsageError("stdin is not UTF-8 text; convert it first") from None
    if not text.strip():
        raise UsageError('there is no prompt: give one, or pipe it in; for a text without one, give ""')
    return text


def _write(writer: Writer, prompt: str, sides: dict[str, bool], console: Console) -> None:
    """Write the answers on stdout, and how it went on stderr."""
    from capaft.commands.chat import write_answers
    from capaft.inference.prompts import user_message

    answers = write_answers(writer, [*writer.opening(), user_message(prompt)], sides)
    for label, answer in answers.items():
        of = f"{label}: " if len(answers) > 1 else ""
        rate = answer.tokens / max(answer.seconds, 1e-9)
        cut = "; cut there, --max-new-tokens allows more" if answer.finish == "length" else ""
        print_line(console, f"{of}{answer.tokens} tokens in {answer.seconds:.1f} s, {rate:.1f} tokens/s{cut}")
    if writer.seed is not None:
        print_line(console, f"drawn with --seed {writer.seed}")


def _record(writer: Writer, prompt: str, sides: dict[str, bool], console: Console) -> dict[str, Any]:
    """The prompt and the answers, flat: those of the base beside the adapter's have its name before theirs."""
    from capaft.inference.prompts import user_message

    messages = [*writer.opening(), user_message(prompt)]
    answers: dict[str, Answer] = {}
    with activity(console, "writing"):
        for label, adapted in sides.items():
            answers[label] = writer.answer(messages, adapted=adapted)
    record: dict[str, Any] = {"prompt": prompt}
    for label, answer in reversed(answers.items()):
        before = f"{label}_" if len(answers) > 1 and label == BASE else ""
        record |= {f"{before}{name}": value for name, value in asdict(answer).items()}
    return record | ({} if writer.seed is None else {"seed": writer.seed})
