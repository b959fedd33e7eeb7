"""The adapter file, format 1: trained parameters, and a header that says which random numbers they multiply.

One safetensors file. Its `__metadata__` has one key, `capaft`, that holds canonical JSON (several keys would be written
in a different order on every run). docs/adapter-format.md specifies every byte. A reader trusts nothing: it checks
the header's schema, sizes and digests before it draws or allocates anything that they ask for.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from capaft.adapter.activation import disabled, get_adapter, refuse_distributed
from capaft.adapter.file.encoding import SAVE_DTYPES, decode_tensor, encode_tensor, encoded_layout
from capaft.adapter.file.fingerprint import (
    WeightSamples,
    base_samples,
    head_samples,
    sites_digest,
    streams_digest,
    tensors_digest,
    weight_samples,
)
from capaft.adapter.file.header import (
    FORMAT,
    BaseRecord,
    Digests,
    Header,
    HeadRecord,
    TaskRecord,
    canonical_json,
    open_safetensors,
    parse_header,
    wrong_options,
)
from capaft.adapter.file.other_head import HEAD, drawn_head, head_shapes, stored_parameters
from capaft.adapter.file.samples import Agreement, compare_samples
from capaft.adapter.install import attach_plan, detach
from capaft.adapter.module import Adapter, carrier
from capaft.adapter.plan import Placement, Plan, make_plan
from capaft.config.choices import SaveDtype
from capaft.factors import rng
from capaft.model.labels import PROBLEM_TYPES, Labels
from capaft.model.origin import Origin
from capaft.support.errors import AdapterFileError, TrainingError, UsageError
from capaft.support.files import write_atomically


@dataclass(frozen=True)
class AdapterFile:
    """A file that has been read and whose own digests hold.

    Attributes:
        path: path of the file.
        header: the header, as docs/adapter-format.md specifies it.
        tensors: the stored tensors, still encoded.
        size: bytes in the file.
    """

    path: Path
    header: Header
    tensors: dict[str, Tensor]
    size: int

    def __repr__(self) -> str:
        base = self.base.name or "an unnamed model"
        return f"AdapterFile({str(self.path)!r}, {self.header.method.method} for {base}, {self.size:,} bytes)"

    @property
    def base(self) -> Origin:
        """The base model's name and revision."""
        return Origin(self.header.base.name, self.header.base.revision)

    @property
    def task(self) -> TaskRecord | None:
        """The task that the adapter was trained for, if the file has one."""
        return self.header.task


def save(
    model: nn.Module,
    path: str | Path,
    *,
    name: str = "default",
    base: Origin | None = None,
    task: TaskRecord | None = None,
    dtype: SaveDtype = "float32",
    samples: WeightSamples | None = None,
) -> int:
    """Write an adapter to a file, atomically.

    Args:
        model: the model that carries the adapter.
        path: the file to write.
        name: the adapter's name on the model.
        base: the base model's name and revision; by default the model's own `name_or_path`.
        task: the task that it was trained for; by default the labels of its head, if they are not the base model's.
        dtype: encoding of the stored parameters; `int8` and `int4` have one scale per 128 values.
        samples: sample weights of the base model, if it is sharded and can no longer be read.

    Returns:
        Bytes written.

    Raises:
        UsageError: there is no such adapter or dtype, or a file cannot hold the task's options.
        TrainingError: a parameter is not finite, or the file cannot be written.

    Example:
        >>> adapter = capaft.attach(model, "nola", k=16, rank=2, seed=7)
        >>> capaft.save(model, path) == path.stat().st_size
        True
    """
    if dtype not in SAVE_DTYPES:
        raise UsageError(f"--save-dtype must be one of {', '.join(SAVE_DTYPES)}, got {dtype}")
    if task and (problem := wrong_options(task.options)):
        raise UsageError(f"{problem}; {path} was not written")
    adapter, model = get_adapter(model, name), carrier(model)
    base = base or Origin(getattr(model, "name_or_path", None) or None)
    with disabled(model):
        task = task or _labels_record(model, adapter)
        heads = adapter.substitutes.tensors(model)
        samples = samples or weight_samples(model, adapter.plan, heads)
    tensors: dict[str, Tensor] = {}
    for key, parameter in adapter.trained(model).items():
        stored = encode_tensor(key, parameter, dtype)
        if not torch.isfinite(decode_tensor(key, stored, tuple(parameter.shape), dtype)).all():
            raise TrainingError(f"{key} holds numbers that are not finite as {dtype}; {path} was not written")
        tensors |= stored
    plan = adapter.plan
    header = Header(
        base=BaseRecord(base.name, base.revision, samples.base),
        contract=rng.CONTRACT_VERSION,
        digest=Digests("", sites_digest(plan.sites), streams_digest(plan), tensors_digest(tensors)),
        format=FORMAT,
        head=HeadRecord.of(plan.head, samples.head),
        method=plan.stack,
        save_dtype=dtype,
        seed=plan.seed,
        sites=len(plan.sites),
        targets=plan.targets,
        task=task,
    )
    content = safetensors.torch.save(tensors, metadata={"capaft": canonical_json(header.signed().record())})
    write_atomically(Path(path), content)
    return len(content)


