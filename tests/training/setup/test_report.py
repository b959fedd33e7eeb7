"""The lines that describe a job: its sizes, its rate, and settings that have no effect."""

from __future__ import annotations

import re
from pathlib import Path

from command_line import invoke


def test_an_option_that_the_method_has_no_use_for_is_told(reviews: Path) -> None:
    done = invoke(
        "train", "--data", reviews, "--method", "lora", "--k", "64", "--copies", "3", "--rank", "2", "--dry-run"
    )
    assert done.code == 0
    warned = [line.split()[1:3] for line in done.err.splitlines() if "has no effect with lora" in line]
    assert warned == [["--k", "has"], ["--copies", "has"]]


def test_an_option_that_the_task_has_no_use_for_is_told(reviews: Path) -> None:
    void = ("--num-beams", "4", "--stride", "64", "--no-augment", "--separator", " ")
    err = invoke("train", "--data", reviews, "--dry-run", *void, "--problem", "single").err
    warned = re.findall(r"warning: (--[a-z-]+) has no effect with text-classification and is ignored", err)
    assert warned == ["--stride", "--separator", "--num-beams", "--augment"]
    data = reviews.parent / "words.jsonl"
    data.write_text('{"tokens": ["a", "b"], "tags": ["x", "y"]}\n' * 4)
    err = invoke("train", "--data", data, "--dry-run", "--baseline").err
    assert "warning: --baseline has no effect: no linear head can be fitted for token-classification" in err
