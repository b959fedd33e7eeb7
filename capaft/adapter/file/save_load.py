"""The adapter file, format 1: trained numbers, and a header that says exactly which random numbers they multiply.

One safetensors file. Its `__metadata__` has one key, `capaft`, that holds canonical JSON (several keys would be written
in a different order on every run). docs/adapter-format.md specifies every byte. A reader trusts nothing: it checks
the header's schema, sizes and digests before it draws or allocates anything in their name.
"""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from capaft.adapter.attach import attach_plan, detach, get_adapter
from capaft.adapter.file.encoding import SAVE_DTYPES, SCALE, decode_tensor, encode_tensor, encoded_layout
from capaft.adapter.file.fingerprint import (
    WeightSamples,
    base_samples,
    head_samples,
    same_base,
    sites_digest,
    streams_digest,
    tensors_digest,
    weight_samples,
)
from capaft.adapter.file.header import (
    FORMAT,
    canonical_json,
    header_digest,
    open_safetensors,
    parse_header,
    wrong_options,
)
from capaft.adapter.module import Adapter
from capaft.adapter.plan import Plan, make_plan
from capaft.config.choices import SaveDtype
from capaft.factors import rng
from capaft.methods.stack import parse_stack
from capaft.model.origin import Origin
from capaft.model.targets import Targets
from capaft.support.errors import AdapterFileError, TrainingError, UsageError
from capaft.support.files import write_atomically

HEAD = "head:"


@dataclass(frozen=True)
class TaskRecord:
    """What the adapter was trained for; what evaluation needs beside the numbers.

    Attributes:
        name: what the task is called.
        labels: class names, in the order of the model's outputs.
        max_length: tokens that inputs were cut to.
        metric: the score that picked the numbers.
        options: the task's own options: texts, numbers, truth values or None, at most 32 of them.
    """

    name: str
    labels: tuple[str, ...]
    max_length: int
    metric: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class AdapterFile:
    """A file that has been read and whose own digests hold.

    Attributes:
        path: where it was read.
        header: the parsed header, as docs/adapter-format.md gives it.
        tensors: the stored tensors, still encoded.
        size: bytes in the file.
    """

    path: Path
    header: dict[str, Any]
    tensors: dict[str, Tensor]
    size: int

    @property
    def base(self) -> Origin:
        """The base model's name and revision."""
        return Origin(self.header["base"]["name"], self.header["base"]["revision"])

    @property
    def task(self) -> TaskRecord | None:
        """The task, if the file has one."""
        record = self.header["task"]
        return None if record is None else TaskRecord(**{**record, "labels": tuple(record["labels"])})


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
        task: what it was trained for.
        dtype: how the numbers are stored; see `storage`.
        samples: sample weights of the base model, where it can no longer be read because it lies in shares.

    Returns:
        Bytes written.

    Raises:
        UsageError: no such adapter, an unknown dtype, or options of the task that a file cannot hold.
        TrainingError: a number is not finite, or the file cannot be written.

    Example:
        >>> adapter = capaft.attach(model, "nola", k=16, rank=2, seed=7)
        >>> capaft.save(model, path) == path.stat().st_size
        True
    """
    if dtype not in SAVE_DTYPES:
        raise UsageError(f"--save-dtype must be one of {', '.join(SAVE_DTYPES)}, got {dtype}")
    if task and (problem := wrong_options(task.options)):
        raise UsageError(f"{problem}; {path} was not written")
    adapter = get_adapter(model, name)
    base = base or Origin(getattr(model, "name_or_path", None) or None)
    tensors: dict[str, Tensor] = {}
    for key, numbers in adapter.trained(model).items():
        stored = encode_tensor(key, numbers, dtype)
        if not torch.isfinite(decode_tensor(key, stored, tuple(numbers.shape), dtype)).all():
            raise TrainingError(f"{key} holds numbers that are not finite as {dtype}; {path} was not written")
        tensors |= stored
    decided = adapter.plan
    samples = samples or weight_samples(model, decided)
    head = decided.head.record()
    header: dict[str, Any] = {
        "base": {"name": base.name, "revision": base.revision, "weights": samples.base},
        "contract": rng.CONTRACT_VERSION,
        "digest": {
            "sites": sites_digest(decided.sites),
            "streams": streams_digest(decided),
            "tensors": tensors_digest(tensors),
        },
        "format": FORMAT,
        "head": head and head | {"weights": samples.head},
        "method": decided.stack.record(),
        "save_dtype": dtype,
        "seed": decided.seed,
        "sites": len(decided.sites),
        "targets": asdict(decided.targets),
        "task": None if task is None else {**task.__dict__, "labels": list(task.labels)},
    }
    header["digest"]["header"] = header_digest(header)
    content = safetensors.torch.save(tensors, metadata={"capaft": canonical_json(header)})
    write_atomically(Path(path), content)
    return len(content)


def read(path: str | Path) -> AdapterFile:
    """Read a file and check all that can be checked without a model.

    Raises:
        AdapterFileError: the file is missing, truncated, altered, foreign, or of a newer format.

    Example:
        >>> adapter = capaft.attach(model, "nola", k=16, rank=2, seed=7)
        >>> size = capaft.save(model, path)
        >>> capaft.read(path).header["seed"]
        7
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
    if tensors_digest(tensors) != header["digest"]["tensors"]:
        raise AdapterFileError(f"{path} is damaged: its numbers do not match their digest; copy it again")
    return AdapterFile(path, header, tensors, len(data))


