"""The picture of `capaft inspect-rank`: spectra of the updates, and the effective rank of each site."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from capaft.adapter.rank import SiteRank
from capaft.support.counting import agreeing
from capaft.support.figure import BLUE, COLOURS, GREY, VERMILION, new_figure, plain, png_bytes, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# So many sites have a line of their own each, so many a bar, so many kinds of site a colour.
_LINES = 3
_BARS = 24
_KINDS = len(COLOURS)
# Characters of a name.
_LONGEST = 36
# Relative singular values from which they are alike; one that is 0, on a logarithmic axis.
_FLAT, _ZERO = 0.2, 1e-30
_BLOCK = re.compile(r"(?:^|\.)(\d+)(?=\.|$)")


def draw_ranks(reports: Sequence[SiteRank], title: str = "") -> bytes:
    """The picture as a PNG; see `rank_figure`."""
    return png_bytes(rank_figure(reports, title))


def rank_figure(reports: Sequence[SiteRank], title: str = "") -> Figure:
    """The picture of the ranks of sites.

    On the left the singular values of the updates over the largest of each: one line a site if there are few, else the
    median and the bands of the middle 80 % and of all sites. On the right the effective rank of each site.

    Args:
        reports: the rank reports of the sites, in the model's order.
        title: names the adapter.
    """
    shows_bars = len(reports) <= _BARS
    figure = new_figure(11, max(4.6, 1.6 + 0.22 * len(reports)) if shows_bars else 4.8)
    spectra, ranks = figure.subplots(1, 2, width_ratios=(1, 1))
    if title:
        figure.suptitle(plain(title), fontsize=11)
    for axes in (spectra, ranks):
        tidy(axes)
    _draw_spectra(spectra, reports)
    if shows_bars:
        _draw_bars(ranks, reports)
    else:
        _draw_blocks(ranks, reports)
    for axes in (spectra, ranks):
        if handles := axes.get_legend_handles_labels()[0]:
            columns = 2 if len(handles) > 2 else 1
            # Below the axes, where there are no data.
            axes.legend(loc="upper left", bbox_to_anchor=(-0.02, -0.14), ncols=columns, frameon=False, fontsize=9)
    return figure


def _draw_spectra(axes: Axes, reports: Sequence[SiteRank]) -> None:
    axes.set_title(f"singular values of dW, {len(reports)} {agreeing(len(reports), 'site', 'sites')}", fontsize=10)
    axes.set_xlabel("singular value, the largest first")
    axes.set_ylabel("relative to the site's largest")
    adapted = [report for report in reports if report.numerical_rank]
    if not adapted:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "the update is 0 at every site", ha="center", transform=axes.transAxes)
        return
    _scale(axes, _relative_spectra(adapted))
    by_rank: dict[int, list[SiteRank]] = defaultdict(list)
    for report in adapted:
        by_rank[report.rank].append(report)
    if len(adapted) <= _LINES:
        names = _shortened([report.site for report in adapted])
        for report, name, colour in zip(adapted, names, COLOURS, strict=False):
            _draw_line(axes, _relative_spectra([report])[0], colour, name)
    elif 1 < len(by_rank) < len(COLOURS):
        # Spectra of other lengths have nothing to do with one another.
        for (rank, alike), colour in zip(sorted(by_rank.items()), (BLUE, *COLOURS[2:]), strict=False):
            _draw_band(axes, _relative_spectra(alike), colour, f"rank {rank}: ")
    else:
        _draw_band(axes, _relative_spectra(adapted), BLUE)
    effective = float(np.median([report.effective_rank for report in adapted]))
    axes.axvline(effective, color=VERMILION, linewidth=1.4, label=f"effective rank {effective:.1f} (median)")
    if len(by_rank) == 1:
        _mark_widths(axes.axvline, reports)


def _draw_line(axes: Axes, spectrum: NDArray[np.float64], colour: str, label: str) -> None:
    # A single value is a point, not a line.
    marker = "o" if len(spectrum) <= 16 else ""
    axes.plot(np.arange(1, len(spectrum) + 1), spectrum, color=colour, marker=marker, markersize=4, label=label)


def _draw_band(axes: Axes, values: NDArray[np.float64], colour: str, name: str = "") -> None:
    """The median of spectra, `(sites, values)`, within bands of most and of all, which one legend explains."""
    low, tenth, median, ninth, high = np.percentile(values, (0, 10, 50, 90, 100), axis=0)
    numbers = np.arange(1, values.shape[1] + 1)
    labels = ("", "") if name else ("all sites", "middle 80 % of sites")
    axes.fill_between(numbers, low, high, color=colour, alpha=0.12, linewidth=0, label=labels[0])
    axes.fill_between(numbers, tenth, ninth, color=colour, alpha=0.28, linewidth=0, label=labels[1])
    _draw_line(axes, median, colour, f"{name}median of {len(values)} sites" if name else "median")


def _relative_spectra(reports: Sequence[SiteRank]) -> NDArray[np.float64]:
    """Spectra over their largest values, `(sites, longest)`; what is 0 to numerical precision lies off any axis."""
    longest = max(report.numerical_rank for report in reports)
    values = np.full((len(reports), longest), _ZERO)
    for row, report in zip(values, reports, strict=True):
        row[: report.numerical_rank] = np.array(report.spectrum[: report.numerical_rank]) / report.spectrum[0]
    return values


def _scale(axes: Axes, values: NDArray[np.float64]) -> None:
    """Axes that the data fill: logarithmic for sizes unless they are alike, and for numbers if there are many."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

    lowest = float(values[values > _ZERO].min())
    if lowest > _FLAT:
        margin = 0.05 * max(1 - lowest, 0.1)
        axes.set_ylim(lowest - margin if lowest < 1 else 0, 1 + margin)
    else:
        axes.set_yscale("log")
        axes.set_ylim(lowest / 1.15, 1.12)
        if lowest > 1e-3:
            # Powers of ten alone would leave one tick or two.
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if lowest > 0.02 else (1, 3)))
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    if values.shape[1] > 64:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
        axes.set_xlim(0.5, max(values.shape[1], 2) + 0.5)


