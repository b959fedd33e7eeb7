"""One file per adapter method, and everything that another package needs to add one."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from capaft.factors.factor import Factor
    from capaft.methods.bottleneck import Bottleneck
    from capaft.methods.host import Host, check_number, check_whole
    from capaft.methods.low_rank import LowRank
    from capaft.methods.registry import HOSTS, register
    from capaft.model.site import Site
    from capaft.model.targets import Targets
    from capaft.support.errors import UsageError

_HOME = {
    "Bottleneck": "methods.bottleneck",
    "Factor": "factors.factor",
    "HOSTS": "methods.registry",
    "Host": "methods.host",
    "LowRank": "methods.low_rank",
    "Site": "model.site",
    "Targets": "model.targets",
    "UsageError": "support.errors",
    "check_number": "methods.host",
    "check_whole": "methods.host",
    "register": "methods.registry",
}
__all__ = [
    "HOSTS",
    "Bottleneck",
    "Factor",
    "Host",
    "LowRank",
    "Site",
    "Targets",
    "UsageError",
    "check_number",
    "check_whole",
    "register",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'capaft.methods' has no attribute {name!r}")
    return getattr(import_module(f"capaft.{_HOME[name]}"), name)
