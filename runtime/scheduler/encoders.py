"""The instances that encode, least loaded first.

How busy one is, is counted in steps of its encoder: the patches that wait for it over those that it computes in a step. As for placements, the
scheduler's own account decides and what instances report breaks ties. An encode instance may hold other roles too: lack of room to encode keeps
nobody from placing prompts on it, nor the other way round.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

from triptych.runtime.core.instance import InstanceInfo, InstanceRef, Load, Role
from triptych.runtime.scheduler.lazy_heap import LazyHeap

Key = tuple[float, int, str]


class Encoder(Protocol):
    """What the index knows of an instance. `patches`: promised to it and not encoded yet; `reachable`: neither away nor being drained."""

    patches: int

    @property
    def info(self) -> InstanceInfo: ...

    @property
    def ref(self) -> InstanceRef: ...

    @property
    def load(self) -> Load: ...

    @property
    def reachable(self) -> bool: ...


def encodes(info: InstanceInfo) -> bool:
    """Whether an instance can encode anything."""
    return Role.ENCODE in info.roles and info.capacity.max_patches > 0


M = TypeVar("M", bound=Encoder)


class Encoders(Generic[M]):
    """Open encode instances by load; an update costs O(log n) comparisons.

    `changed` says that what had to wait may find an instance since it was last cleared (by whoever makes it wait).
    """

    def __init__(self) -> None:
        self._members: dict[str, M] = {}  # the open ones
        self._keys: dict[str, Key] = {}
        self._order: list[Key] = []
        self._full: LazyHeap[InstanceRef, float] = LazyHeap()  # until when they are not asked again
        self.changed = False

    def __len__(self) -> int:
        """Those that are open."""
        return len(self._order)

    def update(self, member: M) -> None:
        """Bring the place of `member`, which encodes, up to date: its load or its reachability may have changed."""
        name = member.ref.id
        if not member.reachable or member.ref in self._full:
            self.remove(member)
            return
        key = _key(member)
        before = self._keys.get(name)
        if key == before:
            return
        if before is None or key < before:
            self.changed = True
        if before is not None:
            del self._order[bisect_left(self._order, before)]
        insort(self._order, key)
        self._keys[name], self._members[name] = key, member

    def remove(self, member: M) -> None:
        """Leave `member` out, if it is in."""
        before = self._keys.pop(member.ref.id, None)
        if before is not None:
            del self._order[bisect_left(self._order, before)]
            del self._members[member.ref.id]

    def is_open(self, member: M) -> bool:
        return self._members.get(member.ref.id) is member

    def by_load(self) -> Iterator[M]:
        """Open ones, least loaded first. Do not change loads while iterating."""
        for _, _, name in self._order:
            yield self._members[name]

    # ---- room

    def close(self, member: M, until: float) -> None:
        """`member` refused for lack of room: leave it alone until something may have changed there, or until then."""
        self._full.put(member.ref, until)
        self.remove(member)

    def room(self, member: M) -> None:
        """An encode task of `member` is over: what waited for this, or for room there, may go on."""
        self._full.discard(member.ref)
        self.changed = True
        self.update(member)

    def due(self, now: float) -> list[InstanceRef]:
        """Those that have been left alone for long enough; `room` opens them again."""
        return list(self._full.pop_due(now))

    def forget(self, member: M) -> None:
        """`member` has left the cluster."""
        self._full.discard(member.ref)
        self.remove(member)


def _key(member: Encoder) -> Key:
    return member.patches / member.info.capacity.max_patches, member.load.encoding, member.ref.id