def read(path: str | Path) -> AdapterFile:
    """Read an adapter file and check all that can be checked without a model.

    Raises:
        AdapterFileError: the file is missing, truncated, altered, foreign, or of a newer format.

    Example:
        >>> adapter = capaft.attach(model, "nola", k=16, rank=2, seed=7)
        >>> size = capaft.save(model, path)
        >>> header = capaft.read(path).header
        >>> header.method.method, header.seed, header.sites
        ('lora+nola', 7, 4)
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            described, text = open_safetensors(path, stream, size)
            header = parse_header(path, text)
            stream.seek(0)
            data = stream.read(size)
    except OSError as error:
        raise AdapterFileError(f"cannot read {path}: {error.strerror or error}") from None
    try:
        tensors = safetensors.torch.load(data)
    except Exception as error:
        raise AdapterFileError(f"{path} is damaged: {error}") from None
    if set(tensors) != set(described):
        raise AdapterFileError(f"{path} is damaged: its tensors are not those its header names")
    if tensors_digest(tensors) != header.digest.tensors:
        raise AdapterFileError(f"{path} is damaged: its tensors do not match their digest; copy it again")
    return AdapterFile(path, header, tensors, len(data))


def load(
    model: nn.Module,
    path: str | Path | AdapterFile,
    *,
    name: str = "default",
    rename: dict[str, str] | None = None,
    allow_base_mismatch: bool = False,
) -> Adapter:
    """Attach the adapter of a file to a model, after checking that it was trained on this model.

    It is active unless another adapter is. Its head and its labels may be other ones than the model's, of another
    number too: they take their place while the adapter is active.

    Args:
        model: the base model; changed in place only if every check holds.
        path: the file, or what `read` returned.
        name: the adapter's name on this model.
        rename: `{old: new}` pieces of module paths, if this model names its modules differently.
        allow_base_mismatch: attach even if the base weights differ from those it was trained on.

    Raises:
        AdapterFileError: the file is damaged, or belongs to another model.
        UsageError: the model already has an adapter of this name.

    Example:
        >>> adapter = capaft.attach(model, "nola", k=16, rank=2, seed=7)
        >>> size = capaft.save(model, path)
        >>> _ = capaft.detach(model)
        >>> capaft.load(model, path).plan.stack.method
        'lora+nola'
    """
    refuse_distributed(model, "load onto")
    file = path if isinstance(path, AdapterFile) else read(path)
    with disabled(model):
        model = carrier(model)
        shapes = head_shapes(model, file, rename)
        plan = _plan(model, file, rename, shapes)
        _check_sizes(file, plan)
        start = {name: torch.zeros(shape) for name, shape in shapes.items() if name in plan.trained}
        start |= _check_base(model, file, plan, shapes, allow_base_mismatch)
        labels = _labels(model, file, shapes)
    if streams_digest(plan) != file.header.digest.streams:
        raise AdapterFileError(
            f"{file.path}: its random streams come out differently here than where it was written; the random "
            "generator of this installation is at fault, so the adapter cannot be used here"
        )
    adapter = attach_plan(model, plan, name=name, start=start, labels=labels, trains=False)
    adapter.task = file.task
    try:
        _fill(adapter, model, file)
    except AdapterFileError:
        detach(model, name)
        raise
    return adapter


def restore_parameters(model: nn.Module, path: str | Path, *, name: str = "default") -> None:
    """Restore an attached adapter's parameters from a file that was saved from it.

    Raises:
        AdapterFileError: the file is damaged, or is of another adapter.
    """
    file, adapter, model = read(path), get_adapter(model, name), carrier(model)
    if file.header.digest.streams != streams_digest(adapter.plan):
        raise AdapterFileError(f"{path} is not a file of the attached adapter")
    _fill(adapter, model, file)


def _fill(adapter: Adapter, model: nn.Module, file: AdapterFile) -> None:
    """Copy a file's parameters into an adapter, all or nothing."""
    dtype = file.header.save_dtype
    trained = adapter.trained(model)
    expected: dict[str, Any] = {}
    for key, parameter in trained.items():
        expected |= encoded_layout(key, tuple(parameter.shape), dtype)
    if expected != {key: (_dtype_name(t), tuple(t.shape)) for key, t in file.tensors.items()}:
        raise AdapterFileError(f"{file.path} is damaged: its tensors are not what its header describes")
    stored = {key: decode_tensor(key, file.tensors, tuple(p.shape), dtype) for key, p in trained.items()}
    if not all(torch.isfinite(values).all() for values in stored.values()):
        raise AdapterFileError(f"{file.path} is damaged: it holds numbers that are not finite")
    with torch.no_grad():
        for key, parameter in trained.items():
            parameter.copy_(stored[key])


