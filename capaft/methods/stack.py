"""A method stack: a host, then at most one parameterisation, then transforms.

`lora`, `nola` (= `lora+nola`), `capaboost` (= `lora+capaboost`), `lora+nola+capaboost`; and two that host nothing:
`head` trains the task's head on a frozen base, `full` trains everything, for comparison.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from decimal import Decimal, InvalidOperation
from typing import Any

from capaft.basis import BASES
from capaft.errors import UsageError
from capaft.factor import Coefficients, Copies, Factor
from capaft.methods import HOSTS
from capaft.methods.host import Host

HOSTLESS = {"head": "a trained head on the frozen base", "full": "every weight of the model"}
PARAMETERISATION = "nola"
TRANSFORM = "capaboost"
DEFAULT_HOST = "lora"


@dataclass(frozen=True)
class Stack:
    """A parsed method stack and its numbers; what an adapter file records of the method.

    Attributes:
        method: canonical name, `host[+nola][+capaboost]`, `head` or `full`.
        host: the adapter method, or None for `head` and `full`.
        k: NOLA's coefficients for down-type and up-type factors, or None.
        basis: NOLA's basis.
        copies: CapaBoost's numbers, or None.
    """

    method: str
    host: Host | None = None
    k: tuple[int, int] | None = None
    basis: str = "hadamard"
    copies: Copies | None = None

    def coefficients(self, factor: Factor) -> Coefficients | None:
        """NOLA's numbers for one factor, or None where the factor itself is trained."""
        if self.k is None:
            return None
        return Coefficients(self.k[0 if factor.init == "uniform" else 1], self.basis)

    def record(self) -> dict[str, Any]:
        """The stack as plain values, no more than the method needs; `parse(**record)` gives the stack back."""
        record: dict[str, Any] = {"method": self.method}
        if self.host:
            record |= {field.name: getattr(self.host, field.name) for field in fields(self.host)}  # type: ignore[arg-type]
        if self.k:
            record |= {"k": list(self.k), "basis": self.basis}
        if self.copies:
            copies = self.copies
            record |= {"copies": copies.copies, "density": copies.density, "masks": copies.masks}
        return record


def canonical(method: str) -> str:
    """The full name of a stack: `nola` is `lora+nola`.

    Raises:
        UsageError: there is no such method, or it does not compose.
    """
    return "+".join(_parts(method))


def options_of(method: str) -> frozenset[str]:
    """Names of the numbers that a stack has: the keys of its record.

    Raises:
        UsageError: there is no such method.
    """
    parts = _parts(method)
    names = {"method"}
    if parts[0] in HOSTS:
        names |= {field.name for field in fields(HOSTS[parts[0]])}  # type: ignore[arg-type]
    if PARAMETERISATION in parts:
        names |= {"k", "basis"}
    if TRANSFORM in parts:
        names |= {"copies", "density", "masks"}
    return frozenset(names)


def parse(method: str, **options: Any) -> Stack:
    """Build a stack from its name and numbers; numbers that the stack has no use for are ignored.

    Args:
        method: `host[+nola][+capaboost]` with or without the default host, `head`, or `full`.
        **options: rank, alpha (None: twice the rank), k (one number, or down and up), basis, copies, density, masks.

    Raises:
        UsageError: no such method, no such composition, or a number out of range.
    """
    parts = _parts(method)
    name = "+".join(parts)
    if parts[0] in HOSTLESS:
        return Stack(name)
    values: dict[str, Any] = {"rank": 8, "alpha": None, "k": (192,), "basis": "hadamard", "copies": 2, "density": 0.5}
    values |= {"masks": "random"} | {key: value for key, value in options.items() if value is not None}
    if values["alpha"] is None and _whole(values["rank"]):
        values["alpha"] = 2.0 * values["rank"]
    _check(values)
    values["alpha"] = float(values["alpha"])  # 16 and 16.0 are one adapter, and must be one file.
    host_type = HOSTS[parts[0]]
    host = host_type(**{field.name: values[field.name] for field in fields(host_type)})  # type: ignore[arg-type]
    return Stack(
        method=name,
        host=host,
        k=_pair(values["k"]) if PARAMETERISATION in parts else None,
        basis=values["basis"] if PARAMETERISATION in parts else "hadamard",
        copies=_copies(values) if TRANSFORM in parts else None,
    )


def _parts(method: str) -> list[str]:
    """The canonical parts of a stack's name."""
    parts = method.strip().lower().split("+")
    known = [*HOSTS, PARAMETERISATION, TRANSFORM, *HOSTLESS]
    for part in parts:
        if part not in known:
            close = difflib.get_close_matches(part, known, 1)
            hint = f"did you mean {close[0]}?" if close else f"choose from {', '.join(known)}"
            raise UsageError(f"--method {method}: there is no method {part or '(empty)'}; {hint}")
    if parts[0] not in HOSTS and parts[0] not in HOSTLESS:
        parts.insert(0, DEFAULT_HOST)
    allowed = [[parts[0], *rest] for rest in ([], ["nola"], ["capaboost"], ["nola", "capaboost"])]
    if parts not in (allowed if parts[0] in HOSTS else allowed[:1]):
        raise UsageError(
            f"--method {method} does not compose; a stack is host[+nola][+capaboost] with one of the hosts "
            f"{', '.join(HOSTS)}, or {' or '.join(HOSTLESS)} alone"
        )
    return parts


def _check(values: Mapping[str, Any]) -> None:
    """Raise UsageError for the first number that is out of range."""
    rank, alpha, k = values["rank"], values["alpha"], values["k"]
    if not _whole(rank) or rank < 1:
        raise UsageError(f"--rank must be a whole number of at least 1, got {rank}")
    if not isinstance(alpha, (int, float)) or isinstance(alpha, bool) or not 0 < abs(alpha) < 1e9:
        raise UsageError(f"--alpha must be a finite number other than 0, got {alpha}")
    if not _whole(values["copies"]) or not 1 <= values["copies"] <= 64:
        raise UsageError(f"--copies must be a whole number from 1 to 64, got {values['copies']}")
    if any(not _whole(each) or each < 1 for each in _pair(k)):
        raise UsageError(f"--k must be a whole number of at least 1, or two as in 512,256, got {k}")
    if not isinstance(values["basis"], str) or values["basis"] not in BASES:
        raise UsageError(f"--basis must be one of {', '.join(BASES)}, got {values['basis']}")
    if values["masks"] not in ("random", "partition"):
        raise UsageError(f"--masks must be random or partition, got {values['masks']}")


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _pair(k: Any) -> tuple[Any, Any]:
    numbers = (k,) if _whole(k) else tuple(k) if isinstance(k, (tuple, list)) else ()
    if len(numbers) not in (1, 2):
        raise UsageError(f"--k must be a whole number of at least 1, or two as in 512,256, got {k}")
    return numbers[0], numbers[-1]


def _copies(values: Mapping[str, Any]) -> Copies:
    """CapaBoost's numbers; a partition's density is 1 / copies by definition."""
    if values["masks"] == "partition":
        return Copies(values["copies"], 1 / values["copies"], "partition")
    density = values["density"]
    try:
        valid = 0 < Decimal(repr(density)) <= 1
    except InvalidOperation:  # Not a number, in either sense.
        valid = False
    if not valid:
        raise UsageError(f"--density must be in (0, 1], got {density}")
    return Copies(values["copies"], float(density), "random")
