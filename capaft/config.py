"""What a training run can be told: the sole source of flags, variables, YAML names, help and saved runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from capaft.settings import Check, Count, Settings, setting

_source = partial(setting, panel="Model and data")
_method = partial(setting, panel="Method")
_optimisation = partial(setting, panel="Optimisation")
_evaluation = partial(setting, panel="Evaluation")
_output = partial(setting, panel="Output")


def _at_least(low: int) -> Check:
    return (f"at least {low}", lambda value: value >= low)


_POSITIVE = ("greater than 0", lambda value: value > 0)
_FRACTION = ("in [0, 1)", lambda value: 0 <= value < 1)


@dataclass(frozen=True)
class TrainConfig(Settings):
    """Everything `capaft train` can be told, each with a default; None leaves the choice to capaft."""

    model: str | None = _source(
        None, "Base model, as a directory, a GGUF file or a hub id (default: the embedded demo).", metavar="path|id"
    )
    revision: str | None = _source(None, "Branch, tag or commit of a base model from the hub (default: its main one).")
    trust_remote_code: bool = _source(False, "Run Python code that the model's or the data's repository brings.")
    data: str | None = _source(
        None, "Data set, as a file, a directory or a hub id (default: the embedded demo).", metavar="path|id"
    )
    text_column: str | None = _source(None, "Column that holds the text (default: found by name and type).")
    pair_column: str | None = _source(None, "Column that holds the second text of a pair (default: found by name).")
    label_column: str | None = _source(None, "Column that holds the label (default: found by name and type).")
    validation_split: float = _source(
        0.1,
        "Share of the training data set aside where there is no validation split.",
        check=("in (0, 1)", lambda value: 0 < value < 1),
    )
    max_train_examples: int | None = _source(
        None, "Train on this many examples at most (default: all of them).", check=_at_least(1)
    )
    max_length: int = _source(128, "Tokens an example is cut to.", check=_at_least(2))

    method: str = _method(
        "nola",
        "Method: head, full, or a host such as lora with +nola, +capaboost or both; `capaft methods` lists them.",
        metavar="stack",
    )
    rank: int | None = _method(None, "Rank of the factors (default: 8, of vera 256).", check=_at_least(1))
    alpha: float | None = _method(
        None, "Scaling; the update is multiplied by alpha/rank (default: twice the rank).", check=_POSITIVE
    )
    rslora: bool = _method(False, "Multiply by alpha/sqrt(rank) instead, so that large ranks learn too.")
    rank_pattern: tuple[str, ...] | None = _method(
        None, "Ranks of some layers, the first match counts (default: none).", metavar="name=rank,..."
    )
    dropout: float = _method(0.0, "Share of the adapter's input that is zeroed in training.", check=_FRACTION)
    bottleneck: int | None = _method(None, "Hidden width of adapter layers (default: 64).", check=_at_least(1))
    activation: Literal["relu", "gelu", "swish", "tanh", "identity"] | None = _method(
        None, "Activation of adapter layers (default: relu, of houlsby swish)."
    )
    bias: bool = _method(True, "Biases in adapter layers.")
    scaling: float | None = _method(
        None, "What the output of adapter layers is multiplied by (default: 1, of parallel 4).", check=_POSITIVE
    )
    prefix_length: int | None = _method(
        None, "Virtual tokens that prefix puts before keys and values (default: 16).", check=_at_least(1)
    )
    method_option: tuple[str, ...] | None = _method(
        None, "Options of a method that another package brings (default: its own).", metavar="name=value,..."
    )
    k: tuple[int, ...] | None = _method(
        None,
        "Coefficients of a factor, as one number or as two for down and up (default: 192, in the demo 128).",
        metavar="int[,int]",
        check=("one or two whole numbers of at least 1", lambda k: len(k) in (1, 2) and min(k) >= 1),
    )
    basis: Literal["uniform", "hadamard", "group"] = _method("hadamard", "Random basis: the paper's, or a fast one.")
    scope: Literal["site", "model"] = _method(
        "site", "Coefficients of every layer's own, or one vector of them for the whole model."
    )
    copies: int = _method(2, "Masked copies of a factor that CapaBoost uses.", check=_at_least(1))
    density: float = _method(
        0.5,
        "Share of a factor's entries that a random mask keeps.",
        check=("in (0, 1]", lambda x: 0 < x <= 1),
    )
    masks: Literal["random", "partition"] = _method(
        "random", "Masks drawn independently, or disjoint ones that keep every entry exactly once."
    )
    mask_rescale: Literal["none", "variance"] = _method(
        "none", "Leave masked factors as they are, or scale them to the variance that they have unmasked."
    )
    target_modules: str | None = _method(
        None,
        "Layers to adapt: qv, all-linear, attention, mlp, conv, embeddings, experts, names, or re:<regular "
        "expression> (default: set by the method; qv for lora, in the demo all-linear).",
        metavar="pattern",
    )
    exclude_modules: str | None = _method(
        None, "Layers to leave out, as names or re:<regular expression> (default: none).", metavar="pattern"
    )
    layers: str | None = _method(
        None, "Numbers of the blocks to adapt, such as 0-5,11 (default: all).", metavar="numbers"
    )
    modules_to_save: str | None = _method(
        None, "Modules to train as they are, beside the adapter (default: the new head alone).", metavar="names"
    )
    budget: Count | None = _method(  # noqa: RUF009
        None,
        "Total of trained numbers, such as 50k; picks k, or the rank where there is no k.",
        check=_at_least(1),
    )
    seed: int = _method(
        0,
        "Seed of everything random; it means the same adapter on every machine.",
        check=("in [0, 2**64)", lambda seed: 0 <= seed < 2**64),
    )

    epochs: int | None = _optimisation(
        None, "Passes over the training data (default: set by the method).", check=_at_least(1)
    )
    batch_size: int = _optimisation(32, "Examples in an optimiser step.", check=_at_least(1))
    lr: float | None = _optimisation(None, "Peak learning rate (default: set by the method).", check=_POSITIVE)
    head_lr: float | None = _optimisation(
        None, "Peak learning rate of the head (default: set by the method).", check=_POSITIVE
    )
    head_init: Literal["fitted", "seeded"] = _optimisation(
        "fitted", "Where a new head starts: fitted on the frozen base's features, or at random from the seed."
    )
    warmup: float = _optimisation(0.06, "Share of the steps in which the learning rate rises.", check=_FRACTION)
    lora_plus_ratio: float = _optimisation(
        1.0, "How many times faster the up factors learn than the down factors (LoRA+).", check=_POSITIVE
    )
    weight_decay: float = _optimisation(0.0, "Decoupled weight decay.", check=_at_least(0))
    schedule: Literal["linear", "cosine", "constant"] = _optimisation(
        "linear", "Course of the learning rate after the warm-up."
    )
    clip: float = _optimisation(1.0, "Largest norm of the gradient; 0 leaves it alone.", check=_at_least(0))
    label_smoothing: float = _optimisation(0.0, "Share of the target spread over all labels.", check=_FRACTION)

    metric: str | None = _evaluation(None, "Metric that picks the best epoch (default: set by the task).")
    baseline: bool | None = _evaluation(
        None, "Score the frozen base first, under a head fitted on its features (default: in the demo only)."
    )
    eval_batch_size: int = _evaluation(64, "Examples scored at a time.", check=_at_least(1))

    output: str | None = _output(
        None, "Directory of the run (default: the next free runs/<method>-<n>).", metavar="dir"
    )
    save_dtype: Literal["float32", "bfloat16", "float16", "int8", "int4"] = _output(
        "float32", "Number format of the adapter file."
    )
    overwrite: bool = _output(False, "Replace a run that is already in the output directory.")

    def conflicts(self, given: Mapping[str, str]) -> list[str]:
        """Say what contradicts what, one line each; `given` maps what was set to how it was named."""
        found = []
        picked = {"k"} if "nola" in self.method.split("+") else {"k", "rank", "bottleneck", "prefix_length"}
        if self.budget is not None:
            found += [
                f"{given['budget']} and {given[name]} cannot be used together: a budget picks it; drop one"
                for name in sorted(picked & given.keys())
            ]
        if self.masks == "partition" and "density" in given and abs(self.density - 1 / self.copies) > 0.005:
            found.append(
                f"{given['density']} and {given['masks']} cannot be used together: "
                f"{self.copies} disjoint masks keep 1/{self.copies} each; drop the density"
            )
        return found
