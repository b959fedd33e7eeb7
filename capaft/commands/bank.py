"""`capaft bank`: a directory of adapter files, one for each name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from capaft.commands.help_text import WIDTH, Verb, VerbGroup, examples_text
from capaft.commands.libraries import loading_libraries
from capaft.commands.reporting import Json, Run, reporting
from capaft.support import strict_json
from capaft.support.activity import activity
from capaft.support.console import print_result
from capaft.support.counting import counted
from capaft.support.errors import TrainingError
from capaft.support.printable import printable

Directory = Annotated[Path, typer.Argument(help="The bank: a directory of adapter files.", metavar="DIR")]

bank_app = typer.Typer(
    cls=VerbGroup,
    help="Keep the adapters of one base model in a directory, a file for each name.",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": WIDTH},
)


def add_command(
    directory: Directory,
    run: Run,
    name: Annotated[str | None, typer.Option("--name", help="Its name in the bank (default: the run's).")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace the adapter of that name.")] = False,
    json: Json = False,
) -> None:
    """Verify the adapter of a run and copy it into a bank, which is made if missing."""
    with reporting() as console:
        with loading_libraries(console):
            from capaft.inference.bank.directory import BankDirectory
        added = BankDirectory(directory).add(run, name, replace=replace)
        if json:
            print_result(strict_json.document({"name": added.stem, "path": str(added), "bytes": added.stat().st_size}))
            return
        print_result(printable(f"{added.stem}: {counted(added.stat().st_size, 'byte')} in {added}"))


def list_command(directory: Directory, json: Json = False) -> None:
    """List the adapters of a bank, as their files describe themselves."""
    with reporting() as console:
        with loading_libraries(console):
            from capaft.inference.bank.directory import BankDirectory
            from capaft.inference.bank.listing import Listed, listing_text
        files = BankDirectory(directory).files()
        with activity(console, "reading headers", total=len(files)) as advance:
            listed = []
            for file in files.values():
                listed.append(Listed.of(file))
                advance(1)
        print_result(strict_json.document([entry.record() for entry in listed]) if json else listing_text(listed))


def verify_command(directory: Directory, json: Json = False) -> None:
    """Verify every file of a bank, and print a line for each that is damaged or foreign."""
    with reporting() as console:
        with loading_libraries(console):
            from capaft.inference.bank.directory import BankDirectory
        bank = BankDirectory(directory)
        with activity(console, "verifying", total=len(bank.files())) as advance:
            problems = bank.problems(advance)
        intact = len(bank.files()) - sum(bank.is_named(path) for path in problems)
        if json:
            faults = [{"path": str(path), "problem": problem} for path, problem in problems.items()]
            print_result(strict_json.document({"intact": intact, "problems": faults}))
        else:
            lines = [printable(problem) for problem in problems.values()]
            print_result("\n".join([*lines, f"{counted(intact, 'adapter')} intact"]))
        if problems:
            raise TrainingError(f"{counted(len(problems), 'file')} of {directory} cannot be used")


def remove_command(
    directory: Directory,
    names: Annotated[list[str], typer.Argument(help="Names of adapters.", metavar="NAME")],
    json: Json = False,
) -> None:
    """Delete adapters from a bank."""
    with reporting() as console:
        with loading_libraries(console):
            from capaft.inference.bank.directory import BankDirectory
        BankDirectory(directory).remove(names)
        print_result(
            strict_json.document({"removed": names}) if json else f"removed {', '.join(map(printable, names))}"
        )


for _name, _command, _example in (
    ("add", add_command, "capaft bank add adapters runs/reviews"),
    ("list", list_command, "capaft bank list adapters"),
    ("verify", verify_command, "capaft bank verify adapters"),
    ("remove", remove_command, "capaft bank remove adapters reviews"),
):
    bank_app.command(_name, cls=Verb, epilog=examples_text((_example,)))(_command)
