"""What a producer keeps for one key: exported pages not gathered yet, offers made, what the puller has still to be told.

States: *staged* (known, pages may be exported, nobody came), *opened* (a puller came: chunk size and transport are known, pages are gathered and
offered), *ended* (released, closed or given up: the record is dropped and only a tombstone with the reason stays). Plain data; the
producer's lock guards it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from triptych.proto.v1 import transfer_pb2
from triptych.runtime.core.errors import Status, TriptychError, error_for
from triptych.runtime.instance.messages import OpenStaging
from triptych.runtime.transfer.transports.base import Transport

MAX_TOMBSTONES = 4096
"""Ended keys whose reason is remembered: minutes of traffic, a few hundred kilobytes."""


@dataclass(frozen=True)
class Part:
    """What one offer carries: at most a granule of exported pages of one layer group. `first_page` is the index of pages[0] in the
    sequence's block table."""

    first_page: int
    pages: tuple[int, ...]
    layer_group: int


@dataclass(frozen=True)
class GatherWork:
    """What the device loop should gather now for `key`, in chunks of `heads_per_chunk` heads."""

    key: int
    heads_per_chunk: int
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Opening:
    """What became known when the puller came."""

    heads_per_chunk: int
    transport: Transport


@dataclass
class Staging:
    """One key. `message` is None while exports came before the OpenStaging they belong to."""

    message: OpenStaging | None = None
    parts: deque[Part] = field(default_factory=deque)
    opening: Opening | None = None
    gathering: int = 0  # offers promised by parts that were taken, and not announced yet
    offers: dict[int, int] = field(default_factory=dict)  # id -> bytes, not released
    announced: int = 0
    final: bytes | None = None
    events: list[transfer_pb2.TransferEvent] = field(default_factory=list)
    ended: bool = False
    signal: asyncio.Event = field(default_factory=asyncio.Event)

    def add_pages(self, first_page: int, pages: tuple[int, ...], granule: int, layer_groups: Iterable[int]) -> None:
        for layer_group in layer_groups:  # in the order in which they were computed
            for start in range(0, len(pages), granule):
                self.parts.append(Part(first_page + start, pages[start : start + granule], layer_group))

    @property
    def everything_offered(self) -> bool:
        return self.opening is not None and self.final is not None and not self.parts and self.gathering == 0


class Tombstones:
    """Why recently ended keys ended, so that a late puller is told."""

    def __init__(self) -> None:
        self._reasons: OrderedDict[int, tuple[Status, str]] = OrderedDict()

    def add(self, key: int, status: Status, reason: str) -> None:
        self._reasons[key] = (status, reason)
        while len(self._reasons) > MAX_TOMBSTONES:
            self._reasons.popitem(last=False)

    def __contains__(self, key: int) -> bool:
        return key in self._reasons

    def error(self, key: int) -> TriptychError:
        """What a late puller is told. An end in good order is CANCELLED: nothing went wrong, and nothing is to be pulled any more."""
        status, reason = self._reasons.get(key, (Status.NOT_FOUND, "it was never staged on this instance"))
        in_order = status in (Status.OK, Status.CANCELLED)
        return error_for(
            Status.CANCELLED if in_order else Status.NOT_FOUND, f"nothing is staged under this key any more: {reason}"
        )
