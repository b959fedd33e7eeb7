"""Tiny models of any type that the installed transformers maps for a head, random, with inputs for one step.

Nothing here is specific to a model type. A configuration is shrunk by the meanings of its entries, as far as their
names and values tell them; if the model does not run, a few other ways of shrinking are tried in turn, and the first
that runs is used. Only entries with a default of their own are changed: derived entries are derived again.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, dataclass, fields, replace
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto import modeling_auto
from transformers.pytorch_utils import Conv1D

HEADS = {
    "sequence classification": "SEQUENCE_CLASSIFICATION",
    "token classification": "TOKEN_CLASSIFICATION",
    "question answering": "QUESTION_ANSWERING",
    "multiple choice": "MULTIPLE_CHOICE",
    "causal LM": "CAUSAL_LM",
    "masked LM": "MASKED_LM",
    "seq2seq": "SEQ_TO_SEQ_CAUSAL_LM",
    "image classification": "IMAGE_CLASSIFICATION",
    "audio classification": "AUDIO_CLASSIFICATION",
}
BATCH, CHOICES, LABELS, POSITIONS = 2, 2, 2, 64
MAX_SIZE = 50_000_000
# Inputs are tokens of this range; special tokens beyond the shrunken vocabulary move to ids above it.
PLAIN, SPECIAL = 10, 90


class Pair(NamedTuple):
    """A model type under a head."""

    head: str
    model_type: str
    model_class: Any
    config_class: type[PreTrainedConfig]


@dataclass(frozen=True)
class Rules:
    """One way of shrinking.

    Attributes:
        width: width of the model; feed-forward layers are twice as wide.
        heads: number of attention heads.
        groups: number of key and value heads.
        head: width of one head.
        layers: minimum number of layers in a stack, which keeps one of each kind; 0 keeps all.
        expand: inner width of a state space layer, in widths.
        vocabulary: size of the vocabulary.
        wide: leave all widths and heads at their defaults.
        fill: give entries without a value, which not every configuration derives, a shrunken large value.
    """

    width: int = 64
    heads: int = 4
    groups: int = 2
    head: int = 16
    layers: int = 2
    expand: int = 1
    vocabulary: int = 128
    wide: bool = False
    fill: bool = False


VARIANTS = (
    Rules(),
    Rules(fill=True),
    Rules(groups=4),
    Rules(groups=1),
    Rules(groups=1, fill=True),
    Rules(expand=2, head=32),
    Rules(width=128, head=32),
    Rules(width=96, head=24),
    Rules(vocabulary=16384),
    Rules(layers=4),
    Rules(layers=0),
    Rules(wide=True),
    Rules(wide=True, layers=0),
)


def pairs() -> Iterator[Pair]:
    """Every model type under every head that transformers maps it for, in the order of the mappings."""
    for head, name in HEADS.items():
        mapping = getattr(modeling_auto, f"MODEL_FOR_{name}_MAPPING")
        for model_type in getattr(modeling_auto, f"MODEL_FOR_{name}_MAPPING_NAMES"):
            config_class = CONFIG_MAPPING[model_type]
            model_class = mapping[config_class]
            yield Pair(
                head, model_type, model_class[0] if isinstance(model_class, tuple) else model_class, config_class
            )


def shrunken(config_class: type[PreTrainedConfig], rules: Rules = VARIANTS[0], head: str = "") -> PreTrainedConfig:
    """A tiny configuration with layers of each kind and without dropout."""
    config = _like(config_class(), rules, {}, num_labels=LABELS)
    if head == "causal LM" and getattr(config, "is_decoder", True) is False:
        config.is_decoder = True
    return config


def build(model_class: Any, config: PreTrainedConfig) -> nn.Module:
    """The model of a configuration, float32, on the CPU, in eval mode; the same weights every time.

    As the auto classes do, it takes the part of the configuration that the class is made for. With the usual initial
    values, signals vanish in a narrow model, some even to exact zeros, and every check would pass: so here layers keep
    the scale of their inputs, and no matrix starts at zero.
    """
    torch.manual_seed(0)
    model = model_class(_part(config, model_class.config_class) or config).float().eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | Conv1D | nn.modules.conv._ConvNd):
                fan_in = module.weight.shape[0] if isinstance(module, Conv1D) else module.weight[0].numel()
                module.weight.normal_(std=fan_in**-0.5)
        for parameter in model.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(std=0.02)
    return model


def _part(config: PreTrainedConfig, config_class: type[PreTrainedConfig]) -> PreTrainedConfig | None:
    """The configuration, or else its first part, that is of a class."""
    if isinstance(config, config_class):
        return config
    return next((match for part in _parts(config) if (match := _part(part, config_class))), None)


def _parts(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    return (part for name in config.sub_configs if isinstance(part := getattr(config, name, None), PreTrainedConfig))


def inputs(model: nn.Module, head: str) -> dict[str, Tensor]:
    """Arguments for one forward: the first allowed by the signature that the model accepts.

    Raises:
        Exception: the model rejects all; its error for the first, plainest arguments.
    """
    first: Exception | None = None
    for arguments in _arguments(model, head):
        try:
            with torch.no_grad():
                logits(model(**arguments))
        except Exception as error:
            first = first or error
        else:
            return arguments
    raise first or ValueError(f"no inputs for {type(model).__name__}")


def logits(output: Any) -> Tensor:
    """The logits in a model's output, or else its first tensor of floats, as one tensor."""
    tensors = {n: v for n, v in output.items() if isinstance(v, Tensor) and v.is_floating_point() and v.ndim > 1}
    named = [value for name, value in tensors.items() if re.search("logits|score|log_prob", name)]
    parts = named or list(tensors.values())[:1]
    return parts[0] if len(parts) == 1 else torch.cat([part.flatten(1) for part in parts], 1)


