"""`capaft inspect-rank`: the effective rank of each site's update, as a table and as a plot."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from capaft.commands.libraries import loading_libraries
from capaft.commands.reporting import Json, Run, reporting, suggest
from capaft.config.open_options import OpenOptions
from capaft.config.signature import signature
from capaft.config.sources import resolve_settings
from capaft.support import strict_json
from capaft.support.activity import activity
from capaft.support.console import print_line, print_result
from capaft.support.counting import counted
from capaft.support.files import check_writable, write_atomically
from capaft.support.printable import printable
from capaft.support.signals import unwind_from_here

if TYPE_CHECKING:
    from capaft.adapter.rank import SiteRank

BARS = "▁▂▃▄▅▆▇█"


@signature(OpenOptions)
def inspect_rank_command(
    run: Run,
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw the spectra to this PNG file.")] = None,
    json: Json = False,
    **flags: str | bool | list[str] | None,
) -> None:
    """Report the effective rank of the update of each adapted layer."""
    with reporting() as console:
        options, _ = resolve_settings(OpenOptions, flags=flags, environ={})
        check_writable("--plot", plot)
        with loading_libraries(console):
            from capaft.adapter.rank import inspect_ranks, summarise_ranks
            from capaft.training.record.next_commands import command_to_describe, command_to_inspect, command_to_merge
            from capaft.training.record.saved_run import open_run

        unwind_from_here()
        with activity(console, "loading the base model and the adapter"):
            saved = open_run(run, options, partial(print_line, console))
        with activity(console, "measuring ranks"):
            reports = inspect_ranks(saved.model)
        summary = summarise_ranks(reports)
        if plot:
            from capaft.commands.rank_plot import draw_ranks

            header, base = saved.file.header, (saved.file.base.name or "its base").rsplit("/", 1)[-1]
            write_atomically(plot, draw_ranks(reports, f"{header.method.method} on {base}"))
        if json:
            print_result(strict_json.document({"sites": [report.record() for report in reports], "summary": summary}))
        else:
            show_ranks(reports, summary)
            stack = saved.file.header.method
            merge = command_to_merge(run, "merged", stack, options, quantised=saved.base.is_quantised)
            inspect = command_to_inspect(run, stack, options, plot="rank.png")
            suggest(console, (merge or command_to_describe(run)) if plot else inspect)


def sparkline(spectrum: tuple[float, ...]) -> str:
    """Singular values, descending, as bars relative to the largest; at most 32 of them."""
    largest = max(spectrum, default=0.0)
    if largest <= 0:
        return "·" * min(len(spectrum), 32)
    return "".join(BARS[min(7, int(8 * value / largest))] for value in spectrum[:32])


_CELLS: dict[str, Callable[[SiteRank], str]] = {
    "rank": lambda r: str(r.rank),
    "hidden": lambda r: str(r.hidden_width),
    "numerical": lambda r: str(r.numerical_rank),
    "effective": lambda r: f"{r.effective_rank:.2f}",
    "stable": lambda r: f"{r.stable_rank:.2f}",
    "top-r": lambda r: f"{r.top_r_energy:.4f}",
    "|dW|": lambda r: f"{r.delta_norm:.3g}",
    "|dW|/|W|": lambda r: "-" if r.relative_norm is None else f"{r.relative_norm:.3g}",
    "spectrum": lambda r: sparkline(r.spectrum),
}
_LEAST_NEEDED = ("spectrum", "|dW|", "top-r", "hidden", "|dW|/|W|", "stable", "numerical")
SITE_WIDTH = 48
"""Characters of a site's name for which columns are dropped, at most."""


def _table_width(columns: dict[str, list[str]]) -> int:
    """Characters that columns take in a line, each with a blank before it."""
    return sum(2 + max(map(len, (name, *cells))) for name, cells in columns.items())


def show_ranks(reports: list[SiteRank], summary: dict[str, Any]) -> None:
    """Print a table of the sites and their summary on stdout; a narrow terminal gets fewer columns."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        # There is no screen to fit, and lines that are not cut can be searched.
        console = Console(width=200)
    columns = {name: [cell(report) for report in reports] for name, cell in _CELLS.items()}
    sites = min(max(len(report.site) for report in reports), SITE_WIDTH)
    for name in _LEAST_NEEDED:
        if sites + _table_width(columns) <= console.width:
            break
        del columns[name]
    table = Table(box=None, pad_edge=False)
    table.add_column("site", overflow="fold")
    for name in columns:
        table.add_column(name, justify="left" if name == "spectrum" else "right", no_wrap=True)
    for report, *cells in zip(reports, *columns.values(), strict=True):
        table.add_row(Text(printable(report.site)), *cells)
    console.print(table)
    low, high = summary["min_numerical_rank"], summary["max_numerical_rank"]
    numerical = f"{low}" if low == high else f"{low} to {high}"
    console.print(
        f"{counted(summary['sites'], 'site')}: numerical rank {numerical}, "
        f"mean effective rank {summary['mean_effective_rank']:.2f}, "
        f"mean stable rank {summary['mean_stable_rank']:.2f}"
        + (f", mean |dW|/|W| {summary['mean_relative_norm']:.3g}" if "mean_relative_norm" in summary else ""),
        highlight=False,
    )
