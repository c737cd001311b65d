"""The scheduler: events in, commands out. Deterministic; no I/O, no sleeping, no randomness.

This class only dispatches. What happens to requests is in `flow.py`, to workers in `membership.py`; after every event the queue is tried once.
"""

from __future__ import annotations

from triptych.runtime.core.control import (
    Cancel,
    GatewayJoined,
    GatewayLost,
    Heartbeat,
    InstanceReset,
    Reported,
    SchedulerCommand,
    SchedulerEvent,
    SchedulerTick,
    Submit,
    ToGateway,
    WorkerJoined,
    WorkerLost,
)
from triptych.runtime.scheduler.cluster import Cluster
from triptych.runtime.scheduler.config import SchedulerConfig
from triptych.runtime.scheduler.counters import Count, Counters
from triptych.runtime.scheduler.flow import Flow
from triptych.runtime.scheduler.ledger import Ledger
from triptych.runtime.scheduler.lifecycle import Lifecycle
from triptych.runtime.scheduler.membership import Membership
from triptych.runtime.scheduler.placer import Placer
from triptych.runtime.scheduler.policies.queue_order import FirstComeFirstServed, QueueOrder
from triptych.runtime.scheduler.policies.router import LeastLoaded, Router
from triptych.runtime.scheduler.snapshot import ClusterSnapshot, InstanceSnapshot, Resources


class Scheduler:
    """The control plane as a state machine over `core.control`."""

    def __init__(
        self, config: SchedulerConfig | None = None, router: Router | None = None, queue_order: QueueOrder | None = None
    ):
        self._config = config or SchedulerConfig()
        self._counters = Counters()
        self._cluster = Cluster()
        self._ledger = Ledger()
        self._life = Lifecycle(self._cluster, self._ledger, self._counters, self._config.reopen_after)
        self._placer = Placer(self._config, router or LeastLoaded(), self._cluster, self._ledger, self._life)
        self._flow = Flow(
            self._config,
            queue_order or FirstComeFirstServed(),
            self._ledger,
            self._cluster,
            self._life,
            self._placer,
            self._counters,
        )
        self._membership = Membership(
            self._config, self._cluster, self._ledger, self._life, self._flow, self._placer, self._counters
        )

    @property
    def config(self) -> SchedulerConfig:
        return self._config

    @property
    def counters(self) -> Counters:
        return self._counters

    def handle(self, event: SchedulerEvent, now: float) -> list[SchedulerCommand]:
        """React to `event` at time `now` (seconds, never smaller than before). Commands are to be executed in order."""
        out: list[SchedulerCommand] = []
        match event:
            case Reported():
                self._reported(event, now, out)
            case Submit():
                self._flow.submit(event.request, now, out)
            case Heartbeat():
                self._membership.heartbeat(event, now)
            case SchedulerTick():
                self._membership.tick(now, out)
                self._flow.deadlines(now, out)
                self._life.reopen_due(now)
            case Cancel():
                self._flow.cancel(event.request, event.reason, out)
            case GatewayJoined():
                # A gateway that joins again lost its connection, and with it the clients of its earlier requests.
                self._flow.gateway_lost(event.gateway, out)
                self._ledger.gateways[event.gateway] = {}
                out.append(ToGateway(event.gateway, self._membership.directory()))
            case GatewayLost():
                self._flow.gateway_lost(event.gateway, out)
            case WorkerJoined():
                self._membership.joined(event, now, out)
            case WorkerLost():
                self._membership.lost(event.worker, event.reason, out)
            case InstanceReset():
                self._membership.reset(event, out)
        self._placer.pump(now, out)
        return out

    def _reported(self, event: Reported, now: float, out: list[SchedulerCommand]) -> None:
        member = self._cluster.get(event.ref)
        if member is None:
            self._counters.add(Count.STALE_REPORTS)
            return
        self._membership.alive(member, now)
        self._flow.report(member, event.report, now, out)

    @property
    def idle(self) -> bool:
        """Whether no request is known: none waits, runs, or is still being released."""
        return not self._ledger.records

    def resources(self) -> Resources:
        """What is held for requests right now."""
        return Resources(
            records=len(self._ledger.records),
            tasks=self._ledger.tasks,
            queued=len(self._ledger.queue),
            deadlines=len(self._ledger.deadlines),
            assigned=sum(sum(member.requests.values()) for member in self._cluster.members),
        )

    def snapshot(self, now: float) -> ClusterSnapshot:
        """The cluster as it is, with every counter. O(instances)."""
        return ClusterSnapshot(
            instances=tuple(
                InstanceSnapshot(
                    member.info,
                    member.load,
                    self._membership.silent_for(member.worker, now),
                    sum(member.requests.values()),
                )
                for member in self._cluster.members
            ),
            queued=len(self._ledger.queue),
            active=self._ledger.active,
            counters=self._counters.values(),
        )
