"""Workers and their instances come and go; silence counts as death.

An instance name has one live incarnation. A registration under a name that is taken replaces the old one, whose tasks are lost: the worker would
not register again if its old connection were of any use.
"""

from __future__ import annotations

from triptych.runtime.core.control import (
    Directory,
    DropWorker,
    Heartbeat,
    InstanceReset,
    ToGateway,
    WorkerJoined,
)
from triptych.runtime.core.instance import InstanceInfo
from triptych.runtime.scheduler.cluster import Cluster, Member
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
        counters: Counters,
    ):
        self._config = config
        self._cluster = cluster
        self._ledger = ledger
        self._life = life
        self._flow = flow
        self._placer = placer
        self._counters = counters
        self._last_seen: dict[str, float] = {}
        self._silence: LazyHeap[str, float] = LazyHeap()
        self._last_tick: float | None = None

    def joined(self, event: WorkerJoined, now: float, out: Out) -> None:
        """Register a worker, or drop it with a reason that its operator can act on."""
        known = self._cluster.has_worker(event.worker)
        if known:
            self._remove(event.worker, "its worker registered again", out)
        wrong = self._objections(event.worker, event.instances)
        if wrong:
            self._counters.add(Count.WORKERS_DROPPED)
            out.append(DropWorker(event.worker, "; ".join(wrong)))
            if known:
                self._changed(out)
            return
        self._counters.add(Count.WORKERS_JOINED)
        for info in event.instances:
            self._replace(info.ref.id, event.worker, out)
        self._cluster.add_worker(event.worker)
        for info in event.instances:
            self._cluster.add(info, event.worker)
        self._last_seen[event.worker] = now
        self._silence.put(event.worker, now + self._config.heartbeat_timeout)
        self._changed(out)

    def lost(self, worker: str, reason: str, out: Out) -> None:
        """A worker is gone; one that is not known (any more) is left alone."""
        if self._cluster.has_worker(worker):
            self._counters.add(Count.WORKERS_LOST)
            self._remove(worker, reason, out)
            self._changed(out)

    def reset(self, event: InstanceReset, out: Out) -> None:
        """An instance goes on as a new incarnation without its tasks."""
        old = self._cluster.get(event.old)
        if old is None or old.worker != event.worker:
            self._counters.add(Count.STALE_REPORTS)
            return
        self._counters.add(Count.INSTANCES_RESET)
        self._cluster.remove(old)
        self._flow.lost([old], event.reason, out)
        wrong = self._objections(event.worker, (event.info,))
        if wrong:
            self._drop(event.worker, "; ".join(wrong), out)
        else:
            self._replace(event.info.ref.id, event.worker, out)
            self._cluster.add(event.info, event.worker)
        self._changed(out)

    def heartbeat(self, event: Heartbeat, now: float) -> None:
        """Note the sign of life and the loads that came with it; an instance that shows room may be asked again."""
        if not self._cluster.has_worker(event.worker):
            self._counters.add(Count.STALE_REPORTS)
            return
        self._last_seen[event.worker] = now
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

    def tick(self, now: float, out: Out) -> None:
        """Drop workers that have been silent for too long.

        When ticks themselves come late, this process was asleep and heartbeats may be waiting unread: everybody is then given half a
        timeout to be heard.
        """
        timeout = self._config.heartbeat_timeout
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
        standard = next((info for info in self._cluster.infos if info.ref.id not in names), infos[0])
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
        self._cluster.remove(old)
        self._flow.lost([old], f"replaced by a new incarnation on worker {worker}", out)
        if old.worker != worker and not self._cluster.instances_of(old.worker):
            self._drop(old.worker, f"its last instance {instance_id} was registered by worker {worker}", out)

    def _drop(self, worker: str, reason: str, out: Out) -> None:
        self._counters.add(Count.WORKERS_DROPPED)
        self._remove(worker, reason, out)
        out.append(DropWorker(worker, reason))

    def _remove(self, worker: str, reason: str, out: Out) -> None:
        """Everything on `worker` leaves the cluster first, so that no task is aborted on an instance that is as dead as its sibling."""
        members = self._cluster.instances_of(worker)
        for member in members:
            self._cluster.remove(member)
        self._cluster.remove_worker(worker)
        self._silence.discard(worker)
        del self._last_seen[worker]
        self._flow.lost(members, reason, out)

    def _changed(self, out: Out) -> None:
        self._placer.membership_changed(out)
        directory = self.directory()
        out.extend(ToGateway(gateway, directory) for gateway in self._ledger.gateways)
