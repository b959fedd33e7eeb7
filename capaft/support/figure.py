"""What all pictures share: size, colours that colour-blind people can tell apart, and the bytes of a PNG."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING

from capaft.support.printable import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito (2008), "Color Universal Design"; yellow, too light for lines, is left out.
BLUE, VERMILION, GREEN, PURPLE, SKY, ORANGE = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, SKY, ORANGE, "#000000")
GREY = "#5F5F5F"


def new_figure(width: float, height: float) -> Figure:
    """A white figure of a size in inches, at 120 pixels an inch, whose parts do not overlap."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=120, layout="constrained", facecolor="white")


def tidy(axes: Axes) -> None:
    """A light grid behind the data, and no frame at the top and on the right."""
    axes.grid(color="#E3E3E3", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def plain(text: str, longest: int = 100) -> str:
    """A text that stands in a picture as it is: dollars begin no formula, and it is cut to a number of characters."""
    text = printable(text)
    shown = text if len(text) <= longest else f"{text[: longest // 3]}…{text[-(longest - longest // 3 - 1) :]}"
    return shown.replace("$", r"\$")


def png_bytes(figure: Figure) -> bytes:
    """The figure as a PNG, the same bytes from the same data."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # Names may have letters that the font lacks.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
