"""Workers and their instances come and go; silence counts as death.

An instance name has one live incarnation. A registration under a name that is taken replaces the old one, whose tasks are lost, unless it is the
same incarnation: then only the connection was new, or broken for a while.
"""

from __future__ import annotations

from triptych.runtime.core.control import (
    Directory,
    DropWorker,
    Heartbeat,
    InstanceLeft,
    InstanceReset,
    ToGateway,
    WorkerJoined,
)
from triptych.runtime.core.instance import InstanceInfo
from triptych.runtime.scheduler.adoption import Adoption
from triptych.runtime.scheduler.cluster import Cluster, Member, Obstacle
from triptych.runtime.scheduler.config import SchedulerConfig
from triptych.runtime.scheduler.counters import Count, Counters
from triptych.runtime.scheduler.flow import Flow
from triptych.runtime.scheduler.lazy_heap import LazyHeap
from triptych.runtime.scheduler.ledger import Ledger
from triptych.runtime.scheduler.lifecycle import Lifecycle, Out
from triptych.runtime.scheduler.placer import Placer


class Membership:
    """Owner of the worker list. The first instance of an empty cluster defines what later ones must be compatible with."""

    def __init__(
        self,
        config: SchedulerConfig,
        cluster: Cluster,
        ledger: Ledger,
        life: Lifecycle,
        flow: Flow,
        placer: Placer,
        adoption: Adoption,
        counters: Counters,
    ):
        self._config = config
        self._cluster = cluster
        self._ledger = ledger
        self._life = life
        self._flow = flow
        self._placer = placer
        self._adoption = adoption
        self._counters = counters
        self._last_seen: dict[str, float] = {}
        self._silence: LazyHeap[str, float] = LazyHeap()
        self._away: LazyHeap[str, float] = LazyHeap()
        self._why_away: dict[str, str] = {}
        self._last_tick: float | None = None

    def joined(self, event: WorkerJoined, out: Out) -> None:
        """Register a worker, or drop it with a reason that its operator can act on.

        Instances that it registers again under the same epoch go on with what they held; what else the worker had is lost.
        """
        known = self._cluster.has_worker(event.worker)
        wrong = self._objections(event.worker, event.instances)
        if wrong:
            if known:
                self._remove(event.worker, "its worker registered again, wrongly", out)
                self._changed(out)
            self._counters.add(Count.WORKERS_DROPPED)
            out.append(DropWorker(event.worker, "; ".join(wrong)))
            return
        self._counters.add(Count.WORKERS_BACK if event.worker in self._away else Count.WORKERS_JOINED)
        self._away.discard(event.worker)
        self._cluster.add_worker(event.worker)
        self._last_seen[event.worker] = out.now
        self._silence.put(event.worker, out.now + self._config.heartbeat_timeout)
        if self._register(event, out):
            self._changed(out)

    def _register(self, event: WorkerJoined, out: Out) -> bool:
        """Bring the instances of `event.worker` up to date; whether any of them is new or gone."""
        again = {info.ref for info in event.instances if _is_known(self._cluster.get(info.ref), info)}
        members = self._cluster.instances_of(event.worker)
        gone = [member for member in members if member.ref not in again]
        self._lose(gone, "its worker registered again without it", out)
        fresh = [info for info in event.instances if info.ref not in again]
        for info in fresh:
            self._replace(info.ref.id, event.worker, out)
            self._cluster.add(info, event.worker)
        back = [member for member in members if member.ref in again]
        for member in back:
            if self._cluster.unblock(member, Obstacle.AWAY):
                self._life.changed = True
        for member in back:
            self._adoption.returned(member, [task for task in event.held if task.ref == member.ref], out)
        new = {info.ref for info in fresh}
        self._adoption.registered([task for task in event.held if task.ref in new], out)
        return bool(gone or fresh)

    def broken(self, worker: str, reason: str, out: Out) -> None:
        """A worker's stream broke; one that is not known (any more) is left alone.

        It may be back in a moment: until then its instances get no work, and their tasks are not given up.
        """
        if not self._cluster.has_worker(worker) or worker in self._away:
            return
        if self._config.rejoin_grace == 0:
            self.lost(worker, reason, out)
            return
        self._away.put(worker, out.now + self._config.rejoin_grace)
        self._why_away[worker] = reason
        for member in self._cluster.instances_of(worker):
            self._cluster.block(member, Obstacle.AWAY)

    def lost(self, worker: str, reason: str, out: Out) -> None:
        """A worker is gone; one that is not known (any more) is left alone."""
        if self._cluster.has_worker(worker):
            self._counters.add(Count.WORKERS_LOST)
            self._remove(worker, reason, out)
            self._changed(out)

    def reset(self, event: InstanceReset, out: Out) -> None:
        """An instance goes on as a new incarnation without its tasks, perhaps with other roles."""
        old = self._cluster.get(event.old)
        if old is None or old.worker != event.worker:
            self._counters.add(Count.STALE_REPORTS)
            return
        self._counters.add(Count.INSTANCES_RESET)
        self._lose([old], event.reason, out)
        wrong = self._objections(event.worker, (event.info,))
        if wrong:
            self._drop(event.worker, "; ".join(wrong), out)
        else:
            self._replace(event.info.ref.id, event.worker, out)
            self._cluster.add(event.info, event.worker)
        self._changed(out)

    def retired(self, event: InstanceLeft, out: Out) -> None:
        """An instance is gone for good; its worker stays."""
        old = self._cluster.get(event.ref)
        if old is None or old.worker != event.worker:
            self._counters.add(Count.STALE_REPORTS)
            return
        self._lose([old], event.reason, out)
        self._changed(out)

    def heartbeat(self, event: Heartbeat, out: Out) -> None:
        """Note the sign of life and the loads that came with it; an instance that shows room may be asked again."""
        if not self._cluster.has_worker(event.worker):
            self._counters.add(Count.STALE_REPORTS)
            return
        self._last_seen[event.worker] = out.now
        for entry in event.loads:
            member = self._cluster.get(entry.ref)
            if member is None or member.worker != event.worker:
                self._counters.add(Count.STALE_REPORTS)
                continue
            self._cluster.report_load(member, entry.load)
            if entry.load.free_slots > 0 and entry.load.free_pages > 0:
                self._life.room(member)

    def alive(self, member: Member, now: float) -> None:
        """A report is as good a sign of life as a heartbeat."""
        self._last_seen[member.worker] = now

    def silent_for(self, worker: str, now: float) -> float:
        """Seconds since the last sign of life of a live worker."""
        return now - self._last_seen[worker]

    def tick(self, out: Out) -> None:
        """Drop workers that have been silent for too long, and give up those that have been away for too long.

        When ticks themselves come late, this process was asleep and heartbeats may be waiting unread: everybody is then given half a
        timeout to be heard.
        """
        now, timeout = out.now, self._config.heartbeat_timeout
        if self._last_tick is not None and now - self._last_tick > timeout / 2:
            for worker, seen in self._last_seen.items():
                self._last_seen[worker] = max(seen, now - timeout / 2)
        self._last_tick = now
        dropped = False
        for worker in list(self._silence.pop_due(now)):
            due = self._last_seen[worker] + timeout
            if due > now:
                self._silence.put(worker, due)
                continue
            self._counters.add(Count.WORKERS_LOST)
            self._drop(worker, f"no heartbeat for {self.silent_for(worker, now):.1f} s (limit {timeout} s)", out)
            dropped = True
        for worker in list(self._away.pop_due(now)):
            self._counters.add(Count.WORKERS_LOST)
            self._remove(worker, self._why_away[worker], out)
            dropped = True
        if dropped:
            self._changed(out)

    def directory(self) -> Directory:
        return Directory(self._cluster.infos)

    # ---- changes

    def _objections(self, worker: str, infos: tuple[InstanceInfo, ...]) -> list[str]:
        """What is wrong with registering `infos`, each line naming the instance; empty if nothing is."""
        if not infos:
            return [f"worker {worker} registers no instance; expected at least one"]
        names = {info.ref.id for info in infos}
        others = (m.info for m in self._cluster.members if m.ref.id not in names and m.worker != worker)
        standard = next(others, infos[0])
        wrong = [] if len(names) == len(infos) else [f"worker {worker} registers two instances under one name"]
        for info in infos:
            label = f"instance {info.ref.id}"
            if info.worker != worker:
                wrong.append(f"{label} says that it belongs to worker {info.worker!r}, but {worker!r} registers it")
            if info.ref.epoch == 0:
                wrong.append(f"{label} has epoch 0; expected a random number that every start draws anew")
            if not info.roles:
                wrong.append(f"{label} has no role; expected at least one of encode, prefill, decode")
            wrong.extend(
                f"{label} does not fit the cluster ({standard.ref.id}): {line}"
                for line in info.compatibility.difference(standard.compatibility)
            )
        return wrong

    def _replace(self, instance_id: str, worker: str, out: Out) -> None:
        """Make the name free for `worker`. A worker that thereby has nothing left is dropped."""
        old = self._cluster.named(instance_id)
        if old is None:
            return
        self._lose([old], f"replaced by a new incarnation on worker {worker}", out)
        if old.worker != worker and not self._cluster.instances_of(old.worker):
            self._drop(old.worker, f"its last instance {instance_id} was registered by worker {worker}", out)

    def _drop(self, worker: str, reason: str, out: Out) -> None:
        self._counters.add(Count.WORKERS_DROPPED)
        self._remove(worker, reason, out)
        out.append(DropWorker(worker, reason))

    def _remove(self, worker: str, reason: str, out: Out) -> None:
        members = self._cluster.instances_of(worker)
        for member in members:
            self._cluster.remove(member)
        self._cluster.remove_worker(worker)
        self._silence.discard(worker)
        self._away.discard(worker)
        self._why_away.pop(worker, None)
        del self._last_seen[worker]
        self._flow.lost(members, reason, out)

    def _lose(self, members: list[Member], reason: str, out: Out) -> None:
        """Everything leaves the cluster first, so that no task is aborted on an instance that is as dead as its sibling."""
        for member in members:
            self._cluster.remove(member)
        self._flow.lost(members, reason, out)

    def _changed(self, out: Out) -> None:
        self._placer.membership_changed(out)
        directory = self.directory()
        out.extend(ToGateway(gateway, directory) for gateway in self._ledger.connected)


def _is_known(member: Member | None, info: InstanceInfo) -> bool:
    return member is not None and member.info == info
