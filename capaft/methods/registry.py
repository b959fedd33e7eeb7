"""Registry of the adapter methods: the built-in ones, and those of other packages.

A package adds a method by an entry point of the group `capaft.methods` that names a `Host`; docs/extending.md shows an
example. Its name is `package.host`, so that no two packages, and no later method of capaft, can mean another thing by
it; a name without a dot is capaft's own.
"""

from __future__ import annotations

import re
import warnings
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
from capaft.support.errors import UsageError, one_line

ENTRY_POINTS = "capaft.methods"
NAMESPACED = re.compile(r"(?P<package>[a-z_][a-z0-9_]*)\.(?P<host>[a-z_][a-z0-9_]*)")
MAX_VERSION = 2**31
# Words that already have a meaning in a stack's record or as an argument of `capaft.attach`.
OF_STACKS = frozenset(["method", "version", "k", "basis", "scope", "copies", "density", "masks", "mask_rescale"])
OF_ATTACH = frozenset(["name", "targets", "exclude", "layers", "seed", "rename", "dropout"]) | frozenset(
    ["head", "head_mode", "head_k", "modules_to_save", "labels"]
)
BUILT_IN: tuple[type[Host], ...] = (Lora, Dora, Vera, Houlsby, Pfeiffer, Parallel, Prefix, Ia3, Bitfit)


HOSTS: dict[str, type[Host]] = {host.name: host for host in BUILT_IN}
"""Every host by name."""


def register(host: type[Host]) -> None:
    """Add a method until Python ends, as an entry point does for good.

    Args:
        host: a `Host` whose name is `package.host`.

    Raises:
        UsageError: stacks, adapter files or the list of methods could not work with it, or its name is taken.
    """
    try:
        _check(host)
    except Exception as error:
        raise UsageError(f"the method {getattr(host, '__name__', host)} cannot be used: {one_line(error)}") from error
    HOSTS[host.name] = host


def _register_installed() -> None:
    """Add the hosts of other packages; one that cannot be used is left out with a warning."""
    for entry in entry_points(group=ENTRY_POINTS):
        try:
            host = entry.load()
            _check(host, entry.value.partition(":")[0].partition(".")[0].lower())
        except Exception as error:  # A broken package must not keep capaft from working.
            warnings.warn(f"the method {entry.name} of {entry.value} cannot be used: {one_line(error)}", stacklevel=2)
            continue
        HOSTS[host.name] = host


def _check(host: Any, package: str | None = None) -> None:
    """Raise an exception of any kind if stacks or the list of methods could not work with this host.

    Args:
        host: what was given as one.
        package: the package that it comes from, if that is known.
    """
    if not (isinstance(host, type) and issubclass(host, Host)):
        raise TypeError("it is not a capaft.methods.Host")
    name = NAMESPACED.fullmatch(host.name)
    if not name or (package and name["package"] != package):
        raise ValueError(
            f"its name {host.name!r} is not {package or 'package'}.host: the package's name, a dot and its own, of "
            "lower-case letters, digits and _"
        )
    if host.name in HOSTS:
        raise ValueError(f"its name {host.name!r} is taken")
    if type(host.version) is not int or not 0 < host.version < MAX_VERSION:
        raise ValueError(f"its version {host.version!r} is not a whole number of at least 1")
    if reserved := (OF_STACKS | OF_ATTACH) & {option.name for option in host.options()}:
        raise ValueError(f"its option {min(reserved)} has a name that is reserved")
    for attribute in ("summary", "equation", "paper"):
        getattr(host, attribute)
    host()


_register_installed()
