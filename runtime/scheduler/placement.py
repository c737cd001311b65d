"""Which instances can serve a request together: rules that hold whatever the routing policy, and the façade through which policies look.

A policy sees only members that are open, large enough and have not refused the request for good, so it cannot break a rule by oversight.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from triptych.runtime.core.instance import InstanceInfo, InstanceRef, Role, TransportKind
from triptych.runtime.scheduler.cluster import Cluster, Pool
from triptych.runtime.scheduler.media_reach import attended, can_hold
from triptych.runtime.scheduler.reach import Reach
from triptych.runtime.scheduler.state import Record


@dataclass(frozen=True)
class Placement:
    """Where a request runs; the same instance twice means both stages on one pool of KV."""

    prefill: InstanceRef
    decode: InstanceRef

    @property
    def local(self) -> bool:
        return self.prefill == self.decode


class Candidate(Protocol):
    """What a routing policy may know of an instance. `pressure` is 0 when idle and about 1 when full."""

    @property
    def info(self) -> InstanceInfo: ...

    @property
    def ref(self) -> InstanceRef: ...

    @property
    def pressure(self) -> float: ...


def shared_transport(source: InstanceInfo, puller: InstanceInfo) -> TransportKind | None:
    """The best transport from `source` to `puller` by the source's preference; None if there is none. LOCAL reaches one process only."""
    for kind in source.transports:
        if kind in puller.transports and (
            kind is not TransportKind.LOCAL or (source.domain and source.domain == puller.domain)
        ):
            return kind
    return None


def can_feed(source: InstanceInfo, puller: InstanceInfo) -> bool:
    """Whether `source` can prefill for `puller`: they agree on model and layout, and share a transport."""
    return source.compatibility == puller.compatibility and shared_transport(source, puller) is not None


def servable_length(infos: Iterable[InstanceInfo]) -> int:
    """The longest sequence, in tokens, that some placement over `infos` can hold; 0 if no placement exists. O(n)."""
    reach = Reach()
    for info in infos:
        reach.add(info)
    return reach.longest


class PlacementView:
    """The cluster as it looks for one request."""

    def __init__(self, cluster: Cluster, record: Record):
        self._cluster = cluster
        self._length = record.length
        self._never = record.never
        self._media = record.request.media
        self._attended = attended(self._media) if self._media else ()

    def by_load(self, pool: Pool) -> Iterator[Candidate]:
        """Usable members of `pool`, least loaded first: of those that prefill the ones that can hold the request's media, of the others those that can
        hold what all its tokens attend to."""
        length, never = self._length, self._never
        media = self._media and (self._attended if pool is Pool.DECODE else self._media)
        for member in self._cluster.by_load(pool):
            info = member.info
            if (
                info.capacity.max_model_len >= length
                and not (never and info.ref in never)
                and (not media or can_hold(info.capacity, media))
            ):
                yield member

    def decoders(self, pool: Pool) -> Iterator[Candidate]:
        """Usable members of `pool`, least loaded first, for a prompt that another instance computes: only media that are attended to come here."""
        for member in self._cluster.by_load(pool):
            if self._usable(member.info) and (not self._attended or can_hold(member.info.capacity, self._attended)):
                yield member

    def is_apart(self, decode: InstanceInfo) -> bool:
        """Whether no instance of both roles may prefill for `decode`: it has both itself, and the request attends to media. Each of two such could wait
        for room that a reservation holds whose prompt waits for room on the other, and so for ever. Either can serve alone what they could together.
        """
        return bool(self._attended) and _BOTH <= decode.roles

    def after(self, pool: Pool, instance_id: str) -> Iterator[Candidate]:
        """Usable members of `pool` in order of name, starting behind `instance_id` ("" for the first) and going round once."""
        media = self._media and (self._attended if pool is Pool.DECODE else self._media)
        for member in self._cluster.after(pool, instance_id):
            if not member.closed and self._usable(member.info) and (not media or can_hold(member.info.capacity, media)):
                yield member

    def _usable(self, info: InstanceInfo) -> bool:
        return info.capacity.max_model_len >= self._length and info.ref not in self._never


_COMPARED = (
    8  # prefill instances weighed against each other: enough to find one beside the decode instance, and bounded
)
_BOTH = frozenset({Role.PREFILL, Role.DECODE})
_RANK = {kind: rank for rank, kind in enumerate(TransportKind)}


def best_prefill(view: PlacementView, decode: InstanceInfo) -> Candidate | None:
    """The least loaded instance that can prefill for `decode`; among equals the one with the better transport to it."""
    best: Candidate | None = None
    best_key = (math.inf, 0)
    for pool in (Pool.PREFILL,) if view.is_apart(decode) else (Pool.PREFILL, Pool.LOCAL):
        compared = 0
        for candidate in view.by_load(pool):
            if candidate.pressure > best_key[0]:
                break  # the rest is no less busy
            info = candidate.info
            kind = shared_transport(info, decode)
            wanted = info.compatibility is decode.compatibility or info.compatibility == decode.compatibility
            if kind is None or not wanted or info.ref == decode.ref:
                continue
            key = (candidate.pressure, _RANK[kind])
            if best is None or key < best_key:
                best, best_key = candidate, key
            compared += 1
            if compared == _COMPARED:
                break
    return best
