"""The instances that exist, what the scheduler has given them, and indexes over both that are kept up to date event by event.

The load that placement uses is the scheduler's own account of the tasks it placed: exact and immediate. A prompt counts from the moment its
prefill instance is chosen, as a *promise* until the decode instance has granted room and the prompt is started: or everything that arrives
meanwhile would go to the same least loaded instance. What instances report arrives late and breaks ties only, so nothing is counted twice;
whether something fits is decided by the instance. An instance with an *obstacle* takes part in no placement: it refused for
lack of room and nothing there has changed since, its worker's stream is broken, or it is being drained. Instances that encode are in an index of
their own as well (`encoders.py`).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator
from enum import StrEnum

from triptych.runtime.core.instance import InstanceInfo, InstanceRef, Load, Role
from triptych.runtime.core.media import MediaItem
from triptych.runtime.scheduler.encoders import Encoders, encodes
from triptych.runtime.scheduler.media_reach import MediaReach, pages_of
from triptych.runtime.scheduler.reach import Reach
from triptych.runtime.scheduler.state import Record
from triptych.runtime.scheduler.tasks import EncodeTask, Task, TaskKind


class Pool(StrEnum):
    """Instances by what they can do. Every instance that can generate is in exactly one."""

    PREFILL = "prefill"
    DECODE = "decode"
    LOCAL = "local"


class Obstacle(StrEnum):
    """Why an instance takes part in no placement."""

    FULL = "full"  # until something there may have changed: a task ended, a heartbeat shows room, or some time passed
    AWAY = "away"  # until its worker is back
    DRAINING = "draining"  # for good


def pool_of(roles: frozenset[Role]) -> Pool | None:
    """The pool of an instance with these roles; None if it takes no part in generation (encode only)."""
    if Role.PREFILL in roles:
        return Pool.LOCAL if Role.DECODE in roles else Pool.PREFILL
    return Pool.DECODE if Role.DECODE in roles else None


class Member:
    """One live instance and the scheduler's account of it. Changed only by Cluster."""

    def __init__(self, info: InstanceInfo, worker: str):
        self.info = info
        self.worker = worker
        self.pool = pool_of(info.roles)
        self.load = Load(free_pages=info.capacity.num_pages, free_slots=info.capacity.max_num_seqs)
        self.obstacles: set[Obstacle] = set()
        self.requests: dict[str, int] = {}  # live tasks here by request id; a dict, so that iteration follows insertion
        self.promised: dict[str, Task] = {}  # prefill tasks to come, by request id: accounted, but not started
        self.prefill_tokens = 0
        self.sequences = 0
        self.kv_tokens = 0
        self.pressure = 0.0
        self.encodes = encodes(info)
        self.patches = 0  # of its encode tasks, not encoded yet
        capacity = info.capacity
        limits = (capacity.max_model_len, capacity.max_num_seqs, capacity.num_pages * capacity.page_size)
        self._limits = tuple(max(1, limit) for limit in limits)

    @property
    def ref(self) -> InstanceRef:
        return self.info.ref

    @property
    def closed(self) -> bool:
        return bool(self.obstacles)

    @property
    def reachable(self) -> bool:
        return Obstacle.AWAY not in self.obstacles and Obstacle.DRAINING not in self.obstacles

    def account(self, task: Task, by: int) -> None:
        """Add `task` to the account (`by` 1) or take it out (-1).

        `pressure` says how busy the instance is: prompt tokens waiting to be computed in units of the longest prompt, plus the fuller of slots
        and KV pages.
        """
        self.prefill_tokens += by * task.prefill_tokens
        self.sequences += by * task.sequences
        self.kv_tokens += by * task.kv_tokens
        self.weigh()

    def weigh(self) -> None:
        """Bring `pressure` up to date."""
        longest, slots, tokens = self._limits
        self.pressure = self.prefill_tokens / longest + max(self.sequences / slots, self.kv_tokens / tokens)

    @property
    def sort_key(self) -> tuple[float, int, str]:
        return (self.pressure, self.load.running + self.load.waiting, self.info.ref.id)


