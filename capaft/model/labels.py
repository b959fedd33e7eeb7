"""The labels that a model's outputs stand for, as transformers keeps them in the configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from capaft.model.names import unwrapped_model

# Those that transformers knows.
PROBLEM_TYPES = (None, "regression", "single_label_classification", "multi_label_classification")


@dataclass(frozen=True, eq=False)
class Labels:
    """The labels of a model's head.

    Attributes:
        id2label: label of each output.
        label2id: the inverse.
        problem_type: the loss that transformers chooses; None until a loss is asked for.
    """

    id2label: dict[int, str]
    label2id: dict[str, int]
    problem_type: str | None = None

    @staticmethod
    def of(model: nn.Module) -> Labels | None:
        """The labels in a model's configuration, or None if it has none."""
        config: Any = getattr(unwrapped_model(model), "config", None)
        id2label = getattr(config, "id2label", None)
        if not isinstance(id2label, dict) or not isinstance(config.label2id, dict):
            return None
        return Labels(id2label, config.label2id, getattr(config, "problem_type", None))

    @staticmethod
    def named(names: Sequence[str], problem_type: str | None = None) -> Labels:
        """Labels with these names, in the order of the outputs."""
        return Labels(dict(enumerate(names)), {name: index for index, name in enumerate(names)}, problem_type)

    @staticmethod
    def numbered(count: int) -> Labels:
        """Labels as transformers names them where nobody has."""
        return Labels.named([f"LABEL_{index}" for index in range(count)])

    @property
    def names(self) -> tuple[str, ...]:
        """The names, in the order of the outputs."""
        return tuple(str(self.id2label[index]) for index in sorted(self.id2label))

    def copy(self) -> Labels:
        """The same labels, which can be edited without an effect on these."""
        return Labels(dict(self.id2label), dict(self.label2id), self.problem_type)

    def agrees(self, other: Labels) -> bool:
        """True if the outputs mean the same."""
        return self.names == other.names

    def install(self, model: nn.Module) -> None:
        """Make these the labels of a model whose configuration has labels."""
        bare = unwrapped_model(model)
        config: Any = bare.config
        config.id2label, config.label2id, config.problem_type = self.id2label, self.label2id, self.problem_type
        # Most heads of transformers keep the number beside the configuration, for their loss.
        if "num_labels" in vars(bare):
            bare.num_labels = len(self.id2label)  # type: ignore[assignment]
