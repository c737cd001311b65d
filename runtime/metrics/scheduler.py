"""The scheduler: its queue, its counters, and every instance as its heartbeats tell. Taken from its snapshot when Prometheus asks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from triptych.runtime.core.instance import InstanceInfo, Load
from triptych.runtime.metrics.registry import Metrics

LABELS = ("instance", "role")


class Member(Protocol):
    """An instance as the scheduler knows it."""

    @property
    def info(self) -> InstanceInfo: ...
    @property
    def load(self) -> Load: ...
    @property
    def heartbeat_age(self) -> float: ...
    @property
    def tasks(self) -> int: ...


class Cluster(Protocol):
    """The scheduler's snapshot."""

    @property
    def instances(self) -> Sequence[Member]: ...
    @property
    def queued(self) -> int: ...
    @property
    def active(self) -> int: ...
    @property
    def counters(self) -> Mapping[str, int]: ...


MEMBERS: dict[str, tuple[str, Callable[[Member], float]]] = {
    "scheduler_instance_tasks": ("Tasks placed on an instance", lambda m: m.tasks),
    "scheduler_instance_running": ("Running sequences, by its last heartbeat", lambda m: m.load.running),
    "scheduler_instance_waiting": ("Waiting sequences, by its last heartbeat", lambda m: m.load.waiting),
    "scheduler_instance_free_pages": ("Free KV pages, by its last heartbeat", lambda m: m.load.free_pages),
    "scheduler_heartbeat_age_seconds": ("Since its worker's last sign of life", lambda m: m.heartbeat_age),
}


class SchedulerMetrics:
    """`snapshot` is the scheduler's; reading it changes nothing."""

    def __init__(self, snapshot: Callable[[], Cluster]):
        self._snapshot = snapshot
        self.metrics = Metrics()
        self.metrics.add(self)

    def ready(self) -> str | None:
        """Ready once it runs: that no worker is there yet is the workers' matter."""
        return None

    def collect(self) -> Iterable[Metric]:
        cluster = self._snapshot()
        yield GaugeMetricFamily("scheduler_requests_queued", "Requests that wait for an instance", value=cluster.queued)
        yield GaugeMetricFamily("scheduler_requests_active", "Requests that the scheduler knows", value=cluster.active)
        yield GaugeMetricFamily("scheduler_instances", "Instances that are registered", value=len(cluster.instances))
        events = CounterMetricFamily("scheduler_events", "What happened, by kind (docs/metrics.md)", labels=("event",))
        failures = CounterMetricFamily(
            "scheduler_failures", "Admitted requests that failed, by status", labels=("status",)
        )
        for name, value in sorted(cluster.counters.items()):
            if name.startswith("failed_"):
                failures.add_metric((name.removeprefix("failed_").upper(),), value)
            else:
                events.add_metric((name,), value)
        yield events
        yield failures
        for name, (help, value_of) in MEMBERS.items():
            family = GaugeMetricFamily(name, help, labels=LABELS)
            for member in cluster.instances:
                roles = "+".join(sorted(str(role) for role in member.info.roles))
                family.add_metric((member.info.ref.id, roles), value_of(member))
            yield family
