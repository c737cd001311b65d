"""What a gateway drops: tokens and reports that are nobody's any more. Normal after a recovery, worth a look otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from prometheus_client.metrics_core import CounterMetricFamily, Metric


class Dropped(Protocol):
    """The gateway's counts."""

    @property
    def unknown(self) -> int: ...
    @property
    def duplicates(self) -> int: ...
    @property
    def stale(self) -> int: ...
    @property
    def foreign(self) -> int: ...
    @property
    def reports_missing(self) -> int: ...


class DroppedTokens:
    """A source of metrics; `counts` is asked at each scrape."""

    def __init__(self, counts: Callable[[], Dropped]):
        self._counts = counts

    def collect(self) -> Iterable[Metric]:
        counts = self._counts()
        family = CounterMetricFamily(
            "gateway_tokens_dropped", "Tokens that no client was sent, by why", labels=("reason",)
        )
        for reason in ("unknown", "duplicates", "stale", "foreign"):
            family.add_metric((reason,), getattr(counts, reason))
        yield family
        yield CounterMetricFamily(
            "gateway_reports_missing", "Requests that ended without prefill's report", value=counts.reports_missing
        )
