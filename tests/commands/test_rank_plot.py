"""The picture of `capaft inspect-rank`, as people see it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from pictures import check_legible, filled_height, words

from capaft.adapter.rank import SiteRank
from capaft.commands.rank_plot import draw_ranks, rank_figure

RNG = np.random.default_rng(0)
LLAMA = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
BERT = ["attention.self.query", "attention.self.value"]
LONG = "encoder.transformer.blocks.very_long_module_name.{}.attention.self_attention.projections.query_projection"


def site(name: str, rank: int = 8, copies: int = 1, decay: float = 3.0, width: int = 0) -> SiteRank:
    """A site whose singular values fall by exp(-decay)."""
    count = width or rank * copies
    values = np.sort(np.exp(-decay * np.arange(count) / count + RNG.normal(0, 0.1, count)))[::-1]
    share = values / values.sum()
    effective = float(np.exp(-(share * np.log(share)).sum()))
    return SiteRank(name, rank, rank * copies, count, effective, 2.0, 0.9, 1.0, 0.1, tuple(values.tolist()))


def sites(blocks: int, kinds: Sequence[str], rank: int = 8, copies: int = 1, decay: float = 3.0) -> list[SiteRank]:
    return [site(f"layer.{block}.{kind}", rank, copies, decay) for block in range(blocks) for kind in kinds]


DEAD = SiteRank("layer.0.query", 8, 8, 0, 0.0, 0.0, 0.0, 0.0, 0.0, (0.0,) * 8)
CASES = {
    "one": [site("layer.0.query")],
    "few": sites(6, BERT),
    "flat": [*sites(6, BERT, decay=0.2), site("pooler.dense", decay=0.2)],
    "steep": sites(6, BERT, decay=20.0),
    "many": sites(24, BERT),
    "llama with copies": sites(80, LLAMA, rank=16, copies=3),
    "wide, as dora": [site(f"layer.{block}.query", width=384) for block in range(12)],
    "long names": [site(LONG.format(block)) for block in range(12)],
    "ranks by pattern": [site(f"layer.{block}.query", (4, 8, 32)[block % 3], 2) for block in range(12)],
    "more kinds than colours": sites(12, [f"part_{kind}" for kind in range(9)]),
    "some dead": [DEAD, *sites(6, BERT)],
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_legible_and_the_spectra_fill_it(name: str) -> None:
    figure = rank_figure(CASES[name], "lora on tiny")
    check_legible(figure)
    spectra, ranks = figure.axes
    assert filled_height(spectra) > 0.6
    assert len(spectra.get_lines()) + len(ranks.get_lines()) < 16
    shown = words(figure)
    assert "lora on tiny" in shown
    assert "relative to the site's largest" in shown
    assert any(text.startswith("effective rank ") and text.endswith("(median)") for text in shown)


def test_it_marks_the_widths() -> None:
    shown = words(rank_figure(CASES["llama with copies"]))
    assert {"configured rank r = 16", "hidden width d·r = 48", "mlp.down_proj", "block"} <= set(shown)
    assert "configured rank r = 4 to 32" in words(rank_figure(CASES["ranks by pattern"]))


def test_long_names_are_cut_where_they_are_alike() -> None:
    ticks = [label.get_text() for label in rank_figure(CASES["long names"]).axes[1].get_yticklabels()]
    assert ticks[0].startswith("0.attention")
    assert ticks[11].startswith("11.attention")
    assert len(set(ticks)) == 12
    assert max(map(len, ticks)) <= 36


@pytest.mark.parametrize("reports", [[DEAD], [site("layer.0.$x$_^q", rank=1)], [DEAD] * 40])
def test_it_is_a_picture_whatever_was_learnt(reports: list[SiteRank]) -> None:
    assert draw_ranks(reports, "名前 $x").startswith(b"\x89PNG")
