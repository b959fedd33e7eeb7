"""Unpack the quantised layers of a model into plain ones, in place."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from typing import Any

import torch
from accelerate.hooks import add_hook_to_module, remove_hook_from_module
from torch import Tensor, nn

from capaft.adapter.parametrise import MODE, add_parametrisation
from capaft.model.layers import CONVOLUTIONS
from capaft.model.names import CHILD_PREFIX, unwrapped_model
from capaft.model.quantised import dense_weight, own_tensors, quantised_layers
from capaft.model.weights import dtype_of
from capaft.support.errors import UsageError

# What transformers sets on a model that it has quantised.
MARKS = ("hf_quantizer", "quantization_method", "is_quantized", "is_loaded_in_8bit", "is_loaded_in_4bit")


def dequantise(model: nn.Module, exact: Collection[str] = ()) -> dict[nn.Parameter, torch.dtype]:
    """Turn every quantised layer of a model into a plain one with the weight that it computes with.

    Adapters and other hooks stay where they are, and the weights take the dtype of the model's other weights.

    Args:
        model: the model; changed in place.
        exact: paths of layers whose parameters are to be float32, since they change before they are rounded.

    Returns:
        The dtype that each of these parameters is to have in the end.

    Raises:
        UsageError: a layer's weight cannot be told; nothing was changed.
    """
    layers, dtype = quantised_layers(model), dtype_of(model)
    exactly = torch.promote_types(dtype, torch.float32)
    plain = {path: _plain(path, module, exactly if path in exact else dtype) for path, module in layers.items()}
    for path, module in layers.items():
        _succeed(plain[path], module)
    successors = {id(module): plain[path] for path, module in layers.items()}
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if id(child) in successors:
                parent._modules[name] = successors[id(child)]
    bare: Any = unwrapped_model(model)
    if plain:
        for holder, name in [*((bare, name) for name in MARKS), (getattr(bare, "config", None), "quantization_config")]:
            if name in vars(holder or bare):
                delattr(holder, name)
    return {
        parameter: dtype for path in plain.keys() & set(exact) for parameter in plain[path].parameters(recurse=False)
    }


def _plain(path: str, module: Any, dtype: torch.dtype) -> nn.Module:
    """A plain layer that computes what a quantised one does.

    Raises:
        UsageError: its weight cannot be told.
    """
    if any(tensor.is_meta for tensor in own_tensors(module)):
        raise UsageError(f"{path} is offloaded; load the base model without offloading to merge into it")
    if isinstance(module, nn.Embedding):
        table = _table(module)
        if table is not None:
            return nn.Embedding.from_pretrained(table.to(dtype), padding_idx=module.padding_idx)
    elif isinstance(module, CONVOLUTIONS):
        if type(module.weight).dequantize is not Tensor.dequantize:
            kernel = module.weight.dequantize().detach().to(dtype)
            return _convolution(module, kernel)
    elif (values := dense_weight(module)) is not None:
        weight, bias = values
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
        linear.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
        if bias is not None:
            linear.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
        return linear
    raise UsageError(
        f"{path} ({type(module).__name__}) is quantised, and the weight that it computes with cannot be told; load the "
        "base model unquantised to merge into it"
    )


def _table(module: nn.Embedding) -> Tensor | None:
    """The rows that an embedding looks up, `(rows, width)`; None if it cannot be called here."""
    device = next(own_tensors(module)).device
    # Kernels raise anything.
    with suppress(Exception), torch.no_grad():
        return module.forward(torch.arange(module.num_embeddings, device=device))
    return None


def _convolution(module: Any, kernel: Tensor) -> nn.Module:
    (kind,) = (kind for kind in CONVOLUTIONS if isinstance(module, kind))
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    options = {name: getattr(module, name) for name in names}
    plain = kind(**options, bias=module.bias is not None, device="meta")
    plain.weight = nn.Parameter(kernel, requires_grad=False)
    if module.bias is not None:
        plain.bias = nn.Parameter(module.bias.detach().to(kernel.dtype), requires_grad=False)
    return plain


def _succeed(plain: nn.Module, module: nn.Module) -> None:
    """Give a plain layer the hooks and the adapters of the module that it stands for."""
    offload = getattr(module, "_hf_hook", None)
    if offload is not None:
        remove_hook_from_module(module)
    # The dictionaries themselves: a hook's handle removes it from the one that it was registered in.
    vars(plain).update(
        {name: held for name, held in vars(module).items() if name.startswith(("_forward_", "_backward"))}
    )
    # Not as it reads: running statistics that are held read as in evaluation mode.
    plain.training = vars(module)[MODE]
    for name, child in module.named_children():
        if name.startswith(CHILD_PREFIX):
            plain.add_module(name, child)
            if parameter := getattr(child, "parametrises", ""):
                add_parametrisation(plain, parameter)
    if offload is not None:
        add_hook_to_module(plain, offload)
