"""The scheduler: events in, commands out. Deterministic; no I/O, no sleeping, no randomness.

This class only dispatches. What happens to requests is in `flow.py`, to workers in `membership.py`, to gateways in `gateways.py`, and what is found
again after a loss in `adoption.py`; after every event the queue is tried once. Their media are in `media_flow.py`.
"""

from __future__ import annotations

import math

from triptych.runtime.core.control import (
    Cancel,
    Declare,
    DrainRequested,
    GatewayJoined,
    GatewayLeft,
    GatewayLost,
    Heartbeat,
    InstanceLeft,
    InstanceReset,
    Reported,
    Resume,
    RolesRefused,
    SchedulerCommand,
    SchedulerEvent,
    SchedulerTick,
    SetShare,
    Submit,
    ToGateway,
    ToWorker,
    WorkerJoined,
    WorkerLeft,
    WorkerLost,
)
from triptych.runtime.core.instance import InstanceRef
from triptych.runtime.scheduler.adoption import Adoption
from triptych.runtime.scheduler.audit import audit_accounts
from triptych.runtime.scheduler.cluster import Cluster, Member, Obstacle
from triptych.runtime.scheduler.config import SchedulerConfig
from triptych.runtime.scheduler.counters import Count, Counters
from triptych.runtime.scheduler.drains import Drains
from triptych.runtime.scheduler.flow import Flow
from triptych.runtime.scheduler.gateways import Gateways
from triptych.runtime.scheduler.ledger import Ledger
from triptych.runtime.scheduler.lifecycle import Lifecycle, Out
from triptych.runtime.scheduler.media_flow import MediaFlow
from triptych.runtime.scheduler.membership import Membership
from triptych.runtime.scheduler.placer import Placer
from triptych.runtime.scheduler.policies.queue_order import FirstComeFirstServed, QueueOrder
from triptych.runtime.scheduler.policies.role_controller import RoleController, TakeRoles
from triptych.runtime.scheduler.policies.router import LeastLoaded, Router
from triptych.runtime.scheduler.snapshot import ClusterSnapshot, InstanceSnapshot, Resources


