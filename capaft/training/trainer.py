"""One run as a value: the job, the settings, the machine, and where the files go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from accelerate import Accelerator
from rich.console import Console
from torch import nn

from capaft.adapter.file.fingerprint import WeightSamples
from capaft.adapter.module import Adapter
from capaft.config.train_config import TrainConfig
from capaft.support.console import print_line
from capaft.training.fitting_batch import FittingBatch
from capaft.training.parallel.processes import Processes
from capaft.training.record.metrics import Record
from capaft.training.record.run_directory import RunDirectory
from capaft.training.setup.job import Job


@dataclass(frozen=True)
class Trainer:
    """Everything that makes up one run.

    Attributes:
        job: the task, the base model, the examples, the plan of the adapter and its rates.
        config: the resolved settings.
        directory: the run's directory.
        console: where people read.
        accelerator: device, precision, loss scaling and trackers.
        processes: those that train together.
        adapter: attached to the job's model; None until it is.
        baseline: score of the frozen base; None if it was not measured.
        samples: sample weights of the base model, taken before it was sharded; None if it is whole.
        fitting: the number of examples that fit into memory in an evaluation.
        progress: called with every record, in the first process; None if nobody listens.
        made_from: digests of the data and the base model; see `origin_digests` in `record/resume.py`.
    """

    job: Job
    config: TrainConfig
    directory: RunDirectory
    console: Console
    accelerator: Accelerator
    processes: Processes
    adapter: Adapter | None = None
    baseline: float | None = None
    samples: WeightSamples | None = None
    fitting: FittingBatch = field(default_factory=FittingBatch)
    made_from: dict[str, str] = field(default_factory=dict)
    progress: Callable[[Record], None] | None = None

    @property
    def model(self) -> nn.Module:
        """The base model, with the adapter once it is attached."""
        model: nn.Module = self.job.base.model
        return model

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by their names in the adapter file."""
        assert self.adapter is not None, "the adapter is attached before training"
        return self.adapter.trained(self.model)

    def say(self, line: str) -> None:
        """Print a line for people, as it is."""
        print_line(self.console, line)
