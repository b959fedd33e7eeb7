"""The task, its metric and its options."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from capaft.config.choices import (
    AUGMENT,
    CHAT_TEMPLATE,
    GENERATION_MAX_LENGTH,
    HEAD_K,
    LENGTH_PENALTY,
    MAX_ANSWER_LENGTH,
    MAX_LENGTH,
    MAX_NEW_TOKENS,
    MAX_SECONDS,
    MAX_SPEECH_SECONDS,
    MAX_TARGET_LENGTH,
    MISSING_VALUES,
    MLM_PROBABILITY,
    N_BEST,
    NO_ANSWER_THRESHOLD,
    NO_REPEAT_NGRAM_SIZE,
    NUM_BEAMS,
    PACKING,
    QUESTION_MAX_LENGTH,
    STRIDE,
    TASKS,
    HeadMode,
    ProblemName,
)
from capaft.config.ranges import POSITIVE, at_least
from capaft.config.settings import Settings, setting
from capaft.config.values import Text

_setting = partial(setting, panel="Task")
# An option that only some tasks have: their fields of the same names.
_option = partial(_setting, marks=("task option",))


@dataclass(frozen=True)
class TaskSettings(Settings):
    """The task, its metric and its options."""

    task: str = _setting(
        "auto", "Task (auto: inferred from the data's columns and the model).", choices=("auto", *TASKS)
    )
    metric: str | None = _setting(
        None, "Metric that picks the best adapter (default: set by the task, for GLUE its official one)."
    )
    missing_values: tuple[Text, ...] = _setting(
        MISSING_VALUES,
        'Texts that stand for a missing value, in inputs and in targets; "" leaves only blank texts.',
        metavar="text,...",
    )
    max_length: int | None = _setting(
        None,
        f"Tokens that an example is cut to (default: set by the task; {MAX_LENGTH}, "
        f"for questions {QUESTION_MAX_LENGTH}, to generate {GENERATION_MAX_LENGTH}).",
        check=at_least(2),
    )
    head: HeadMode = _setting(
        "full", "Training of the head: directly, by coefficients of a random basis, or not at all."
    )
    head_k: int = _setting(
        HEAD_K,
        "Coefficients for each parameter of the head that has more entries than this, with --head nola.",
        check=at_least(1),
    )
    problem: ProblemName = _option(
        "auto", "Text classification: one label of several, any number of labels, or a number to predict."
    )
    label_separator: Text | None = _option(
        None,
        "Text classification: separator of the labels in one text, with --problem multi (default: labels are lists).",
        metavar="text",
    )
    positive_label: Text = _option(
        "", "Classification: label whose F1, precision and recall are scored (default: the macro F1).", metavar="label"
    )
    normalise_labels: bool = _option(
        False, "Classification: merge labels that differ only in blanks, case or the form of their characters."
    )
    stride: int = _option(
        STRIDE, "Question answering: tokens by which windows of a long context overlap.", check=at_least(0)
    )
    n_best: int = _option(
        N_BEST, "Question answering: candidates for start and for end that are combined.", check=at_least(1)
    )
    max_answer_length: int = _option(
        MAX_ANSWER_LENGTH, "Question answering: tokens in an answer at most.", check=at_least(1)
    )
    no_answer_threshold: float = _option(
        NO_ANSWER_THRESHOLD, 'Question answering: margin by which "no answer" must outscore the best answer (SQuAD v2).'
    )
    packing: bool = _option(PACKING, "Language modelling: join texts and cut them into blocks of the maximum length.")
    chat_template: bool = _option(
        CHAT_TEMPLATE, "Language modelling: put prompts and answers into the model's chat template, if it has one."
    )
    source_prefix: Text | None = _option(
        None, 'Generation: text put before each source, such as "summarize: " (default: none).', metavar="text"
    )
    separator: Text | None = _option(
        None,
        "Language modelling: text between prompt and completion without a chat template (default: line break).",
    )
    max_target_length: int = _option(
        MAX_TARGET_LENGTH, "Sequence to sequence: tokens a target is cut to.", check=at_least(2)
    )
    max_new_tokens: int = _option(MAX_NEW_TOKENS, "Generation: tokens generated at most.", check=at_least(1))
    num_beams: int = _option(NUM_BEAMS, "Generation: beams of the search; 1 is greedy.", check=at_least(1))
    length_penalty: float = _option(
        LENGTH_PENALTY,
        "Generation: bias of the beam search, above 0 towards longer texts, below 0 towards shorter ones.",
    )
    no_repeat_ngram_size: int = _option(
        NO_REPEAT_NGRAM_SIZE,
        "Generation: groups of this many tokens occur only once; 0 allows repeats.",
        check=at_least(0),
    )
    language: str | None = _option(
        None,
        "Generation, speech: language of the texts, such as en, zh or pt-BR (default: the script decides what a word "
        "is in the scores).",
        metavar="code",
    )
    mlm_probability: float = _option(
        MLM_PROBABILITY,
        "Masked language modelling: share of the tokens to predict.",
        check=("in (0, 1)", lambda p: 0 < p < 1),
    )
    augment: bool = _option(AUGMENT, "Images: crop and flip at random in training (--no-augment suits digits).")
    max_seconds: float | None = _option(
        None,
        f"Audio: seconds that a recording is cut to (default: set by the task; {MAX_SECONDS:g}, "
        f"to write speech {MAX_SPEECH_SECONDS:g}).",
        check=POSITIVE,
    )
    task_option: tuple[str, ...] | None = _setting(
        None, "Options of the task that have no flag of their own (default: its own).", metavar="name=value,..."
    )