class Scheduler:
    """The control plane as a state machine over `core.control`."""

    def __init__(
        self,
        config: SchedulerConfig | None = None,
        router: Router | None = None,
        queue_order: QueueOrder | None = None,
        role_controller: RoleController | None = None,
    ):
        """Without a `role_controller` roles and shares change on request only."""
        self._config = config or SchedulerConfig()
        self._controller = role_controller
        self._counters = Counters()
        self._cluster = Cluster()
        self._ledger = Ledger()
        order = queue_order or FirstComeFirstServed()
        self._life = Lifecycle(self._config, self._cluster, self._ledger, self._counters)
        self._placer = Placer(self._config, router or LeastLoaded(), self._cluster, self._ledger, self._life)
        self._media = MediaFlow(self._config, self._cluster, self._ledger, self._life, self._counters)
        self._adoption = Adoption(self._config, self._cluster, self._ledger, self._life, self._media, self._counters)
        self._gateways = Gateways(
            self._config, order, self._ledger, self._life, self._media, self._adoption, self._counters
        )
        self._flow = Flow(
            self._config,
            order,
            self._ledger,
            self._cluster,
            self._life,
            self._placer,
            self._media,
            self._adoption,
            self._counters,
        )
        self._drains = Drains(
            self._config,
            self._cluster,
            self._ledger,
            self._life,
            self._placer,
            self._media,
            self._adoption,
            self._counters,
        )
        self._membership = Membership(
            self._config,
            self._cluster,
            self._ledger,
            self._life,
            self._flow,
            self._placer,
            self._adoption,
            self._counters,
        )

    @property
    def config(self) -> SchedulerConfig:
        return self._config

    @property
    def counters(self) -> Counters:
        return self._counters

    def handle(self, event: SchedulerEvent, now: float) -> list[SchedulerCommand]:
        """React to `event` at time `now` (seconds, never smaller than before). Commands are to be executed in order."""
        out = Out(now)
        if self._controller is not None:
            self._controller.observe(event, now)
        match event:
            case Reported():
                self._reported(event, out)
            case Submit():
                if self._gateways.expects(event.request):
                    self._gateways.declare(event.request, unheard=False, out=out)
                else:
                    self._flow.submit(event.request, out)
            case Heartbeat():
                self._membership.heartbeat(event, out)
            case SchedulerTick():
                self._membership.tick(out)
                self._adoption.expire(out)
                self._flow.come_due(out)
                self._drains.tick(out)
                self._life.reopen_due(now)
                self._media.tick(now)
                self._control(out)
            case Cancel():
                self._flow.cancel(event.request, event.reason, out)
            case Resume():
                self._gateways.resume(event.request, event.samples, out)
            case Declare():
                self._gateways.declare(event.request, unheard=event.unheard, out=out)
            case GatewayJoined():
                self._gateways.joined(event.gateway, out)
                out.append(ToGateway(event.gateway, self._membership.directory()))
            case GatewayLost():
                self._gateways.lost(event.gateway, out)
            case GatewayLeft():
                self._gateways.left(event.gateway, out)
            case WorkerJoined():
                self._membership.joined(event, out)
                self._drains.back(event.worker, out)
            case WorkerLost():
                self._membership.broken(event.worker, event.reason, out)
            case WorkerLeft():
                self._membership.lost(event.worker, event.reason, out)
            case InstanceReset():
                self._membership.reset(event, out)
            case InstanceLeft():
                self._membership.retired(event, out)
            case RolesRefused():
                self._drains.refused(event.ref, event.reason, out)
            case DrainRequested():
                self._drains.begin(event, out)
        if self._drains:
            self._drains.advance(out)
        if self._ledger.wanting:
            self._media.pump(out)
        self._placer.pump(out)
        return out

    def _control(self, out: Out) -> None:
        """Do what the role controller decides; what cannot be done is counted by the drain that refuses it, and may be decided again."""
        if self._controller is None:
            return
        for decision in list(self._controller.tick(out.now, self._cluster.members)):
            member = self._cluster.named(decision.instance)
            if isinstance(decision, TakeRoles):
                ticket = f"role controller at {out.now:.3f}"
                self._drains.begin(DrainRequested(ticket, decision.instance, decision.roles), out)
            elif member is not None and Obstacle.AWAY not in member.obstacles:
                out.append(ToWorker(member.worker, SetShare(member.ref, decision.prefill_tokens)))

    def _reported(self, event: Reported, out: Out) -> None:
        member = self._cluster.get(event.ref)
        if member is None:
            self._counters.add(Count.STALE_REPORTS)
            return
        self._membership.alive(member, out.now)
        self._flow.report(member, event.report, out)

    def worker_of(self, ref: InstanceRef) -> str | None:
        """The worker that registered this incarnation of an instance; None if it is not live."""
        member = self._cluster.get(ref)
        return None if member is None else member.worker

    def silence(self, worker: str, now: float) -> float:
        """Seconds since the last sign of life of `worker`; infinity if it is not known (any more)."""
        return self._membership.silent_for(worker, now) if self._cluster.has_worker(worker) else math.inf

    @property
    def idle(self) -> bool:
        """Whether no request is known: none waits, runs, or is still being released."""
        return not self._ledger.records

    @property
    def queued(self) -> int:
        """Requests that wait for an instance."""
        return self._ledger.waiting

    @property
    def placed(self) -> int:
        """Requests that are known and do not wait: they run, or are being released. O(1), as `queued` is."""
        return len(self._ledger.records) - self._ledger.waiting

    def resources(self) -> Resources:
        """What is held for requests right now."""
        return Resources(
            records=len(self._ledger.records),
            tasks=self._ledger.tasks,
            queued=self._ledger.waiting,
            timers=sum(len(timer) for timer in self._ledger.timers.values()),
            unclaimed=len(self._adoption),
            assigned=sum(sum(member.requests.values()) for member in self._cluster.members),
            promised=sum(len(member.promised) for member in self._cluster.members),
            wanting=len(self._ledger.wanting),
        )

    def audit(self) -> None:
        """For tests: compare what is accounted to instances with what the requests say. Raises AssertionError naming the instance. O(requests)."""
        audit_accounts(self._cluster, self._ledger)

    def snapshot(self, now: float) -> ClusterSnapshot:
        """The cluster as it is, with every counter. O(instances)."""
        return ClusterSnapshot(
            instances=tuple(
                InstanceSnapshot(
                    member.info,
                    member.load,
                    self._membership.silent_for(member.worker, now),
                    sum(member.requests.values()),
                    _state_of(member),
                )
                for member in self._cluster.members
            ),
            queued=self._ledger.waiting,
            active=self._ledger.active,
            counters=self._counters.values(),
        )


def _state_of(member: Member) -> str:
    """What keeps `member` from new work, the most lasting reason first."""
    for obstacle in (Obstacle.AWAY, Obstacle.DRAINING, Obstacle.FULL):
        if obstacle in member.obstacles:
            return obstacle.value
    return "open"
