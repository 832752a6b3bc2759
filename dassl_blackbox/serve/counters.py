"""What is measured, in Prometheus' format."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30)
REQUESTS = (1, 2, 4, 8, 16, 32, 64)


class Counters:
    """Of one server; two in a process do not share them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "blackbox_requests", "Requests", ("path", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "blackbox_request_seconds",
            "Time of a request",
            ("path",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.queries = Counter("blackbox_queries", "Queries charged", registry=self.registry)
        self.image_queries = Counter(
            "blackbox_image_queries", "Candidate x image charged", registry=self.registry
        )
        self.batch = Histogram(
            "blackbox_answered_together",
            "Requests that the model answered together",
            buckets=REQUESTS,
            registry=self.registry,
        )
        self.waiting = Gauge(
            "blackbox_waiting", "Requests that wait for the model", registry=self.registry
        )

    def watch(self, waiting: Callable[[], float]) -> None:
        self.waiting.set_function(waiting)

    def together(self, requests: int) -> None:
        self.batch.observe(requests)

    def charged(self, queries: int, image_queries: int) -> None:
        self.queries.inc(queries)
        self.image_queries.inc(image_queries)

    def done(self, path: str, status: int, seconds: float) -> None:
        self.requests.labels(path, str(status)).inc()
        self.seconds.labels(path).observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)
