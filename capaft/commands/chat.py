"""A conversation on a terminal: what is typed on stdin is answered on stdout."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from capaft.support.console import print_line, print_piece
from capaft.support.signals import answering, listening

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from capaft.inference.writing import Answer, Writer
    from capaft.tasks.language.messages import Message

_PROMPT = "> "
_HELP = """\
/reset   forget what was said
/help    show this
/quit    leave, as Ctrl-D does
Ctrl-C stops an answer. A prompt that begins with a slash takes two: //."""


class Chat:
    """A conversation with a run, whose answers are written as they come.

    Args:
        writer: it writes the answers.
        console: where people read what is no answer.
        sides: the adapter off, on, or both one after the other, each with its label.
    """

    def __init__(self, writer: Writer, console: Console, sides: dict[str, bool]) -> None:
        self._writer = writer
        self._console = console
        self._sides = sides
        self._messages: list[Message] = writer.opening()
        self._draws = 0

    def hold(self) -> None:
        """Answer until the user leaves."""
        with suppress(ImportError):
            # What makes `input` take arrow keys and remember lines.
            import readline  # noqa: F401
        self._say("/help lists the commands, Ctrl-D leaves")
        if not self._writer.chats:
            self._say("each line is a prompt of its own: this run was not trained on chats")
        while True:
            try:
                with listening():
                    line = self._read()
            except KeyboardInterrupt:
                self._say("\nCtrl-D leaves")
                continue
            except EOFError:
                self._say("")
                return
            if line.startswith("/") and not line.startswith("//"):
                if not self._obey(line.split()[0]):
                    return
            elif line.strip():
                self._answer(line[1:] if line.startswith("//") else line)

    def _read(self) -> str:
        import sys

        if sys.stdout.isatty():
            return input(_PROMPT)
        # Answers go to a file, and the prompt is none.
        self._console.print(_PROMPT, end="", markup=False, highlight=False)
        return input()

    def _obey(self, command: str) -> bool:
        """Obey a command; False if it is to leave."""
        if command in ("/quit", "/exit"):
            return False
        if command == "/reset":
            self._messages = self._writer.opening()
            self._say("what was said is forgotten" if self._writer.chats else "each line is a prompt of its own anyway")
        elif command == "/help":
            for line in _HELP.split("\n"):
                self._say(line)
        else:
            self._say(f"there is no command {command}; /help lists them")
        return True

    def _answer(self, prompt: str) -> None:
        """Answer a prompt, and remember both where the run takes chats."""
        from capaft.inference.prompts import user_message
        from capaft.tasks.language.messages import ASSISTANT

        history = [*self._messages, user_message(prompt)] if self._writer.chats else [user_message(prompt)]
        with answering() as is_stopped:
            answers = write_answers(self._writer, history, self._sides, draw=self._draws, is_stopped=is_stopped)
        self._draws += 1
        for label, answer in answers.items():
            if answer.finish != "end":
                self._say(_unfinished(answer, label if len(answers) > 1 else ""))
        answer = [*answers.values()][-1]
        # An answer that was stopped before it began leaves nothing to go on from.
        if self._writer.chats and (answer.text or answer.finish != "stopped"):
            self._messages = [*history, {"role": ASSISTANT, "content": answer.text}]

    def _say(self, text: str) -> None:
        for line in text.split("\n"):
            print_line(self._console, line)


def write_answers(
    writer: Writer,
    messages: list[Message],
    sides: dict[str, bool],
    *,
    draw: int = 0,
    is_stopped: Callable[[], bool] | None = None,
) -> dict[str, Answer]:
    """Write the answers to a chat on stdout as they come, each under its label if there are several.

    Args:
        writer: it writes them.
        messages: what was said so far.
        sides: the adapter off, on, or both, each with its label.
        draw: number of the draw.
        is_stopped: asked after each token; if True, no more is written.
    """
    answers: dict[str, Answer] = {}
    for label, adapted in sides.items():
        if is_stopped and is_stopped() and answers:
            break
        if len(sides) > 1:
            print_piece(f"{label}:\n")
        answers[label] = writer.answer(messages, adapted=adapted, draw=draw, show=print_piece, is_stopped=is_stopped)
        print_piece("\n\n" if len(sides) > len(answers) else "\n")
    return answers


def _unfinished(answer: Answer, label: str) -> str:
    """A line on an answer that did not end by itself."""
    of = f" of {label}" if label else ""
    if answer.finish == "stopped":
        return f"the answer{of} was stopped"
    return f"the answer{of} was cut at {answer.tokens} tokens; --max-new-tokens allows more"
