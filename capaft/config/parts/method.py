"""Settings of the adapter: its method stack, size, sites and seed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from capaft.config.choices import (
    ACTIVATION,
    BASIS,
    BOTTLENECK,
    COPIES,
    DEMO_K,
    DENSITY,
    HOULSBY_ACTIVATION,
    MASK_RESCALE,
    MASKS,
    PARALLEL_SCALING,
    PREFIX_LENGTH,
    RANK,
    SCALING,
    SCOPE,
    VERA_RANK,
    Activation,
    BasisName,
    K,
    MaskRescale,
    Masks,
    Scope,
)
from capaft.config.completion import complete_method
from capaft.config.ranges import FRACTION, POSITIVE, at_least
from capaft.config.settings import Settings, setting
from capaft.config.values import Count

_setting = partial(setting, panel="Method")


@dataclass(frozen=True)
class MethodSettings(Settings):
    """Settings of the adapter: its method stack, size, sites and seed."""

    method: str = _setting(
        "nola",
        "Method: head, full, or a host such as lora, with +nola, +capaboost or both; `capaft methods` lists them.",
        metavar="stack",
        complete=complete_method,
    )
    rank: int | None = _setting(None, f"Rank of the factors (default: {RANK}; vera: {VERA_RANK}).", check=at_least(1))
    alpha: float | None = _setting(
        None, "Scaling; the update is multiplied by alpha/rank (default: twice the rank).", check=POSITIVE
    )
    rslora: bool = _setting(False, "Multiply by alpha/sqrt(rank) instead, so that large ranks learn too.")
    rank_pattern: tuple[str, ...] | None = _setting(
        None, "Ranks of some layers; the first match counts (default: none).", metavar="name=rank,..."
    )
    dropout: float = _setting(0.0, "Share of the adapter's input that is zeroed in training.", check=FRACTION)
    bottleneck: int | None = _setting(
        None, f"Hidden width of adapter layers (default: {BOTTLENECK}).", check=at_least(1)
    )
    activation: Activation | None = _setting(
        None, f"Activation of adapter layers (default: {ACTIVATION}; houlsby: {HOULSBY_ACTIVATION})."
    )
    bias: bool = _setting(True, "Biases in adapter layers.")
    scaling: float | None = _setting(
        None,
        f"Factor on the output of adapter layers (default: {SCALING:g}; parallel: {PARALLEL_SCALING:g}).",
        check=POSITIVE,
    )
    prefix_length: int | None = _setting(
        None, f"Virtual tokens that prefix puts before keys and values (default: {PREFIX_LENGTH}).", check=at_least(1)
    )
    method_option: tuple[str, ...] | None = _setting(
        None, "Options of a method from another package (default: its own).", metavar="name=value,..."
    )
    k: tuple[int, ...] | None = _setting(
        None,
        f"Coefficients of a factor, as one number or as two for down and up (default: {K}; in the demo: {DEMO_K}).",
        metavar="int[,int]",
        check=("one or two whole numbers of at least 1", lambda k: len(k) in (1, 2) and min(k) >= 1),
    )
    basis: BasisName = _setting(
        BASIS,
        "Random basis: the paper's (uniform), a faster one (hadamard), or one coefficient for each entry (group).",
    )
    scope: Scope = _setting(SCOPE, "Coefficients for each site, or one vector of them for the whole model.")
    copies: int = _setting(COPIES, "Masked copies of a factor that CapaBoost uses.", check=at_least(1))
    density: float = _setting(
        DENSITY,
        "Share of a factor's entries that a random mask keeps.",
        check=("in (0, 1]", lambda x: 0 < x <= 1),
    )
    masks: Masks = _setting(
        MASKS, "Masks: drawn independently, or disjoint so that they keep every entry exactly once."
    )
    mask_rescale: MaskRescale = _setting(
        MASK_RESCALE, "Scaling of masked factors: none, or to the variance of the unmasked factor."
    )
    target_modules: str | None = _setting(
        None,
        "Layers to adapt: qv, all-linear, attention, mlp, conv, embeddings, experts, names, or re:<regular "
        "expression> (default: set by the method; qv for lora, in the demo all-linear).",
        metavar="pattern",
    )
    exclude_modules: str | None = _setting(
        None, "Layers to leave out, as names or re:<regular expression> (default: none).", metavar="pattern"
    )
    layers: str | None = _setting(
        None, "Numbers of the blocks to adapt, such as 0-5,11 (default: all).", metavar="numbers"
    )
    modules_to_save: str | None = _setting(
        None, "Modules to train directly, beside the adapter (default: the new head alone).", metavar="names"
    )
    budget: Count | None = _setting(
        None,
        "Total of trainable parameters, such as 50k; sets k with NOLA, else the rank or width.",
        check=at_least(1),
    )
    init_from: str | None = _setting(
        None,
        "Run or adapter file to carry on: its trained parameters are the start, its method, layers and seed are used "
        "(default: start from the seed).",
        metavar="run",
    )
    allow_base_mismatch: bool = _setting(
        False, "Start from --init-from although its base weights differ from those of this model."
    )
    seed: int = _setting(
        0,
        "Seed of everything random; gives the same adapter on every machine.",
        check=("in [0, 2**64)", lambda seed: 0 <= seed < 2**64),
    )
