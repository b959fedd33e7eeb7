"""Options of `capaft serve`."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from capaft.config.open_options import OpenOptions
from capaft.config.settings import setting
from capaft.support.errors import UsageError

_server = partial(setting, panel="Server")
_LEAST_TOKEN = 16


@dataclass(frozen=True)
class ServeOptions(OpenOptions):
    """Options of `capaft serve`."""

    host: str = _server("127.0.0.1", "Address to listen at.")
    port: int = _server(8000, "Port to listen at; 0 for any.", check=("0 to 65535", lambda value: 0 <= value < 65536))
    token_file: Path | None = _server(None, "File with the bearer token that requests have to carry.")
    max_batch: int = _server(32, "Inputs in a forward at most.", check=("at least 1", lambda value: value >= 1))
    window_ms: float = _server(
        4.0,
        "Milliseconds to wait for further requests to batch.",
        check=("0 to 1000", lambda value: 0 <= value <= 1000),
    )
    queue: int = _server(1024, "Inputs that may wait at most.", check=("at least 1", lambda value: value >= 1))
    max_request_bytes: int = _server(
        2**20, "Bytes of a request at most.", check=("at least 1", lambda value: value >= 1)
    )

    @property
    def is_local(self) -> bool:
        """True if only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def token(self) -> str | None:
        """The token that requests have to carry; None for none.

        Raises:
            UsageError: the file cannot be read or holds no token, or there is none and others can reach the server.
        """
        if self.token_file is None:
            if not self.is_local:
                raise UsageError(f"--host {self.host}: others can reach it; give --token-file, or listen at 127.0.0.1")
            return None
        try:
            token = self.token_file.read_text(encoding="ascii").strip()
        except (OSError, ValueError) as error:
            raise UsageError(
                f"--token-file {self.token_file}: {getattr(error, 'strerror', None) or 'not ASCII'}"
            ) from None
        if len(token) < _LEAST_TOKEN or not token.isprintable() or " " in token:
            raise UsageError(f"--token-file {self.token_file} must hold one word of at least {_LEAST_TOKEN} characters")
        return token
