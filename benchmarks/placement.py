"""Check by effect that adapters stand where a model's attentions and feed-forward parts end.

Nothing here asks how the places were found. A weight acts only through a place if its gradient vanishes once the
place's output is zeroed. From that follow the checks:

- all places together: without their outputs no weight of a block (for `parallel` and `ia3`: outside attention) acts any
  more, except in what a method names as left out, in norms and in embeddings;
- one place: zeroing its output changes the model exactly as zeroing all weights of its kind (attention or not) in the
  block that act only through it;
- the input of an adapter beside a feed-forward part: everything before that part acts on it through this input alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from capaft.methods.registry import HOSTS
from capaft.model.block_sites import find_blocks
from capaft.model.layers import has_own_backward, layer_kind
from capaft.model.site import Site
from capaft.model.targets import Targets, in_attention

Run = Callable[[], Tensor]
TOLERANCE = 1e-5


class PlacementError(Exception):
    """An adapter stands in a wrong place, or a part has none and no warning says so."""


def check_placement(model: nn.Module, method: str, run: Run) -> None:
    """Check the places of a method in a model.

    Args:
        model: the base model; its parameters get gradients.
        method: `houlsby`, `pfeiffer`, `parallel` or `ia3`.
        run: computes the model's logits.

    Raises:
        PlacementError: a check fails.
        UsageError: the method refuses the model.
    """
    model.requires_grad_(True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sites = HOSTS[method]().sites(model, Targets(), None)
    is_named = any("has no place in" in str(warning.message) for warning in caught)
    alive = _acting(model, run)
    called = [site for site in sites if _is_called(model, site, run)]
    if not called:
        return
    with _zeroed(model, called):
        left = _acting(model, run)
    blocks = _elements(model)
    excused = _left_out(model) if is_named else set()
    if method in ("parallel", "ia3"):  # `houlsby` tells whether attentions have a place; `ia3` scales a part of them.
        excused |= {attention.path for block in find_blocks(model) for attention in block.attentions}
    for name in sorted(left & alive):
        block = next((block for block in blocks if name.startswith(block + ".")), "")
        if block and not _is_in(name, excused) and not _is_norm(name.removeprefix(block)):
            raise PlacementError(f"{name} acts past all places, and no warning names it")
    for group in _sharing(model, called) if method in ("houlsby", "parallel") else ():
        _check_sites(model, group, run, alive, blocks)
        if method == "parallel":
            _check_input(model, group[0], run)


def _sharing(model: nn.Module, sites: list[Site]) -> list[list[Site]]:
    """Sites in groups that share their weights, which act through all of a group."""
    groups: dict[int, list[Site]] = {}
    for site in sites:
        first = next(model.get_submodule(site.module).parameters())
        groups.setdefault(id(first), []).append(site)
    return list(groups.values())


def _check_sites(model: nn.Module, sites: list[Site], run: Run, alive: set[str], blocks: set[str]) -> None:
    """Check that zeroing the output of places that share weights removes exactly one attention or feed-forward part."""
    site = sites[0]
    own = {f"{site.module}.{name}" for name, p in model.get_submodule(site.module).named_parameters() if p.ndim > 1}
    if not own & alive:  # Its output is not used, or only to choose something.
        return
    with _zeroed(model, sites):
        dead = alive - _acting(model, run)
        with torch.no_grad():
            zeroed = run()
    block = max((block for block in blocks if f"{site.module}.".startswith(block + ".")), key=len)
    is_attention = in_attention(site.module.removeprefix(block))
    part = {
        name for name in dead if name.startswith(block + ".") and in_attention(name.removeprefix(block)) == is_attention
    }
    if not part:
        raise PlacementError(f"no weight acts through {site.module} alone")
    if own < part or layer_kind(model.get_submodule(site.module)):
        difference = _difference(_without(model, part, run), zeroed)
        if difference > TOLERANCE:
            # Some weights also choose what a later layer attends to, which no gradient shows.
            with _zeroed(model, sites):
                part = {name for name in part if _difference(_without(model, {name}, run), zeroed) <= TOLERANCE}
            difference = _difference(_without(model, part, run), zeroed)
        if difference > TOLERANCE:
            raise PlacementError(f"zeroing {site.module} differs by {difference:.0e} from removing the part")


def _check_input(model: nn.Module, site: Site, run: Run) -> None:
    """Check that whatever is before a feed-forward part acts on its output through the adapter's input alone."""
    seen: dict[str, Tensor] = {}
    inputs: list[Tensor] = []
    through: list[Tensor] = []  # A mixture of experts may get the state of a router as well.

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        values = [*args, *kwargs.values()]
        seen["x"] = values[0]
        inputs[:] = [v for v in values if isinstance(v, Tensor) and v.requires_grad]

    def after(module: nn.Module, args: Any, output: Any) -> None:
        y = output if isinstance(output, Tensor) else output[0]
        if "x" in seen and "y" not in seen and y.requires_grad:
            seen.update(y=y, input=seen["x"])
            through[:] = inputs

    hooks = [
        model.get_submodule(site.source).register_forward_pre_hook(before, with_kwargs=True),
        model.get_submodule(site.module).register_forward_hook(after),
    ]
    training = model.training
    model.train().train(training)
    with torch.enable_grad():
        run()
    for hook in hooks:
        hook.remove()
    if "y" not in seen:
        return
    x, y = seen["input"], seen["y"]
    if x.shape[-1] != site.in_features or x.shape[:-1].numel() != y.shape[:-1].numel():
        raise PlacementError(f"the input {tuple(x.shape)} of {site.source} does not fit the output {tuple(y.shape)}")
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(2))
    part = {id(p) for p in model.get_submodule(site.module).parameters()}
    parameters = [p for p in model.parameters() if id(p) not in part]
    gradients = torch.autograd.grad(y, through, cotangent, retain_graph=True, allow_unused=True)
    used = [(tensor, gradient) for tensor, gradient in zip(through, gradients, strict=True) if gradient is not None]
    tensors, gradients = zip(*used, strict=True)
    upstream = torch.autograd.grad(tensors, parameters, gradients, retain_graph=True, allow_unused=True)
    total = torch.autograd.grad(y, parameters, cotangent, allow_unused=True)
    for parameter, one, other in zip(parameters, upstream, total, strict=True):
        if one is None:  # Not before the part.
            continue
        difference = (one - other).abs().max().item() if other is not None else one.abs().max().item()
        if difference > 1e-3 * max(1e-3, one.abs().max().item()):
            name = next(name for name, p in model.named_parameters() if p is parameter)
            raise PlacementError(f"{name} acts on {site.module} past the input of {site.source}")