def _plan(model: nn.Module, file: AdapterFile, rename: dict[str, str] | None, shapes: Mapping[str, torch.Size]) -> Plan:
    """The plan of a file's adapter on a model.

    Raises:
        AdapterFileError: the adapter does not fit the model.
    """
    header = file.header
    try:
        plan = make_plan(model, header.method, replace(_placement(file, rename), shapes=shapes))
    except (UsageError, ValueError) as error:
        raise AdapterFileError(
            f"{file.path} does not fit {type(model).__name__}: {error}; pass the --model it was trained on"
        ) from None
    if len(plan.sites) != header.sites or sites_digest(plan.sites) != header.digest.sites:
        raise AdapterFileError(
            f"{file.path} was trained on {header.sites} sites of other shapes or names than the {len(plan.sites)} "
            f"that {type(model).__name__} has for {header.targets}; pass the --model it was trained on, or --rename "
            "old=new if modules were renamed"
        )
    if HeadRecord.of(plan.head, header.head.weights if header.head else None) != header.head:
        raise AdapterFileError(
            f"{file.path} was trained with a head of other shapes than {type(model).__name__} has; pass the --model it "
            "was trained on"
        )
    return plan


def _placement(file: AdapterFile, rename: dict[str, str] | None) -> Placement:
    header = file.header
    placement = Placement(
        targets=header.targets,
        seed=header.seed,
        trained=[key.removeprefix(HEAD) for key in stored_parameters(file.tensors) if key.startswith(HEAD)],
        rename=rename,
    )
    if header.head is None:
        return placement
    if header.head.k == 0:
        return replace(placement, head=header.head.parameters, head_mode="frozen")
    return replace(placement, head=header.head.parameters, head_mode="nola", head_k=header.head.k)


def _check_sizes(file: AdapterFile, plan: Plan) -> None:
    """Compare the sizes of the file's parameters with what the header and the model imply, before drawing anything."""
    counts = {key: file.tensors[key].numel() for key in stored_parameters(file.tensors)}
    bounds = plan.bounds()
    if {key for key in counts if not key.startswith(HEAD)} != set(bounds):
        raise AdapterFileError(f"{file.path} is damaged: its tensors are not those of its method")
    for role, (low, high) in bounds.items():
        stored = counts[role] * (2 if file.header.save_dtype == "int4" else 1)
        if not low <= stored <= high + 1:
            raise AdapterFileError(f"{file.path} is damaged: {role} has {stored} values, not {low} to {high}")


