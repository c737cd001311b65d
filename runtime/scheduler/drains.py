"""Instances are taken out of service on request: to change roles, or to leave.

    DRAINING -> CHANGING -> (answered)      no new work; the tasks end, those that take longer than `drain_grace` go on elsewhere; then the
                                            instance is told to change, and has done so when it registers with its new roles or is gone

A drain lives as long as the scheduler: after a restart the instance takes work again, and whoever asked has lost the connection and can ask again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from triptych.runtime.core.control import DrainEnded, DrainRequested, Retire, SetRoles, ToWorker
from triptych.runtime.core.errors import Status
from triptych.runtime.core.instance import InstanceRef, Role
from triptych.runtime.scheduler.adoption import Adoption
from triptych.runtime.scheduler.cluster import Cluster, Member, Obstacle
from triptych.runtime.scheduler.config import SchedulerConfig
from triptych.runtime.scheduler.counters import Count, Counters
from triptych.runtime.scheduler.ledger import Ledger
from triptych.runtime.scheduler.lifecycle import Lifecycle, Out
from triptych.runtime.scheduler.media_flow import MediaFlow
from triptych.runtime.scheduler.placer import Placer


class Stage(StrEnum):
    DRAINING = "draining"
    CHANGING = "changing"


@dataclass(frozen=True)
class Drain:
    """One instance on its way out. `until`: when its patience with the present stage ends."""

    ticket: str
    ref: InstanceRef
    roles: frozenset[Role] | None
    since: float
    until: float
    stage: Stage = Stage.DRAINING


class Drains:
    """Owner of the drains under way, at most one an instance."""

    def __init__(
        self,
        config: SchedulerConfig,
        cluster: Cluster,
        ledger: Ledger,
        life: Lifecycle,
        placer: Placer,
        media: MediaFlow,
        adoption: Adoption,
        counters: Counters,
    ):
        self._config = config
        self._cluster = cluster
        self._ledger = ledger
        self._life = life
        self._placer = placer
        self._media = media
        self._adoption = adoption
        self._counters = counters
        self._drains: dict[str, Drain] = {}  # by instance name

    def __len__(self) -> int:
        return len(self._drains)

    def begin(self, event: DrainRequested, out: Out) -> None:
        """Start, or answer at once why not, or that there is nothing to do."""
        member = self._cluster.named(event.instance)
        if member is None:
            known = ", ".join(sorted(info.ref.id for info in self._cluster.infos)) or "none"
            reason = f"no instance {event.instance!r}; the cluster has {known}"
            out.append(DrainEnded(event.ticket, Status.NOT_FOUND, reason))
            return
        if event.roles is not None and event.roles == member.info.roles and event.instance not in self._drains:
            out.append(DrainEnded(event.ticket, Status.OK))
            return
        wrong = self._objection(event, member)
        if wrong is not None:
            out.append(DrainEnded(event.ticket, *wrong))
            return
        self._counters.add(Count.DRAINS)
        until = out.now + self._config.drain_grace
        self._drains[event.instance] = Drain(event.ticket, member.ref, event.roles, out.now, until)
        self._block(member, out)

    def advance(self, out: Out) -> None:
        """After every event: who is empty changes, who has changed is done."""
        for name, drain in list(self._drains.items()):
            member = self._cluster.named(name)
            if member is None:
                self._gone(name, drain, out)
            elif drain.roles is not None and member.info.roles == drain.roles:
                self._answer(name, drain, Status.OK, "", out)
            elif member.ref != drain.ref:  # it lost its pool meanwhile, and goes on as it was
                self._block(member, out)
                self._change(name, replace(drain, ref=member.ref), member, out)
            elif drain.stage is Stage.DRAINING and not member.requests and not self._adoption.holds(member):
                self._change(name, drain, member, out)

    def refused(self, ref: InstanceRef, reason: str, out: Out) -> None:
        """The instance stays as it is."""
        drain = self._drains.get(ref.id)
        if drain is not None and drain.ref == ref:
            self._give_up(ref.id, drain, Status.FAILED_PRECONDITION, f"instance {ref.id} refused: {reason}", out)

    def back(self, worker: str, out: Out) -> None:
        """A worker registered again: it may have missed what it was told."""
        for drain in self._drains.values():
            member = self._cluster.get(drain.ref)
            if drain.stage is Stage.CHANGING and member is not None and member.worker == worker:
                self._tell(drain, member, out)

    def tick(self, out: Out) -> None:
        """Move on what takes too long to end by itself, and give up on instances that do not answer."""
        for name, drain in list(self._drains.items()):
            if out.now < drain.until:
                continue
            member = self._cluster.get(drain.ref)
            if drain.stage is Stage.CHANGING:
                reason = f"instance {name} did not change within {self._config.switch_timeout:g} s"
                self._give_up(name, drain, Status.DEADLINE_EXCEEDED, reason, out)
            elif member is not None:
                self._move(member, out)

    # ---- steps

    def _objection(self, event: DrainRequested, member: Member) -> tuple[Status, str] | None:
        name, info = event.instance, member.info
        if name in self._drains:
            return Status.FAILED_PRECONDITION, f"instance {name} is being drained already"
        if event.roles is not None:
            if not event.roles:
                return Status.INVALID_ARGUMENT, "no role given; to take an instance out of the cluster, drain it"
            cannot = event.roles - info.roles - info.switchable
            if cannot:
                able = ", ".join(sorted(info.roles | info.switchable))
                return (
                    Status.FAILED_PRECONDITION,
                    f"instance {name} cannot take on {', '.join(sorted(cannot))}; it was started for {able}",
                )
        given_up = info.roles - (event.roles or frozenset())
        last = sorted(role for role in given_up if self._cluster.reach.count(role) <= 1)
        if last and not event.force:
            reason = f"instance {name} is the last one for {', '.join(last)}; nothing could be served without it (force does it anyway)"
            return Status.FAILED_PRECONDITION, reason
        return None

    def _block(self, member: Member, out: Out) -> None:
        self._cluster.block(member, Obstacle.DRAINING)
        self._placer.membership_changed(out)

    def _change(self, name: str, drain: Drain, member: Member, out: Out) -> None:
        until = out.now + self._config.switch_timeout
        self._drains[name] = replace(drain, stage=Stage.CHANGING, until=until)
        self._tell(drain, member, out)

    def _tell(self, drain: Drain, member: Member, out: Out) -> None:
        if Obstacle.AWAY not in member.obstacles:
            command = Retire(drain.ref, "drained") if drain.roles is None else SetRoles(drain.ref, drain.roles)
            out.append(ToWorker(member.worker, command))

    def _move(self, member: Member, out: Out) -> None:
        """Let the requests on `member` go on elsewhere; one at its last attempt may end here instead. What is encoded goes elsewhere by itself."""
        reason = f"instance {member.ref.id} is being drained"
        for request in list(member.requests):
            record = self._ledger.records[request]
            if record.highest < self._config.max_attempts and any(
                record.needs(task.kind) for task in record.live_tasks(member.ref)
            ):
                self._life.interrupt(record, Status.UNAVAILABLE, reason, out)
            for encode in [encode for encode in record.encodes.values() if encode.ref == member.ref]:
                self._media.take_back(record, encode, reason, out)

    def _gone(self, name: str, drain: Drain, out: Out) -> None:
        if drain.roles is None:
            self._answer(name, drain, Status.OK, "", out)
        else:
            self._answer(name, drain, Status.UNAVAILABLE, f"instance {name} was lost before it had changed", out)

    def _give_up(self, name: str, drain: Drain, status: Status, reason: str, out: Out) -> None:
        member = self._cluster.get(drain.ref)
        if member is not None:
            self._cluster.unblock(member, Obstacle.DRAINING)
            self._placer.membership_changed(out)
        self._answer(name, drain, status, reason, out)

    def _answer(self, name: str, drain: Drain, status: Status, reason: str, out: Out) -> None:
        del self._drains[name]
        out.append(DrainEnded(drain.ticket, status, reason, out.now - drain.since))
