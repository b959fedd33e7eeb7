"""The process of a server: it listens, answers until a signal, and ends when what came in is answered."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Iterator

import uvicorn

from capaft.config.serve_options import ServeOptions
from capaft.data.load import Say
from capaft.inference.bank.directory import BankDirectory
from capaft.inference.serving.app import App
from capaft.inference.serving.metrics import Metrics
from capaft.inference.serving.service import Service
from capaft.support.counting import counted
from capaft.support.errors import Interrupted, UsageError

# Seconds that requests may take after the signal to stop, and connections at most.
GRACE, CONNECTIONS = 30, 512
MOST_INPUTS = 1024


class _Server(uvicorn.Server):
    """A server that a signal ends, and not with an error."""

    stopped_by: int = 0

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop gently at SIGTERM and Ctrl-C; a second one insists."""

        def stop(number: int, frame: object) -> None:
            self.stopped_by = self.stopped_by or number
            self.handle_exit(number, None)

        previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def serve(directory: BankDirectory, options: ServeOptions, say: Say) -> None:
    """Serve the adapters of a directory until a signal.

    Args:
        directory: the directory.
        options: where to listen, and how much to take in.
        say: called with each line for the one who started it.

    Raises:
        UsageError: the address is taken, the token is missing, or nothing can be served.
        Interrupted: Ctrl-C; what came in has been answered.
    """
    token = options.token()
    with _listening(options) as listener:
        metrics = Metrics()
        service = Service(options, directory, say, metrics.answered)
        app = App(service, metrics, token, options.max_request_bytes, MOST_INPUTS)
        config = uvicorn.Config(
            app.build(only_local=options.is_local),
            log_config=None,
            access_log=False,
            lifespan="off",
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=GRACE,
            server_header=False,
        )
        server = _Server(config)
        # From here on connections wait instead of being refused.
        listener.listen(CONNECTIONS)
        host, port = listener.getsockname()[:2]
        address = f"[{host}]" if ":" in host else host
        say(f"serving {counted(len(service.open.bank), 'adapter')} of {directory.path} at http://{address}:{port}")
        try:
            server.run(sockets=[listener])
        finally:
            service.close()
        if server.stopped_by == signal.SIGINT:
            raise Interrupted("stopped; what came in has been answered")


@contextlib.contextmanager
def _listening(options: ServeOptions) -> Iterator[socket.socket]:
    """A socket at the address, taken before anything is loaded.

    Raises:
        UsageError: the address cannot be had.
    """
    try:
        (family, kind, protocol, _, address), *_ = socket.getaddrinfo(
            options.host, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UsageError(f"--host {options.host}: {error.strerror or error}") from None
    with listener:
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError as error:
            reason = error.strerror or error
            raise UsageError(
                f"cannot listen at {options.host} port {options.port}: {reason}; choose another --port"
            ) from None
        yield listener
