"""Counters and times of a server, as Prometheus reads them."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest


class Metrics:
    """The measures of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        registry = self._registry
        sizes = (1, 2, 4, 8, 16, 32, 64, 128, 256)
        self._requests = Counter(
            "capaft_requests", "Requests by path and status.", ["path", "status"], registry=registry
        )
        self._seconds = Histogram(
            "capaft_request_seconds", "Seconds of a request, by path.", ["path"], registry=registry
        )
        self._inputs = Histogram("capaft_batch_inputs", "Inputs answered together.", buckets=sizes, registry=registry)
        self._together = Histogram("capaft_batch_adapters", "Adapters in one batch.", buckets=sizes, registry=registry)
        self._waiting = Gauge("capaft_waiting_inputs", "Inputs that wait.", registry=registry)
        self._adapters = Gauge("capaft_adapters", "Adapters that are served.", registry=registry)

    def requested(self, path: str, status: int, seconds: float) -> None:
        """Count a request. `path` is that of a route, so there are few."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def answered(self, inputs: int, adapters: int) -> None:
        """Count a batch."""
        self._inputs.observe(inputs)
        self._together.observe(adapters)

    def text(self, waiting: int, adapters: int) -> tuple[bytes, str]:
        """All measures as text, and its media type.

        Args:
            waiting: inputs that wait now.
            adapters: adapters that are served now.
        """
        self._waiting.set(waiting)
        self._adapters.set(adapters)
        return generate_latest(self._registry), CONTENT_TYPE_LATEST
