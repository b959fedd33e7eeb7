"""Registry of the adapter methods: the built-in ones, and those of other packages.

A package adds a method by an entry point of the group `capaft.methods` that names a `Host`; docs/extending.md shows an
example.
"""

from __future__ import annotations

import warnings
from collections.abc import Container
from importlib.metadata import entry_points
from typing import Any

from capaft.methods.bitfit import Bitfit
from capaft.methods.dora import Dora
from capaft.methods.host import Host
from capaft.methods.houlsby import Houlsby
from capaft.methods.ia3 import Ia3
from capaft.methods.lora import Lora
from capaft.methods.parallel import Parallel
from capaft.methods.pfeiffer import Pfeiffer
from capaft.methods.prefix import Prefix
from capaft.methods.vera import Vera

ENTRY_POINTS = "capaft.methods"
# Words that already have a meaning in a stack, in its record or as an argument of `capaft.attach`.
RESERVED_NAMES = frozenset(["nola", "capaboost", "head", "full", "adapter"])
OF_STACKS = frozenset(["method", "k", "basis", "scope", "copies", "density", "masks", "mask_rescale"])
OF_ATTACH = frozenset(["name", "targets", "exclude", "layers", "seed", "rename", "dropout"]) | frozenset(
    ["head", "head_mode", "head_k", "modules_to_save", "labels"]
)
BUILT_IN: tuple[type[Host], ...] = (Lora, Dora, Vera, Houlsby, Pfeiffer, Parallel, Prefix, Ia3, Bitfit)


def _registered() -> dict[str, type[Host]]:
    """Every host by name; a host of another package never replaces a built-in one."""
    hosts: dict[str, type[Host]] = {host.name: host for host in BUILT_IN}
    for entry in entry_points(group=ENTRY_POINTS):
        try:
            host = entry.load()
            _check(host, hosts)
        except Exception as error:  # A broken package must not keep capaft from working.
            why = " ".join(str(error).split())
            warnings.warn(f"the method {entry.name} of {entry.value} cannot be used: {why}", stacklevel=2)
            continue
        hosts[host.name] = host
    return hosts


def _check(host: Any, taken: Container[str]) -> None:
    """Raise an exception of any kind if stacks or the list of methods could not work with this host."""
    if not (isinstance(host, type) and issubclass(host, Host)):
        raise TypeError("it is not a capaft.methods.Host")
    if host.name in taken or host.name in RESERVED_NAMES:
        raise ValueError(f"its name {host.name!r} is taken")
    if not host.name.isidentifier() or host.name != host.name.lower():
        raise ValueError(f"its name {host.name!r} is not a lower-case identifier")
    if reserved := (OF_STACKS | OF_ATTACH) & {option.name for option in host.options()}:
        raise ValueError(f"its option {min(reserved)} has a name that is reserved")
    for attribute in ("summary", "equation", "paper"):
        getattr(host, attribute)
    host()


HOSTS: dict[str, type[Host]] = _registered()
