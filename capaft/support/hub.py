"""Quick check for a connection to the Hugging Face hub: a missing network is one line, not a minute of retries."""

from __future__ import annotations

import functools
import socket
from urllib.parse import urlparse
from urllib.request import getproxies

TIMEOUT_SECONDS = 5.0


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
