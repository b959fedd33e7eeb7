"""Quick check for a connection to the Hugging Face hub: a missing network is one line, not a minute of retries."""

from __future__ import annotations

import functools
import socket
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import getproxies

TIMEOUT_SECONDS = 5.0


def is_cached(name: str, *, is_data: bool = False) -> bool:
    """True if something of a repository is in the hub's cache on this machine.

    Args:
        name: the hub id; that of a data set may lack its owner or end in the name of a configuration.
        is_data: it is a data set, not a model.
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    kind = "datasets" if is_data else "models"
    source = name.partition("[")[0]
    ids = {source, source.rpartition("/")[0]} - {""} if is_data else {source}
    endings = {f"--{repository.replace('/', '--')}" for repository in ids}
    try:
        cached = [path.name for path in Path(HF_HUB_CACHE).glob(f"{kind}--*") if any(path.glob("snapshots/*"))]
    except OSError:
        return False
    return any(folder.endswith(tuple(endings)) if is_data else folder == f"{kind}{min(endings)}" for folder in cached)


@functools.cache
def offline() -> bool:
    """True when only the local cache can be used: offline mode is set, or no connection to the hub opens."""
    from huggingface_hub import constants, is_offline_mode

    if is_offline_mode():
        return True
    if getproxies():
        return False
    endpoint = urlparse(constants.ENDPOINT)
    port = endpoint.port or (80 if endpoint.scheme == "http" else 443)
    try:
        socket.create_connection((endpoint.hostname or "huggingface.co", port), TIMEOUT_SECONDS).close()
    except OSError:
        return True
    return False
