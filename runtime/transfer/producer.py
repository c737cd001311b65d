"""The owner's end of a transfer: stages exported pages for a puller and offers them as they are computed.

How many heads make a chunk is known only when the puller comes, so exported pages are not gathered at once: the producer keeps their page ids
(the instance keeps the pages pinned until the staging ends) and asks the device loop to gather once the key is open. Staging bytes therefore
exist only for opened pulls, and at most `staging_limit` of them: further pages wait until the puller has verified earlier ones. The final
record goes out when every exported page was offered.

A key can be opened once. When its stream breaks before the puller released it, the puller is gone for good and the staging ends.

Threads: the device loop exports, gathers and offers; the event loop opens, streams and releases. Every method may be called from any thread.
Close a staging *before* a step that may reuse its pages is dispatched; then a gather that comes too late finds nothing to do.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
from collections.abc import AsyncGenerator, Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from triptych.proto.v1 import transfer_pb2
from triptych.runtime.core.errors import IncompatibleError, InvalidRequestError, NotFoundError, StaleEpochError, Status
from triptych.runtime.core.instance import InstanceRef, TransportKind
from triptych.runtime.instance.messages import OpenStaging
from triptych.runtime.transfer.header import KvHeader, check, part_bytes
from triptych.runtime.transfer.layout import negotiate
from triptych.runtime.transfer.staging import GatherWork, Opening, Staging, Tombstones
from triptych.runtime.transfer.transports.base import Transport
from triptych.runtime.wire.convert import encode

if TYPE_CHECKING:
    from triptych.runtime.engine.page_programs import Gathered, PageMover

log = logging.getLogger(__name__)

DEFAULT_STAGING_LIMIT = 1 << 30  # bytes; a second of the fastest measured link between processes fits twice


class ProducerEvents(Protocol):
    """What a producer tells its instance. Called from any thread, possibly inside the producer's lock; must return at once."""

    def request_gather(self, key: int) -> None:
        """Have the device loop call `serve_gather` for this key."""
        ...

    def alive(self, key: int) -> None:
        """The puller showed a sign of life: extend the lease."""
        ...

    def awaited(self, key: int) -> None:
        """A puller that has no room yet showed a sign of life: extend the lease."""
        ...

    def released(self, key: int) -> None:
        """The puller has everything, or is gone: the staged pages may go."""
        ...


@dataclass(frozen=True)
class ProducerStats:
    """`staged_bytes` are held now (gathered, or about to be); the others only grow."""

    keys: int
    staged_bytes: int
    offered_bytes: int
    released_bytes: int


