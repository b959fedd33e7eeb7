"""All settings of a training run: the source of flags, variables, YAML names, help and saved runs.

The settings are the sum of their parts, so that a stage can ask for the part that concerns it and be passed the whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import ClassVar

from capaft.config.parts.data import DataSettings
from capaft.config.parts.evaluation import EvaluationSettings
from capaft.config.parts.machine import MachineSettings
from capaft.config.parts.method import MethodSettings
from capaft.config.parts.model import ModelSettings
from capaft.config.parts.optimization import OptimizationSettings
from capaft.config.parts.output import OutputSettings
from capaft.config.parts.task import TaskSettings


# The last base's fields come first, in the help and in saved runs.
@dataclass(frozen=True)
class TrainConfig(
    OutputSettings,
    MachineSettings,
    EvaluationSettings,
    OptimizationSettings,
    MethodSettings,
    TaskSettings,
    DataSettings,
    ModelSettings,
):
    """All settings of `capaft train`, each with a default; None leaves the choice to capaft."""

    alternatives: ClassVar = (("epochs", "max_steps"), ("eval_epochs", "eval_steps"))

    def conflicts(self, labels: Mapping[str, str]) -> list[str]:
        """See `Settings.conflicts`."""
        conflicts = []

        def excludes(one: str, other: str, advice: str) -> None:
            conflicts.append(f"{one} and {other} cannot be used together{advice}")

        if self.budget is not None:
            sizes = {"k"} if "nola" in self.method.split("+") else SIZES
            for name in sorted(sizes & labels.keys()):
                excludes(labels.get("budget", "--budget"), labels[name], ": a budget picks it; drop one")
        if self.masks == "partition" and "density" in labels and abs(self.density - 1 / self.copies) > 0.005:
            advice = f": {self.copies} disjoint masks keep 1/{self.copies} each; drop the density"
            excludes(labels["density"], labels.get("masks", "--masks"), advice)
        if "eval_steps" in labels and "eval_epochs" in labels:
            excludes(labels["eval_steps"], labels["eval_epochs"], "; drop one")
        if "max_steps" in labels and "epochs" in labels:
            excludes(labels["max_steps"], labels["epochs"], "; drop one")
        if self.resume and self.output is None:
            conflicts.append("--resume needs --output, the directory of the run")
        if self.resume and self.overwrite:
            excludes("--resume", "--overwrite", ": one resumes a run, the other replaces it; drop one")
        if self.micro_batch_size and self.micro_batch_size > self.batch_size:
            conflicts.append(
                f"--micro-batch-size {self.micro_batch_size} is more than --batch-size {self.batch_size}; lower it"
            )
        if self.base_dtype != "float32" and self.precision == "fp32":
            advice = ": weights and products would differ in dtype; add --precision bf16"
            excludes(f"--base-dtype {self.base_dtype}", "--precision fp32", advice)
        if self.head == "frozen" and self.method == "head":
            excludes("--head frozen", "--method head", ": nothing would be trained; drop one")
        return conflicts


SIZES = frozenset(["k", "rank", "bottleneck", "prefix_length"])
"""Settings that a budget picks."""

TASK_OPTIONS = frozenset(field.name for field in fields(TrainConfig) if "task option" in field.metadata["marks"])
"""Settings that only some tasks have."""
