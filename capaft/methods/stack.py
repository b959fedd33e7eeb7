"""A method stack: a host, then at most one parameterisation, then transforms.

`lora`, `nola` (= `lora+nola`), `capaboost` (= `lora+capaboost`), `lora+nola+capaboost`; and two without a host: `head`
trains the task's head on the frozen base model, `full` trains everything, for comparison.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, get_args

from capaft.config.choices import (
    BASIS,
    COPIES,
    DENSITY,
    MASK_RESCALE,
    MASKS,
    SCOPE,
    BasisName,
    K,
    MaskRescale,
    Masks,
    Scope,
)
from capaft.factors.capaboost import Copies
from capaft.factors.factor import Factor
from capaft.factors.nola import Coefficients
from capaft.methods.host import Host
from capaft.methods.registry import HOSTS, NAMESPACED
from capaft.support.errors import UsageError, check_type, in_python

HOSTLESS = {"head": "a trained head on the frozen base", "full": "every weight of the model"}
PARAMETERISATION = "nola"
TRANSFORM = "capaboost"
DEFAULT_HOST = "lora"
ALIASES = {"adapter": "houlsby"}
MAX_COPIES = 64
NOLA_OPTIONS = frozenset(["k", "basis", "scope"])
CAPABOOST_OPTIONS = frozenset(["copies", "density", "masks", "mask_rescale"])


@dataclass(frozen=True)
class Stack:
    """A parsed method stack and its options, as an adapter file records them.

    Attributes:
        method: canonical name, `host[+nola][+capaboost]`, `head` or `full`.
        host: the adapter method, or None for `head` and `full`.
        k: number of NOLA's coefficients for down-type and up-type factors, or None.
        basis: NOLA's basis.
        scope: `site` for coefficients of each site, `model` for one vector of them per factor in the whole model.
        copies: CapaBoost's options, or None.
    """

    method: str
    host: Host | None = None
    k: tuple[int, int] | None = None
    basis: BasisName = BASIS
    scope: Scope = SCOPE
    copies: Copies | None = None

    @staticmethod
    @in_python
    def parse(method: str, **options: Any) -> Stack:
        """Build a stack from its name and options; see `capaft.attach` for both.

        Raises:
            UsageError: there is no such method, composition or option, or a value is out of range.

        Example:
            >>> import capaft
            >>> stack = capaft.Stack.parse("nola", k=64, rank=4)
            >>> stack.method, stack.k
            ('lora+nola', (64, 64))
        """
        check_type("method", method, str, "a method stack such as 'nola'")
        stack = parse_stack(method, **options)
        for option in sorted({name for name, value in options.items() if value is not None} - stack_options(method)):
            warnings.warn(f"{option} has no effect with {stack.method} and is ignored", stacklevel=3)
        return stack

    def coefficients(self, factor: Factor) -> Coefficients | None:
        """NOLA's options for one factor, or None if the factor itself is trained.

        A vector with no more entries than coefficients is trained itself: a basis would save nothing.
        """
        if self.k is None or factor.frozen:
            return None
        k = self.k[0 if isinstance(factor.init, str) else 1]
        if len(factor.shape) == 1 and factor.size <= k:
            return None
        return Coefficients(k, self.basis, self.scope)

    def copies_of(self, factor: Factor) -> Copies | None:
        """CapaBoost's options for one factor, or None if it has no hidden axis and so is used once."""
        return None if factor.hidden_axis is None else self.copies

    def record(self) -> dict[str, Any]:
        """The stack as plain values, only those that the method needs; `parse_stack(**record)` gives the stack back."""
        record: dict[str, Any] = {"method": self.method}
        if self.host and is_namespaced(self.host.name):
            record["version"] = self.host.version
        if self.host:
            for option in self.host.options():
                value = getattr(self.host, option.name)
                record[option.name] = list(value) if isinstance(value, tuple) else value
        if self.k:
            record |= {"k": list(self.k), "basis": self.basis, "scope": self.scope}
        if self.copies:
            copies = self.copies
            record |= {"copies": copies.copies, "density": copies.density, "masks": copies.masks}
            record |= {"mask_rescale": copies.rescale}
        return record

    def options_text(self) -> str:
        """The options for people, those that are off or empty left out: "rank 8, alpha 16, k 128,128"."""
        return settings_text({name: value for name, value in self.record().items() if name != "method"})


def settings_text(settings: Mapping[str, Any]) -> str:
    """Settings for people, those that are off, empty or the only way to do it left out."""
    return ", ".join(
        f"{name.replace('_', ' ')} {_value_text(value)}"
        for name, value in settings.items()
        if value not in (False, None, [], {}, "", "site", "none")
    )