def load(
    model: nn.Module,
    path: str | Path | AdapterFile,
    *,
    name: str = "default",
    rename: dict[str, str] | None = None,
    allow_base_mismatch: bool = False,
) -> Adapter:
    """Attach the adapter of a file to a model, after checking that it is that model's.

    Args:
        model: the base model; changed in place only if everything holds.
        path: the file, or one already read.
        name: the adapter's name on this model.
        rename: `{old: new}` pieces of module paths, where the model at hand names modules differently.
        allow_base_mismatch: attach although the base weights differ from those it was trained on.

    Raises:
        AdapterFileError: the file is damaged, or belongs to another model.

    Example:
        >>> adapter = capaft.attach(model, "nola", k=16, rank=2, seed=7)
        >>> size = capaft.save(model, path)
        >>> _ = capaft.detach(model)
        >>> capaft.load(model, path).plan.stack.method
        'lora+nola'
    """
    file = path if isinstance(path, AdapterFile) else read(path)
    decided = _plan(model, file, rename)
    _check_sizes(model, file, decided)
    _check_base(model, file, decided, allow_base_mismatch)
    if streams_digest(decided) != file.header["digest"]["streams"]:
        raise AdapterFileError(
            f"{file.path}: the seed's random streams come out differently here than where it was written; "
            "this installation's generator is at fault, do not use the result"
        )
    adapter = attach_plan(model, decided, name=name)
    try:
        _fill(adapter, model, file)
    except AdapterFileError:
        detach(model, name)
        raise
    return adapter


def restore_parameters(model: nn.Module, path: str | Path, *, name: str = "default") -> None:
    """Give an attached adapter the numbers of a file that was saved from it.

    Raises:
        AdapterFileError: the file is damaged, or is of another adapter.
    """
    file, adapter = read(path), get_adapter(model, name)
    if file.header["digest"]["streams"] != streams_digest(adapter.plan):
        raise AdapterFileError(f"{path} is not of the adapter that is attached")
    _fill(adapter, model, file)


def _fill(adapter: Adapter, model: nn.Module, file: AdapterFile) -> None:
    """Copy a file's numbers into an adapter, all or nothing."""
    dtype: SaveDtype = file.header["save_dtype"]
    trained = adapter.trained(model)
    expected: dict[str, Any] = {}
    for key, parameter in trained.items():
        expected |= encoded_layout(key, tuple(parameter.shape), dtype)
    if expected != {key: (_dtype_name(t), tuple(t.shape)) for key, t in file.tensors.items()}:
        raise AdapterFileError(f"{file.path} is damaged: its tensors are not what its header describes")
    numbers = {key: decode_tensor(key, file.tensors, tuple(p.shape), dtype) for key, p in trained.items()}
    if not all(torch.isfinite(each).all() for each in numbers.values()):
        raise AdapterFileError(f"{file.path} is damaged: it holds numbers that are not finite")
    with torch.no_grad():
        for key, parameter in trained.items():
            parameter.copy_(numbers[key])


