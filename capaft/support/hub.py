"""A test for the Hugging Face hub, so that a missing network takes one line and not a minute of retries."""

from __future__ import annotations

import functools
import os
import socket
from urllib.parse import urlparse
from urllib.request import getproxies

TIMEOUT_SECONDS = 5.0


@functools.cache
def offline() -> bool:
    """True when only the local cache can be used: asked for by environment, or no connection to the hub opens."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "TRUE", "YES", "ON"}:
        return True
    if getproxies():
        return False
    endpoint = urlparse(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    port = endpoint.port or (80 if endpoint.scheme == "http" else 443)
    try:
        socket.create_connection((endpoint.hostname or "huggingface.co", port), TIMEOUT_SECONDS).close()
    except OSError:
        return True
    return False
