"""`--dry-run`: the plan of a run, which writes nothing, and its estimate of peak memory."""

from __future__ import annotations

import pytest
import torch

from capaft.commands.dry_run import DryRun, dry_run_text


@pytest.mark.parametrize(
    ("peak", "has_gpu", "says"),
    [
        (3 * 2**30, False, "about 3,072 MiB, within a quarter on a CPU"),
        (3 * 2**30, True, "about 3,072 MiB"),
        (None, False, "cannot be estimated for this model"),
    ],
)
def test_an_estimate_says_how_far_it_may_be_off(
    peak: int | None, has_gpu: bool, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    plan = DryRun("runs/one", "k: 8\n", ["query"], 24, 4, 28, 112, 58, 6, peak)
    assert dry_run_text(plan).splitlines()[-1] == f"peak memory: {says}"
