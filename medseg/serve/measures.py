"""What is counted of a server, for Prometheus."""

from collections.abc import Callable, Collection

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)  # seconds


class Measures:
    """Requests, errors, seconds, what is in flight, and memory (of the process, by its library).

    Args:
        paths: that are told apart; all others count as one.
        queued: requests that hold a place of the queue.
    """

    def __init__(self, paths: Collection[str], queued: Callable[[], float]) -> None:
        self._paths = set(paths)
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        kept = self.registry
        self.requests = Counter(
            "medseg_requests", "Requests answered.", ["path", "status"], registry=kept
        )
        self.errors = Counter(
            "medseg_errors", "Requests answered with 4xx or 5xx.", ["status"], registry=kept
        )
        self.seconds = Histogram(
            "medseg_request_seconds", "From head to answer.", ["path"],
            buckets=_BUCKETS, registry=kept,
        )  # fmt: skip
        self.predicting = Histogram(
            "medseg_predict_seconds", "Reading, predicting and writing an image.",
            buckets=_BUCKETS, registry=kept,
        )  # fmt: skip
        self.in_flight = Gauge("medseg_in_flight", "Requests being answered.", registry=kept)
        queue = Gauge("medseg_queued", "Images taken in, not yet answered.", registry=kept)
        queue.set_function(queued)

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Counts one request."""
        path = path if path in self._paths else "other"
        self.requests.labels(path, status).inc()
        self.seconds.labels(path).observe(seconds)
        if status >= 400:
            self.errors.labels(status).inc()

    def text(self) -> bytes:
        """All of it, in Prometheus's text format."""
        return generate_latest(self.registry)
