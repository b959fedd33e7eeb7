"""What people can see in a picture: whether legends cover data, tick labels overlap, or lines fill the axes."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.figure import Figure


def check_legible(figure: Figure) -> None:
    """Check that no text leaves the picture, no legend covers an axes, and no tick labels overlap."""
    figure.draw_without_rendering()
    assert figure.axes
    for axes in figure.axes:
        box = axes.get_window_extent()
        if legend := axes.get_legend():
            assert not any(other.get_window_extent().overlaps(legend.get_window_extent()) for other in figure.axes)
            _check_inside(figure, legend.get_window_extent())
        for axis, side in ((axes.xaxis, 0), (axes.yaxis, 1)):
            labels = [label for label in axis.get_ticklabels() if label.get_text() and label.get_visible()]
            extents = sorted((label.get_window_extent() for label in labels), key=lambda extent: extent.min[side])
            within = [e for e in extents if box.min[side] - 1 <= (e.min[side] + e.max[side]) / 2 <= box.max[side] + 1]
            assert all(first.max[side] <= second.min[side] for first, second in pairwise(within))
            for extent in within:
                _check_inside(figure, extent)


def filled_height(axes: Any) -> float:
    """The share of an axes' height between the lowest and the highest point of its lines."""
    points = np.concatenate([line.get_ydata() for line in axes.get_lines() if len(line.get_ydata()) > 2])
    low, high = np.nanmin(points), np.nanmax(points)
    (_, bottom), (_, top) = axes.transData.transform([(1, low), (1, high)])
    return float((top - bottom) / axes.get_window_extent().height)


def words(figure: Figure) -> list[str]:
    """Titles, names of axes and legends."""
    texts = [figure.get_suptitle()]
    for axes in figure.axes:
        texts += [axes.get_title(), axes.get_title("left"), axes.get_xlabel(), axes.get_ylabel()]
        texts += [text.get_text() for text in axes.get_legend().get_texts()] if axes.get_legend() else []
    return [text.replace("\n", " ") for text in texts if text]


def _check_inside(figure: Figure, box: Any) -> None:
    frame = figure.bbox
    assert frame.x0 - 1 <= box.x0
    assert box.x1 <= frame.x1 + 1
    assert frame.y0 - 1 <= box.y0
    assert box.y1 <= frame.y1 + 1
