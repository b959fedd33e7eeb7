"""`capaft inspect-rank`: the effective rank of each site's update, as a table and as a plot."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from capaft.commands.reporting import Json, Run, quiet_libraries, reporting
from capaft.config.open_options import OpenOptions
from capaft.config.signature import signature
from capaft.config.sources import resolve_settings
from capaft.support import strict_json
from capaft.support.files import check_writable, write_atomically
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
        quiet_libraries(console)
        from capaft.adapter.rank import inspect_ranks, summarise_ranks
        from capaft.training.record.saved_run import open_run

        unwind_from_here()
        reports = inspect_ranks(open_run(run, options).model)
        summary = summarise_ranks(reports)
        if plot:
            write_atomically(plot, draw_ranks(reports))
        if json:
            print(strict_json.document({"sites": [report.record() for report in reports], "summary": summary}))
        else:
            show_ranks(reports, summary)


def sparkline(spectrum: tuple[float, ...]) -> str:
    """Singular values, descending, as bars relative to the largest; at most 32 of them."""
    largest = max(spectrum, default=0.0)
    if largest <= 0:
        return "·" * min(len(spectrum), 32)
    return "".join(BARS[min(7, int(8 * value / largest))] for value in spectrum[:32])


def show_ranks(reports: list[SiteRank], summary: dict[str, Any]) -> None:
    """Print a table of the sites and their summary on stdout."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        # There is no screen to fit, and lines that are not cut can be searched.
        console = Console(width=200)
    table = Table(box=None, pad_edge=False)
    table.add_column("site", overflow="fold")
    for name in ("rank", "hidden", "numerical", "effective", "stable", "top-r", "|dW|", "|dW|/|W|"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("spectrum", no_wrap=True)
    for r in reports:
        table.add_row(
            r.site,
            str(r.rank),
            str(r.hidden_width),
            str(r.numerical_rank),
            f"{r.effective_rank:.2f}",
            f"{r.stable_rank:.2f}",
            f"{r.top_r_energy:.4f}",
            f"{r.delta_norm:.3g}",
            "-" if r.relative_norm is None else f"{r.relative_norm:.3g}",
            sparkline(r.spectrum),
        )
    console.print(table)
    console.print(
        f"{summary['sites']} sites: numerical rank {summary['min_numerical_rank']} to "
        f"{summary['max_numerical_rank']}, mean effective rank {summary['mean_effective_rank']:.2f}, "
        f"mean stable rank {summary['mean_stable_rank']:.2f}"
        + (f", mean |dW|/|W| {summary['mean_relative_norm']:.3g}" if "mean_relative_norm" in summary else ""),
        highlight=False,
    )


def draw_ranks(reports: list[SiteRank]) -> bytes:
    """A PNG: the spectrum of every site, relative to its largest value, and the effective ranks."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), dpi=120, layout="constrained")
    spectra, ranks = figure.subplots(1, 2)
    for r in reports:
        largest = max(r.spectrum, default=0.0) or 1.0
        spectra.semilogy(range(1, len(r.spectrum) + 1), [max(v / largest, 1e-12) for v in r.spectrum], alpha=0.5)
    spectra.set_ylim(bottom=1e-6)
    spectra.set_xlabel("singular value")
    spectra.set_ylabel("relative to the largest")
    spectra.set_title("spectrum of dW, one line per site")
    ranks.barh(range(len(reports)), [r.effective_rank for r in reports], color="tab:blue")
    for width, style, label in (
        (reports[0].rank, ":", "configured rank"),
        (reports[0].hidden_width, "--", "hidden width"),
    ):
        ranks.axvline(width, color="tab:gray", linestyle=style, label=label)
    ranks.set_yticks(range(len(reports)), [r.site for r in reports], fontsize=6)
    ranks.invert_yaxis()
    ranks.set_xlabel("effective rank")
    ranks.legend(frameon=False, fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
