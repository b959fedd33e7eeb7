"""`capaft inspect-rank`: the rank of every site, as a table, JSON and a plot."""

from __future__ import annotations

import json
from pathlib import Path

from command_line import invoke

SITE_KEYS = {
    "site",
    "rank",
    "hidden_width",
    "numerical_rank",
    "effective_rank",
    "stable_rank",
    "top_r_energy",
    "delta_norm",
    "relative_norm",
}


def test_inspect_rank(run: Path, tmp_path: Path) -> None:
    done = invoke("inspect-rank", run, "--json", "--plot", tmp_path / "rank.png")
    report = json.loads(done.out)
    assert len(report["sites"]) == 12
    assert all(site.keys() == SITE_KEYS for site in report["sites"])
    assert all(site["numerical_rank"] == 4 for site in report["sites"])
    assert (tmp_path / "rank.png").read_bytes().startswith(b"\x89PNG")
    table = invoke("inspect-rank", run).out
    assert "layer.0.attention.self.query" in table
    assert "█" in table