class Cluster:
    """Live instances by name, by worker, by pool and load. Single lookups are O(1), index updates O(log n) comparisons."""

    def __init__(self) -> None:
        self._members: dict[str, Member] = {}
        self._workers: dict[str, dict[str, None]] = {}
        self._by_load: dict[Pool, list[tuple[float, int, str]]] = {pool: [] for pool in Pool}
        self._by_id: dict[Pool, list[str]] = {pool: [] for pool in Pool}
        self._keys: dict[str, tuple[float, int, str]] = {}  # the key under which each open member stands in _by_load
        self._infos: dict[str, InstanceInfo] = {}
        self._reach = Reach()
        self._media_reach = MediaReach()
        self.encoders: Encoders[Member] = Encoders()

    # ---- membership

    def __len__(self) -> int:
        return len(self._members)

    @property
    def infos(self) -> tuple[InstanceInfo, ...]:
        """Every live instance, in order of joining."""
        return tuple(self._infos.values())

    @property
    def reach(self) -> Reach:
        """What the instances that are not draining can serve; only to be read."""
        return self._reach

    def can_serve(self, record: Record) -> bool:
        """Whether some placement of instances that are not draining could hold `record`, and its media if it has any."""
        if record.encoding is None:
            return record.length <= self._reach.longest
        return self._media_reach.can_serve(record.length, record.request.media)

    def shortage(self, record: Record) -> str:
        """Why nothing can serve `record`."""
        media = record.request.media
        if media and record.length <= self._reach.longest:
            return self._media_reach.shortage(record.length, media)
        return self._reach.shortage(record.length)

    @property
    def media_reach(self) -> MediaReach:
        """What media the instances that are not draining can serve; only to be read."""
        return self._media_reach

    @property
    def members(self) -> Iterable[Member]:
        return self._members.values()

    @property
    def workers(self) -> Iterable[str]:
        return self._workers.keys()

    def get(self, ref: InstanceRef) -> Member | None:
        """The live member with exactly this id and epoch, else None."""
        member = self._members.get(ref.id)
        if member is None:
            return None
        own = member.info.ref
        return member if own is ref or own == ref else None

    def named(self, instance_id: str) -> Member | None:
        """The live member of this name, whatever its epoch."""
        return self._members.get(instance_id)

    def has_worker(self, worker: str) -> bool:
        return worker in self._workers

    def add_worker(self, worker: str) -> None:
        self._workers.setdefault(worker, {})

    def remove_worker(self, worker: str) -> None:
        """Forget a worker that has no instances left."""
        del self._workers[worker]

    def instances_of(self, worker: str) -> list[Member]:
        return [self._members[i] for i in self._workers.get(worker, ())]

    def add(self, info: InstanceInfo, worker: str) -> Member:
        """Add an instance of a known worker; its name must be free."""
        member = Member(info, worker)
        self._infos[info.ref.id] = info
        self._serves(info, 1)
        self._members[info.ref.id] = member
        self._workers[worker][info.ref.id] = None
        if member.pool is not None:
            insort(self._by_id[member.pool], info.ref.id)
        self._index(member)
        if member.encodes:
            self.encoders.update(member)
        return member

    def remove(self, member: Member) -> None:
        del self._infos[member.ref.id]
        if Obstacle.DRAINING not in member.obstacles:
            self._serves(member.info, -1)
        self._unindex(member)
        self.encoders.forget(member)
        if member.pool is not None:
            ids = self._by_id[member.pool]
            del ids[bisect_left(ids, member.ref.id)]
        del self._workers[member.worker][member.ref.id]
        del self._members[member.ref.id]

    def _serves(self, info: InstanceInfo, by: int) -> None:
        self._reach.change(info, by)
        self._media_reach.change(info, by)

    # ---- load

    def assign(self, member: Member, request: str, task: Task) -> None:
        """Account for a task that `member` was just told to start; a prompt that was promised to it is promised no more."""
        if task.kind is TaskKind.PREFILL:
            _take_back(member, request)
        member.requests[request] = member.requests.get(request, 0) + 1
        member.account(task, 1)
        self._reindex(member)

    def release(self, member: Member, request: str, task: Task) -> None:
        """Undo `assign`: the task is gone."""
        member.requests[request] -= 1
        if member.requests[request] == 0:
            del member.requests[request]
        member.account(task, -1)
        self._reindex(member)

    def promise(self, member: Member, request: str, task: Task) -> None:
        """Account for the prefill task of `request`, at most one, that `member` will be told to start. Leaves the cluster with the member."""
        member.promised[request] = task
        member.account(task, 1)
        self._reindex(member)

    def withdraw(self, member: Member, request: str) -> None:
        """Undo `promise`, unless the task has been assigned or withdrawn already."""
        if _take_back(member, request):
            self._reindex(member)

    def prefilled(self, member: Member, task: Task) -> None:
        """The prompt of `task` is computed: it waits for no more compute."""
        member.prefill_tokens -= task.prefill_tokens
        task.prefill_tokens = 0
        member.weigh()
        self._reindex(member)

    def assign_encode(self, member: Member, request: str, task: EncodeTask) -> None:
        """Account for an encode task of `member`."""
        member.requests[request] = member.requests.get(request, 0) + 1
        self._encode(member, task.patches)

    def release_encode(self, member: Member, request: str, task: EncodeTask) -> None:
        """Undo `assign_encode`: the task is gone."""
        member.requests[request] -= 1
        if member.requests[request] == 0:
            del member.requests[request]
        self._encode(member, -task.patches)
        self.encoders.room(member)

    def also_encode(self, member: Member, task: EncodeTask, index: int, item: MediaItem) -> None:
        """Add item `index` of its request to a task of `member` that has not been sent yet."""
        task.items.append(index)
        task.patches += item.patches
        task.pages += pages_of(item, member.info.capacity.page_size)
        self._encode(member, item.patches)

    def encoded(self, member: Member, task: EncodeTask) -> None:
        """Every item of `task` has its embeddings: it waits for no more compute."""
        self._encode(member, -task.patches)
        task.patches = 0

    def _encode(self, member: Member, patches: int) -> None:
        member.patches += patches
        self.encoders.update(member)

    def report_load(self, member: Member, load: Load) -> None:
        member.load = load
        self._reindex(member)
        if member.encodes:
            self.encoders.update(member)

    def block(self, member: Member, obstacle: Obstacle) -> None:
        """Leave `member` out of placements until `unblock`."""
        if obstacle is Obstacle.DRAINING and obstacle not in member.obstacles:
            self._serves(member.info, -1)
        member.obstacles.add(obstacle)
        self._unindex(member)
        if member.encodes:
            self.encoders.update(member)

    def unblock(self, member: Member, obstacle: Obstacle) -> bool:
        """Take `obstacle` away, if it is there; whether `member` takes part again and did not before."""
        if obstacle not in member.obstacles:
            return False
        member.obstacles.discard(obstacle)
        if obstacle is Obstacle.DRAINING:
            self._serves(member.info, 1)
        self._reindex(member)
        if member.encodes:
            self.encoders.update(member)
        return not member.closed

    # ---- indexes

    @property
    def has_candidates(self) -> bool:
        """Whether some open instances could form a placement; O(1), so that a full cluster costs a waiting queue nothing."""
        local = bool(self._by_load[Pool.LOCAL])
        return local or (bool(self._by_load[Pool.PREFILL]) and bool(self._by_load[Pool.DECODE]))

    def by_load(self, pool: Pool) -> Iterator[Member]:
        """Open members, least loaded first. Do not change loads while iterating."""
        for _, _, instance_id in self._by_load[pool]:
            yield self._members[instance_id]

    def after(self, pool: Pool, instance_id: str) -> Iterator[Member]:
        """Members (closed ones too) in order of name, starting behind `instance_id` and going round once."""
        ids = self._by_id[pool]
        start = bisect_right(ids, instance_id)
        for offset in range(len(ids)):
            yield self._members[ids[(start + offset) % len(ids)]]

    def _index(self, member: Member) -> None:
        if member.pool is not None and not member.closed:
            key = member.sort_key
            self._keys[member.ref.id] = key
            insort(self._by_load[member.pool], key)

    def _unindex(self, member: Member) -> None:
        key = self._keys.pop(member.ref.id, None)
        if key is not None and member.pool is not None:
            index = self._by_load[member.pool]
            del index[bisect_left(index, key)]

    def _reindex(self, member: Member) -> None:
        if not member.closed and self._keys.get(member.ref.id) != member.sort_key:
            self._unindex(member)
            self._index(member)


def _take_back(member: Member, request: str) -> bool:
    """Take what was promised to `member` for `request` out of its account; whether there was anything."""
    task = member.promised.pop(request, None)
    if task is not None:
        member.account(task, -1)
    return task is not None
