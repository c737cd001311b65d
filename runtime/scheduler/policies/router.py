"""Routing policies: which instances serve a request. Chosen by name from `ROUTERS`."""

from __future__ import annotations

from typing import Protocol

from triptych.runtime.core.request import Request
from triptych.runtime.scheduler.cluster import Pool
from triptych.runtime.scheduler.placement import Candidate, Placement, PlacementView, best_prefill, can_feed


class Router(Protocol):
    """Decides where a request runs. Deterministic given its own history; never blocks, never touches anything but the view."""

    def route(self, request: Request, view: PlacementView) -> Placement | None:
        """A placement from candidates of `view`, or None to wait until something frees."""
        ...


class LeastLoaded:
    """The least busy decode instance with the least busy prefill instance that can feed it, or one that does both if it is no busier.

    This is the join-the-shortest-queue rule over the scheduler's own account of placed work. An instance that does both wins ties because
    nothing has to move; in a mixed cluster it may also take one half of a pair when its own kind is missing.
    """

    def route(self, request: Request, view: PlacementView) -> Placement | None:
        alone = next(view.by_load(Pool.LOCAL), None)
        pair = self._pair(view)
        if alone is not None and (pair is None or alone.pressure <= (pair[0].pressure + pair[1].pressure) / 2):
            return Placement(alone.ref, alone.ref)
        return None if pair is None else Placement(pair[0].ref, pair[1].ref)

    def _pair(self, view: PlacementView) -> tuple[Candidate, Candidate] | None:
        for pool in (Pool.DECODE, Pool.LOCAL):
            for decode in view.decoders(pool):
                prefill = best_prefill(view, decode.info)
                if prefill is not None:
                    return prefill, decode
        return None


class RoundRobin:
    """Instances in turn, whatever their load: the baseline that every other policy has to beat."""

    def __init__(self) -> None:
        self._last = {pool: "" for pool in Pool}
        self._alone_next = True

    def route(self, request: Request, view: PlacementView) -> Placement | None:
        """Alternates between single instances and pairs where the cluster has both."""
        kinds = (self._alone, self._pair) if self._alone_next else (self._pair, self._alone)
        for kind in kinds:
            placement = kind(view)
            if placement is not None:
                self._alone_next = not placement.local
                return placement
        return None

    def _alone(self, view: PlacementView) -> Placement | None:
        for candidate in view.after(Pool.LOCAL, self._last[Pool.LOCAL]):
            self._last[Pool.LOCAL] = candidate.ref.id
            return Placement(candidate.ref, candidate.ref)
        return None

    def _pair(self, view: PlacementView) -> Placement | None:
        for decode in view.after(Pool.DECODE, self._last[Pool.DECODE]):
            for prefill in view.after(Pool.PREFILL, self._last[Pool.PREFILL]):
                if can_feed(prefill.info, decode.info):
                    self._last[Pool.DECODE], self._last[Pool.PREFILL] = decode.ref.id, prefill.ref.id
                    return Placement(prefill.ref, decode.ref)
        return None


ROUTERS: dict[str, type[LeastLoaded | RoundRobin]] = {"least-loaded": LeastLoaded, "round-robin": RoundRobin}
