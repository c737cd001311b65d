"""Which instances can serve a request together: rules that hold whatever the routing policy, and the façade through which policies look.

A policy sees only members that are open, large enough and have not refused the request for good, so it cannot break a rule by oversight.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from triptych.runtime.core.instance import InstanceInfo, InstanceRef, TransportKind
from triptych.runtime.scheduler.cluster import Cluster, Pool, pool_of
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
    return not source.compatibility.difference(puller.compatibility) and shared_transport(source, puller) is not None


def servable_length(infos: Iterable[InstanceInfo]) -> int:
    """The longest sequence, in tokens, that some placement over `infos` can hold; 0 if no placement exists. O(n).

    Instances are grouped by what decides whether they can talk (transports, and the domain where LOCAL may be the only one shared), so
    that pairs of groups are compared and not pairs of instances.
    """
    longest = 0
    remote: dict[Pool, dict[frozenset[TransportKind], int]] = {Pool.PREFILL: {}, Pool.DECODE: {}}
    domains: dict[Pool, dict[str, int]] = {Pool.PREFILL: {}, Pool.DECODE: {}}
    for info in infos:
        pool, length = pool_of(info.roles), info.capacity.max_model_len
        if pool is Pool.LOCAL:
            longest = max(longest, length)
        for side in (Pool.PREFILL, Pool.DECODE):
            if pool in (side, Pool.LOCAL):
                kinds = frozenset(info.transports) - {TransportKind.LOCAL}
                remote[side][kinds] = max(length, remote[side].get(kinds, 0))
                if TransportKind.LOCAL in info.transports and info.domain:
                    domains[side][info.domain] = max(length, domains[side].get(info.domain, 0))
    for source, have in remote[Pool.PREFILL].items():
        for puller, want in remote[Pool.DECODE].items():
            if source & puller:
                longest = max(longest, min(have, want))
    for domain, have in domains[Pool.PREFILL].items():
        longest = max(longest, min(have, domains[Pool.DECODE].get(domain, 0)))
    return longest


class PlacementView:
    """The cluster as it looks for one request."""

    def __init__(self, cluster: Cluster, record: Record):
        self._cluster = cluster
        self._length = record.length
        self._never = record.never

    def by_load(self, pool: Pool) -> Iterator[Candidate]:
        """Usable members of `pool`, least loaded first."""
        for member in self._cluster.by_load(pool):
            if self._usable(member.info):
                yield member

    def after(self, pool: Pool, instance_id: str) -> Iterator[Candidate]:
        """Usable members of `pool` in order of name, starting behind `instance_id` ("" for the first) and going round once."""
        for member in self._cluster.after(pool, instance_id):
            if not member.closed and self._usable(member.info):
                yield member

    def _usable(self, info: InstanceInfo) -> bool:
        return info.capacity.max_model_len >= self._length and info.ref not in self._never


_COMPARED = (
    8  # prefill instances weighed against each other: enough to find one beside the decode instance, and bounded
)


def best_prefill(view: PlacementView, decode: InstanceInfo) -> Candidate | None:
    """The least loaded instance that can prefill for `decode`; among equals the one with the better transport to it."""
    best: tuple[tuple[float, int], Candidate] | None = None
    for pool in (Pool.PREFILL, Pool.LOCAL):
        compared = 0
        for candidate in view.by_load(pool):
            if candidate.ref == decode.ref or not can_feed(candidate.info, decode):
                continue
            rank = list(TransportKind).index(shared_transport(candidate.info, decode) or TransportKind.GRPC)
            key = (candidate.pressure, rank)
            if best is None or key < best[0]:
                best = (key, candidate)
            compared += 1
            if compared == _COMPARED:
                break
    return None if best is None else best[1]
