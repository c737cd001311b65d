"""The puller's end of a transfer: one task a pull, from the handle to verified pages.

    open -> Opened (header checked: nothing was fetched yet) -> offers, several fetched at a time -> device loop writes the pages and
    computes their checksums -> verified offers are released -> final record -> everything covered? -> released -> done

A pull ends in exactly one of `done` and `failed`, unless `cancel` ends it first: then neither is called. Whatever way it ends, no page is written
afterwards (see `delivery`). There is no retry inside a pull: offers are fetched once, and whoever started the pull decides what comes next.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import grpc
import jax

from triptych.proto.v1 import common_pb2, transfer_pb2, transfer_pb2_grpc
from triptych.runtime.core.clock import Clock, remaining
from triptych.runtime.core.errors import (
    IncompatibleError,
    InvalidRequestError,
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
from triptych.runtime.wire.status import error_from_call

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
    idle_seconds: float = 10.0
    release_seconds: float = 5.0


@dataclass(frozen=True)
class PullStats:
    """What a pull moved, and how long it took.

    Attributes:
        bytes_moved: over the wire, granule padding included; a copy to a replica is not counted.
        pages_pulled: pages filled, each counted once whatever the number of layer groups.
        seconds: during which at least one offer was being fetched, written or verified.
        exposed_seconds: from the final record to the last verified page: what did not hide behind the owner's compute.
    """

    bytes_moved: int = 0
    pages_pulled: int = 0
    seconds: float = 0.0
    exposed_seconds: float = 0.0


class ConsumerEvents(Protocol):
    """What a consumer tells its instance. Called on the event loop; must return at once."""

    def deliver(self, delivery: Delivery) -> None:
        """Have the device loop call `delivery.scatter`."""
        ...

    def done(self, request: str, final: bytes, stats: PullStats) -> None:
        """Every page is there and verified, and the owner was told. `final` is what it passed to `complete`."""
        ...

    def failed(self, request: str, status: Status, reason: str) -> None:
        """The pull ended for good; no page is written any more."""
        ...


@dataclass
class _Pull:
    """One pull while it lives."""

    message: StartPull
    kind: TransportKind
    gate: PullGate = field(default_factory=PullGate)
    task: asyncio.Task[None] | None = None
    heads_per_chunk: int = 0
    covered: set[tuple[int, int]] = field(default_factory=set)  # (layer group, page index) offered so far
    seen: set[int] = field(default_factory=set)
    verified: list[int] = field(default_factory=list)  # offers not released yet
    releasing: bool = False
    bytes_moved: int = 0
    busy: int = 0
    busy_since: float = 0.0
    busy_seconds: float = 0.0

    @property
    def owner(self) -> common_pb2.InstanceRef:
        return common_pb2.InstanceRef(id=self.message.source_instance, epoch=self.message.source_epoch)


class TransferConsumer:
    """Pulls of one instance.

    Args:
        header: of the KV in this instance's pools.
        mover: its page programs; used on the event loop for placement only.
        transports: those it may pull by.
        channels: the process's channel to a peer's address.
        threads: where waiting for devices happens.
    """

    def __init__(
        self,
        header: KvHeader,
        mover: PageMover,
        transports: Mapping[TransportKind, Transport],
        channels: Channels,
        events: ConsumerEvents,
        *,
        clock: Clock,
        threads: Executor,
        loop: asyncio.AbstractEventLoop,
        limits: PullLimits = PullLimits(),  # noqa: B008 - frozen
    ):
        self.header = header
        self._mover = mover
        self._transports = transports
        self._channels = channels
        self._events = events
        self._clock = clock
        self._threads = threads
        self._loop = loop
        self._limits = limits
        self._lock = threading.Lock()
        self._pulls: dict[str, _Pull] = {}
        self.bytes_received = 0

    @property
    def pulls(self) -> int:
        """Pulls that have not ended."""
        return len(self._pulls)

    def start(self, message: StartPull, kind: TransportKind) -> None:
        """Begins a pull; returns at once. From any thread. InvalidRequestError if one for this request lives."""
        pull = _Pull(message, kind)
        with self._lock:
            if message.request in self._pulls:
                raise InvalidRequestError(f"request {message.request} is being pulled already")
            self._pulls[message.request] = pull
        self._loop.call_soon_threadsafe(self._begin, pull)

    def cancel(self, request: str) -> bool:
        """Ends a pull from any thread: once this returned True, no page is written and nothing is reported. False if there was none."""
        with self._lock:
            pull = self._pulls.pop(request, None)
        if pull is None:
            return False
        pull.gate.shut()
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop, pull)
        return True

    async def close(self) -> None:
        """Cancels every pull and waits until their calls are ended."""
        with self._lock:
            pulls, self._pulls = list(self._pulls.values()), {}
        for pull in pulls:
            pull.gate.shut()
            self._stop(pull)
        await asyncio.gather(*(pull.task for pull in pulls if pull.task is not None), return_exceptions=True)

    # ---- one pull -------------------------------------------------------------------------------------------------------------------

    def _begin(self, pull: _Pull) -> None:
        if pull.gate.is_open:
            pull.task = self._loop.create_task(self._run(pull), name=f"pull {pull.message.request}")

    def _stop(self, pull: _Pull) -> None:
        if pull.task is not None:
            pull.task.cancel()

    async def _run(self, pull: _Pull) -> None:
        message = pull.message
        try:
            async with asyncio.timeout(remaining(message.deadline, self._clock.now())):
                final, stats = await self._pull(pull)
        except TimeoutError:
            self._fail(pull, TransferTimeoutError(f"the deadline passed while pulling from {message.source_instance}"))
        except TriptychError as error:
            self._fail(pull, error)
        except BaseExceptionGroup as group:
            self._fail(pull, _first_error(group))
        except Exception as error:  # a bug must end this pull with a reason, not leave a reservation for ever
            log.exception("pull of request %s", message.request)
            self._fail(pull, TransferError(f"{type(error).__name__}: {error}"))
        else:
            if self._end(pull):
                self._events.done(message.request, final, stats)

    def _fail(self, pull: _Pull, error: TriptychError) -> None:
        if self._end(pull):
            status = error.status if error.status is not Status.OK else Status.CANCELLED
            self._events.failed(pull.message.request, status, error.message)

    def _end(self, pull: _Pull) -> bool:
        """Takes the pull's single end; False if it was cancelled."""
        with self._lock:
            if self._pulls.get(pull.message.request) is pull:
                del self._pulls[pull.message.request]
        return pull.gate.shut()

    async def _pull(self, pull: _Pull) -> tuple[bytes, PullStats]:
        message = pull.message
        transport = self._transports.get(pull.kind)
        if transport is None:
            raise IncompatibleError(f"transport {pull.kind!s} is not configured here; configured: {', '.join(self._transports)}")
        stub: Any = transfer_pb2_grpc.TransferStub(self._channels(message.source_address))  # type: ignore[no-untyped-call]
        call = stub.Open(
            transfer_pb2.OpenRequest(
                owner=pull.owner,
                key=message.source_key,
                header=encode(self.header, transfer_pb2.KvHeader, 0.0),
                digest=self.header.digest(),
                head_unit=self._mover.layout.head_unit,
                transport=pull.kind,
                first_page=message.first_page,
            )
        )
        try:
            peer = self._admit(pull, await self._next(call))
            slots = asyncio.Semaphore(self._limits.fetches)
            async with asyncio.TaskGroup() as tasks:
                while (event := await self._next(call)).WhichOneof("kind") != "final":
                    if event.HasField("closed"):
                        raise _closed(event.closed)
                    if event.HasField("offer") and event.offer.id not in pull.seen:
                        pull.seen.add(event.offer.id)
                        pages = self._target_pages(pull, event.offer)
                        tasks.create_task(self._import(pull, peer, transport, event.offer, pages, slots, stub, tasks))
                complete = self._clock.now()
                self._check_complete(pull, event.final)
            exposed = self._clock.now() - complete
            await self._release(pull, stub, transfer_pb2.Outcome(status=int(Status.OK)))
            return event.final.continuation, PullStats(pull.bytes_moved, len(message.pages), pull.busy_seconds, exposed)
        finally:
            call.cancel()

    def _admit(self, pull: _Pull, event: transfer_pb2.TransferEvent) -> Peer:
        """Checks the owner's header before anything is fetched."""
        message = pull.message
        if event.HasField("closed"):
            raise _closed(event.closed)
        if not event.HasField("opened"):
            raise TransferError(f"{message.source_instance} began with {event.WhichOneof('kind')!r} instead of its header")
        opened = event.opened
        theirs = decode(opened.header, KvHeader, 0.0)
        check(self.header, theirs)
        if theirs.digest() != message.source_digest:
            raise IncompatibleError(f"{message.source_instance} shows another header than the handle was made for")
        if opened.heads_per_chunk not in self._mover.layout.chunk_sizes():
            raise IncompatibleError(
                f"{message.source_instance} sends {opened.heads_per_chunk} heads a chunk; possible here: {self._mover.layout.chunk_sizes()}"
            )
        pull.heads_per_chunk = opened.heads_per_chunk
        owner = InstanceRef(message.source_instance, message.source_epoch)
        return Peer(message.source_address, opened.endpoint, owner, message.source_key)

    def _target_pages(self, pull: _Pull, offer: transfer_pb2.Offer) -> tuple[int, ...]:
        """Which of my pages an offer fills. TransferError if it is not exactly what the header promised."""
        message, g = pull.message, pull.heads_per_chunk
        begin = offer.first_page - message.first_page
        where = f"offer of pages {offer.first_page}..{offer.first_page + offer.page_count - 1} of layer group {offer.layer_group}"
        if offer.layer_group >= len(self.header.layer_groups) or not 0 < offer.page_count <= self.header.granule:
            raise TransferError(f"{where}: no such layer group or more pages than the granule of {self.header.granule}")
        if begin < 0 or begin + offer.page_count > len(message.pages):
            raise TransferError(f"{where}: outside the pulled pages {message.first_page}..{message.first_page + len(message.pages) - 1}")
        expected = (self._mover.chunk_shape(g, offer.layer_group), self.header.dtype, self._mover.layout.num_chunks(g))
        if (tuple(offer.shape), offer.dtype, len(offer.checksums)) != expected:
            raise IncompatibleError(
                f"{where}: {len(offer.checksums)} chunks {offer.dtype}{list(offer.shape)}, expected {expected[2]} chunks "
                f"{expected[1]}{list(expected[0])}"
            )
        marks = {(offer.layer_group, begin + i) for i in range(offer.page_count)}
        if marks & pull.covered:
            raise TransferError(f"{where}: offered before under another id")
        pull.covered |= marks
        return message.pages[begin : begin + offer.page_count]

    async def _import(
        self,
        pull: _Pull,
        peer: Peer,
        transport: Transport,
        offer: transfer_pb2.Offer,
        pages: tuple[int, ...],
        slots: asyncio.Semaphore,
        stub: Any,
        tasks: asyncio.TaskGroup,
    ) -> None:
        """Fetches one offer, has it written and verified, and lets the owner free it."""
        async with slots:
            self._busy(pull, 1)
            try:
                arrays = await self._fetch(pull, peer, transport, offer)
                verified: asyncio.Future[None] = self._loop.create_future()
                delivery = Delivery(
                    pull.message.request,
                    offer.layer_group,
                    pages,
                    pull.heads_per_chunk,
                    arrays,
                    tuple(offer.checksums),
                    pull.gate,
                    self._threads,
                    self._loop,
                    verified,
                )
                self._events.deliver(delivery)
                await verified
            finally:
                self._busy(pull, -1)
        pull.verified.append(offer.id)
        if not pull.releasing:
            pull.releasing = True
            tasks.create_task(self._release_verified(pull, stub))

    async def _fetch(
        self, pull: _Pull, peer: Peer, transport: Transport, offer: transfer_pb2.Offer
    ) -> tuple[jax.Array, ...]:
        """One array for each destination: a chunk is fetched once, and copied to its further holders here."""
        destinations = self._mover.destinations(pull.heads_per_chunk)
        first: dict[int, jax.Device] = {}
        for chunk, device in destinations:
            first.setdefault(chunk, device)
        left = remaining(pull.message.deadline, self._clock.now())
        timeout = self._limits.fetch_seconds if left is None else min(left, self._limits.fetch_seconds)
        spec = OfferSpec(offer.id, tuple(offer.shape), offer.dtype, len(first))
        chunks = await transport.fetch(peer, spec, tuple(first.values()), timeout)
        moved = sum(chunk.nbytes for chunk in chunks)
        pull.bytes_moved += moved
        self.bytes_received += moved
        if len(destinations) == len(chunks):
            return chunks

        def spread() -> tuple[jax.Array, ...]:
            return tuple(
                chunks[chunk] if device == first[chunk] else jax.device_put(chunks[chunk], device)
                for chunk, device in destinations
            )

        return await self._loop.run_in_executor(self._threads, spread)

    def _check_complete(self, pull: _Pull, final: transfer_pb2.Final) -> None:
        wanted = len(pull.message.pages) * len(self.header.layer_groups)
        if len(pull.seen) != final.offers or len(pull.covered) != wanted:
            raise TransferError(
                f"{pull.message.source_instance} closed the transfer after {len(pull.covered)} of {wanted} pages "
                f"(times layer groups) in {len(pull.seen)} offers; it says that it made {final.offers}"
            )

    async def _release_verified(self, pull: _Pull, stub: Any) -> None:
        """Releases what is verified by now, and again what is by then; one call at a time."""
        while pull.verified:
            await self._release(pull, stub, None)
        pull.releasing = False

    async def _release(self, pull: _Pull, stub: Any, outcome: transfer_pb2.Outcome | None) -> None:
        offers, pull.verified = pull.verified, []
        request = transfer_pb2.ReleaseRequest(owner=pull.owner, key=pull.message.source_key, offers=offers, outcome=outcome)
        try:
            await stub.Release(request, timeout=self._limits.release_seconds)
        except grpc.aio.AioRpcError as error:
            # What was released here is verified: if the owner is gone now, nothing is missing, and its lease ends by itself.
            log.warning("release of %s at %s: %s", pull.message.request, pull.message.source_instance, error.details())

    async def _next(self, call: Any) -> transfer_pb2.TransferEvent:
        """The next event. Silence, an error status and an end without a final record are errors."""
        try:
            event = await asyncio.wait_for(call.read(), self._limits.idle_seconds)
        except TimeoutError:
            raise TransferTimeoutError(f"the owner was silent for {self._limits.idle_seconds:g} s") from None
        except grpc.aio.AioRpcError as error:
            raise error_from_call(error.code(), error.details(), error.trailing_metadata()) from error
        if event is grpc.aio.EOF:
            raise TransferError("the owner ended the transfer without a final record")
        return event

    def _busy(self, pull: _Pull, change: int) -> None:
        now = self._clock.now()
        if pull.busy:
            pull.busy_seconds += now - pull.busy_since
        pull.busy += change
        pull.busy_since = now


def _closed(closed: transfer_pb2.Closed) -> TriptychError:
    """The owner ended the staging; with status OK that still means: not everything was pulled."""
    status = Status.CANCELLED if closed.status == Status.OK else Status(closed.status)
    return error_for(status, f"the owner ended the staging: {closed.reason}")


def _first_error(group: BaseExceptionGroup[BaseException]) -> TriptychError:
    """The typed error of a failed task group; tasks fail together, and the first one is the cause."""
    for error in group.exceptions:
        if isinstance(error, TriptychError):
            return error
    cause = group.exceptions[0]
    log.error("pull task failed", exc_info=cause)
    return TransferError(f"{type(cause).__name__}: {cause}")
