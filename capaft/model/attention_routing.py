"""Virtual key/value tokens in any attention that goes through transformers' attention interface.

transformers' attention modules compute queries, keys and values themselves and pass them to a function that they
look up by `config._attn_implementation` (https://huggingface.co/docs/transformers/en/attention_interface).
`route` puts our own function there, which calls the module's participants first. Unlike `past_key_values`, the
usual vehicle of prefix tuning, this survives gradient checkpointing, leaves positions alone and works in encoders and
in cross attention.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable
from functools import cache, partial
from typing import Any, Protocol

from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

from capaft.model.layers import layer_kind, layer_widths, packs_experts
from capaft.support.errors import UsageError

Attention = Callable[..., tuple[Tensor, Tensor | None]]
# Written once for every active route, so that the count travels with the configuration, even into deep copies.
ROUTED = "capaft_prefix|"
WRAPPED_ATTENTION = ("eager", "sdpa")
KEY_VALUE = (
    ("k_proj", "v_proj"),
    ("key", "value"),
    ("k", "v"),
    ("k_lin", "v_lin"),
    ("key_proj", "value_proj"),
    ("k_linear", "v_linear"),
    ("linear_k", "linear_v"),
    ("to_k", "to_v"),
    ("wk", "wv"),
    ("Wk", "Wv"),
)
FUSED = ("c_attn", "qkv", "qkv_proj", "query_key_value", "Wqkv", "wqkv", "to_qkv", "in_proj", "kv_proj", "kv")


class Participant(Protocol):
    """Interface of a child that takes part in its attention module."""

    def attend(
        self,
        attention: Attention,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Output and weights of the attention.

        Args:
            attention: the function that this participant wraps; takes the arguments that follow.
            module: the attention module.
            query: `(batch, heads, queries, head)`.
            key: `(batch, key heads, T, head)`, after positions and cache.
            value: `(batch, key heads, T, head of values)`.
            mask: broadcastable to `(batch, heads, queries, T)`; True or 0.0 where a query attends. None stands for
                causal attention if `kwargs["is_causal"]`, and for full attention otherwise.
            **kwargs: the module's other arguments (`scaling`, `dropout`, ...), for `attention`.
        """


def attention_modules(model: nn.Module) -> dict[str, tuple[int, int]]:
    """The attention modules that `route` reaches, cross attention included.

    Returns:
        Path of each module, with the widths (heads times head size) of its keys and of its values.

    Raises:
        UsageError: the model has none, or the widths of one cannot be determined.
    """
    return {path: _widths(path, module) for path, module in _callers(model).items()}


class Route:
    """A model's routing, to be removed like a hook; see `route`.

    It holds the configurations and no closure over them, so that a copy of a model undoes its own routing.
    """

    def __init__(self, model: nn.Module) -> None:
        configs: dict[int, Any] = {}
        for path, module in _callers(model).items():
            _check_base(path, module)
            configs[id(module.config)] = module.config
        for config in configs.values():
            name = ROUTED + config._attn_implementation
            _register(name)
            config._attn_implementation_internal = name
        self.configs = list(configs.values())

    def remove(self) -> None:
        """Undo the route; a second call does nothing."""
        while self.configs:
            config = self.configs.pop()
            config._attn_implementation_internal = config._attn_implementation.removeprefix(ROUTED)


def route(model: nn.Module) -> Callable[[], None]:
    """Let the children of the model's attention modules that have a method `attend` take part in the attention.

    A participant wraps those before it. The output of a module without participants does not change by a bit. Routes
    are counted: the model stays routed until the last of them is undone, in whatever order.
    `set_attn_implementation` on a routed model ends them all, and participants are no longer called.

    Returns:
        A function that undoes this route; calling it again does nothing.

    Raises:
        UsageError: no module goes through the interface, or one uses an implementation other than sdpa and eager.
    """
    return Route(model).remove


