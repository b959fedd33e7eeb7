"""Dropout on the input of an adapter: where there is one."""

from __future__ import annotations

from capaft.adapter.plan import Plan
from capaft.methods.stack import Stack
from capaft.model.site import Site
from capaft.support.errors import UsageError


def takes_dropout(plan: Plan, site: Site) -> bool:
    """True if a site has an input that dropout can zero in part: not if its weight is changed, or if it looks up."""
    host = plan.stack.host
    return host is not None and not site.parametrised and site.kind in host.kinds - {"embedding"}


def check_dropout(stack: Stack, dropout: float) -> None:
    """Check that a method can use a dropout.

    Raises:
        UsageError: it is out of range, or the method has no place for it.
    """
    if not 0 <= dropout < 1:
        raise UsageError(f"--dropout must be in [0, 1), got {dropout}")
    if dropout and not (stack.host and stack.host.drops):
        raise UsageError(f"--dropout cannot be used with {stack.method}, which has no input of its own; drop it")
