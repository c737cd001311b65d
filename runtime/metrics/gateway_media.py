"""What a gateway holds of clients' media, and what it has brought to encode instances."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric


class Kept(Protocol):
    """Processed media: of open requests, and of ended ones for as long as there is room."""

    @property
    def held_bytes(self) -> int: ...
    @property
    def idle_bytes(self) -> int: ...


class Desk(Protocol):
    """Where media of requests are."""

    @property
    def keep(self) -> Kept: ...
    @property
    def sent_bytes(self) -> int: ...


class Pushes(Protocol):
    """What happened to pushes to encode instances that are over."""

    @property
    def brought(self) -> int: ...
    @property
    def not_wanted(self) -> int: ...
    @property
    def crowded(self) -> int: ...
    @property
    def failed(self) -> int: ...
    @property
    def bytes(self) -> int: ...


class Courier(Protocol):
    """Who brings them."""

    @property
    def active(self) -> int: ...
    @property
    def counts(self) -> Pushes: ...


class GatewayMedia:
    """A source of metrics; asked at each scrape. `desk` is None where the model takes no media, and then nothing is shown."""

    def __init__(self, desk: Callable[[], Desk | None], courier: Callable[[], Courier]):
        self._desk, self._courier = desk, courier

    def collect(self) -> Iterable[Metric]:
        desk, courier = self._desk(), self._courier()
        if desk is None:
            return
        counts = courier.counts
        gauges = {
            "gateway_media_held_bytes": ("Processed media that open requests hold", desk.keep.held_bytes),
            "gateway_media_idle_bytes": ("Processed media of ended requests, kept for the next", desk.keep.idle_bytes),
            "gateway_media_sent_bytes": ("Files in the messages of open requests", desk.sent_bytes),
            "gateway_media_pushes": ("Items on their way to encode instances", courier.active),
        }
        for name, (help, value) in gauges.items():
            yield GaugeMetricFamily(name, help, value=value)
        ended = CounterMetricFamily(
            "gateway_media_pushed",
            "Tries to bring an item to an encode instance, by what came of them",
            labels=("outcome",),
        )
        for outcome in ("brought", "not_wanted", "crowded", "failed"):
            ended.add_metric((outcome,), getattr(counts, outcome))
        yield ended
        yield CounterMetricFamily("gateway_media_pushed_bytes", "Bytes that were brought", value=counts.bytes)
