"""How busy instances are: the gauges and counters of a worker's own instances, or of a whole cluster as somebody else sees it.

Values are taken when Prometheus asks. Only instances that live now are shown, so their ids are a bounded label.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

LABELS = ("instance", "role")


@dataclass(frozen=True)
class Occupancy:
    """One instance at one moment. `counters` by metric name; values only grow while the process lives."""

    instance: str
    roles: Sequence[str]
    running: int
    waiting: int
    free_pages: int
    num_pages: int
    free_slots: int
    staged: int
    resources: Mapping[str, float] = field(default_factory=dict)
    counters: Mapping[str, float] = field(default_factory=dict)

    @property
    def labels(self) -> tuple[str, str]:
        return self.instance, "+".join(sorted(self.roles))


GAUGES = {
    "num_requests_running": "Sequences that compute now",
    "num_requests_waiting": "Sequences that wait for memory or a slot",
    "kv_cache_usage_perc": "Share of the KV pages that sequences or staging hold, 0 to 1",
    "kv_pages_free": "KV pages that a new sequence could take, cached ones included",
    "kv_pages": "KV pages of the instance",
    "slots_free": "Sequences that could begin to decode now",
    "kv_staged": "Prompts whose KV waits to be pulled",
}


class Instances:
    """A source of metrics. `values` is replaced whenever something newer is known."""

    def __init__(self) -> None:
        self.values: Sequence[Occupancy] = ()

    def collect(self) -> Iterable[Metric]:
        if not self.values:
            return
        for name, help in GAUGES.items():
            family = GaugeMetricFamily(name, help, labels=LABELS)
            for one in self.values:
                family.add_metric(one.labels, _gauge(one, name))
            yield family
        yield from self._more("resources", GaugeMetricFamily)
        yield from self._more("counters", CounterMetricFamily)

    def _more(self, attribute: str, kind: type[GaugeMetricFamily | CounterMetricFamily]) -> Iterable[Metric]:
        names = sorted({name for one in self.values for name in getattr(one, attribute)})
        for name in names:
            family = kind(name, f"See docs/metrics.md: {name}", labels=LABELS)
            for one in self.values:
                if name in getattr(one, attribute):
                    family.add_metric(one.labels, getattr(one, attribute)[name])
            yield family


def _gauge(one: Occupancy, name: str) -> float:
    match name:
        case "num_requests_running":
            return one.running
        case "num_requests_waiting":
            return one.waiting
        case "kv_cache_usage_perc":
            return 1.0 - one.free_pages / one.num_pages if one.num_pages else 0.0
        case "kv_pages_free":
            return one.free_pages
        case "kv_pages":
            return one.num_pages
        case "slots_free":
            return one.free_slots
        case _:
            return one.staged