def _value_text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(_value_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def canonical_method(method: str) -> str:
    """The full name of a stack: `nola` is `lora+nola`.

    Raises:
        UsageError: no method has this name, or its parts do not compose.
    """
    return "+".join(_parts(method))


def stack_options(method: str) -> frozenset[str]:
    """Names of a stack's options: the keys of its record.

    Raises:
        UsageError: no method has this name, or its parts do not compose.
    """
    parts = _parts(method)
    names = {"method"} | ({"version"} if is_namespaced(parts[0]) else set())
    if parts[0] in HOSTS:
        names |= {option.name for option in HOSTS[parts[0]].options()}
    if PARAMETERISATION in parts:
        names |= NOLA_OPTIONS
    if TRANSFORM in parts:
        names |= CAPABOOST_OPTIONS
    return frozenset(names)


def known_options() -> set[str]:
    """Names of the options of all methods."""
    return {option.name for host in HOSTS.values() for option in host.options()} | NOLA_OPTIONS | CAPABOOST_OPTIONS


def is_namespaced(host: str) -> bool:
    """True for the name of a host of another package, which has a version of its own."""
    return NAMESPACED.fullmatch(host) is not None


def parse_stack(method: str, version: int | None = None, **options: Any) -> Stack:
    """Build a stack from its name and options; options that have no effect on the stack are ignored.

    Args:
        method: `host[+nola][+capaboost]` with or without the default host, `head`, or `full`.
        version: of a host of another package, the one that is needed; None for whichever there is.
        **options: the host's options (rank, alpha, bottleneck, ...); k (one number, or down and up), basis, scope;
            copies, density, masks, mask_rescale. None means the default.

    Raises:
        UsageError: the method, composition or option does not exist, or a value is out of range.
    """
    parts = _parts(method)
    canonical = "+".join(parts)
    if parts[0] in HOSTLESS:
        return Stack(canonical)
    if version is not None:
        _check_version(parts[0], version)
    for option in options:
        if option not in known_options():
            close = difflib.get_close_matches(option, known_options(), 1)
            raise UsageError(f"no method has an option {option}" + (f"; did you mean {close[0]}?" if close else ""))
    chosen = {name: value for name, value in options.items() if value is not None}
    values: dict[str, Any] = {"k": (K,), "basis": BASIS, "scope": SCOPE, "copies": COPIES, "density": DENSITY}
    values |= {"masks": MASKS, "mask_rescale": MASK_RESCALE} | chosen
    _check(values)
    host = HOSTS[parts[0]]
    with_nola = PARAMETERISATION in parts
    return Stack(
        method=canonical,
        host=host(**{option.name: chosen[option.name] for option in host.options() if option.name in chosen}),
        k=_pair(values["k"]) if with_nola else None,
        basis=values["basis"] if with_nola else BASIS,
        scope=values["scope"] if with_nola else SCOPE,
        copies=_copies(values) if TRANSFORM in parts else None,
    )


def stacks_of(host: type[Host]) -> list[str]:
    """All stacks with this host."""
    tails = ["", "+nola", *(["+capaboost", "+nola+capaboost"] if not host.narrow else [])]
    return [host.name + tail for tail in tails]


def _check_version(host: str, version: Any) -> None:
    if not is_namespaced(host):
        raise UsageError(f"{host} has no version")
    installed = HOSTS[host].version
    if type(version) is not int or version != installed:
        package = host.partition(".")[0]
        raise UsageError(
            f"this needs version {version!r} of the method {host}, and the one installed here is version {installed}; "
            f"install the release of {package} that has it"
        )


def _parts(method: str) -> list[str]:
    """The canonical parts of a stack's name."""
    parts = [ALIASES.get(part, part) for part in method.strip().lower().split("+")]
    names = [*HOSTS, *ALIASES, PARAMETERISATION, TRANSFORM, *HOSTLESS]
    for part in parts:
        if part not in names:
            close = difflib.get_close_matches(part, names, 1)
            hint = f"did you mean {close[0]}?" if close else f"choose from {', '.join(names)}"
            if is_namespaced(part) and not close:
                hint = f"install the package {part.partition('.')[0]}, which adds it"
            raise UsageError(f"--method {method}: there is no method {part or '(empty)'}; {hint}")
    if parts[0] not in HOSTS and parts[0] not in HOSTLESS:
        parts.insert(0, DEFAULT_HOST)
    allowed = [[parts[0], *tail] for tail in ([], ["nola"], ["capaboost"], ["nola", "capaboost"])]
    if parts not in (allowed if parts[0] in HOSTS else allowed[:1]):
        raise UsageError(
            f"--method {method} does not compose; a stack is host[+nola][+capaboost] with one of the hosts "
            f"{', '.join(HOSTS)}, or {' or '.join(HOSTLESS)} alone"
        )
    if TRANSFORM in parts and (reason := HOSTS[parts[0]].narrow):
        raise UsageError(f"--method {method}: {parts[0]} has no hidden axis for capaboost to widen: {reason}; drop one")
    return parts


def _check(values: Mapping[str, Any]) -> None:
    """Raise UsageError for the first option of a parameterisation or transform that is out of range."""
    k = values["k"]
    if not _is_whole(values["copies"]) or not 1 <= values["copies"] <= MAX_COPIES:
        raise UsageError(f"--copies must be a whole number from 1 to {MAX_COPIES}, got {values['copies']}")
    if any(not _is_whole(count) or count < 1 for count in _pair(k)):
        raise UsageError(f"--k must be a whole number of at least 1, or two as in 512,256, got {k}")
    for name, kind in {"basis": BasisName, "scope": Scope, "masks": Masks, "mask_rescale": MaskRescale}.items():
        choices = get_args(kind)
        if not isinstance(values[name], str) or values[name] not in choices:
            option = name.replace("_", "-")
            raise UsageError(f"--{option} must be one of {', '.join(choices)}, got {values[name]}")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _pair(k: Any) -> tuple[Any, Any]:
    counts = (k,) if _is_whole(k) else tuple(k) if isinstance(k, (tuple, list)) else ()
    if len(counts) not in (1, 2):
        raise UsageError(f"--k must be a whole number of at least 1, or two as in 512,256, got {k}")
    return counts[0], counts[-1]


def _copies(values: Mapping[str, Any]) -> Copies:
    """CapaBoost's options; a partition's density is 1 / copies by definition."""
    if values["masks"] == "partition":
        return Copies(values["copies"], 1 / values["copies"], "partition", values["mask_rescale"])
    density = values["density"]
    try:
        valid = 0 < Decimal(repr(density)) <= 1
    except InvalidOperation:  # Either NaN or not a number at all.
        valid = False
    if not valid:
        raise UsageError(f"--density must be in (0, 1], got {density}")
    return Copies(values["copies"], float(density), "random", values["mask_rescale"])
