"""An adapter file verified further than by its own digests, without the model that it belongs to.

The sites in a file are all that its random streams depend on, so these can be drawn again and compared.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace

from capaft.adapter.file.adapter_file import AdapterFile
from capaft.adapter.file.fingerprint import streams_digest
from capaft.adapter.file.fit import check_sizes
from capaft.adapter.file.other_head import HEAD, stored_parameters
from capaft.adapter.file.site_list import SiteShape
from capaft.adapter.plan import Plan
from capaft.methods.head import Head
from capaft.methods.stack import Stack
from capaft.model.site import Site
from capaft.support.errors import AdapterFileError


def check_streams(file: AdapterFile, known: dict[Hashable, str]) -> None:
    """Check that a file's parameters have the sizes that its sites ask for, and that its streams come out the same.

    Args:
        file: the file, read.
        known: digests of streams by what they depend on, which many files have in common; more are added.

    Raises:
        AdapterFileError: they do not.
    """
    header = file.header
    plan = _plan(file)
    check_sizes(file, plan)
    head = header.head and (header.head.k, tuple(sorted(header.head.parameters.items())))
    key = (header.method, header.seed, header.sites, head)
    if key not in known:
        known[key] = streams_digest(plan)
    if known[key] != header.digest.streams:
        raise AdapterFileError(
            f"{file.path}: its random streams come out differently here than where it was written; get the file again"
        )


def _plan(file: AdapterFile) -> Plan:
    """The plan of a file, as far as the file tells it."""
    header = file.header
    trained = tuple(sorted(key.removeprefix(HEAD) for key in stored_parameters(file.tensors) if key.startswith(HEAD)))
    sites = tuple(_site(header.method, path, shape) for path, shape in header.sites.shapes.items())
    head = Head()
    if header.head:
        parameters = []
        for name, (first, others) in sorted(header.head.parameters.items()):
            path, _, leaf = name.rpartition(".")
            parameters.append(Site(path, path, others, first, "head", leaf))
        head = Head(header.head.k, header.method.basis, tuple(parameters))
    return Plan(header.method, header.seed, header.targets, sites, trained, {}, head)


def _site(stack: Stack, path: str, shape: SiteShape) -> Site:
    """A site with the facts that its factors depend on."""
    site = Site(
        path, path, shape.in_features, shape.out_features, "embedding" if shape.mark == "embedding" else "linear"
    )
    if shape.mark == "input":
        site = replace(site, scales="input")
    rank = getattr(stack.host, "rank", None)
    return replace(site, rank=shape.width) if shape.width and rank not in (None, shape.width) else site
