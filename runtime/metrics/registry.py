"""One process's metrics under their prefixes.

A metric is declared by its base name (`time_to_first_token_seconds`). It is exposed as `triptych_<name>` and, where vLLM has a metric of that name
and meaning, as `vllm:<name>` as well, which dashboards and autoscalers read. Labels that all samples share (the model's name) are added here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import Metric

CONTENT_TYPE = CONTENT_TYPE_LATEST
PREFIX = "triptych_"
ALIAS = "vllm:"
ALIASED = frozenset(
    {
        "num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "prefix_cache_queries", "prefix_cache_hits",
        "num_preemptions", "prompt_tokens", "generation_tokens", "request_success", "time_to_first_token_seconds",
        "inter_token_latency_seconds", "request_time_per_output_token_seconds", "e2e_request_latency_seconds",
        "request_queue_time_seconds", "request_prefill_time_seconds", "request_decode_time_seconds", "request_inference_time_seconds",
        "request_prompt_tokens", "request_generation_tokens",
    }
)  # fmt: skip
"""Base names that vLLM has, too (vllm/v1/metrics/loggers.py)."""


class Source(Protocol):
    """Anything that yields metric families when it is asked; the values are those of that moment."""

    def collect(self) -> Iterable[Metric]: ...


def no_labels() -> Mapping[str, str]:
    return {}


class Metrics:
    """The metrics of one process.

    Args:
        labels: what every sample carries, asked at each scrape, because a model's name may be known later than its metrics.
    """

    def __init__(self, labels: Callable[[], Mapping[str, str]] = no_labels):
        self._labels = labels
        self._registry = CollectorRegistry(auto_describe=False)
        self._sources: list[Source] = [self._registry]
        self._process = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._process)

    def histogram(self, name: str, help: str, buckets: Sequence[float], labels: Sequence[str] = ()) -> Histogram:
        return Histogram(name, help, labels, registry=self._registry, buckets=buckets)

    def counter(self, name: str, help: str, labels: Sequence[str] = ()) -> Counter:
        return Counter(name, help, labels, registry=self._registry)

    def gauge(self, name: str, help: str, labels: Sequence[str] = ()) -> Gauge:
        return Gauge(name, help, labels, registry=self._registry)

    def add(self, source: Source) -> None:
        """Expose what `source` yields at each scrape, under base names as well."""
        self._sources.append(source)

    def text(self) -> bytes:
        """Everything, as CONTENT_TYPE. Call it where the sources may be read (on the event loop that owns them)."""
        return generate_latest(_Families([*self._families(), *self._process.collect()]))  # type: ignore[arg-type]

    def _families(self) -> Iterator[Metric]:
        labels = dict(self._labels())
        for source in self._sources:
            for family in source.collect():
                yield _renamed(family, PREFIX, labels)
                if family.name in ALIASED:
                    yield _renamed(family, ALIAS, labels)


class _Families:
    """What `generate_latest` needs of a registry."""

    def __init__(self, families: Sequence[Metric]):
        self._families_of_now = families

    def collect(self) -> Iterable[Metric]:
        return self._families_of_now


def _renamed(family: Metric, prefix: str, labels: Mapping[str, str]) -> Metric:
    """A copy under `prefix`, without the creation times that only OpenMetrics wants."""
    copy = Metric(prefix + family.name, family.documentation, family.type)
    copy.samples = [
        sample._replace(name=prefix + sample.name, labels={**labels, **sample.labels})
        for sample in family.samples
        if not sample.name.endswith("_created")
    ]
    return copy
