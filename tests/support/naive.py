"""The mathematics a second time, the slow way: float64, one site, one copy and one basis vector after another.

Only the raw words of the seeded streams come from capaft; they have their own known-answer tests. A new host or basis
needs its formula here, straight from its paper. Everything is differentiable in the parameters, so a twin's gradients
are autograd's.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, partial
from math import ceil, prod, sqrt
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from capaft.adapter.module import Adapter
from capaft.adapter.plan import Plan
from capaft.factors import rng
from capaft.model.site import Site

Array = NDArray[np.float64]
Stream = Callable[..., NDArray[np.uint64]]
# The factors of one masked copy by role; factors that are not copied are part of every copy.
Copy = dict[str, Tensor]


# Values, from words.


def signs(words: NDArray[np.uint64], n: int) -> Array:
    return np.array([1.0 if int(words[i // 64]) >> i % 64 & 1 else -1.0 for i in range(n)])


def uniforms(words: NDArray[np.uint64], n: int) -> Array:
    lanes = [int(words[i // 4]) >> 16 * (i % 4) & 0xFFFF for i in range(n)]
    return np.array([(2 * lane + 1 - 65536) / 65536 for lane in lanes])


def order(words: NDArray[np.uint64]) -> list[int]:
    return sorted(range(len(words)), key=lambda i: (int(words[i]), i))


def buckets(words: NDArray[np.uint64], count: int) -> list[int]:
    return [((int(word) >> 32) * count) >> 32 for word in words]


# Bases: the columns of G, one by one.


def uniform_basis(stream: Stream, n: int, k: int) -> Array:
    per_vector = ceil(n / 4)
    words = stream("uniform", k * per_vector)
    vectors = [uniforms(words[j * per_vector : (j + 1) * per_vector], n) for j in range(k)]
    return np.stack(vectors, 1) / sqrt(k)


def hadamard_basis(stream: Stream, n: int, k: int) -> Array:
    size = 1
    while size < max(n, 2 * k):
        size *= 2
    positions = order(stream("hadamard.columns", size // 2))
    top = signs(stream("hadamard.top", ceil(k / 64)), k) > 0
    columns = [positions[j] + int(top[j]) * (size // 2) for j in range(k)]
    rows = signs(stream("hadamard.signs", ceil(n / 64)), n)
    parity = [[(i & column).bit_count() % 2 for column in columns] for i in range(n)]
    return rows[:, None] * (1.0 - 2.0 * np.array(parity)) / sqrt(3 * k)


def group_basis(stream: Stream, n: int, k: int) -> Array:
    """Columns of G before they are normalised, for a site with coefficients of its own."""
    group = [0] * n
    for place, i in enumerate(order(stream("group", n))):
        group[i] = place % k
    return _signed(stream, group, k)


def shared_group_basis(stream: Stream, n: int, k: int) -> Array:
    """Columns of G before they are normalised; their length depends on all entries that share the coefficients."""
    return _signed(stream, buckets(stream("group", n), k), k)


def _signed(stream: Stream, group: list[int], k: int) -> Array:
    n = len(group)
    sign = signs(stream("group.signs", ceil(n / 64)), n)
    basis = np.zeros((n, k))
    for i, j in enumerate(group):
        basis[i, j] = sign[i]
    return basis


BASES = {
    "uniform": uniform_basis,
    "hadamard": hadamard_basis,
    "group": group_basis,
    "shared group": shared_group_basis,
}


@cache
def basis(
    kind: str, seed: int, sites: tuple[tuple[str, int], ...], role: str, k: int, shared: bool = False
) -> dict[str, Array]:
    """G for each of the sites, given with their sizes, that have one vector of coefficients, `shared` or their own."""
    name = "shared group" if shared and kind == "group" else kind
    matrices = {site: BASES[name](_stream(seed, site, role), n, k) for site, n in sites}
    squares = sum((columns**2).sum(0) for columns in matrices.values()) if kind == "group" else np.ones(k)
    squares = np.maximum(squares, 1)
    return {site: columns / np.sqrt(squares) for site, columns in matrices.items()}


@cache
def initial(seed: int, site: str, role: str, n: int, fan_in: int) -> Array:
    """U(-1, 1) / sqrt(fan_in)."""
    return uniforms(_stream(seed, site, role)("init", ceil(n / 4)), n) / sqrt(fan_in)


# Masks.


@cache
def masks(seed: int, site: str, role: str, n: int, copies: int, density: float, kind: str) -> NDArray[np.bool_]:
    """Masks of a factor with n entries, `(copies, n)`."""
    stream = _stream(seed, site, role)
    if kind == "partition":
        owners = buckets(stream("mask.partition", n), copies)
        return np.array([[owner == j for owner in owners] for j in range(copies)])
    kept = int(Fraction(str(density)) * n)
    subsets = [set(order(stream(f"mask.{j}", n))[:kept]) for j in range(copies)]
    return np.array([[i in subset for i in range(n)] for subset in subsets])


# Hosts: their factors, the initial values, and the effect on a layer.


@dataclass(frozen=True)
class Part:
    """A factor as in its paper.

    Attributes:
        shape: shape before copies.
        fan_in: initial values are U(-1, 1) / sqrt(fan_in); 0 for a constant.
        start: that constant.
        copied: True if masked copies have a hidden axis to widen.
        frozen: True if it is drawn once for all sites of that shape, and never trained.
    """

    shape: tuple[int, ...]
    fan_in: int = 0
    start: float = 0.0
    copied: bool = True
    frozen: bool = False


class Twin(ABC):
    """A host."""

    @abstractmethod
    def parts(self, site: Site, host: Any) -> dict[str, Part]:
        """Factors at a site, by role."""

    @abstractmethod
    def place(self, base: Any, site: Site, host: Any, copies: list[Copy]) -> None:
        """Put the host into a float64 model."""


class Changes(Twin):
    """A host that changes a weight: beside the output of a plain linear layer, and in the weight of any other."""

    @abstractmethod
    def output(self, site: Site, host: Any, copies: list[Copy], x: Tensor, y: Tensor, w: Tensor, b: Tensor) -> Tensor:
        """The layer's output, from its input x, its output y without the host, its weight w `(out, in)` and bias b."""

    @abstractmethod
    def merged(self, site: Site, host: Any, copies: list[Copy], w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """The weight and bias of a layer that equals layer and adapter together."""

    def place(self, base: Any, site: Site, host: Any, copies: list[Copy]) -> None:
        w, b = matrix(base, site), offset(base, site)
        if site.kind not in ("linear", "bias") or site.parametrised:
            replace(base, site, *self.merged(site, host, copies, w, b))
            return
        for path in site.modules:
            module = base.get_submodule(path)
            if site.scales == "input":
                module.register_forward_pre_hook(lambda _, args: (args[0] * (1 + copies[0]["scale"]),))
            else:
                module.register_forward_hook(partial(self._after, site, host, copies, w, b))

    def _after(self, site: Site, host: Any, copies: list[Copy], w: Tensor, b: Tensor, *called: Any) -> Tensor:
        _, (x, *_), y = called
        changed = y.clone()
        changed[..., rows(site, y.shape[-1])] = self.output(
            site, host, copies, x, y[..., rows(site, y.shape[-1])], w, b
        )
        return changed


class Lora(Changes):
    """`W + (alpha / r) sum_j U_j D_j`."""

    def parts(self, site: Site, host: Any) -> dict[str, Part]:
        # Only one of an embedding's inputs is active.
        down = Part((host.rank, site.in_features), fan_in=1 if site.kind == "embedding" else site.in_features)
        return {"down": down, "up": Part((site.out_features, host.rank))}

    def output(self, site: Site, host: Any, copies: list[Copy], x: Tensor, y: Tensor, w: Tensor, b: Tensor) -> Tensor:
        for factors in copies:
            y = y + host.alpha / host.rank * ((x @ factors["down"].T) @ factors["up"].T)
        return y

    def merged(self, site: Site, host: Any, copies: list[Copy], w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return w + sum(host.alpha / host.rank * factors["up"] @ factors["down"] for factors in copies), b


class Dora(Lora):
    """`m (W + dW) / ||W + dW||` with the norm of each row a constant for the gradient; m starts at `||W||`."""

    def parts(self, site: Site, host: Any) -> dict[str, Part]:
        return super().parts(site, host) | {"magnitude": Part((site.out_features,), copied=False)}

    def ratio(self, site: Site, host: Any, copies: list[Copy], w: Tensor) -> Tensor:
        changed = super().merged(site, host, copies, w, w)[0]
        return (w.norm(dim=1) + copies[0]["magnitude"]) / changed.norm(dim=1).detach()

    def output(self, site: Site, host: Any, copies: list[Copy], x: Tensor, y: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return b + self.ratio(site, host, copies, w) * super().output(site, host, copies, x, y - b, w, b)

    def merged(self, site: Site, host: Any, copies: list[Copy], w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        changed = super().merged(site, host, copies, w, b)[0]
        return self.ratio(site, host, copies, w)[:, None] * changed, b


class Vera(Changes):
    """`W + sum_j diag(b) U_j diag(d) D_j`; U and D are random, and shared by all layers of a shape."""

    def parts(self, site: Site, host: Any) -> dict[str, Part]:
        fan_in = 1 if site.kind == "embedding" else site.in_features
        return {
            "down": Part((host.rank, site.in_features), fan_in, frozen=True),
            "up": Part((site.out_features, host.rank), host.rank, frozen=True),
            "inner": Part((host.rank,), start=0.1, copied=False),
            "outer": Part((site.out_features,), copied=False),
        }

    def output(self, site: Site, host: Any, copies: list[Copy], x: Tensor, y: Tensor, w: Tensor, b: Tensor) -> Tensor:
        for factors in copies:
            y = y + factors["outer"] * ((factors["inner"] * (x @ factors["down"].T)) @ factors["up"].T)
        return y

    def merged(self, site: Site, host: Any, copies: list[Copy], w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        for factors in copies:
            w = w + factors["outer"].diag() @ factors["up"] @ factors["inner"].diag() @ factors["down"]
        return w, b


class Ia3(Changes):
    """Keys, values and feed-forward activations times `1 + s`; the activations before the projection they enter."""

    def parts(self, site: Site, host: Any) -> dict[str, Part]:
        width = site.in_features if site.scales == "input" else site.out_features
        return {"scale": Part((width,), copied=False)}

    def output(self, site: Site, host: Any, copies: list[Copy], x: Tensor, y: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return y * (1 + copies[0]["scale"])

    def merged(self, site: Site, host: Any, copies: list[Copy], w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        scale = (1 + copies[0]["scale"]).diag()
        return (w @ scale, b) if site.scales == "input" else (scale @ w, scale @ b)


class Bitfit(Changes):
    """`b + c`; the site's weight is the bias itself, as one column."""

    def parts(self, site: Site, host: Any) -> dict[str, Part]:
        return {"bias": Part((site.out_features,), copied=False)}

    def output(self, site: Site, host: Any, copies: list[Copy], x: Tensor, y: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return y + copies[0]["bias"]

    def merged(self, site: Site, host: Any, copies: list[Copy], w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return w + copies[0]["bias"][:, None], b + copies[0]["bias"]


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda z: z * (z > 0),
    "gelu": lambda z: z * (1 + torch.erf(z / sqrt(2))) / 2,
    "swish": lambda z: z / (1 + torch.exp(-z)),
    "tanh": lambda z: 1 - 2 / (1 + torch.exp(2 * z)),
    "identity": lambda z: z,
}


class Bottleneck(Twin):
    """`s (sum_j U_j phi(D_j x + a_j) + b)`, added to the module's output; x is that output, or the source's input."""

    def parts(self, site: Site, host: Any) -> dict[str, Part]:
        down = Part((host.bottleneck, site.in_features), fan_in=site.in_features)
        parts = {"down": down, "up": Part((site.out_features, host.bottleneck))}
        biases = {"down_bias": Part((host.bottleneck,)), "up_bias": Part((site.out_features,), copied=False)}
        return parts | (biases if host.bias else {})

    def change(self, host: Any, copies: list[Copy], x: Tensor) -> Tensor:
        total: Any = copies[0].get("up_bias", 0.0)
        for factors in copies:
            hidden = x @ factors["down"].T + factors.get("down_bias", 0.0)
            total = total + ACTIVATIONS[host.activation](hidden) @ factors["up"].T
        return host.scaling * total

    def place(self, base: Any, site: Site, host: Any, copies: list[Copy]) -> None:
        taken: list[Tensor] = []
        if site.source:
            base.get_submodule(site.source).register_forward_pre_hook(lambda _, args: taken.append(args[0]))

        def after(module: nn.Module, args: tuple[Tensor, ...], output: Any) -> Any:
            y = output if isinstance(output, Tensor) else output[0]
            y = self.joined(module, y, self.change(host, copies, taken.pop() if site.source else y), site)
            return y if isinstance(output, Tensor) else (y, *output[1:])

        base.get_submodule(site.module).register_forward_hook(after)

    def joined(self, module: Any, y: Tensor, change: Tensor, site: Site) -> Tensor:
        """The module's output y with the change."""
        return y + change


class Pfeiffer(Bottleneck):
    """Added before the norm, `norm(x + change)`, if the module is one."""

    def place(self, base: Any, site: Site, host: Any, copies: list[Copy]) -> None:
        # The residual sum keeps the terms that other adapters have added.
        if site.normalises:
            base.get_submodule(site.module).register_forward_pre_hook(lambda m, args: setattr(m, "naive_sum", args[0]))
        super().place(base, site, host, copies)

    def joined(self, module: Any, y: Tensor, change: Tensor, site: Site) -> Tensor:
        if not site.normalises:
            return y + change
        module.naive_sum = module.naive_sum + change
        centred = module.naive_sum - module.naive_sum.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + module.eps).sqrt() * module.weight + module.bias


class Prefix(Twin):
    """`real + g (joint - real)`; in joint, d*l virtual tokens share the softmax with the real ones."""

    def parts(self, site: Site, host: Any) -> dict[str, Part]:
        return {
            "key": Part((host.prefix_length, site.in_features), fan_in=site.in_features),
            "value": Part((host.prefix_length, site.out_features), fan_in=site.out_features),
            "gate": Part((1,), copied=False),
        }

    def place(self, base: Any, site: Site, host: Any, copies: list[Copy]) -> None:
        base.config._attn_implementation = "naive"
        module = base.get_submodule(site.module)
        tokens = [torch.cat([factors[role] for factors in copies]) for role in ("key", "value")]
        module.naive_prefixes = [*getattr(module, "naive_prefixes", []), (*tokens, copies[0]["gate"])]


def attend(prefixes: list[Any], query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """Attention of `(batch, heads, T, head)` under prefixes; the last one wraps the others."""
    if not prefixes:
        scores = scaling * query @ key.transpose(2, 3) + mask[..., : key.shape[2]]
        weights = torch.exp(scores - scores.amax(-1, keepdim=True))
        return weights / weights.sum(-1, keepdim=True) @ value
    *inner, (keys, values, gate) = prefixes
    groups = query.shape[1] // (keys.shape[1] // key.shape[3])
    wide = []
    for virtual, real in ((keys, key), (values, value)):
        heads = torch.stack(virtual.split(real.shape[3], dim=1)).repeat_interleave(groups, 0)
        wide.append(torch.cat([heads.expand(len(real), -1, -1, -1), real], dim=2))
    real = attend(inner, query, key, value, mask, scaling)
    joint = attend(inner, query, *wide, F.pad(mask, (len(keys), 0)), scaling)
    return real + gate * (joint - real)


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    groups = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(groups, 1) for tensor in (key, value))
    mask = query.new_zeros(1) if mask is None else mask
    mask = mask.expand(*mask.shape[:-1], key.shape[2]) if mask.ndim == 1 else mask
    return attend(getattr(module, "naive_prefixes", []), query, key, value, mask, scaling).transpose(1, 2), None


AttentionInterface.register("naive", _attention)
AttentionMaskInterface.register("naive", eager_mask)

HOSTS: dict[str, Twin] = {
    "lora": Lora(),
    "dora": Dora(),
    "vera": Vera(),
    "houlsby": Bottleneck(),
    "pfeiffer": Pfeiffer(),
    "parallel": Bottleneck(),
    "prefix": Prefix(),
    "ia3": Ia3(),
    "bitfit": Bitfit(),
}


# Weights as matrices `(out, in)`, and a site's part of them.


def rows(site: Site, width: int) -> list[int]:
    """Positions of the site's outputs among those of its layer."""
    if site.rows is None:
        return list(range(width))
    return [g * site.rows.stride + site.rows.start + i for g in range(site.rows.groups) for i in range(site.rows.block)]


def _as_matrix(site: Site, weight: Tensor) -> Tensor:
    if weight.ndim == 1:
        return weight.view(-1, 1)
    return weight.T if site.transposed else weight.reshape(len(weight), -1)


def matrix(base: nn.Module, site: Site) -> Tensor:
    """A copy of the site's weight; a column of zeros if it has none."""
    if not site.parameter:
        return torch.zeros(site.out_features, 1)
    weight = getattr(base.get_submodule(site.module), site.parameter)
    weight = _as_matrix(site, weight if site.index is None else weight[site.index])
    return weight[rows(site, len(weight))].detach().cpu().clone()


def offset(base: nn.Module, site: Site) -> Tensor:
    """A copy of the site's bias; 0 if the layer has none."""
    bias = getattr(base.get_submodule(site.module), "bias", None)
    if bias is None:
        return torch.zeros(site.out_features, dtype=torch.float64)
    bias = bias.detach().cpu()
    return bias[rows(site, len(bias))].clone() if site.rows else bias.clone()


def replace(base: nn.Module, site: Site, weight: Tensor, bias: Tensor) -> None:
    """Replace a layer's weight and bias at the site by tensors of a graph."""
    for path in site.modules:
        module = base.get_submodule(path)
        whole = getattr(module, site.parameter)
        target = whole if site.index is None else whole[site.index]
        flat = _as_matrix(site, target).clone()
        flat[rows(site, len(flat))] = weight
        target = (flat.T if site.transposed and target.ndim > 1 else flat).reshape(target.shape)
        if site.index is not None:
            target = torch.stack([target if i == site.index else expert for i, expert in enumerate(whole)])
        _set(module, site.parameter, target)
        if site.parameter == "weight" and getattr(module, "bias", None) is not None and site.rows is None:
            _set(module, "bias", bias)


def _set(module: nn.Module, name: str, value: Tensor) -> None:
    """Put a plain attribute in place of a parameter."""
    module._parameters.pop(name, None)
    setattr(module, name, value)


# Adapters.


def parts(plan: Plan, site: Site) -> dict[str, Part]:
    assert plan.stack.host is not None
    return HOSTS[plan.stack.host.name].parts(site, plan.stack.host)


def shapes(plan: Plan, site: Site) -> dict[str, tuple[int, ...]]:
    """Shapes of the factors that are trained, by role."""
    return {role: part.shape for role, part in parts(plan, site).items() if not part.frozen}


def coefficients(plan: Plan, part: Part) -> int:
    """Number of NOLA's coefficients of a factor; 0 if its entries are trained, as are those of short vectors."""
    k = plan.stack.k[0 if part.fan_in else 1] if plan.stack.k else 0
    return 0 if len(part.shape) == 1 and part.shape[0] <= k else k


def spans(plan: Plan, role: str) -> dict[str, slice]:
    """Span of each site's parameters among those of a role: sites in the order of shape, fan-in and path."""
    by_site: dict[str, slice] = {}
    end, shared = 0, None
    sites = sorted(plan.sites, key=lambda s: (parts(plan, s)[role].shape, max(1, parts(plan, s)[role].fan_in), s.path))
    for site in sites:
        part = parts(plan, site)[role]
        k = coefficients(plan, part)
        if k and plan.stack.scope == "model" and shared:
            by_site[site.path] = shared
            continue
        count = k or int(site_masks(plan, site, role).any(0).sum())
        by_site[site.path] = slice(end, end + count)
        end += count
        shared = by_site[site.path] if k else shared
    return by_site


def total(plan: Plan) -> int:
    """Number of trainable parameters of an adapter."""
    return sum(max(span.stop for span in spans(plan, role).values()) for role in shapes(plan, plan.sites[0]))


def count(plan: Plan, site: Site, role: str) -> int:
    """Number of trainable parameters of a factor at a site, including those it shares with other sites."""
    span = spans(plan, role)[site.path]
    return span.stop - span.start


def is_drawn(plan: Plan, part: Part) -> bool:
    """True if a factor depends on the seed."""
    return bool(part.fan_in or coefficients(plan, part) or (plan.stack.copies and part.copied))


def site_masks(plan: Plan, site: Site, role: str) -> NDArray[np.bool_]:
    part, copies = parts(plan, site)[role], plan.stack.copies
    n = prod(part.shape)
    if copies is None or not part.copied:
        return np.ones((1, n), dtype=bool)
    return masks(plan.seed, site.path, role, n, copies.copies, copies.density, copies.masks)


def factor(plan: Plan, site: Site, role: str, parameters: Mapping[str, Tensor]) -> Tensor:
    """The factor before it is copied, flat."""
    part = parts(plan, site)[role]
    n = prod(part.shape)
    start = torch.full((n,), part.start, dtype=torch.float64)
    if part.fan_in:
        start = torch.from_numpy(initial(plan.seed, "" if part.frozen else site.path, role, n, part.fan_in))
    if part.frozen:
        return start
    trained = parameters[role].flatten()[spans(plan, role)[site.path]]
    k = coefficients(plan, part)
    if not k:
        flat = torch.zeros(n, dtype=torch.float64)
        flat[torch.from_numpy(site_masks(plan, site, role).any(0))] = trained
        return flat
    sharing = plan.sites if plan.stack.scope == "model" else (site,)
    by_path = {other.path: parts(plan, other)[role] for other in sharing}
    sizes = tuple((path, prod(part.shape)) for path, part in by_path.items() if coefficients(plan, part))
    shared = plan.stack.scope == "model"
    vectors = torch.from_numpy(basis(plan.stack.basis, plan.seed, sizes, role, k, shared)[site.path])
    for j in range(k):
        start = start + trained[j] * vectors[:, j]
    return start


def copies_of(adapter: Adapter, site: Site, parameters: Mapping[str, Tensor] | None = None) -> list[Copy]:
    """Masked factors of every copy, by role."""
    plan, capaboost = adapter.plan, adapter.plan.stack.copies
    parameters = parameters or {role: p.detach().cpu().double() for role, p in adapter.role_parameters.items()}
    scale = 1 / sqrt(capaboost.density) if capaboost and capaboost.rescale == "variance" else 1.0
    copies: list[Copy] = [{} for _ in range(capaboost.copies if capaboost else 1)]
    for role, part in parts(plan, site).items():
        flat = factor(plan, site, role, parameters)
        kept = torch.from_numpy(site_masks(plan, site, role))
        for j, factors in enumerate(copies):
            factors[role] = (flat * kept[j] * scale if part.copied else flat).view(part.shape)
    return copies


def merged(adapter: Adapter, site: Site, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """A site's weight `(out, in)` and bias after merging."""
    host: Any = adapter.plan.stack.host
    twin = HOSTS[host.name]
    assert isinstance(twin, Changes)
    return twin.merged(site, host, copies_of(adapter, site), weight.double(), bias.double())


def update(adapter: Adapter, site: Site) -> Tensor:
    """dW of a site, `(out, in)`, for hosts with an additive update."""
    return merged(adapter, site, torch.zeros(site.out_features, site.in_features), torch.zeros(site.out_features))[0]


def product(adapter: Adapter, site: Site) -> Tensor:
    """The product of the factors of a site, summed over the copies, `(out, in)`: dW but for a factor of each row."""
    copies = copies_of(adapter, site)
    return sum(  # type: ignore[return-value]
        (factors["up"] @ (factors["inner"].diag() @ factors["down"] if "inner" in factors else factors["down"]))
        for factors in copies
    )


def adapted(base: Any, *adapters: Adapter, parameters: Mapping[str, Tensor] | None = None) -> Any:
    """The base model in float64 with the adapters in it; `base` is changed in place.

    Args:
        base: the base model.
        *adapters: the adapters.
        parameters: float64 tensors in place of the adapter's own parameters, so that their gradient is available.
    """
    base = base.cpu().double()
    if hasattr(base, "config"):
        # Copied, since copies of a tiny model share one. The faster expert kernels do not support float64.
        config = copy.deepcopy(base.config)
        config._experts_implementation = "eager"
        for module in base.modules():
            if hasattr(module, "config"):
                module.config = config
    for adapter in adapters:
        host: Any = adapter.plan.stack.host
        for site in adapter.plan.sites:
            HOSTS[host.name].place(base, site, host, copies_of(adapter, site, parameters))
    return base


def _stream(seed: int, site: str, role: str) -> Stream:
    return lambda purpose, count: rng.words(rng.fold_in(seed, site, role, purpose), count)