class TransferProducer:
    """Stagings of one instance.

    Args:
        ref: the instance, with its epoch.
        header: of the KV in its pools.
        head_unit: `ChunkLayout.head_unit` of its placement.
        transports: those it serves.
        threads: where waiting for checksums happens.
        loop: the event loop on which streams run.
    """

    def __init__(
        self,
        ref: InstanceRef,
        header: KvHeader,
        head_unit: int,
        transports: Mapping[TransportKind, Transport],
        events: ProducerEvents,
        *,
        threads: Executor,
        loop: asyncio.AbstractEventLoop,
        staging_limit: int = DEFAULT_STAGING_LIMIT,
        alive_interval: float = 1.0,
    ):
        self.ref = ref
        self.header = header
        self._head_unit = head_unit
        self._transports = transports
        self._events = events
        self._threads = threads
        self._loop = loop
        self._limit = staging_limit
        self._alive_interval = alive_interval
        self._lock = threading.RLock()
        self._stagings: dict[int, Staging] = {}
        self._blocked: set[int] = set()
        self._tombstones = Tombstones()
        self._staged = self._offered = self._released = 0

    @property
    def stats(self) -> ProducerStats:
        with self._lock:
            return ProducerStats(len(self._stagings), self._staged, self._offered, self._released)

    # ---- the instance's side -------------------------------------------------------------------------------------------------------

    def open_staging(self, message: OpenStaging) -> None:
        """A puller may come for `message.key`."""
        with self._lock:
            self._stagings.setdefault(message.key, Staging()).message = message

    def export(self, key: int, first_page: int, pages: tuple[int, ...], layer_group: int | None = None) -> None:
        """Pages of `key` are filled in one layer group, or (None) in all. May come before `open_staging`; ignored after the end."""
        with self._lock:
            if not pages or key in self._tombstones:
                return
            staging = self._stagings.setdefault(key, Staging())
            groups = range(len(self.header.layer_groups)) if layer_group is None else (layer_group,)
            staging.add_pages(first_page, pages, self.header.granule, groups)
            opened = staging.opening is not None
        if opened:
            self._events.request_gather(key)

    def take(self, key: int) -> GatherWork | None:
        """What to gather now, or None. Each part must be followed by its `offer`, or by `gather_failed`."""
        with self._lock:
            staging = self._stagings.get(key)
            if staging is None or staging.opening is None:
                return None
            parts = []
            while staging.parts:
                size = part_bytes(self.header, staging.parts[0].layer_group)
                if self._staged and self._staged + size > self._limit:
                    break
                parts.append(staging.parts.popleft())
                self._staged += size
                staging.gathering += 1
            if staging.parts:
                self._blocked.add(key)
            return GatherWork(key, staging.opening.heads_per_chunk, tuple(parts)) if parts else None

    def offer(self, key: int, first_page: int, page_count: int, layer_group: int, gathered: Gathered) -> None:
        """Publishes one gathered part of one layer group; it is announced once its checksums are known."""
        offer_id = secrets.randbits(63) | 1  # never 0, which protobuf cannot tell from absent
        with self._lock:
            self._offered += gathered.nbytes
            staging = self._stagings.get(key)
            opening = None if staging is None else staging.opening
            if staging is None or opening is None:
                self._freed(gathered.nbytes)
                return
            staging.offers[offer_id] = gathered.nbytes
        opening.transport.publish(offer_id, gathered.chunks)
        offer = transfer_pb2.Offer(
            id=offer_id,
            layer_group=layer_group,
            first_page=first_page,
            page_count=page_count,
            shape=gathered.chunks[0].shape,
            dtype=self.header.chunk_dtype,
        )
        self._threads.submit(self._announce, staging, opening, key, offer, gathered)

    def gather_failed(self, key: int, unoffered_bytes: int, reason: str) -> None:
        """Parts that were taken could not be offered: the staging ends, the puller is told `reason`."""
        with self._lock:
            self._freed(unoffered_bytes)
        if self.close(key, Status.UNAVAILABLE, reason):
            self._events.released(key)

    def complete(self, key: int, final: bytes) -> None:
        """Nothing more will be exported for `key`; `final` goes to the puller as it is."""
        with self._lock:
            staging = self._stagings.get(key)
            if staging is not None:
                staging.final = final
                self._finish_if_complete(staging)

    def close(self, key: int, status: Status, reason: str) -> bool:
        """Forgets `key`; a puller that is still there gets `status` and `reason`. False if there was nothing to forget."""
        with self._lock:
            staging = self._stagings.pop(key, None)
            if staging is None:
                return False
            self._tombstones.add(key, status, reason)
            self._blocked.discard(key)
            for offer_id in tuple(staging.offers):
                self._withdraw(staging, offer_id)
            staging.events.append(
                transfer_pb2.TransferEvent(closed=transfer_pb2.Closed(status=int(status), reason=reason))
            )
            staging.ended = True
            self._wake(staging)
            return True

    def restart(self, ref: InstanceRef) -> None:
        """The pools are lost: every staging ends, and the instance goes on as `ref`."""
        with self._lock:
            for key in tuple(self._stagings):
                self.close(
                    key, Status.UNAVAILABLE, f"instance {self.ref.id} lost its pools (epoch {self.ref.epoch} ended)"
                )
            self.ref = ref

    # ---- the puller's side, called by the service -----------------------------------------------------------------------------------

    def knows(self, key: int) -> bool:
        """Whether `key` is or was staged here; of old ones it may have forgotten some."""
        with self._lock:
            return key in self._stagings or key in self._tombstones

    def open(
        self, key: int, epoch: int, header: KvHeader, head_unit: int, kind: TransportKind, first_page: int
    ) -> AsyncGenerator[transfer_pb2.TransferEvent, None]:
        """Admits the puller of `key`, or refuses it before anything is gathered.

        Returns:
            what the puller is told: Opened, offers, the final record, the end. While it is read, the lease is extended; when it is left
            early, the puller is gone.

        Raises:
            StaleEpochError, NotFoundError: the handle is of another incarnation, or of nothing that is staged now.
            InvalidRequestError: the key was opened before.
            IncompatibleError: header, transport or first page differ.
        """
        with self._lock:
            staging = self._known(key, epoch)
            if staging.opening is not None:
                raise InvalidRequestError(f"key of {self.ref.id} was opened before; a staging can be pulled once")
            check(self.header, header)
            transport = self._transports.get(kind)
            if transport is None:
                raise IncompatibleError(
                    f"{self.ref.id} does not serve transport {kind!s}; it serves {', '.join(self._transports)}"
                )
            if staging.message is None or first_page != staging.message.first_page:
                staged = None if staging.message is None else staging.message.first_page
                raise IncompatibleError(
                    f"pages of {self.ref.id} are staged from {staged} on, the puller asks for {first_page} on"
                )
            opened = transfer_pb2.Opened(
                header=encode(self.header, transfer_pb2.KvHeader, 0.0),
                digest=self.header.digest(),
                heads_per_chunk=negotiate(self._head_unit, head_unit),
                endpoint=transport.endpoint(),
            )
            staging.opening = Opening(opened.heads_per_chunk, transport)
            staging.events.append(transfer_pb2.TransferEvent(opened=opened))
            waiting = bool(staging.parts)
            self._finish_if_complete(staging)
        if waiting:
            self._events.request_gather(key)
        return self._stream(key, staging)

    async def _stream(self, key: int, staging: Staging) -> AsyncGenerator[transfer_pb2.TransferEvent, None]:
        told, extended = 0, float("-inf")
        try:
            while True:
                staging.signal.clear()
                with self._lock:
                    fresh, ended = staging.events[told:], staging.ended
                told += len(fresh)
                for event in fresh:
                    yield event
                if ended:
                    return
                # Offers may come much faster than leases end.
                if self._loop.time() >= extended + self._alive_interval / 2:
                    extended = self._loop.time()
                    self._events.alive(key)
                try:  # not wait_for: before 3.12 it can swallow a cancellation
                    async with asyncio.timeout(self._alive_interval):
                        await staging.signal.wait()
                except TimeoutError:
                    yield transfer_pb2.TransferEvent(alive=transfer_pb2.Alive())
        finally:
            if not staging.ended and self.close(
                key, Status.UNAVAILABLE, "the puller left before it released the pages"
            ):
                self._events.released(key)

    def release(self, key: int, epoch: int, offers: tuple[int, ...], outcome: tuple[Status, str] | None) -> None:
        """Frees verified offers; with an `outcome`, ends the staging.

        Raises:
            StaleEpochError, NotFoundError: there is nothing to release.
        """
        with self._lock:
            staging = self._known(key, epoch)
            for offer_id in offers:
                self._withdraw(staging, offer_id)
        if outcome is not None:
            status, reason = outcome
            if self.close(key, status, reason or "released by the puller"):
                self._events.released(key)

    def extend(self, keys: Iterable[int], epoch: int) -> None:
        """Whoever is to pull these will do so once there is room. What is gone, or being pulled already, is passed over."""
        with self._lock:
            if epoch == self.ref.epoch:
                for key in keys:
                    staging = self._stagings.get(key)
                    if staging is not None and staging.opening is None:
                        self._events.awaited(key)

    def check_offer(self, key: int, epoch: int, offer_id: int) -> None:
        """Whether `key` gives the right to fetch this offer: StaleEpochError or NotFoundError if not."""
        with self._lock:
            if offer_id not in self._known(key, epoch).offers:
                raise NotFoundError(
                    f"offer {offer_id:#x} of {self.ref.id} does not belong to this key, or was released"
                )

    # ---- inside ---------------------------------------------------------------------------------------------------------------------

    def _known(self, key: int, epoch: int) -> Staging:
        if epoch != self.ref.epoch:
            raise StaleEpochError(
                f"{self.ref.id} is at epoch {self.ref.epoch}; epoch {epoch} is gone, and its KV with it"
            )
        staging = self._stagings.get(key)
        if staging is None:
            raise self._tombstones.error(key)
        return staging

    def _announce(
        self, staging: Staging, opening: Opening, key: int, offer: transfer_pb2.Offer, gathered: Gathered
    ) -> None:
        """Runs on `threads`: waits for the device, then tells the puller."""
        try:
            offer.checksums.extend(gathered.host_checksums())
        except Exception as error:  # the device failed; whatever it raised, the puller must hear of it
            log.exception("%s: checksums of staged pages could not be read", self.ref.id)
            self.gather_failed(key, 0, f"staged pages could not be computed: {error}")
        with self._lock:
            staging.gathering -= 1
            if staging.ended:
                opening.transport.withdraw(offer.id)  # it may have been published after the end
                return
            staging.announced += 1
            staging.events.append(transfer_pb2.TransferEvent(offer=offer))
            self._finish_if_complete(staging)
            self._wake(staging)

    def _finish_if_complete(self, staging: Staging) -> None:
        if staging.everything_offered and staging.final is not None:
            final = transfer_pb2.Final(continuation=staging.final, offers=staging.announced)
            staging.final = None
            staging.events.append(transfer_pb2.TransferEvent(final=final))
            self._wake(staging)

    def _withdraw(self, staging: Staging, offer_id: int) -> None:
        size = staging.offers.pop(offer_id, None)
        if size is not None and staging.opening is not None:
            staging.opening.transport.withdraw(offer_id)
            self._released += size
            self._freed(size)

    def _freed(self, size: int) -> None:
        self._staged -= size
        blocked, self._blocked = self._blocked, set()
        for key in blocked:
            self._events.request_gather(key)

    def _wake(self, staging: Staging) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(staging.signal.set)


def serve_gather(producer: TransferProducer, mover: PageMover, pools: Any, key: int) -> None:
    """Device loop: gathers and offers what `key` may have now. Answers `ProducerEvents.request_gather`.

    A failure ends this staging only: gathering donates nothing, so the pools are as they were.
    """
    work = producer.take(key)
    if work is None:
        return
    unoffered = sum(part_bytes(producer.header, part.layer_group) for part in work.parts)
    try:
        for part in work.parts:
            gathered = mover.gather(pools, part.pages, work.heads_per_chunk, part.layer_group)
            unoffered -= gathered.nbytes
            producer.offer(key, part.first_page, len(part.pages), part.layer_group, gathered)
    except Exception as error:  # whatever it was, the puller must hear of it
        log.exception("%s: pages %s could not be gathered", producer.ref.id, work.parts)
        producer.gather_failed(key, unoffered, f"pages could not be gathered: {error}")
