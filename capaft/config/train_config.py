"""Everything a training run can be told: the source of flags, variables, YAML names, help and saved runs.

A run's settings are its parts together, so that a stage can take the part that concerns it and be given the whole.
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
    """Everything `capaft train` can be told, each with a default; None leaves the choice to capaft."""

    alternatives: ClassVar = (("epochs", "max_steps"), ("eval_epochs", "eval_steps"))

    def conflicts(self, given: Mapping[str, str]) -> list[str]:
        """Say what contradicts what, one line each; `given` maps what was set to how it was named."""
        found = []
        picked = {"k"} if "nola" in self.method.split("+") else {"k", "rank", "bottleneck", "prefix_length"}
        if self.budget is not None:
            found += [
                f"{given.get('budget', '--budget')} and {given[name]} cannot be used together: a budget picks it; "
                "drop one"
                for name in sorted(picked & given.keys())
            ]
        if self.masks == "partition" and "density" in given and abs(self.density - 1 / self.copies) > 0.005:
            found.append(
                f"{given['density']} and {given.get('masks', '--masks')} cannot be used together: "
                f"{self.copies} disjoint masks keep 1/{self.copies} each; drop the density"
            )
        if "eval_steps" in given and "eval_epochs" in given:
            found.append(f"{given['eval_steps']} and {given['eval_epochs']} cannot be used together; drop one")
        if "max_steps" in given and "epochs" in given:
            found.append(f"{given['max_steps']} and {given['epochs']} cannot be used together; drop one")
        if self.resume and self.output is None:
            found.append("--resume needs --output, which says what run to go on with; add it")
        if self.resume and self.overwrite:
            found.append("--resume and --overwrite cannot be used together: one goes on with a run, the other drops it")
        if self.micro_batch_size and self.micro_batch_size > self.batch_size:
            found.append(
                f"--micro-batch-size {self.micro_batch_size} is more than --batch-size {self.batch_size}; lower it"
            )
        if self.base_dtype != "float32" and self.precision == "fp32":
            found.append(
                f"--base-dtype {self.base_dtype} and --precision fp32 cannot be used together: products would be of "
                "two kinds; add --precision bf16"
            )
        if self.head == "frozen" and self.method == "head":
            found.append("--head frozen and --method head cannot be used together: nothing would be trained")
        return found


TASK_OPTIONS = frozenset(field.name for field in fields(TrainConfig) if "task option" in field.metadata["marks"])
"""Settings that only some tasks have."""
