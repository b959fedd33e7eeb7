"""Settings as keywords of a call in Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from capaft.config.keywords import keyword_flags, with_keywords_of
from capaft.config.sources import resolve_settings
from capaft.config.train_config import TrainConfig
from capaft.support.errors import UsageError


@pytest.mark.parametrize(
    ("keywords", "expected"),
    [
        ({"k": 1024}, {"k": (1024,)}),
        ({"k": (64, 32)}, {"k": (64, 32)}),
        ({"k": np.int64(8), "lr": np.float32(0.5)}, {"k": (8,), "lr": 0.5}),
        ({"lr": 5e-3, "epochs": 2}, {"lr": 5e-3, "epochs": 2}),
        ({"lr": 1}, {"lr": 1.0}),
        ({"target_modules": ["query", "value"]}, {"target_modules": "query,value"}),
        ({"missing_values": []}, {}),
        ({"tracker": ["wandb", "tensorboard"]}, {"tracker": ("wandb", "tensorboard")}),
        ({"output": Path("runs/a"), "model": None}, {"output": "runs/a"}),
        ({"strict": True, "bias": False}, {"strict": True, "bias": False}),
        ({"budget": "50k", "precision": "bf16"}, {"budget": 50_000, "precision": "bf16"}),
        ({"seed": 2**64 - 1}, {"seed": 2**64 - 1}),
    ],
    ids=str,
)
def test_values_are_those_of_the_command_line(keywords: dict[str, Any], expected: dict[str, Any]) -> None:
    settings, _ = resolve_settings(TrainConfig, flags=keyword_flags(TrainConfig, keywords), environ={})
    assert settings == TrainConfig(**expected)


def test_all_mistakes_are_said_at_once() -> None:
    with pytest.raises(UsageError) as raised:
        keyword_flags(TrainConfig, {"rnk": 4, "lr": object(), "progres": print, "epochs": True}, ["progress"])
    lines = raised.value.args
    assert lines[0] == "rnk is not a setting; did you mean rank?"
    assert lines[1].startswith("lr must be a text, a number, a truth value or a list of them, got <object")
    assert lines[2] == "progres is not a setting; did you mean progress?"
    assert lines[3] == "epochs must be a text, a number, a truth value or a list of them, got True"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--lr must be above 0, got -1", "lr must be above 0, got -1"),
        ("drop --target-modules (--k 3)", "drop target_modules (k 3)"),
        ("resume it with --resume", "resume it with resume=True"),
        ("(--no-head-cache fits it anew)", "(head_cache=False fits it anew)"),
        (
            "stopped at step 3 of 9; resume with capaft train --resume --output runs/a-1",
            "stopped at step 3 of 9; resume with capaft.train(resume=True, output='runs/a-1')",
        ),
        ("capaft train --resume --output 'my runs/a'", "capaft.train(resume=True, output='my runs/a')"),
    ],
)
def test_messages_name_keywords(line: str, expected: str) -> None:
    assert with_keywords_of(TrainConfig, line) == expected
