"""What the HTTP server measures beside its requests' times: answers by route and status."""

from __future__ import annotations

from triptych.runtime.metrics.registry import Metrics

BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class HttpMetrics:
    """`route` is the pattern that matched, or "other": never a path as it was sent."""

    def __init__(self, metrics: Metrics):
        labels = ("route", "method", "status")
        self._answers = metrics.counter("http_requests", "Answers, by route, method and status", labels)
        self._seconds = metrics.histogram(
            "http_request_duration_seconds",
            "Arrival of a request to the end of its answer, seconds",
            BUCKETS,
            ("route",),
        )
        self.in_flight = metrics.gauge("http_requests_in_flight", "Requests being answered")

    def answered(self, route: str, method: str, status: int, seconds: float) -> None:
        known = method if method in ("GET", "HEAD", "POST", "OPTIONS") else "other"
        self._answers.labels(route, known, str(status)).inc()
        self._seconds.labels(route).observe(seconds)
