"""The methods: one file each, the stack that composes them, and those that other packages bring.

A package adds a method by an entry point of the group `capaft.methods` that names a :class:`Host`; docs/extending.md
shows one.
"""

from __future__ import annotations

import warnings
from importlib.metadata import entry_points

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
OWN: tuple[type[Host], ...] = (Lora, Dora, Vera, Houlsby, Pfeiffer, Parallel, Prefix, Ia3, Bitfit)


def _registered() -> dict[str, type[Host]]:
    """Every host by name; one that another package brings never replaces one of capaft's own."""
    hosts: dict[str, type[Host]] = {host.name: host for host in OWN}
    for entry in entry_points(group=ENTRY_POINTS):
        try:
            host = entry.load()
            if not (isinstance(host, type) and issubclass(host, Host)):
                raise TypeError("it is no capaft.methods.host.Host")
            if host.name in hosts or not host.name.isidentifier():
                raise ValueError(f"its name {host.name!r} is taken or no identifier")
        except Exception as error:  # A stranger's package must not keep capaft from working.
            warnings.warn(f"the method {entry.name} of {entry.value} cannot be used: {error}", stacklevel=2)
            continue
        hosts[host.name] = host
    return hosts


HOSTS: dict[str, type[Host]] = _registered()