def _check_base(
    model: nn.Module, file: AdapterFile, plan: Plan, shapes: Mapping[str, torch.Size], allow_mismatch: bool
) -> dict[str, Tensor]:
    """Refuse a model whose weights differ from those that the adapter was trained on.

    Returns:
        Values of the head's parameters that are not stored, by canonical name, where they are not the model's: a new
        head was drawn from the seed, and is drawn again.

    Raises:
        AdapterFileError: they differ, or the file's samples cannot be read.
    """
    if plan.stack.method == "full":
        return {}
    stored = file.header.base.weights
    try:
        sampled = base_samples(model, plan, stored)
    except ValueError:
        raise _damaged_samples(file) from None
    if not _agree(file, stored, sampled) and not allow_mismatch:
        named = f" (it names {file.base.name})" if file.base.name else ""
        raise AdapterFileError(
            f"{file.path} was trained on other base weights than these{named}; pass the --model it was trained on, or "
            "--allow-base-mismatch to use it anyway"
        )
    head = file.header.head
    if head is None:
        return {}
    drawn = drawn_head(model, plan, shapes)
    resized = {name: values for name, values in drawn.items() if name in shapes}
    for values in (resized, drawn):
        if _agree(file, head.weights, head_samples(model, plan, values)):
            return values
    if allow_mismatch:
        return resized
    raise AdapterFileError(
        f"{file.path} was trained from other values of the head than this model's; load the model with the head it "
        f"had then (a new one was drawn from seed {plan.seed}), or pass --allow-base-mismatch to use it anyway"
    )


def _labels(model: nn.Module, file: AdapterFile, shapes: Mapping[str, torch.Size]) -> Labels | None:
    """The labels of a file's head on a model; None if they are the model's.

    Raises:
        AdapterFileError: the file names another number of labels than its head has.
    """
    current, task = Labels.of(model), file.task
    if current is None:
        return None
    (count,) = {shape[0] for shape in shapes.values()} or {len(current.id2label)}
    names = task.labels if task else ()
    if shapes and names and len(names) != count:
        raise AdapterFileError(f"{file.path} is damaged: its head does not have an output for each of its labels")
    if task and len(names) == count and names != current.names:
        problem_type = task.options.get("problem_type")
        return Labels.named(names, problem_type if problem_type in PROBLEM_TYPES else None)
    return Labels.numbered(count) if shapes else None


def _labels_record(model: nn.Module, adapter: Adapter) -> TaskRecord | None:
    """The labels of an adapter's head if they are not the base model's, in the task that they were loaded with."""
    current = Labels.of(model)
    if adapter.labels is None or current is None or adapter.labels.agrees(current):
        return None
    if adapter.task is not None:
        return replace(adapter.task, labels=adapter.labels.names)
    return TaskRecord("", adapter.labels.names, 0, "", {"problem_type": adapter.labels.problem_type})


def _agree(file: AdapterFile, stored: str | None, sampled: str | None) -> bool:
    """True if samples in a file are the model's, or, with a warning, if they cannot be compared."""
    if stored is None or sampled is None:
        warnings.warn(
            f"{file.path}: this base model cannot be compared with the one it was trained on: weights are quantised "
            "or trained directly",
            stacklevel=5,
        )
        return True
    try:
        agreement = compare_samples(stored, sampled)
    except ValueError:
        raise _damaged_samples(file) from None
    if agreement is Agreement.COARSE:
        warnings.warn(
            f"{file.path}: this base model, or the one it was trained on, was unpacked from a quantised copy; they are "
            "as near as copies of one model, but another fine-tune of it can be as near",
            stacklevel=5,
        )
    return agreement is not Agreement.OTHER


def _damaged_samples(file: AdapterFile) -> AdapterFileError:
    return AdapterFileError(f"{file.path} is damaged: its base model's samples cannot be read")


def _dtype_name(tensor: Tensor) -> str:
    names = {
        torch.float32: "F32",
        torch.bfloat16: "BF16",
        torch.float16: "F16",
        torch.int8: "I8",
        torch.uint8: "U8",
    }
    return names.get(tensor.dtype, str(tensor.dtype))