def _plan(model: nn.Module, file: AdapterFile, rename: dict[str, str] | None) -> Plan:
    header, targets = file.header, Targets()
    try:
        stack = parse_stack(**header["method"])
        trained = [key.removeprefix(HEAD) for key in _parameters(file) if key.startswith(HEAD)]
        targets = Targets(**header["targets"])
        head = _head_options(header["head"])
        decided = make_plan(model, stack, targets=targets, seed=header["seed"], trained=trained, rename=rename, **head)
    except (UsageError, ValueError) as error:
        raise AdapterFileError(
            f"{file.path} does not fit {type(model).__name__}: {error}; pass the --model it was trained on"
        ) from None
    if len(decided.sites) != header["sites"] or sites_digest(decided.sites) != header["digest"]["sites"]:
        raise AdapterFileError(
            f"{file.path} was trained on {header['sites']} sites of another shape or name than the "
            f"{len(decided.sites)} that {type(model).__name__} has for {targets}; pass the --model it "
            "was trained on, or --rename old=new if modules were renamed"
        )
    if decided.head.record() != (header["head"] and {key: header["head"][key] for key in ("k", "parameters")}):
        raise AdapterFileError(
            f"{file.path} was trained with a head of other shapes than {type(model).__name__} has; pass the --model it "
            "was trained on"
        )
    return decided


def _head_options(head: dict[str, Any] | None) -> dict[str, Any]:
    """What `plan` is told of a head, as a header has it."""
    if head is None:
        return {}
    mode = {"head_mode": "nola", "head_k": head["k"]} if head["k"] else {"head_mode": "frozen"}
    return {"head": list(head["parameters"]), **mode}


def _check_sizes(model: nn.Module, file: AdapterFile, decided: Plan) -> None:
    """Compare the file's numbers with what the header and the model imply, before anything is drawn."""
    counts = {key: file.tensors[key].numel() for key in _parameters(file)}
    bounds = decided.bounds()
    if {key for key in counts if not key.startswith(HEAD)} != set(bounds):
        raise AdapterFileError(f"{file.path} is damaged: its tensors are not those of its method")
    for role, (low, high) in bounds.items():
        stored = counts[role] * (2 if file.header["save_dtype"] == "int4" else 1)
        if not low <= stored <= high + 1:
            raise AdapterFileError(f"{file.path} is damaged: {role} has {stored} numbers, not {low} to {high}")


def _check_base(model: nn.Module, file: AdapterFile, decided: Plan, allow_mismatch: bool) -> None:
    if decided.stack.method == "full":
        return
    header = file.header
    if not _agree(file, header["base"]["weights"], base_samples(model, decided)) and not allow_mismatch:
        raise AdapterFileError(
            f"{file.path} was trained on other base weights than these (it names {file.base.name}); pass that "
            "--model, or --allow-base-mismatch to use it anyway"
        )
    head = header["head"]
    if head and not _agree(file, head["weights"], head_samples(model, decided)) and not allow_mismatch:
        raise AdapterFileError(
            f"{file.path} was trained from other values of the head than this model's; load the model as it was then, "
            f"a new head by capaft.base_model.initialise with seed {decided.seed}, or pass --allow-base-mismatch to "
            "use it anyway"
        )


def _agree(file: AdapterFile, stored: str | None, found: str | None) -> bool:
    """Whether samples in a file are the model's; what cannot be compared gets a notice."""
    if stored is None or found is None:
        warnings.warn(
            f"{file.path}: a quantised base model, or one trained as it is, cannot be compared with the one trained on",
            stacklevel=4,
        )
        return True
    try:
        return same_base(stored, found)
    except ValueError:
        raise AdapterFileError(f"{file.path} is damaged: its base model's samples cannot be read") from None


def _parameters(file: AdapterFile) -> list[str]:
    """Names of the stored parameters: all tensors but the block scales of others."""
    return [key for key in file.tensors if not (key.endswith(SCALE) and key.removesuffix(SCALE) in file.tensors)]


def _dtype_name(tensor: Tensor) -> str:
    names = {
        torch.float32: "F32",
        torch.bfloat16: "BF16",
        torch.float16: "F16",
        torch.int8: "I8",
        torch.uint8: "U8",
    }
    return names.get(tensor.dtype, str(tensor.dtype))
