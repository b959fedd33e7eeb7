"""Options of the commands that open a finished adapter."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

from capaft.config.choices import TASKS, BaseDtype, ExportFormat, FloatDtype, ProblemName, Quantised, SaveDtype
from capaft.config.pairs import parse_pairs
from capaft.config.settings import Settings, setting
from capaft.config.values import Text

_base = partial(setting, panel="Base model")
_data = partial(setting, panel="Data")
_merged = partial(setting, panel="Merged model")
_task = partial(setting, panel="Adapter")
_scores = partial(setting, panel="Scores")
_answers = partial(setting, panel="Answers")
_AT_LEAST_1 = ("at least 1", lambda value: value >= 1)
_form = partial(setting, panel="Form")
# Beyond, their products with float32 weights are not finite.
_FACTORS = ("between -1e6 and 1e6 each", lambda values: all(abs(value) <= 1e6 for value in values))


@dataclass(frozen=True)
class OpenOptions(Settings):
    """Options for putting a saved adapter on its base model again."""

    nullable: ClassVar[bool] = False

    model: str | None = _base(None, "Base model (default: the one named in the run or the file).", metavar="path|id")
    rename: tuple[str, ...] | None = _base(
        None, "Module name that changed since training; may be repeated.", metavar="old=new", repeated=True
    )
    trust_remote_code: bool = _base(False, "Run Python code from the repository of the base model.")
    allow_base_mismatch: bool = _base(False, "Use the adapter although the base weights differ.")
    resize_embeddings: bool = _base(False, "Add rows to the embedding as the training did (default: as in the run).")
    base_dtype: BaseDtype | None = _base(None, "Dtype of the base weights (default: as in the run, else float32).")
    labels: tuple[str, ...] | None = _task(
        None,
        "Names of the labels of a PEFT adapter, which keeps none (default: those of its base).",
        metavar="name,...",
    )

    @property
    def renames(self) -> dict[str, str]:
        """`rename` as `{old: new}`.

        Raises:
            UsageError: an entry is not OLD=NEW.
        """
        return parse_pairs(self.rename or (), "--rename OLD=NEW")


@dataclass(frozen=True)
class MergeOptions(OpenOptions):
    """Options of `capaft merge`."""

    quantised: Quantised = _base(
        "refuse", "What to do with a quantised base: refuse it, or dequantise it and merge into plain weights."
    )
    dtype: FloatDtype | None = _merged(None, "Dtype of the merged weights (default: that of each in the checkpoint).")
    max_shard_size: str | None = _merged(
        None, "Size of a file of weights at most, such as 5GB (default: the files of the base).", metavar="size"
    )
    verify: bool = _merged(True, "Compare the outputs of the adapted and the merged model on random inputs.")
    weights: tuple[float, ...] | None = _merged(
        None, "Factor of each run's update, such as 0.7,0.3 (default: 1 for each).", metavar="x,x", check=_FACTORS
    )


@dataclass(frozen=True)
class AverageOptions(Settings):
    """Options of `capaft average`."""

    nullable: ClassVar[bool] = False

    weights: tuple[float, ...] | None = setting(
        None,
        "Weight of each adapter, such as 3,1; only their ratio counts (default: all alike).",
        panel="Average",
        metavar="x,x",
        check=_FACTORS,
    )


@dataclass(frozen=True)
class ImportOptions(OpenOptions):
    """Options of `capaft import`."""

    task: str = _task(
        "auto", "Task of the adapter (auto: as its own settings and its base tell).", choices=("auto", *TASKS)
    )
    problem: ProblemName = _task("auto", "Kind of its labels (auto: as the base's config.json says).")
    save_dtype: SaveDtype = _task("float32", "Number format of the adapter file.")


@dataclass(frozen=True)
class ExportOptions(OpenOptions):
    """Options of `capaft export`."""

    to: ExportFormat = _form("peft", "The tool whose form to write.")
    pad_rank: int | None = _form(
        None,
        "With --to peft, the rank of all layers, filled up with zeros.",
        check=("in [1, 4096]", lambda value: 1 <= value <= 4096),
    )
    dtype: FloatDtype | None = _form(None, "With --to gguf, the dtype of the tensors (default: float32).")


@dataclass(frozen=True)
class EvalOptions(OpenOptions):
    """Options of `capaft eval`."""

    data: str | None = _data(None, "Data set to score on (default: the run's validation split).", metavar="path|id")
    split: str | None = _data(None, "Split of the data to score on, such as test.", metavar="name")
    text_column: str | None = _data(None, "Column of the text.")
    pair_column: str | None = _data(None, "Column of the second text.")
    label_column: str | None = _data(None, "Column of the label.")
    max_examples: int | None = _data(None, "Number of examples to score at most (default: all).", check=_AT_LEAST_1)
    metric: str | None = _scores(None, "Metric (default: that of the training).")
    set: tuple[str, ...] | None = _scores(
        None,
        "Option of the task to change, such as num_beams=4; may be repeated.",
        metavar="name=value",
        repeated=True,
    )
    predictions: Path | None = _scores(None, "JSON lines file to write the predictions to.")

    @property
    def columns(self) -> dict[str, str | None]:
        """The named columns, by role."""
        return {"text": self.text_column, "pair": self.pair_column, "label": self.label_column}

    @property
    def task_options(self) -> dict[str, str]:
        """`set` as `{name: value}`.

        Raises:
            UsageError: an entry is not NAME=VALUE.
        """
        return parse_pairs(self.set or (), "--set NAME=VALUE")


@dataclass(frozen=True)
class PredictOptions(OpenOptions):
    """Options of `capaft predict`."""

    data: str | None = _data(
        None, "Rows to answer, or - for stdin, one text a line (the default).", metavar="path|id|-"
    )
    split: str | None = _data(None, "Split of the data, such as test.", metavar="name")
    bank: Path | None = _data(
        None, "Bank to use in place of RUN: a directory of adapters, of which each row names one.", metavar="path"
    )
    adapter_column: str = _data("adapter", "With --bank, the column that names each row's adapter.")
    text: tuple[str, ...] | None = _data(None, "A text to answer; may be repeated.", metavar="text", repeated=True)
    pair_text: tuple[str, ...] | None = _data(
        None, "The second text of each --text, for pairs.", metavar="text", repeated=True
    )
    text_column: str | None = _data(None, "Column of the text.")
    pair_column: str | None = _data(None, "Column of the second text.")
    keep: tuple[Text, ...] | None = _answers(
        None, "Columns of the data that the records hold (default: all).", metavar="name,..."
    )
    top: int | None = _answers(
        None, "Number of the likeliest classes to list with their probabilities.", check=_AT_LEAST_1
    )
    output: Path | None = _answers(None, "File to write to: .csv, else JSON lines (default: stdout).")
    batch_size: int | None = _answers(
        None, "Examples in a forward at most (default: as in the run's evaluations).", check=_AT_LEAST_1
    )
    set: tuple[str, ...] | None = _answers(
        None,
        "Option of the task to change, such as max_length=64; may be repeated.",
        metavar="name=value",
        repeated=True,
    )

    @property
    def columns(self) -> dict[str, str | None]:
        """The named columns, by role."""
        return {"text": self.text_column, "pair": self.pair_column}

    @property
    def kept(self) -> tuple[str, ...] | None:
        """The columns to pass on: all if None."""
        return None if self.keep is None else tuple(filter(None, self.keep))

    @property
    def task_options(self) -> dict[str, str]:
        """`set` as `{name: value}`.

        Raises:
            UsageError: an entry is not NAME=VALUE.
        """
        return parse_pairs(self.set or (), "--set NAME=VALUE")