def _acting(model: nn.Module, run: Run) -> set[str]:
    """Names of the matrices that the logits depend on."""
    model.zero_grad(set_to_none=True)
    # Some models keep values between forwards in eval mode, graph and all, until they train again.
    training = model.training
    model.train().train(training)
    values = run()
    if values.requires_grad:
        signs = torch.randn(values.shape, generator=torch.Generator().manual_seed(1)).sign()
        (values * signs)[values.isfinite()].sum().backward()
    acting = {name for name, p in model.named_parameters() if p.ndim > 1 and p.grad is not None and p.grad.any()}
    model.zero_grad(set_to_none=True)
    return acting


def _is_called(model: nn.Module, site: Site, run: Run) -> bool:
    calls: list[None] = []
    hook = model.get_submodule(site.module).register_forward_hook(lambda *_: calls.append(None))
    with torch.no_grad():
        run()
    hook.remove()
    return bool(calls)


@contextmanager
def _zeroed(model: nn.Module, sites: list[Site]) -> Iterator[None]:
    """Zero what the adapter changes at each site."""
    hooks: list[Any] = []
    # A backward of a model's own needs the graph that a new tensor would cut.
    zeros = torch.Tensor.mul if has_own_backward(model) else _zeros
    for site in sites:
        module = model.get_submodule(site.module)
        zero = _Zero(site, zeros)
        is_input = site.scales == "input"
        hooks.append(module.register_forward_pre_hook(zero.input) if is_input else module.register_forward_hook(zero))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _zeros(like: Tensor, _: float) -> Tensor:
    """Zeros that what comes after can use as it uses the tensor, in a graph that begins here, with no `0 * inf`."""
    return torch.zeros_like(like, requires_grad=like.requires_grad).clone()


class _Zero:
    """A hook that zeroes the site's part of a module's output, the first of several."""

    def __init__(self, site: Site, zeros: Callable[[Tensor, float], Tensor]) -> None:
        self.site = site
        self.zeros = zeros

    def input(self, module: nn.Module, args: Any) -> Any:
        return (self.zeros(args[0], 0.0), *args[1:])

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        if not isinstance(output, Tensor):
            return type(output)((self(module, args, output[0]), *output[1:]))
        rows = self.site.rows
        if rows is None:
            return self.zeros(output, 0.0)
        kept = torch.ones(output.shape[-1])
        rows.view(kept, 0).zero_()
        return output * kept


def _without(model: nn.Module, names: set[str], run: Run) -> Tensor:
    """The logits while the layers of these matrices are zero, biases and all."""
    owners = {name.rpartition(".")[0] for name in names}
    parameters = [p for owner in owners for p in model.get_submodule(owner).parameters(recurse=False)]
    values = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        for parameter in parameters:
            parameter.zero_()
        result = run().clone()
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)
    return result


def _difference(actual: Tensor, expected: Tensor) -> float:
    """The largest difference of finite values, relative to the largest of these or to 1."""
    finite = actual.isfinite() & expected.isfinite()
    return (actual - expected)[finite].abs().max().item() / max(1.0, expected[finite].abs().max().item())


def _elements(model: nn.Module) -> set[str]:
    """Paths of the blocks, and of the elements beside them in their lists."""
    lists = {block.path.rpartition(".")[0] for block in find_blocks(model)}
    return {f"{path}.{name}" for path in lists for name, _ in model.get_submodule(path).named_children()}


def _left_out(model: nn.Module) -> set[str]:
    """Paths of what a method names as left out."""
    blocks = find_blocks(model)
    others = {path for block in blocks for path in block.others}
    return others | {a.path for block in blocks for a in block.attentions if not a.ends}


def _is_in(name: str, paths: set[str]) -> bool:
    return any(name.startswith(path + ".") for path in paths)


def _is_norm(name: str) -> bool:
    """True for the weights of norms, and of embeddings within blocks."""
    return any("norm" in piece and "attn" not in piece for piece in name.lower().split(".")) or "embed" in name.lower()
