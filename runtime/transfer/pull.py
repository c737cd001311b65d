"""One pull, from the handle to verified pages.

    open -> Opened (header checked: nothing was fetched yet) -> offers, several fetched at a time -> device loop writes the pages and
    computes their checksums -> verified offers are released -> final record -> everything covered? -> released

There is no retry inside a pull: an offer is fetched once, and whoever started the pull decides what comes next. What the error says to it: an
owner that is silent, dead, at another epoch or without the staging is UNAVAILABLE, for another attempt may find a better one; bytes that are not
what was sent are DATA_LOSS; DEADLINE_EXCEEDED is the request's own deadline and nothing else; a disagreement is FAILED_PRECONDITION.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import jax

from triptych.proto.v1 import common_pb2, transfer_pb2, transfer_pb2_grpc
from triptych.runtime.core.clock import Clock, remaining
from triptych.runtime.core.errors import (
    IncompatibleError,
    Status,
    TransferError,
    TransferTimeoutError,
    TriptychError,
    error_for,
)
from triptych.runtime.core.instance import InstanceRef, TransportKind
from triptych.runtime.instance.messages import StartPull
from triptych.runtime.transfer.delivery import Delivery, PullGate
from triptych.runtime.transfer.header import KvHeader, check
from triptych.runtime.transfer.transports.base import OfferSpec, Peer, Transport
from triptych.runtime.transfer.transports.grpc import Channels
from triptych.runtime.wire.convert import decode, encode
from triptych.runtime.wire.status import typed_error
from triptych.sharding.devices import Device

if TYPE_CHECKING:
    from triptych.runtime.engine.page_programs import PageMover

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PullLimits:
    """Bounds of one pull.

    Attributes:
        fetches: offers of one pull that are on their way or being written at a time.
        fetch_seconds: longest wait for one offer's bytes.
        idle_seconds: longest silence of the owner, which says something at least every second.
        release_seconds: longest wait for the answer to a release.
    """

    fetches: int = 4
    fetch_seconds: float = 30.0
    idle_seconds: float = 5.0
    release_seconds: float = 5.0


@dataclass(frozen=True)
class PullStats:
    """What a pull moved, and how long it took.

    Attributes:
        bytes_moved: over the wire, granule padding included; a copy to a replica is not counted.
        pages_pulled: pages filled, each counted once whatever the number of layer groups.
        seconds: during which at least one offer was being fetched, written or verified.
        exposed_seconds: of these, after the final record: what did not hide behind the owner's compute.
    """

    bytes_moved: int = 0
    pages_pulled: int = 0
    seconds: float = 0.0
    exposed_seconds: float = 0.0


@dataclass(frozen=True)
class PullSetting:
    """What all pulls of an instance share.

    Attributes:
        header: of the KV in this instance's pools.
        mover: its page programs; used on the event loop for placement only.
        transports: those it may pull by.
        channels: the process's channel to a peer's address.
        deliver: has the device loop call `Delivery.scatter`.
        threads: where waiting for devices happens.
        loop: the event loop on which pulls run.
    """

    header: KvHeader
    mover: PageMover
    transports: Mapping[TransportKind, Transport]
    channels: Channels
    deliver: Callable[[Delivery], None]
    clock: Clock
    threads: Executor
    loop: asyncio.AbstractEventLoop
    limits: PullLimits


class Pull:
    """One pull by one transport; `run` is awaited once. No page is written after `gate` was shut."""

    def __init__(self, setting: PullSetting, message: StartPull, kind: TransportKind):
        self.message = message
        self.gate = PullGate()
        self.began = False
        self.bytes_moved = 0
        self._setting = setting
        self._header = setting.header
        self._mover = setting.mover
        self._limits = setting.limits
        self._clock = setting.clock
        self._kind = kind
        self._stub: Any = None
        self._call: Any = None  # the open stream; its end tells the owner that the puller is gone
        self._owner_ended = False
        self._owner = common_pb2.InstanceRef(id=message.source_instance, epoch=message.source_epoch)
        self._slots = asyncio.Semaphore(self._limits.fetches)
        self._heads_per_chunk = 0
        self._seen: set[int] = set()
        self._covered: set[tuple[int, int]] = set()  # (layer group, index into message.pages) offered so far
        self._verified: list[int] = []  # offers not released yet
        self._releasing = False
        self._busy = 0
        self._busy_since = 0.0
        self._busy_seconds = 0.0

    async def run(self) -> tuple[bytes, PullStats]:
        """Pulls everything; returns the owner's final record. `leave` must follow, whatever comes of it.

        Raises:
            TriptychError: why not everything is here and verified. TransferTimeoutError when the request's deadline passed.
        """
        self.began = True
        try:
            async with asyncio.timeout(remaining(self.message.deadline, self._clock.now())):
                return await self._run()
        except TimeoutError:
            raise TransferTimeoutError(
                f"the deadline passed while pulling from {self.message.source_instance}"
            ) from None
        except BaseExceptionGroup as group:
            raise _first_error(group) from group

    async def leave(self, status: Status, reason: str) -> None:
        """Tells the owner how the pull ended, so that it frees the staging at once; if it cannot be told, its lease does."""
        try:
            if not self._owner_ended:  # a cancelled stream tells it, too, but may never have reached it
                await self._release(transfer_pb2.Outcome(status=int(status), reason=reason))
        finally:
            if self._call is not None:
                self._call.cancel()

    async def _run(self) -> tuple[bytes, PullStats]:
        message = self.message
        transport = self._setting.transports.get(self._kind)
        if transport is None:
            raise IncompatibleError(
                f"transport {self._kind!s} is not configured here; configured: {', '.join(self._setting.transports)}"
            )
        call = self._call = self._transfer().Open(
            transfer_pb2.OpenRequest(
                owner=self._owner,
                key=message.source_key,
                header=encode(self._header, transfer_pb2.KvHeader, 0.0),
                digest=self._header.digest(),
                head_unit=self._mover.layout.head_unit,
                transport=self._kind,
                first_page=message.first_page,
            )
        )
        peer = self._admit(await self._next(call))
        async with asyncio.TaskGroup() as tasks:
            while (event := await self._next(call)).WhichOneof("kind") != "final":
                if event.HasField("closed"):
                    raise self._closed(event.closed)
                if event.HasField("offer") and event.offer.id not in self._seen:
                    self._seen.add(event.offer.id)
                    pages = self._target_pages(event.offer)
                    _spawn(tasks, self._import(peer, transport, event.offer, pages, tasks))
            hidden = self._busy_until(self._clock.now())
            self._check_complete(event.final)
        exposed = self._busy_seconds - hidden
        return event.final.continuation, PullStats(self.bytes_moved, len(message.pages), self._busy_seconds, exposed)

    def _transfer(self) -> Any:
        if self._stub is None:
            channel = self._setting.channels(self.message.source_address)
            self._stub = transfer_pb2_grpc.TransferStub(channel)  # type: ignore[no-untyped-call]
        return self._stub

    def _admit(self, event: transfer_pb2.TransferEvent) -> Peer:
        """Checks the owner's header before anything is fetched."""
        message = self.message
        if event.HasField("closed"):
            raise self._closed(event.closed)
        if not event.HasField("opened"):
            raise TransferError(
                f"{message.source_instance} began with {event.WhichOneof('kind')!r} instead of its header"
            )
        opened = event.opened
        theirs = decode(opened.header, KvHeader, 0.0)
        check(self._header, theirs)
        if not theirs.digest() == opened.digest == message.source_digest:
            raise IncompatibleError(f"{message.source_instance} shows another header than the handle was made for")
        if opened.heads_per_chunk not in self._mover.layout.chunk_sizes():
            raise IncompatibleError(
                f"{message.source_instance} sends {opened.heads_per_chunk} heads a chunk; possible here: {self._mover.layout.chunk_sizes()}"
            )
        self._heads_per_chunk = opened.heads_per_chunk
        owner = InstanceRef(message.source_instance, message.source_epoch)
        return Peer(message.source_address, opened.endpoint, owner, message.source_key)

    def _target_pages(self, offer: transfer_pb2.Offer) -> tuple[int, ...]:
        """Which of my pages an offer fills. TransferError if it is not exactly what the header promised."""
        message, g = self.message, self._heads_per_chunk
        begin = offer.first_page - message.first_page
        where = f"offer of pages {offer.first_page}..{offer.first_page + offer.page_count - 1} of layer group {offer.layer_group}"
        if offer.layer_group >= len(self._header.layer_groups) or not 0 < offer.page_count <= self._header.granule:
            raise TransferError(
                f"{where}: no such layer group or more pages than the granule of {self._header.granule}"
            )
        if begin < 0 or begin + offer.page_count > len(message.pages):
            raise TransferError(
                f"{where}: outside the pulled pages {message.first_page}..{message.first_page + len(message.pages) - 1}"
            )
        shape, dtype = self._mover.chunk_shape(g, offer.layer_group), self._header.chunk_dtype
        expected = (shape, dtype, self._mover.layout.num_chunks(g))
        if (tuple(offer.shape), offer.dtype, len(offer.checksums)) != expected:
            raise IncompatibleError(
                f"{where}: {len(offer.checksums)} chunks {offer.dtype}{list(offer.shape)}, expected {expected[2]} chunks "
                f"{expected[1]}{list(expected[0])}"
            )
        marks = {(offer.layer_group, begin + i) for i in range(offer.page_count)}
        if marks & self._covered:
            raise TransferError(f"{where}: offered before under another id")
        self._covered |= marks
        return message.pages[begin : begin + offer.page_count]

    async def _import(
        self,
        peer: Peer,
        transport: Transport,
        offer: transfer_pb2.Offer,
        pages: tuple[int, ...],
        tasks: asyncio.TaskGroup,
    ) -> None:
        """Fetches one offer, has it written and verified, and lets the owner free it."""
        async with self._slots:
            self._count_busy(1)
            try:
                arrays = await self._fetch(peer, transport, offer)
                verified: asyncio.Future[None] = self._setting.loop.create_future()
                delivery = Delivery(
                    self.message.request,
                    offer.layer_group,
                    pages,
                    self._heads_per_chunk,
                    arrays,
                    tuple(offer.checksums),
                    self.gate,
                    self._setting.threads,
                    self._setting.loop,
                    verified,
                )
                self._setting.deliver(delivery)
                await verified
            finally:
                self._count_busy(-1)
        self._verified.append(offer.id)
        if not self._releasing:
            self._releasing = True
            _spawn(tasks, self._release_verified())

    async def _fetch(self, peer: Peer, transport: Transport, offer: transfer_pb2.Offer) -> tuple[jax.Array, ...]:
        """One array for each destination: a chunk is fetched once, and copied to its further holders here."""
        destinations = self._mover.destinations(self._heads_per_chunk)
        first: dict[int, Device] = {}
        for chunk, device in destinations:
            first.setdefault(chunk, device)
        left = remaining(self.message.deadline, self._clock.now())
        timeout = self._limits.fetch_seconds if left is None else min(left, self._limits.fetch_seconds)
        spec = OfferSpec(offer.id, tuple(offer.shape), offer.dtype, len(first))
        try:
            chunks = await transport.fetch(peer, spec, tuple(first.values()), timeout)
        except TriptychError as error:
            raise self._not_there(error) from error
        moved = sum(chunk.nbytes for chunk in chunks)
        self.bytes_moved += moved
        if len(destinations) == len(chunks):
            return chunks

        def spread() -> tuple[jax.Array, ...]:
            return tuple(
                chunks[chunk] if device == first[chunk] else jax.device_put(chunks[chunk], device)
                for chunk, device in destinations
            )

        return await self._setting.loop.run_in_executor(self._setting.threads, spread)

    def _check_complete(self, final: transfer_pb2.Final) -> None:
        wanted = len(self.message.pages) * len(self._header.layer_groups)
        if len(self._seen) != final.offers or len(self._covered) != wanted:
            raise TransferError(
                f"{self.message.source_instance} closed the transfer after {len(self._covered)} of {wanted} pages "
                f"(times layer groups) in {len(self._seen)} offers; it says that it made {final.offers}"
            )

    async def _release_verified(self) -> None:
        """Releases what is verified by now, and again what is by then; one call at a time."""
        while self._verified:
            await self._release(None)
        self._releasing = False

    async def _release(self, outcome: transfer_pb2.Outcome | None) -> None:
        offers, self._verified = self._verified, []
        request = transfer_pb2.ReleaseRequest(
            owner=self._owner, key=self.message.source_key, offers=offers, outcome=outcome
        )
        try:
            await self._transfer().Release(request, timeout=self._limits.release_seconds)
        except grpc.aio.AioRpcError as error:
            # What was released here is verified: if the owner is gone now, nothing is missing, and its lease ends by itself.
            # CANCELLED is the usual race: the staging ended in order while the release was on its way.
            level = logging.DEBUG if error.code() is grpc.StatusCode.CANCELLED else logging.INFO
            log.log(
                level, "release of %s at %s: %s", self.message.request, self.message.source_instance, error.details()
            )

    async def _next(self, call: Any) -> transfer_pb2.TransferEvent:
        """The next event. Silence, an error status and an end without a final record are errors."""
        try:
            async with asyncio.timeout(
                self._limits.idle_seconds
            ):  # not wait_for: before 3.12 it can swallow a cancellation
                event = await call.read()
        except TimeoutError:
            raise TransferError(f"the owner was silent for {self._limits.idle_seconds:g} s") from None
        except grpc.aio.AioRpcError as error:
            self._owner_ended = True
            refusal = typed_error(error)
            raise self._not_there(refusal) if refusal.status is Status.NOT_FOUND else refusal from error
        if not isinstance(event, transfer_pb2.TransferEvent):  # grpc.aio.EOF
            raise TransferError("the owner ended the transfer without a final record")
        return event

    def _closed(self, closed: transfer_pb2.Closed) -> TriptychError:
        """The owner ended the staging; with status OK that still means: not everything was pulled."""
        self._owner_ended = True
        status = Status.CANCELLED if closed.status == Status.OK else Status(closed.status)
        return error_for(status, f"the owner ended the staging: {closed.reason}")

    def _not_there(self, error: TriptychError) -> TriptychError:
        """What it means that an owner whom this pull may ask has not got something, or not in time. Bytes that are wrong stay DATA_LOSS."""
        left = remaining(self.message.deadline, self._clock.now())
        if error.status is Status.DATA_LOSS or (error.status is Status.DEADLINE_EXCEEDED and left == 0.0):
            return error
        return TransferError(error.message)

    def _count_busy(self, change: int) -> None:
        now = self._clock.now()
        self._busy_seconds = self._busy_until(now)
        self._busy += change
        self._busy_since = now

    def _busy_until(self, now: float) -> float:
        """Seconds up to `now` during which an offer was under way."""
        return self._busy_seconds + (now - self._busy_since if self._busy else 0.0)


def _spawn(tasks: asyncio.TaskGroup, work: Coroutine[Any, Any, None]) -> None:
    """Adds a task to a group; a group that is ending already refuses it, and then the coroutine must not be left behind."""
    try:
        tasks.create_task(work)
    except RuntimeError:
        work.close()
        raise


def _first_error(group: BaseExceptionGroup[BaseException]) -> TriptychError:
    """The typed error of a failed task group; tasks fail together, and the first one is the cause."""
    for error in group.exceptions:
        if isinstance(error, TriptychError):
            return error
    cause = group.exceptions[0]
    log.error("pull task failed", exc_info=cause)
    return TransferError(f"{type(cause).__name__}: {cause}")
