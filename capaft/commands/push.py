"""`capaft push`: a run on the Hugging Face hub."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from capaft.commands.reporting import Json, reporting, suggest
from capaft.support import strict_json
from capaft.support.activity import activity
from capaft.support.console import print_result
from capaft.support.counting import counted
from capaft.support.signals import unwind_from_here

if TYPE_CHECKING:
    from rich.console import Console

    from capaft.exchange.hub_names import HubName
    from capaft.exchange.hub_upload import Pushed


def push_command(
    run: Annotated[str, typer.Argument(help="A run directory or an adapter file.", metavar="RUN")],
    repository: Annotated[
        str, typer.Argument(help="The repository, as USER/NAME, with @BRANCH for a branch.", metavar="USER/NAME")
    ],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    commit_message: Annotated[
        str, typer.Option("--commit-message", help="First line of the commit.", metavar="<text>")
    ] = "",
    json: Json = False,
) -> None:
    """Upload a run to the Hugging Face hub."""
    with reporting() as console:
        from capaft.exchange.hub_upload import check_pushable

        name = check_pushable(repository, "USER/NAME")
        unwind_from_here()
        pushed = push(console, run, name, private=private, message=commit_message)
        if json:
            files, total = list(pushed.files), pushed.bytes
            record = {"repository": pushed.repository, "url": pushed.url, "commit": pushed.commit, "files": files}
            print_result(strict_json.document({**record, "bytes": total}))
            return
        print_result(pushed_line(pushed))
        suggest(console, f"capaft info {name}")


def push(console: Console, run: str, name: HubName, *, private: bool = False, message: str = "") -> Pushed:
    """Upload a run, with a live line."""
    with activity(console, "loading torch"):
        from capaft.training.record.push import push_run
    with activity(console, f"uploading to {name}"):
        return push_run(run, name, private=private, message=message)


def pushed_line(pushed: Pushed) -> str:
    """The line about files on the hub."""
    files = ", ".join(pushed.files)
    return f"pushed {files} ({counted(pushed.bytes, 'byte')}) to {pushed.repository}: {pushed.url}"