class Runnable(NamedTuple):
    """A model that runs.

    Attributes:
        rules: the rules that shrink its configuration.
        model: the model, in eval mode.
        inputs: arguments of its forward.
        training: True if its backward runs in train mode only.
    """

    rules: Rules
    model: nn.Module
    inputs: dict[str, Tensor]
    training: bool


def model_of(pair: Pair, rules: Rules) -> nn.Module:
    """The model of a pair, the same every time."""
    return build(pair.model_class, shrunken(pair.config_class, rules, pair.head))


def runnable(pair: Pair) -> Runnable:
    """The first shrunken model of a pair whose forward and backward run, deterministically.

    Raises:
        Exception: no way of shrinking works; the error of the first.
    """
    first: Exception | None = None
    for rules in VARIANTS:
        try:
            _check_size(pair, rules)
            model = model_of(pair, rules)
            arguments = inputs(model, pair.head)
            return Runnable(rules, model, arguments, _training(model, arguments))
        except Exception as error:
            first = first or error
    assert first is not None
    raise first


def _check_size(pair: Pair, rules: Rules) -> None:
    """Refuse a large model before it is made."""
    config = shrunken(pair.config_class, rules, pair.head)
    with torch.device("meta"):
        model = pair.model_class(_part(config, pair.model_class.config_class) or config)
    size = sum(parameter.numel() for parameter in model.parameters())
    if size > MAX_SIZE:
        raise ValueError(f"{size:,} parameters are not tiny")


def loss(values: Tensor) -> Tensor:
    """The mean of the logits with random signs, so that all gradients are of equal size; masked logits are skipped."""
    signs = _random(*values.shape).sign()
    return (values * signs)[values.isfinite()].mean()


def _training(model: nn.Module, arguments: dict[str, Tensor]) -> bool:
    """Run a model forwards twice and backwards once; True if the backward needed train mode."""
    with torch.no_grad():
        one, other = (logits(model(**arguments)) for _ in range(2))
    if not torch.equal(one, other):
        raise ValueError("two forwards differ" if one.isfinite().all() else "logits are not finite")
    if not one.isfinite().any():
        raise ValueError("logits are not finite")
    try:
        loss(logits(model(**arguments))).backward()
    except AssertionError:
        loss(logits(model.train()(**arguments))).backward()
    training = model.training
    model.eval().zero_grad()
    return training


