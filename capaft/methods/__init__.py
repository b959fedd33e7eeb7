"""One adapter method a file, and all that a method of another package is made from."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from capaft.factors.factor import Factor as Factor
    from capaft.methods.bottleneck import Bottleneck as Bottleneck
    from capaft.methods.host import Host as Host
    from capaft.methods.low_rank import LowRank as LowRank
    from capaft.methods.registry import HOSTS as HOSTS
    from capaft.model.site import Site as Site
    from capaft.model.targets import Targets as Targets

_HOME = {
    "Bottleneck": "methods.bottleneck",
    "Factor": "factors.factor",
    "HOSTS": "methods.registry",
    "Host": "methods.host",
    "LowRank": "methods.low_rank",
    "Site": "model.site",
    "Targets": "model.targets",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'capaft.methods' has no attribute {name!r}")
    return getattr(import_module(f"capaft.{_HOME[name]}"), name)
