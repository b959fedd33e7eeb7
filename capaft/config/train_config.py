"""What a training run can be told: the sole source of flags, variables, YAML names, help and saved runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import ClassVar

from capaft.config.choices import (
    ACTIVATION,
    BASIS,
    BOTTLENECK,
    COPIES,
    DEMO_K,
    DENSITY,
    HEAD_K,
    HOULSBY_ACTIVATION,
    MASK_RESCALE,
    MASKS,
    PARALLEL_SCALING,
    PREFIX_LENGTH,
    RANK,
    SCALING,
    SCOPE,
    TASKS,
    VERA_RANK,
    Activation,
    BaseDtype,
    Basis,
    HeadInit,
    HeadMode,
    K,
    MaskRescale,
    Masks,
    Optimizer,
    Precision,
    Problem,
    SaveDtype,
    Schedule,
    Scope,
)
from capaft.config.settings import Check, Count, Settings, Text, setting

_source = partial(setting, panel="Model and data")
_task = partial(setting, panel="Task")
# An option of some tasks only: their fields of the same names.
_option = partial(setting, panel="Task", marks=("task option",))
_method = partial(setting, panel="Method")
_optimisation = partial(setting, panel="Optimisation")
_evaluation = partial(setting, panel="Evaluation")
_machine = partial(setting, panel="Machine")
_output = partial(setting, panel="Output")


def _at_least(low: int) -> Check:
    return (f"at least {low}", lambda value: value >= low)


_POSITIVE = ("greater than 0", lambda value: value > 0)
# Far more than learns anything, and far less than float32 can hold: optimisers cannot take more.
_RATE = ("in (0, 1000]", lambda value: 0 < value <= 1000)
_FRACTION = ("in [0, 1)", lambda value: 0 <= value < 1)


@dataclass(frozen=True)
class TrainConfig(Settings):
    """Everything `capaft train` can be told, each with a default; None leaves the choice to capaft."""

    alternatives: ClassVar = (("epochs", "max_steps"), ("eval_epochs", "eval_steps"))

    model: str | None = _source(
        None, "Base model, as a directory, a GGUF file or a hub id (default: the embedded demo).", metavar="path|id"
    )
    revision: str | None = _source(None, "Branch, tag or commit of a base model from the hub (default: its main one).")
    trust_remote_code: bool = _source(False, "Run Python code that the model's or the data's repository brings.")
    data: str | None = _source(
        None, "Data set, as a file, a directory or a hub id (default: the embedded demo).", metavar="path|id"
    )
    train_split: str | None = _source(None, "Split of the data set to train on (default: train).", metavar="name")
    eval_split: str | None = _source(
        None, "Split of the data set that validates (default: validation, dev, eval or test).", metavar="name"
    )
    text_column: str | None = _source(
        None, "Column that goes in: text, tokens, prompt, messages, question, image or audio (default: found)."
    )
    pair_column: str | None = _source(
        None, "Column of its second part: the other text of a pair, the context of a question (default: found)."
    )
    label_column: str | None = _source(
        None,
        "Column that should come out: label, tags, answers, completion or summary; a,b,c for a column of 0 and 1 for "
        "each label (default: found).",
    )
    validation_split: float = _source(
        0.1,
        "Share of the training data set aside where there is no validation split.",
        check=("in (0, 1)", lambda value: 0 < value < 1),
    )
    max_train_examples: int | None = _source(
        None, "Train on this many examples at most (default: all of them).", check=_at_least(1)
    )
    max_eval_examples: int | None = _source(
        None, "Evaluate on this many examples at most (default: all of them).", check=_at_least(1)
    )
    shots: int | None = _source(None, "Train on this many examples of each class (default: all).", check=_at_least(1))
    max_length: int | None = _source(
        None,
        "Tokens an example is cut to (default: set by the task; 128, for questions 384, to generate 512).",
        check=_at_least(2),
    )
    show: int = _source(0, "Print this many training examples, decoded, before training.", check=_at_least(0))

    task: str = _task(
        "auto", "What to train for (auto: inferred from the data's columns and the model).", choices=("auto", *TASKS)
    )
    head: HeadMode = _task(
        "full", "How the head is trained: as it is, as coefficients of a random basis, or not at all."
    )
    head_k: int = _task(
        HEAD_K,
        "Coefficients of each parameter of the head with more numbers than this, under --head nola.",
        check=_at_least(1),
    )
    problem: Problem = _option("auto", "Text classification: one label of several, any number of labels, or a number.")
    label_separator: Text | None = _option(
        None,
        "Text classification: what stands between the labels of a row that are one text, under --problem multi "
        "(default: labels are lists).",
        metavar="text",
    )
    stride: int = _option(
        128, "Question answering: tokens by which windows of a long context overlap.", check=_at_least(0)
    )
    n_best: int = _option(20, "Question answering: candidates for start and end that are combined.", check=_at_least(1))
    max_answer_length: int = _option(30, "Question answering: tokens in an answer at most.", check=_at_least(1))
    no_answer_threshold: float = _option(
        0.0, "Question answering: how much better than any answer no answer must score to be given (SQuAD v2)."
    )
    packing: bool = _option(True, "Language modelling: join texts and cut them into blocks of the maximum length.")
    chat_template: bool = _option(
        True, "Language modelling: put prompts and answers into the model's own chat template, if it has one."
    )
    source_prefix: Text | None = _option(
        None, 'Generation: text put before each source, such as "summarize: " (default: none).', metavar="text"
    )
    separator: Text | None = _option(
        None,
        "Language modelling: text between prompt and completion where there is no chat template (default: line break).",
    )
    max_target_length: int = _option(128, "Sequence to sequence: tokens a target is cut to.", check=_at_least(2))
    max_new_tokens: int = _option(128, "Generation: tokens generated at most.", check=_at_least(1))
    num_beams: int = _option(1, "Generation: beams of the search; 1 is greedy.", check=_at_least(1))
    length_penalty: float = _option(1.0, "Generation: above 0 beam search prefers longer texts, below 0 shorter ones.")
    no_repeat_ngram_size: int = _option(
        0, "Generation: word groups of this many tokens occur once; 0 does not mind.", check=_at_least(0)
    )
    mlm_probability: float = _option(
        0.15, "Masked language modelling: share of the tokens to predict.", check=("in (0, 1)", lambda p: 0 < p < 1)
    )
    augment: bool = _option(
        True, "Images: crop and flip at random in training (digits and the like want --no-augment)."
    )
    max_seconds: float = _option(10.0, "Audio: seconds that a recording is cut to.", check=_POSITIVE)
    task_option: tuple[str, ...] | None = _task(
        None, "Options of the task that have no flag of their own (default: its own).", metavar="name=value,..."
    )

    method: str = _method(
        "nola",
        "Method: head, full, or a host such as lora with +nola, +capaboost or both; `capaft methods` lists them.",
        metavar="stack",
    )
    rank: int | None = _method(None, f"Rank of the factors (default: {RANK}; vera: {VERA_RANK}).", check=_at_least(1))
    alpha: float | None = _method(
        None, "Scaling; the update is multiplied by alpha/rank (default: twice the rank).", check=_POSITIVE
    )
    rslora: bool = _method(False, "Multiply by alpha/sqrt(rank) instead, so that large ranks learn too.")
    rank_pattern: tuple[str, ...] | None = _method(
        None, "Ranks of some layers, the first match counts (default: none).", metavar="name=rank,..."
    )
    dropout: float = _method(0.0, "Share of the adapter's input that is zeroed in training.", check=_FRACTION)
    bottleneck: int | None = _method(
        None, f"Hidden width of adapter layers (default: {BOTTLENECK}).", check=_at_least(1)
    )
    activation: Activation | None = _method(
        None, f"Activation of adapter layers (default: {ACTIVATION}; houlsby: {HOULSBY_ACTIVATION})."
    )
    bias: bool = _method(True, "Biases in adapter layers.")
    scaling: float | None = _method(
        None,
        f"Factor on the output of adapter layers (default: {SCALING:g}; parallel: {PARALLEL_SCALING:g}).",
        check=_POSITIVE,
    )
    prefix_length: int | None = _method(
        None, f"Virtual tokens that prefix puts before keys and values (default: {PREFIX_LENGTH}).", check=_at_least(1)
    )
    method_option: tuple[str, ...] | None = _method(
        None, "Options of a method that another package brings (default: its own).", metavar="name=value,..."
    )
    k: tuple[int, ...] | None = _method(
        None,
        f"Coefficients of a factor, as one number or as two for down and up (default: {K}; in the demo: {DEMO_K}).",
        metavar="int[,int]",
        check=("one or two whole numbers of at least 1", lambda k: len(k) in (1, 2) and min(k) >= 1),
    )
    basis: Basis = _method(BASIS, "Random basis: the paper's, or a fast one.")
    scope: Scope = _method(SCOPE, "Coefficients of every layer's own, or one vector of them for the whole model.")
    copies: int = _method(COPIES, "Masked copies of a factor that CapaBoost uses.", check=_at_least(1))
    density: float = _method(
        DENSITY,
        "Share of a factor's entries that a random mask keeps.",
        check=("in (0, 1]", lambda x: 0 < x <= 1),
    )
    masks: Masks = _method(MASKS, "Masks drawn independently, or disjoint ones that keep every entry exactly once.")
    mask_rescale: MaskRescale = _method(
        MASK_RESCALE, "Leave masked factors as they are, or scale them to the variance that they have unmasked."
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
    budget: Count | None = _method(
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
    max_steps: int | None = _optimisation(
        None, "Optimiser steps, instead of epochs (default: set by the epochs).", check=_at_least(1)
    )
    batch_size: int = _optimisation(32, "Examples in an optimiser step, all processes together.", check=_at_least(1))
    micro_batch_size: int | None = _optimisation(
        None,
        "Examples in a forward; a step's gradients add up exactly over them (default: the process's whole share).",
        check=_at_least(1),
    )
    lr: float | None = _optimisation(None, "Peak learning rate (default: set by the method).", check=_RATE)
    head_lr: float | None = _optimisation(
        None, "Peak learning rate of the head (default: set by the method).", check=_RATE
    )
    head_init: HeadInit = _optimisation(
        "fitted", "Where a new head starts: fitted on the frozen base's features, or at random from the seed."
    )
    optimizer: Optimizer = _optimisation("adamw", "Optimiser; the 8-bit one needs the package bitsandbytes.")
    warmup: float = _optimisation(
        0.06,
        "Steps in which the learning rate rises, as a share of all; from 1 on, as their number.",
        check=_at_least(0),
    )
    lora_plus_ratio: float = _optimisation(
        1.0, "How many times faster the up factors learn than the down factors (LoRA+).", check=_RATE
    )
    weight_decay: float = _optimisation(0.0, "Weight decay of matrices, decoupled except for sgd.", check=_at_least(0))
    schedule: Schedule = _optimisation("linear", "Course of the learning rate after the warm-up.")
    clip: float = _optimisation(1.0, "Largest norm of the gradient; 0 leaves it alone.", check=_at_least(0))
    label_smoothing: float = _optimisation(0.0, "Share of the target spread over all labels.", check=_FRACTION)

    metric: str | None = _evaluation(
        None, "Metric that picks the best adapter (default: set by the task, for GLUE its official one)."
    )
    eval_epochs: int = _evaluation(1, "Epochs between evaluations.", check=_at_least(1))
    eval_steps: int | None = _evaluation(
        None, "Steps between evaluations, instead of epochs (default: set by the epochs).", check=_at_least(1)
    )
    patience: int | None = _evaluation(
        None, "Stop after this many evaluations without a better score (default: never).", check=_at_least(1)
    )
    min_delta: float = _evaluation(0.0, "How much better a score must be for --patience to count.", check=_at_least(0))
    baseline: bool | None = _evaluation(
        None, "Score the frozen base first, under a head fitted on its features (default: in the demo only)."
    )
    eval_batch_size: int = _evaluation(64, "Examples scored at a time, in each process.", check=_at_least(1))

    precision: Precision = _machine("fp32", "What products are computed in; trained numbers stay float32.")
    base_dtype: BaseDtype = _machine(
        "float32", "What the frozen weights are held in; 8bit and 4bit need the package bitsandbytes."
    )
    head_cache: bool = _machine(
        True, "Take a new head's start from the Hugging Face cache if an earlier run fitted the same, or keep it there."
    )
    gradient_checkpointing: bool = _machine(
        False, "Compute activations again in the backward instead of keeping them: slower, much less memory."
    )
    processes: int = _machine(
        1, "Processes to train in, each with a device of its own if there are any.", check=_at_least(1)
    )

    output: str | None = _output(
        None, "Directory of the run (default: the next free runs/<method>-<n>).", metavar="dir"
    )
    checkpoint_seconds: float = _output(
        60.0, "Seconds between checkpoints; one is also left at every evaluation.", check=_at_least(0)
    )
    resume: bool = _output(False, "Go on with the run in --output from its last checkpoint, or start it.")
    tracker: tuple[str, ...] | None = _output(
        None, "Also log to tensorboard, wandb or others that Accelerate knows (default: none).", metavar="name,..."
    )
    save_dtype: SaveDtype = _output("float32", "Number format of the adapter file.")
    overwrite: bool = _output(False, "Replace a run that is already in the output directory.")

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
