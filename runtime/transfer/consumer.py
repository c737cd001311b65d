"""The puller's end of a transfer: the live pulls of one instance, and how each ends.

A pull (see `pull`) ends in exactly one of `done` and `failed`, unless `cancel` ends it first: then neither is called, because the request's
id may already be in use again. Whatever way it ends, no page is written afterwards (see `delivery`).
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Mapping
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any, Protocol

import grpc

from triptych.proto.v1 import common_pb2, transfer_pb2, transfer_pb2_grpc
from triptych.runtime.core.clock import Clock
from triptych.runtime.core.errors import InvalidRequestError, Status, TransferError, TriptychError
from triptych.runtime.core.instance import TransportKind
from triptych.runtime.instance.messages import KeepStaged, StartPull
from triptych.runtime.instance.plan import Pool
from triptych.runtime.transfer.delivery import Delivery
from triptych.runtime.transfer.header import KvHeader
from triptych.runtime.transfer.pull import Pull, PullLimits, PullSetting, PullStats
from triptych.runtime.transfer.transports.base import Transport
from triptych.runtime.transfer.transports.grpc import Channels

if TYPE_CHECKING:
    from triptych.runtime.engine.page_programs import PageMover

log = logging.getLogger(__name__)

DEFAULT_LIMITS = PullLimits()

PullName = tuple[str, int]


class ConsumerEvents(Protocol):
    """What a consumer tells its instance. Called on the event loop; must return at once."""

    def deliver(self, delivery: Delivery) -> None:
        """Have the device loop call `delivery.scatter`."""
        ...

    def done(self, pull: StartPull, final: bytes, stats: PullStats) -> None:
        """Every page is there and verified, and the owner is being told. `final` is what it passed to `complete`."""
        ...

    def withdrawn(self, pull: StartPull, reason: str) -> None:
        """The owner ended the staging on purpose (nothing is left to decode, or the request was cancelled). Not a failure: the
        scheduler, which knows why, decides what becomes of the reservation. No page is written any more."""
        ...

    def failed(self, pull: StartPull, status: Status, reason: str) -> None:
        """The pull ended for good; no page is written any more."""
        ...


class TransferConsumer:
    """Pulls of one instance; for the arguments see `PullSetting`."""

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
        limits: PullLimits = DEFAULT_LIMITS,
    ):
        self._setting = PullSetting(header, mover, transports, channels, events.deliver, clock, threads, loop, limits)
        self._events = events
        self._loop = loop
        self._lock = threading.Lock()
        self._pulls: dict[PullName, Pull] = {}
        self._tasks: dict[Pull, asyncio.Task[None]] = {}
        self._keeping: set[asyncio.Task[None]] = set()
        self._ended_bytes = 0

    @property
    def pulls(self) -> int:
        """Pulls that have not ended."""
        return len(self._pulls)

    @property
    def bytes_received(self) -> int:
        """By all pulls so far, failed ones included."""
        return self._ended_bytes + sum(pull.bytes_moved for pull in tuple(self._tasks))

    def start(self, message: StartPull, kind: TransportKind) -> None:
        """Begins a pull by a transport; returns at once. From any thread. InvalidRequestError if one of its name lives."""
        pull, name = Pull(self._setting, message, kind), name_of(message)
        with self._lock:
            if name in self._pulls:
                raise InvalidRequestError(f"request {message.request} is being pulled already")
            self._pulls[name] = pull
        self._loop.call_soon_threadsafe(self._begin, pull)

    def keep(self, message: KeepStaged) -> None:
        """Tells an owner that these of its stagings will be pulled later; returns at once. From any thread. Whether that got through shows
        when they are pulled: it is said again before their leases end."""
        self._loop.call_soon_threadsafe(self._begin_keeping, message)

    def _begin_keeping(self, message: KeepStaged) -> None:
        task = self._loop.create_task(self._keep(message), name=f"keep what {message.owner.id} staged")
        self._keeping.add(task)
        task.add_done_callback(self._keeping.discard)

    async def _keep(self, message: KeepStaged) -> None:
        owner = common_pb2.InstanceRef(id=message.owner.id, epoch=message.owner.epoch)
        stub: Any = transfer_pb2_grpc.TransferStub(self._setting.channels(message.address))  # type: ignore[no-untyped-call]
        try:
            request = transfer_pb2.ExtendRequest(owner=owner, keys=message.keys)
            await stub.Extend(request, timeout=self._setting.limits.release_seconds)
        except grpc.aio.AioRpcError as error:
            log.debug("what %s staged may not be kept: %s", message.owner.id, error.details())

    def cancel(self, request: str, key: int = 0) -> bool:
        """Ends a pull from any thread: once this returned True, no page is written and nothing is reported. False if there was none.

        `key` as in `name_of`.
        """
        with self._lock:
            pull = self._pulls.pop((request, key), None)
            if pull is None or not pull.gate.shut():
                return False
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop, pull)
        return True

    def cancel_all(self) -> None:
        """`cancel` for every pull: the pools they fill are lost."""
        for request, key in tuple(self._pulls):
            self.cancel(request, key)

    async def close(self) -> None:
        """Cancels every pull and waits until their calls are ended."""
        self.cancel_all()
        tasks = (*self._tasks.values(), *self._keeping)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, pull: Pull) -> None:
        task = self._loop.create_task(self._follow(pull), name=f"pull {pull.message.request}")
        self._tasks[pull] = task
        task.add_done_callback(lambda _: self._forget(pull))

    def _forget(self, pull: Pull) -> None:
        self._ended_bytes += pull.bytes_moved
        del self._tasks[pull]

    def _stop(self, pull: Pull) -> None:
        task = self._tasks.get(pull)
        if task is not None and pull.began:  # one that did not begin sees the shut gate, and tells the owner
            task.cancel()

    async def _follow(self, pull: Pull) -> None:
        status, reason = Status.CANCELLED, "the pull was cancelled"
        try:
            if pull.gate.is_open:
                final, stats = await pull.run()
                status, reason = Status.OK, ""
                if self._end(pull):
                    self._events.done(pull.message, final, stats)
        except TriptychError as error:
            status, reason = error.status, error.message
            self._fail(pull, error)
        except Exception as error:  # a bug must end this pull with a reason, not hold a reservation for ever
            log.exception("pull of request %s", pull.message.request)
            status, reason = Status.INTERNAL, f"{type(error).__name__}: {error}"
            self._fail(pull, TransferError(reason))
        finally:
            await pull.leave(status, reason)

    def _fail(self, pull: Pull, error: TriptychError) -> None:
        if not self._end(pull):
            return
        if error.status is Status.CANCELLED:
            self._events.withdrawn(pull.message, error.message)
        else:
            self._events.failed(pull.message, error.status, error.message)

    def _end(self, pull: Pull) -> bool:
        """Takes the pull's single end; False if it was cancelled."""
        with self._lock:  # both at once: `cancel` on the device loop must find the pull live and listed, or neither
            if not pull.gate.shut():
                return False
            del self._pulls[name_of(pull.message)]
        return True


def name_of(message: StartPull) -> PullName:
    """What tells a pull from the others of its instance: the request and, for embeddings, of which it may have several, their key."""
    return (message.request, message.source_key if message.pool is Pool.MEDIA else 0)
