"""The choices of settings that are one word of several, and defaults that several modules share, stated once.

The flags, their help, the parser and the checks of the library read them here. Importing this loads nothing heavy.
"""

from __future__ import annotations

import pkgutil
from pathlib import Path
from typing import Literal

# By the names of the files, since importing a task imports torch, and settings lie below the tasks.
_TASK_FILES = pkgutil.iter_modules([str(Path(__file__).parents[1] / "tasks")])

TASKS: tuple[str, ...] = tuple(sorted(file.name.replace("_", "-") for file in _TASK_FILES if not file.ispkg))
"""The tasks: every file of `capaft/tasks/` is one."""

ProblemName = Literal["auto", "single", "multi", "regression"]
HeadMode = Literal["full", "nola", "frozen"]
HeadInit = Literal["fitted", "seeded"]

Activation = Literal["relu", "gelu", "swish", "tanh", "identity"]
BasisName = Literal["hadamard", "uniform", "group"]
Scope = Literal["site", "model"]
Masks = Literal["random", "partition"]
MaskRescale = Literal["none", "variance"]

Optimizer = Literal["adamw", "adamw-8bit", "adafactor", "sgd"]
Schedule = Literal["linear", "cosine", "constant", "polynomial", "inverse-sqrt", "cosine-restarts", "wsd"]

Precision = Literal["fp32", "bf16", "fp16"]
BaseDtype = Literal["float32", "bfloat16", "float16", "8bit", "4bit"]
FloatDtype = Literal["float32", "bfloat16", "float16"]
Quantised = Literal["refuse", "dequantise"]
SaveDtype = Literal["float32", "bfloat16", "float16", "int8", "int4"]
ExportFormat = Literal["peft", "gguf"]

RANK = 8
VERA_RANK = 256
BOTTLENECK = 64
ACTIVATION: Activation = "relu"
HOULSBY_ACTIVATION: Activation = "swish"
SCALING = 1.0
PARALLEL_SCALING = 4.0
PREFIX_LENGTH = 16

K = 192
BASIS: BasisName = "hadamard"
SCOPE: Scope = "site"
COPIES = 2
DENSITY = 0.5
MASKS: Masks = "random"
MASK_RESCALE: MaskRescale = "none"

HEAD_K = 1024

# Defaults of the options of tasks.
MAX_LENGTH = 128
QUESTION_MAX_LENGTH = 384
GENERATION_MAX_LENGTH = 512
STRIDE = 128
N_BEST = 20
MAX_ANSWER_LENGTH = 30
NO_ANSWER_THRESHOLD = 0.0
PACKING = True
CHAT_TEMPLATE = True
MAX_TARGET_LENGTH = 128
MAX_NEW_TOKENS = 128
NUM_BEAMS = 1
LENGTH_PENALTY = 1.0
NO_REPEAT_NGRAM_SIZE = 0
MLM_PROBABILITY = 0.15
AUGMENT = True
MAX_SECONDS = 10.0
MAX_SPEECH_SECONDS = 30.0

# Defaults of the demo. At the same count of trainable parameters, its few examples gain more from a small change to
# every layer than from a larger one to the query and value projections.
DEMO_K = 128
DEMO_TARGET_MODULES = "all-linear"

# What pandas reads as missing (its `STR_NA_VALUES`), and R's words. Not "none", which classes are named with.
MISSING_VALUES = (
    *("NA", "N/A", "n/a", "#N/A", "#N/A N/A", "#NA", "<NA>", "NaN", "nan", "-NaN", "-nan", "NULL", "null", "None"),
    *("1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN", "NA_character_", "NA_integer_", "NA_real_", "NA_complex_"),
)
