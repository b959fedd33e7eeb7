"""The average of adapters that differ in their trained parameters alone.

A factor is an affine map of what is trained, the same one for adapters of one seed, stack and sites, so that the
average of the parameters gives the average of the factors, exactly. The update `dW = s U D` is a product of two factors
though, and the product of averages is not the average of products:

    sum_i w_i U_i D_i - U_mean D_mean = 1/2 sum_ij w_i w_j (U_i - U_j)(D_i - D_j)

with weights that add up to 1. `capaft merge` of several adapters adds the updates themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from capaft.adapter.file.adapter_file import AdapterFile, read
from capaft.adapter.file.canonical import canonical_json
from capaft.adapter.file.encoding import decode_tensor, encode_tensor
from capaft.adapter.file.envelope import seal
from capaft.adapter.file.fingerprint import tensors_digest
from capaft.adapter.file.header import Digests
from capaft.adapter.file.other_head import stored_parameters
from capaft.adapter.file.samples import Agreement, compare_samples
from capaft.config.choices import SaveDtype
from capaft.support.errors import TrainingError, UsageError
from capaft.support.files import write_atomically

_INTEGERS = ("int8", "int4")


def average(
    files: Sequence[str | Path | AdapterFile], path: str | Path, *, weights: Sequence[float] | None = None
) -> int:
    """Write one adapter file with the averaged parameters of several of one seed, method, base and sites.

    Args:
        files: at least two adapter files, directories with one, or what `read` returned.
        path: the file to write.
        weights: of each, of which only the ratio counts, since the factors of an adapter are affine in its parameters;
            equal by default.

    Returns:
        Bytes written.

    Raises:
        AdapterFileError: a file is damaged.
        UsageError: the adapters differ in more than their parameters, or the weights are not such.
        TrainingError: the file cannot be written.

    Example:
        >>> for step in (1, 2):
        ...     adapter = capaft.attach(model, "nola", k=16, rank=2, seed=7)
        ...     _ = adapter.role_parameters["up"].data.fill_(step)
        ...     _ = capaft.save(model, path.with_name(f"{step}.safetensors"))
        ...     _ = capaft.detach(model)
        >>> size = capaft.average([path.with_name("1.safetensors"), path.with_name("2.safetensors")], path)
        >>> float(capaft.load(model, path).role_parameters["up"].mean())
        1.5
    """
    adapters = [file if isinstance(file, AdapterFile) else read(file) for file in files]
    if len(adapters) < 2:
        raise UsageError("an average takes at least two adapters; name another RUN")
    shares = _shares(weights, len(adapters))
    first = adapters[0]
    for other in adapters[1:]:
        if difference := _difference(first, other):
            raise UsageError(
                f"{other.path} and {first.path} differ in {difference}; their parameters mean different things, so "
                "merge the adapters instead of averaging them"
            )
    dtype = _dtype(adapters)
    tensors: dict[str, Tensor] = {}
    for name in stored_parameters(first.tensors):
        shape = _shape(adapters, name)
        values = [decode_tensor(name, file.tensors, shape, file.header.save_dtype).double() for file in adapters]
        mean = torch.stack([share * value for share, value in zip(shares, values, strict=True)]).sum(0).float()
        if not torch.isfinite(mean).all():
            raise TrainingError(f"the average of {name} is not finite; {path} was not written")
        tensors |= encode_tensor(name, mean, dtype)
    digests = Digests("", first.header.digest.streams, tensors_digest(tensors))
    header = replace(first.header, digest=digests, ext={}, save_dtype=dtype)
    content = seal(tensors, canonical_json(header.signed().record()))
    write_atomically(Path(path), content)
    return len(content)


def _shares(weights: Sequence[float] | None, count: int) -> list[float]:
    """Weights that add up to 1.

    Raises:
        UsageError: there is not one for each adapter, or their sum is not positive.
    """
    chosen = [1.0] * count if weights is None else [float(weight) for weight in weights]
    if len(chosen) != count:
        raise UsageError(f"--weights has {len(chosen)} entries for {count} runs; give one for each")
    total = math.fsum(chosen)
    if not math.isfinite(total) or total <= 0:
        raise UsageError(f"--weights must be finite and add up to more than 0, got {', '.join(map(str, chosen))}")
    return [weight / total for weight in chosen]


def _difference(one: AdapterFile, other: AdapterFile) -> str:
    """The first thing, besides the parameters, in which two adapters differ; empty if there is none."""
    first, second = one.header, other.header
    if first.contract != second.contract:
        return f"the seed contract ({second.contract} and {first.contract})"
    options, others = first.method.record(), second.method.record()
    for name in sorted(options.keys() | others.keys(), key=lambda name: (name != "method", name)):
        if options.get(name) != others.get(name):
            return f"the method's {name} ({others.get(name)} and {options.get(name)})".replace(
                "method's method", "method"
            )
    if first.seed != second.seed:
        return f"the seed ({second.seed} and {first.seed})"
    if sites := first.sites.difference(second.sites):
        return f"the sites ({sites})"
    if _other_base(first.base.weights, second.base.weights):
        return f"the base weights ({other.base.name or 'unnamed'} and {one.base.name or 'unnamed'})"
    labels, other_labels = (file.task.labels if file.task else () for file in (one, other))
    if labels != other_labels:
        return f"the labels ({', '.join(other_labels) or 'none'} and {', '.join(labels) or 'none'})"
    heads = [header.head and (header.head.k, header.head.parameters) for header in (first, second)]
    if heads[0] != heads[1] or set(stored_parameters(one.tensors)) != set(stored_parameters(other.tensors)):
        return "the parameters of the head"
    if first.head and second.head and _other_base(first.head.weights, second.head.weights):
        return "the values that the head started from"
    return "" if first.digest.streams == second.digest.streams else "their random streams"


def _other_base(one: str | None, other: str | None) -> bool:
    """True if samples of weights are those of different models; what was not sampled is not compared."""
    return None not in (one, other) and compare_samples(str(one), str(other)) is Agreement.OTHER


def _dtype(adapters: Sequence[AdapterFile]) -> SaveDtype:
    """The encoding of the average: that of all files, or float32.

    Raises:
        UsageError: they differ, and none tells the shapes of its parameters.
    """
    dtypes = {file.header.save_dtype for file in adapters}
    if len(dtypes) > 1 and dtypes <= set(_INTEGERS):
        raise UsageError("the adapters are stored as int8 and int4; average those of one --save-dtype")
    return dtypes.pop() if len(dtypes) == 1 else "float32"


def _shape(adapters: Sequence[AdapterFile], name: str) -> tuple[int, ...]:
    """The shape of a parameter; flat if all files store integers, whose blocks do not depend on it.

    Raises:
        UsageError: the files do not agree on it.
    """
    shapes = {tuple(file.tensors[name].shape) for file in adapters if file.header.save_dtype not in _INTEGERS}
    counts = {math.prod(shape) for shape in shapes}
    for file in adapters:
        stored, packs = file.tensors[name].numel(), file.header.save_dtype == "int4"
        if not counts:
            counts.add(2 * stored if packs else stored)
        if not any(stored == (-(-count // 2) if packs else count) for count in counts):
            shapes.add(())
            counts.add(-1)
    if len(shapes) > 1 or len(counts) > 1:
        raise UsageError(f"{adapters[0].path} and the others hold {name} in different shapes; they cannot be averaged")
    return shapes.pop() if shapes else (counts.pop(),)