# Shrinking -----------------------------------------------------------------------------------------------------------


def _like(full: PreTrainedConfig, rules: Rules, moved: dict[int, int], **more: Any) -> PreTrainedConfig:
    """The shrunken configuration with its parts; `moved` maps special tokens to their new ids, in all of them."""
    full.allow_global_per_layer_attribute_access = True
    kept = _kept_layers(full, rules)
    rules = replace(rules, layers=len(kept) or rules.layers)
    changed: dict[str, Any] = {}
    for field in fields(type(full)):
        name, value = field.name, getattr(full, field.name, None)
        if value is None and name == "pad_token_id":
            changed[name] = 0
        elif value in (None, {}) and rules.fill:
            changed |= _filled(field, full, rules)
        elif name == "use_cache":
            changed[name] = False
        if value is None or not field.init or name in changed or name in ("id2label", "label2id", "num_labels"):
            continue
        if isinstance(value, PreTrainedConfig):
            changed[name] = _like(value, rules, moved)
        elif TOKEN.search(name) or _has_default(field, value):
            changed[name] = _entry(name, value, full, rules, moved)
        if kept and isinstance(value, list | tuple) and (selected := _selected(value, _depth(full), kept)) is not None:
            changed[name] = type(value)(selected)
        elif name == "rope_parameters" and isinstance(value, dict):
            changed |= _rope(value, full, rules)
    if rules.fill and not {"rope_parameters", "rope_theta"} & {field.name for field in fields(type(full))}:
        more.setdefault("rope_theta", 10000.0)
    return type(full)(**changed, **more)


def _filled(field: Field[Any], full: PreTrainedConfig, rules: Rules) -> dict[str, Any]:
    """A value for an entry that has none, if its meaning or other entries suggest one."""
    options = getattr(full, field.name.removeprefix("default_") + "s", None)
    if field.name.startswith("default_") and options:
        return {field.name: options[0]}
    if field.name == "layer_types":
        return {field.name: ["full_attention"] * rules.layers}
    if field.name == "rope_parameters":
        kinds = set(getattr(full, "layer_types", None) or ())
        return {field.name: {kind: {"rope_type": "default", "rope_theta": 10000.0} for kind in kinds}}
    meaning = _meaning(field.name)
    if meaning is None or not re.search("int|float", str(field.type)) or TOKEN.search(field.name):
        return {}
    return {field.name: meaning(field.name, 2**20, full, rules)}


def _has_default(field: Field[Any], value: Any) -> bool:
    """True if the value is the entry's own default rather than derived from `None` or `"auto"`."""
    has_default = field.default not in (None, MISSING) or field.default_factory is not MISSING
    return has_default and isinstance(value, str) == isinstance(field.default, str)


def _depth(config: PreTrainedConfig) -> int:
    """Number of layers in the stack if it is an entry of its own; 0 if it follows from others."""
    name = config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    return getattr(config, name) if name in {f.name for f in fields(type(config))} else 0


def _kept_layers(full: PreTrainedConfig, rules: Rules) -> list[int]:
    """Indices of the layers that stay: the first of each kind, as far as the lists of layers distinguish kinds."""
    depth = _depth(full)
    if not rules.layers:
        return list(range(depth))
    lists = [v for f in fields(type(full)) if isinstance(v := getattr(full, f.name, None), list | tuple)]
    kinds: list[Any] = []
    kept = []
    for layer in range(depth):
        kind = [layer in v if _is_indices(v, depth) else v[layer] for v in lists if _is_per_layer(v, depth)]
        if kind not in kinds:
            kinds.append(kind)
            kept.append(layer)
    kept = kept[:4]
    return sorted(kept + [layer for layer in range(depth) if layer not in kept][: max(rules.layers - len(kept), 0)])