def _routed(
    base: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    attention = _base(module, base)
    participants: list[Any] = [child for child in module._modules.values() if hasattr(child, "attend")]
    if participants:
        # Meaning of a missing mask: eager gets a mask whenever something has to be hidden, sdpa may not.
        if base == "eager":
            kwargs["is_causal"] = False
        elif kwargs.get("is_causal") is None:
            kwargs["is_causal"] = getattr(module, "is_causal", True)
    for participant in participants:
        attention = partial(participant.attend, attention)
    return attention(module, query, key, value, attention_mask, **kwargs)


def _base(module: nn.Module, base: str) -> Attention:
    """The function that the module would have called.

    Every modeling file has its own eager attention, and may have its own interface, so both are looked up where the
    module's code does.
    """
    function = _forward(module)
    names = function.__globals__
    if base == "eager":
        return names[_eager(function)]
    return names.get("ALL_ATTENTION_FUNCTIONS", AttentionInterface())[base]


@cache
def _eager(function: Any) -> str:
    """Name of the default that a `forward` passes to `get_interface`; `""` if it cannot be determined."""
    names = [name for name in function.__code__.co_names if "eager" in name and name in function.__globals__]
    return names[0] if len(names) == 1 else ""


@cache
def _mentions(function: Any) -> int:
    """Number of times a `forward` reads the implementation's name; 0 if it does not call the interface."""
    code = getattr(function, "__code__", None)
    if code is None or "get_interface" not in code.co_names:
        return 0
    return sum(instruction.argval == "_attn_implementation" for instruction in dis.get_instructions(code))


def _forward(module: nn.Module) -> Any:
    """The class's `forward` without its decorators, and without hooks on the instance's own."""
    return inspect.unwrap(getattr(type(module), "forward", None))  # type: ignore[arg-type]


def _callers(model: nn.Module) -> dict[str, Any]:
    """The modules whose `forward` asks transformers for an attention function.

    Raises:
        UsageError: the model has none.
    """
    modules = {path: module for path, module in model.named_modules() if _mentions(_forward(module))}
    if not modules:
        raise UsageError(
            "prefix needs attention that goes through transformers' attention interface, which "
            f"{type(model).__name__} does not use; choose another method"
        )
    return modules


def _check_base(path: str, module: Any) -> None:
    """Refuse an implementation that virtual tokens cannot be added to.

    Raises:
        UsageError: the implementation, or the way in which the module uses it, cannot be wrapped.
    """
    name = module.config._attn_implementation
    base = (name or "").replace(ROUTED, "")
    if base not in WRAPPED_ATTENTION:
        raise UsageError(f'prefix does not work with {name} attention; load the model with attn_implementation="sdpa"')
    function = _forward(module)
    # GPT-2 also compares the name with "eager", for its own option; others do so to build masks for sparse keys.
    upcast = getattr(module, "reorder_and_upcast_attn", None)
    if _mentions(function) > 1 and upcast is None:
        raise UsageError(f"prefix cannot wrap the attention of {path} ({type(module).__name__}); choose another method")
    if base == "eager" and (upcast or not _eager(function)):
        raise UsageError(
            f'prefix cannot wrap the eager attention of {path}; load the model with attn_implementation="sdpa"'
        )


def _register(name: str) -> None:
    base = name.replace(ROUTED, "")
    AttentionInterface.register(name, partial(_routed, base))
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[base])


# For models that were pickled while routed.
for _name in WRAPPED_ATTENTION:
    for _ in range(4):
        _name = ROUTED + _name
        _register(_name)


def _widths(path: str, module: Any) -> tuple[int, int]:
    """Widths of a module's keys and values.

    Raises:
        UsageError: the kind of its projections is unknown.
    """
    if any(packs_experts(child) for child in module.modules()):
        raise UsageError(f"prefix cannot add keys and values for the experts of {path}; choose another method")
    outputs = {name: _outputs(child) for name, child in module.named_children()}
    for key, value in KEY_VALUE:
        if outputs.get(key) and outputs.get(value):
            return outputs[key], outputs[value]
    heads = _number(module, "num_attention_heads", "num_heads", "n_heads", "n_head")
    groups = _number(module, "num_key_value_heads", "kv_heads", "num_kv_heads", "kv_n_heads")
    size = _number(module, "head_dim", "attention_head_size", "head_size")
    if heads:
        groups = groups or heads
        size = size or _number(module, "embed_dim", "hidden_size") // heads
        for name in FUSED:
            # In whatever order: queries, keys and values, or keys and values.
            if outputs.get(name) in ((heads + 2 * groups) * size, 2 * groups * size) and size:
                return groups * size, groups * size
    raise UsageError(
        f"cannot determine the widths of keys and values in {path} ({type(module).__name__}); choose another method"
    )


def _outputs(layer: Any) -> int:
    """Output features of a linear layer, or of one that is wrapped; 0 for another module."""
    features = layer_widths(layer)[1] if layer_kind(layer) == "linear" else getattr(layer, "out_features", 0)
    return features if isinstance(features, int) else 0


def _number(module: Any, *names: str) -> int:
    """The first of these attributes that the module or its configuration has; 0 if none."""
    for owner in (module, _layer_config(module)):
        for name in names:
            number = getattr(owner, name, None)
            if isinstance(number, int) and number:
                return number
    return 0


def _layer_config(module: Any) -> Any:
    """A module's configuration; that of its layer where layers differ."""
    layer = getattr(module, "layer_idx", None)
    differs = getattr(module.config, "is_heterogeneous", False) and layer is not None
    return module.config.per_layer_config[layer] if differs else module.config
