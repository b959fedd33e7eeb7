"""The header of an adapter file: its fields, canonical form and digest."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from capaft.adapter.file.canonical import canonical_json, parse_json, plain
from capaft.adapter.file.encoding import SAVE_DTYPES
from capaft.adapter.file.header_schema import not_plain, wrong_header, wrong_options
from capaft.adapter.file.site_list import SiteList
from capaft.config.choices import SaveDtype
from capaft.factors import rng
from capaft.methods.head import Head
from capaft.methods.stack import Stack, parse_stack, stack_options
from capaft.model.origin import Origin
from capaft.model.targets import Targets
from capaft.support.errors import AdapterFileError, UsageError

FORMAT = 1


@dataclass(frozen=True)
class BaseRecord:
    """The base model that an adapter was trained on.

    Attributes:
        name: its hub id, or a path that names nobody's home.
        revision: its hub revision.
        weights: the base fingerprint; None where there was nothing to sample.
    """

    name: str | None
    revision: str | None
    weights: str | None


@dataclass(frozen=True)
class Digests:
    """BLAKE2b-16 digests, in hexadecimal, as docs/adapter-format.md defines them.

    Attributes:
        header: of the header without this entry.
        streams: of the random streams that the adapter reads.
        tensors: of the stored tensors.
    """

    header: str
    streams: str
    tensors: str


@dataclass(frozen=True)
class HeadRecord:
    """The parameters of a model's head that are neither trained directly nor stored.

    Attributes:
        k: coefficients of each parameter; 0 if they are frozen.
        parameters: shape of each parameter, by canonical name: its first side, and the product of the others.
        weights: samples of what the model held in them; None where there was nothing to sample.
    """

    k: int
    parameters: dict[str, tuple[int, int]]
    weights: str | None

    @staticmethod
    def of(head: Head, weights: str | None) -> HeadRecord | None:
        """The record of a planned head, or None if it has no such parameters."""
        record = head.record()
        return None if record is None else HeadRecord(record["k"], _shapes(record["parameters"]), weights)


@dataclass(frozen=True)
class TaskRecord:
    """The task that an adapter was trained for: what evaluation needs beside the parameters.

    Attributes:
        name: the task's name.
        labels: class names, in the order of the model's outputs.
        max_length: tokens that inputs were cut to.
        metric: the score that picked the best parameters.
        options: the task's own options: texts, numbers, truth values or None, at most 32 of them.
    """

    name: str
    labels: tuple[str, ...]
    max_length: int
    metric: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Header:
    """The header of an adapter file; docs/adapter-format.md specifies every field.

    Attributes:
        base: the base model.
        contract: version of the seed contract.
        digest: digests of the parts of the file.
        ext: whatever a program wants to keep here; readers ignore it.
        format: version of the file format.
        head: the head's parameters that are neither trained directly nor stored; None if there are none.
        method: the method stack with its options.
        save_dtype: encoding of the stored tensors.
        seed: seed of every random number of the adapter.
        sites: the paths of all sites, each with its shape.
        targets: the user's choice of layers.
        task: the task, if the adapter was trained for one.
    """

    base: BaseRecord
    contract: int
    digest: Digests
    ext: dict[str, Any]
    format: int
    head: HeadRecord | None
    method: Stack
    save_dtype: SaveDtype
    seed: int
    sites: SiteList
    targets: Targets
    task: TaskRecord | None

    @staticmethod
    def of(record: dict[str, Any]) -> Header:
        """The header from JSON values that match its schema.

        Raises:
            UsageError: its method or its targets are invalid.
            ValueError: its sites are.
        """
        head, task = record["head"], record["task"]
        typed = {
            "base": BaseRecord(**record["base"]),
            "digest": Digests(**record["digest"]),
            "head": head and HeadRecord(head["k"], _shapes(head["parameters"]), head["weights"]),
            "method": parse_stack(**record["method"]),
            "sites": SiteList.parse(record["sites"]),
            "targets": Targets(**record["targets"]),
            "task": task and TaskRecord(**{**task, "labels": tuple(task["labels"])}),
        }
        return Header(**{**record, **typed})

    def record(self) -> dict[str, Any]:
        """The header as JSON values, keys sorted: exactly what the file holds.

        Raises:
            ValueError: a text or number is one that no file can hold; the message names it.
        """
        record = {field.name: plain(_record(getattr(self, field.name)), field.name) for field in fields(self)}
        return json.loads(canonical_json(record))

    def signed(self) -> Header:
        """The header with the digest of itself."""
        record = self.record()
        del record["digest"]["header"]
        return replace(self, digest=replace(self.digest, header=header_digest(record)))


def _record(value: Any) -> Any:
    """One field of a header as JSON values."""
    if isinstance(value, Stack | SiteList):
        return value.record()
    return vars(value) if is_dataclass(value) else value


def _shapes(parameters: dict[str, list[int]]) -> dict[str, tuple[int, int]]:
    return {name: (first, others) for name, (first, others) in parameters.items()}


def parse_header(path: Path, text: str) -> Header:
    """The header, after checks of its schema, canonical form, digest, versions, method and targets.

    Raises:
        AdapterFileError: a check fails.
    """
    try:
        header = parse_json(text)
        is_canonical = canonical_json(header) == text
    except (ValueError, RecursionError) as error:
        raise AdapterFileError(f"{path} is damaged: its header is not JSON, or not in this form: {error}") from None
    if isinstance(header, dict) and isinstance(header.get("format"), int) and header["format"] > FORMAT:
        raise AdapterFileError(f"{path} has format {header['format']}, newer than this capaft reads; upgrade it")
    problem = None if is_canonical else "it is not canonical"
    problem = problem or wrong_header(header)
    if not problem:
        expected = header["digest"].pop("header")
        if header_digest(header) != expected:
            problem = "it does not match its digest"
        header["digest"]["header"] = expected
    if problem:
        raise AdapterFileError(f"{path} is damaged: {problem}; copy it again")
    if header["format"] != FORMAT or header["contract"] != rng.CONTRACT_VERSION:
        raise AdapterFileError(
            f"{path} follows format {header['format']} and seed contract {header['contract']}; "
            f"this capaft reads format {FORMAT} and contract {rng.CONTRACT_VERSION}"
        )
    if header["save_dtype"] not in SAVE_DTYPES:
        raise AdapterFileError(f"{path} is damaged: there is no dtype {header['save_dtype']}; copy it again")
    try:
        options = stack_options(str(header["method"].get("method")))
        if later := sorted(set(header["method"]) - options):
            raise AdapterFileError(
                f"{path}: its method has the option {later[0]}, which this capaft does not know; upgrade it"
            )
        parsed = Header.of(header) if set(header["method"]) == options else None
    except UsageError as error:
        raise AdapterFileError(f"{path}: {error}") from None
    except ValueError as error:
        raise AdapterFileError(f"{path} is damaged: {error}") from None
    if parsed is None:
        raise AdapterFileError(f"{path} is damaged: its method does not have the options it needs")
    if canonical_json(parsed.method.record()) != canonical_json(header["method"]):
        raise AdapterFileError(f"{path} is damaged: its method is not in canonical form")
    return parsed


def check_writable(base: Origin, task: TaskRecord | None) -> None:
    """Refuse what no file can hold, before a run is spent on it.

    Raises:
        UsageError: a name, a label or an option is no text, or no number that every reader has, or there are too many.
    """
    problem = not_plain([base.name, base.revision], "the base model's name") or (
        task and (not_plain(task.labels, "labels") or wrong_options(task.options))
    )
    if problem:
        raise UsageError(f"an adapter file cannot hold this: {problem}; change it")


def header_digest(header: dict[str, Any]) -> str:
    """Digest of the canonical JSON of a header without the digest of itself."""
    return hashlib.blake2b(canonical_json(header).encode(), digest_size=16).hexdigest()