def _is_indices(values: Any, depth: int) -> bool:
    """True if a list holds indices of layers."""
    whole = all(isinstance(value, int) and not isinstance(value, bool) for value in values)
    return whole and len(values) > 1 and list(values) == sorted(set(values)) and 0 <= values[0] <= values[-1] < depth


def _is_per_layer(values: Any, depth: int) -> bool:
    return len(values) == depth or _is_indices(values, depth)


def _selected(values: Any, depth: int, kept: list[int]) -> list[Any] | None:
    """The entries of a per-layer list for the kept layers; None for other lists."""
    if not _is_per_layer(values, depth):
        return None
    if _is_indices(values, depth):
        return [index for index, layer in enumerate(kept) if layer in values]
    return [values[layer] for layer in kept]


def _rope(rope: dict[str, Any], full: PreTrainedConfig, rules: Rules) -> dict[str, Any]:
    """Shrink the sections of a rotary embedding, which divide half a head's width, along with it."""
    sections = rope.get("mrope_section")
    heads = getattr(full, "num_attention_heads", None)
    before = getattr(full, "head_dim", None) or (full.hidden_size // heads if heads else 0)
    if not sections or not before or rules.wide:
        return {}
    share = min(rules.head / before, 1)
    ends = [round(sum(sections[: index + 1]) * share) for index in range(len(sections))]
    parts = [end - start for start, end in pairwise([0, *ends])]
    return {"rope_parameters": rope | {"mrope_section": parts}}


def _entry(name: str, value: Any, full: PreTrainedConfig, rules: Rules, moved: dict[int, int]) -> Any:
    """An entry's value, shrunk by the first meaning that matches its name; lists item by item."""
    if isinstance(value, list | tuple):
        if len(value) > 1 and not rules.wide and sum(_numbers(value)) == getattr(full, "hidden_size", None):
            return type(value)([rules.width // len(value)] * len(value))
        if value and all(isinstance(width, int) and width >= 8 for width in value) and _meaning(name) is _width:
            unit = 2 ** math.floor(math.log2(min(value)))
            scaled = [_power(width) * min(32, unit) // unit for width in value]
            return value if rules.wide else type(value)(min(width, 4 * rules.width) for width in scaled)
        return type(value)(_entry(name, item, full, rules, moved) for item in value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    if RANDOM.search(name):
        return type(value)(0)
    if isinstance(value, float):
        return min(value, 1.0) if name == "depth_coefficient" else value
    if TOKEN.search(name):
        return value if value < SPECIAL else moved.setdefault(value, SPECIAL + len(moved))
    meaning = _meaning(name)
    return meaning(name, value, full, rules) if meaning else value


def _numbers(values: Any) -> list[int]:
    return [value for value in values if isinstance(value, int)]


def _power(value: int) -> int:
    """The largest power of two up to a value; sizes that are powers of two divide each other."""
    return 2 ** math.floor(math.log2(value))


def _at_most(limit: int | str) -> Callable[..., int]:
    def rule(name: str, value: int, full: PreTrainedConfig, rules: Rules) -> int:
        return min(value, limit if isinstance(limit, int) else getattr(rules, limit))

    return rule


def _same(name: str, value: int, full: PreTrainedConfig, rules: Rules) -> int:
    return value


def _layers(name: str, value: int, full: PreTrainedConfig, rules: Rules) -> int:
    return min(value, rules.layers) if rules.layers else value


def _heads(name: str, value: int, full: PreTrainedConfig, rules: Rules) -> int:
    return value if rules.wide or value < 1 else min(_power(value), rules.heads)


def _groups(name: str, value: int, full: PreTrainedConfig, rules: Rules) -> int:
    if rules.wide:
        return value
    is_ungrouped = value == getattr(full, "num_attention_heads", None)
    return rules.heads if is_ungrouped else min(value, rules.groups)


def _narrow(name: str, value: int, full: PreTrainedConfig, rules: Rules) -> int:
    return value if rules.wide else min(value, rules.head)


def _width(name: str, value: int, full: PreTrainedConfig, rules: Rules) -> int:
    if rules.wide or value < 32:
        return value
    return min(_power(value), rules.width * (2 if FEED_FORWARD.search(name) else 1))


RANDOM = re.compile(r"drop|noise|mask_(time|feature)_prob")
TOKEN = re.compile(r"_token_id$|_token_index$|_tokens$|^(pad|unk|bos|eos|mask|lang|eod|tag_pad|subs_pad)_(id|index)$")
FEED_FORWARD = re.compile(r"intermediate|ffn|inner|feed_forward|mlp|ff$")
MEANINGS: tuple[tuple[str, Callable[..., int]], ...] = (
    (r"vocab|bucket|labels$|num_clusters|unit_embeddings$", _at_most("vocabulary")),
    (r"(audio|acoustic|speech)\w*chunk|hop|sampl|mel_bins|batch_size|_rate$", _same),
    (r"kernel|stride|padding|feat_extract|encoder_blocks|num_stages|window_layers", _same),
    (r"kv_shared_layers|nextn|mtp_layers", _at_most(0)),
    (r"dense_replace|dense_layers|offset$|start_index|sparse_(en|de)coder_layers", _at_most(1)),
    (r"period|interval|_step$|pattern|every|frequency|layer_group_size", _at_most(2)),
    (r"layers?$|depths?$|blocks$|repeats$|layers_per_|attends_per|layers_per_stack|numb_of_layers", _layers),
    (r"per_tok|top_?k|moe_k$", _at_most(2)),
    (r"shared_experts$", _at_most(1)),
    (r"experts$|expert_num", _at_most(4)),
    (r"groups?$", _at_most(2)),
    (r"head_?dim|dim_head|d_head|d_kv|kv_channels|head_size$|rotary_dim|rope_dim|d_rel$", _narrow),
    (r"(kv|key_value|key|kv_n)_?heads$|query_groups", _groups),
    (r"heads?$|heads_per", _heads),
    (r"compress_ratio", _at_most(2)),
    (r"pos_shape|num_filters|clip", _at_most(4)),
    (r"^window_size", _at_most(2)),
    (r"image_size|crop_size|train_size", _at_most(64)),
    (r"patch_size", _at_most(16)),
    (r"position_emb|positions$|n_ctx|max_seq_len|max_length|context_length|max_pos_emb", _at_most(POSITIONS)),
    (r"_context$|context_left", _at_most(4)),
    (r"budget|window|local_attention|chunk|block_size|landmarks|segment_means|radius|context_size", _at_most(16)),
    (r"state|rank", _narrow),
    (r"expand$", _at_most("expand")),
    (
        r"size|dim|d_model|d_ssm|ff$|d_inner|n_embd|channel|filters|width|hidden|intermediate|ffn|latents|embed",
        _width,
    ),
)


def _meaning(name: str) -> Callable[..., int] | None:
    return next((rule for pattern, rule in MEANINGS if re.search(pattern, name)), None)


# Feeding -------------------------------------------------------------------------------------------------------------


def _arguments(model: nn.Module, head: str) -> Iterator[dict[str, Tensor]]:
    """Arguments to try: first the required ones alone, then all known ones, each in a few shapes."""
    signature = inspect.signature(model.forward).parameters
    required = {n for n, p in signature.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
    main = getattr(model, "main_input_name", "input_ids")
    if head == "image classification":
        shapes = [{main: image} for image in _images(model)]
        if main == "input_ids" or "input_ids" in signature:
            shapes += [_text("input_ids", 16, signature, 0, _ends(model.config))]
    elif head == "audio classification":
        shapes = [{main: sound} for sound in _sounds(model)]
    else:
        main = "input_ids" if "input_ids" in signature else main
        choices = CHOICES if head == "multiple choice" else 0
        shapes = [_text(main, length, signature, choices, _ends(model.config)) for length in (16, 64, 8)]
        shapes += [{main: _tokens(BATCH * n, 16)} for n in _numbers_of(model.config, "num_codebooks")]
    for names in (required, set(signature)):
        for arguments in shapes:
            extra = {name: value for name, value in _extras(model).items() if name in names}
            yield extra | arguments


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def _tokens(*shape: int, below: int = SPECIAL, end: int | None = None) -> Tensor:
    """Random tokens; `end`, if given, comes last."""
    tokens = torch.randint(PLAIN, below, shape, generator=torch.Generator().manual_seed(1))
    if end is not None:
        tokens[..., -1] = end
    return tokens


def _ends(config: Any) -> dict[str, int]:
    """Keyword arguments of `_tokens`: the end of the vocabulary, and the token that ends a text."""
    ends = _numbers_of(config, "eos_token_id")
    return {"below": min([SPECIAL, *_numbers_of(config, "vocab_size")])} | ({"end": ends[0]} if ends else {})


def _text(main: str, length: int, signature: Any, choices: int, ends: dict[str, int]) -> dict[str, Tensor]:
    shape = (BATCH, choices, length) if choices else (BATCH, length)
    corner = torch.arange(length).expand(shape) % 16
    possible = {
        "attention_mask": torch.ones(shape, dtype=torch.long),
        "global_attention_mask": (torch.arange(length) == 0).long().expand(shape),
        "decoder_input_ids": _tokens(*shape, **ends),
        "bbox": torch.stack([corner, corner, corner + 8, corner + 8], -1),
    }
    return {main: _tokens(*shape, **ends)} | {name: value for name, value in possible.items() if name in signature}


def _numbers_of(config: Any, *names: str) -> list[int]:
    """Every whole number that a configuration or a part of it has under one of the names."""
    values = [getattr(config, name, None) for name in names]
    flat = [item for value in values for item in (value if isinstance(value, list | tuple) else [value])]
    return _numbers(flat) + [number for part in _parts(config) for number in _numbers_of(part, *names)]


def _images(model: Any) -> list[Tensor]:
    """Square images of the configured size and of others, and one as a row of patches."""
    channels = (_numbers_of(model.config, "num_channels", "in_channels") or [3])[0]
    sides = dict.fromkeys([*_numbers_of(model.config, "image_size", "input_size")[:1], 64, 224])
    patches = [_random(BATCH, 16, channels * side**2) for side in _numbers_of(model.config, "patch_size")[:1]]
    return [_random(BATCH, channels, side, side) for side in sides] + patches


def _sounds(model: Any) -> list[Tensor]:
    """Spectrograms in both orientations, and a waveform."""
    features = dict.fromkeys(_numbers_of(model.config, "num_mel_bins", "feature_projection_input_dim", "input_dim"))
    longest = [2 * n for n in _numbers_of(model.config, "max_source_positions")]
    frames = dict.fromkeys([*longest, *_numbers_of(model.config, "max_length"), 64])
    framed = [shape for f in features for t in frames for shape in ((BATCH, f, t), (BATCH, t, f))]
    return [_random(*shape) for shape in [*framed, (BATCH, 4000)]]


def _extras(model: Any) -> dict[str, Tensor]:
    """Further inputs by name."""
    image, sound = _images(model)[0], _sounds(model)[0]
    return {
        "pixel_values": image,
        "image": image,
        "spatial_shapes": torch.full((BATCH, 2), 4),
        "pixel_attention_mask": torch.ones(BATCH, 16, dtype=torch.long),
        "input_features": sound,
        "decoder_input_ids": _tokens(BATCH, 8),
        "visual_feats": _random(BATCH, 4, *_numbers_of(model.config, "visual_feat_dim")[:1]),
        "visual_pos": _random(BATCH, 4, *_numbers_of(model.config, "visual_pos_dim")[:1]),
    }