def _mark_widths(line: object, reports: Sequence[SiteRank]) -> None:
    """Mark the configured rank r, and the hidden width d*r if it is another."""
    assert callable(line)
    widths = sorted({report.hidden_width for report in reports})
    configured = sorted({report.rank for report in reports})
    marks = [(configured, ":", "configured rank r")]
    if widths != configured:
        marks.append((widths, "--", "hidden width d·r"))
    for values, style, label in marks:
        named = f"{values[0]}" if len(values) == 1 else f"{values[0]} to {values[-1]}"
        line(values[0], color=GREY, linestyle=style, linewidth=1.4, zorder=3, label=f"{label} = {named}")
        if len(values) > 1:
            line(values[-1], color=GREY, linestyle=style, linewidth=1.4, zorder=3)


def _draw_bars(axes: Axes, reports: Sequence[SiteRank]) -> None:
    """A bar for each site."""
    axes.set_title("effective rank of each site", fontsize=10)
    axes.barh(range(len(reports)), [report.effective_rank for report in reports], color=BLUE, height=0.7)
    axes.set_yticks(range(len(reports)), _shortened([report.site for report in reports]), fontsize=8)
    # A few bars are no thicker than many.
    axes.set_ylim(max(len(reports), 6) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, 1.06 * max(max(report.hidden_width, report.effective_rank) for report in reports))
    axes.set_xlabel("effective rank")
    _mark_widths(axes.axvline, reports)


def _draw_blocks(axes: Axes, reports: Sequence[SiteRank]) -> None:
    """A line over the blocks for each kind of site, or points if there are too many kinds."""
    from matplotlib.ticker import MaxNLocator

    axes.set_title("effective rank of each site", fontsize=10)
    axes.set_ylabel("effective rank")
    kinds: dict[str, list[tuple[int, float]]] = defaultdict(list)
    blocks = [_BLOCK.search(report.site) for report in reports]
    beyond = 1 + max((int(block[1]) for block in blocks if block), default=0)
    for report, block in zip(reports, blocks, strict=True):
        kind, number = (report.site[block.end() + 1 :], int(block[1])) if block else (report.site, beyond)
        kinds[kind].append((number, report.effective_rank))
    if len(kinds) > _KINDS:
        axes.plot([report.effective_rank for report in reports], ".", color=BLUE, label="a site")
        axes.set_xlabel("site, in the model's order")
    else:
        marker = "." if len(reports) <= 40 * len(kinds) else ""
        for kind, points, colour in zip(_shortened(list(kinds)), kinds.values(), COLOURS, strict=False):
            alone = "D" if len(points) == 1 else marker
            axes.plot(*zip(*points, strict=True), marker=alone, color=colour, label=kind)
        axes.set_xlabel("block" if all(blocks) else "block; sites outside the blocks on the right")
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set_ylim(0, 1.06 * max(max(report.hidden_width, report.effective_rank) for report in reports))
    _mark_widths(axes.axhline, reports)


def _shortened(names: Sequence[str]) -> list[str]:
    """Names that fit beside a bar: long ones without the parts that all begin with, and without their middle."""
    if len(names) > 1 and max(map(len, names)) > _LONGEST:
        parts = [name.split(".") for name in names]
        shared = next((n for n, level in enumerate(zip(*parts, strict=False)) if len(set(level)) > 1), 0)
        names = [".".join(path[shared:]) for path in parts]
    return [plain(name, _LONGEST) for name in names]
