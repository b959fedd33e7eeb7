"""The command that makes settings makes them again."""

from __future__ import annotations

import shlex

import pytest
from command_line import invoke

from capaft.config.command_line import command_text
from capaft.config.sources import dump_settings
from capaft.config.train_config import TrainConfig


@pytest.mark.parametrize(
    "settings",
    [
        TrainConfig(),
        TrainConfig(model="./a model", data="x y.csv[:10%]", separator="-> \n", k=(3, 2), lr=1e-5, baseline=False),
        TrainConfig(missing_values=("-", "a b"), augment=False, source_prefix="", tracker=("tensorboard", "wandb")),
        TrainConfig(patience=None, label_column="none of these", text_column="$(rm -r .) `x` 'y' \"z\""),
    ],
    ids=range(4),
)
def test_the_command_makes_the_settings_again(settings: TrainConfig) -> None:
    program, *arguments = shlex.split(command_text("train", settings))
    assert program == "capaft"
    done = invoke(*arguments, "--print-config")
    assert done.code == 0, done.err
    assert done.out == dump_settings(settings)


def test_no_command_grants_a_permission() -> None:
    assert command_text("train", TrainConfig(trust_remote_code=True)) == "capaft train"
