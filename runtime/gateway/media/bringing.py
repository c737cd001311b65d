"""Brings pixels to the encode instances that lack them (MediaNeeded), over the channels on which their workers' tokens come.

One push serves all requests that need the same piece on the same instance, and is tried again, with growing waits, while one of them is still at the
attempt that needs it. The receiver is asked first: what it has, or another gateway is bringing, is not sent.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc

from triptych.proto.v1 import common_pb2, worker_pb2
from triptych.runtime.core.control import Directory, MediaNeeded
from triptych.runtime.core.instance import InstanceRef
from triptych.runtime.gateway.config import GatewayConfig
from triptych.runtime.gateway.links import Backoff, describe
from triptych.runtime.gateway.media.pieces import Piece
from triptych.runtime.wire.ended import CallEnd

logger = logging.getLogger(__name__)

ROOM_WAIT = (
    1.0  # seconds at most between two tries while the receiver has no room, which changes with every step that it takes
)
PART = 256 * 2**10  # bytes of a message: small enough that nothing else on the loop or the connection waits for it
HOPELESS = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
    }
)
"""What the same push would be answered again. The encode task then ends without its pixels, and prefill wants the item elsewhere."""


class WorkerCalls(Protocol):
    """Calls to workers by address."""

    def put_media(self, address: str, timeout: float) -> Any:
        """A PutMedia call, or None if no such worker is known now."""
        ...


@dataclass(frozen=True)
class Claim:
    """A request's interest in a push. `alive`: whether it is still at the attempt that asked."""

    request: str
    alive: Callable[[], bool]


Key = tuple[InstanceRef, str]


@dataclass
class _Push:
    """One piece on its way to one instance.

    `crowded`: the last try found no room. `sent`: all of it was written, and the answer is awaited. `late`: a request asked after that; what it
    lacks may be what came before. `asked`: requests that have asked for it so far.
    """

    address: str
    piece: Piece
    claims: dict[str, Claim] = field(default_factory=dict)
    task: asyncio.Task[None] | None = None
    crowded: bool = False
    sent: bool = False
    late: bool = False
    asked: int = 0

    @property
    def wanted(self) -> bool:
        return any(claim.alive() for claim in self.claims.values())


@dataclass
class PushCounts:
    """What happened so far, in pieces and bytes. `crowded`: tries that found no room; they are repeated."""

    brought: int = 0
    not_wanted: int = 0
    crowded: int = 0
    failed: int = 0
    bytes: int = 0


class MediaCourier:
    """All pushes of one gateway. From the event loop only."""

    def __init__(self, config: GatewayConfig, calls: WorkerCalls):
        self._config = config
        self._calls = calls
        self._pushes: dict[Key, _Push] = {}
        self._turns: dict[str, asyncio.Semaphore] = {}
        self.counts = PushCounts()

    @property
    def active(self) -> int:
        """Pushes that are not over."""
        return len(self._pushes)

    def bring(self, needed: MediaNeeded, pieces: Sequence[Piece], alive: Callable[[], bool]) -> None:
        """Bring the pieces of these items. `pieces` are those of the request, `alive` tells whether it still needs them."""
        for index in needed.items:
            if not 0 <= index < len(pieces):
                logger.warning("%s needs item %d; it has %d", needed.request, index, len(pieces))
                continue
            key = (needed.encode, pieces[index].hash)
            push = self._pushes.get(key)
            if push is None:
                push = self._pushes[key] = _Push(needed.address, pieces[index])
                push.task = asyncio.create_task(self._run(key, push), name=f"push {pieces[index].hash}")
            push.late = push.late or push.sent
            push.asked += 1
            push.claims[needed.request] = Claim(needed.request, alive)

    def forget(self, request: str) -> None:
        """The request has ended: what only it needed is given up."""
        for key, push in list(self._pushes.items()):
            if push.claims.pop(request, None) is not None and not push.claims:
                self._give_up(key, push)

    def follow(self, directory: Directory) -> None:
        """What goes to an incarnation that another one has replaced is given up: it would be refused for ever."""
        now = {info.ref.id: info.ref for info in directory.instances}
        for key, push in list(self._pushes.items()):
            if now.get(key[0].id, key[0]) != key[0]:
                self._give_up(key, push)
        here = {info.address for info in directory.instances} | {push.address for push in self._pushes.values()}
        self._turns = {address: turn for address, turn in self._turns.items() if address in here}

    async def close(self) -> None:
        tasks = [push.task for push in self._pushes.values() if push.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _give_up(self, key: Key, push: _Push) -> None:
        """At once: who asks next must not join what is being cancelled."""
        del self._pushes[key]
        if push.task is not None:
            push.task.cancel()

    async def _run(self, key: Key, push: _Push) -> None:
        backoff = Backoff(self._config)
        try:
            while push.wanted:
                async with self._turn(push.address):
                    push.sent = push.late = push.crowded = False
                    if not push.wanted or (await self._tried(key[0], push) and not push.late):
                        return
                wait = backoff.next()
                await asyncio.sleep(min(wait, ROOM_WAIT) if push.crowded else wait)
        finally:
            if self._pushes.get(key) is push:
                del self._pushes[key]

    def _turn(self, address: str) -> asyncio.Semaphore:
        """At most so many pushes to one worker at once; the others wait."""
        if address not in self._turns:
            self._turns[address] = asyncio.Semaphore(self._config.media_pushes)
        return self._turns[address]

    async def _tried(self, owner: InstanceRef, push: _Push) -> bool:
        """One try; whether there is nothing more to do."""
        call = self._calls.put_media(push.address, self._config.media_push_timeout)
        if call is None:
            return False  # its directory is still on its way, or it is gone and the scheduler will say so
        end = CallEnd(call)
        try:
            return await self._send(call, owner, push)
        except grpc.aio.AioRpcError as raised:
            error = await end.error(raised)
            if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:  # back-pressure, and no trouble
                push.crowded = True
                self.counts.crowded += 1
                return False
            self.counts.failed += 1
            logger.warning("media for %s at %s: %s", owner.id, push.address, describe(error))
            return error.code() in HOPELESS
        except asyncio.CancelledError:  # so grpc also says that the channel was closed
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            self.counts.failed += 1
            logger.warning("media for %s at %s: its channel was closed", owner.id, push.address)
            return False
        except Exception:  # a defect must not leave the push without its end
            self.counts.failed += 1
            logger.exception("media for %s at %s", owner.id, push.address)
            return False
        finally:
            call.cancel()

    async def _send(self, call: Any, owner: InstanceRef, push: _Push) -> bool:
        """Ask, and send what is wanted. Raises AioRpcError."""
        piece, asked = push.piece, push.asked
        header = worker_pb2.MediaHeader(
            owner=common_pb2.InstanceRef(id=owner.id, epoch=owner.epoch),
            hash=piece.hash,
            shape=piece.shape,
            grid=piece.pixel_grid,
            checksum=piece.checksum,
        )
        await _written(call, worker_pb2.PutMediaRequest(header=header))
        answer = await _read(call)
        if answer is not None and not answer.wanted:
            self.counts.not_wanted += 1
            return push.asked == asked  # who asked since may lack what nobody lacked when that was answered
        if answer is None:
            self.counts.failed += 1
            return False
        for at in range(0, len(piece.data), PART):
            if not push.wanted:
                return True
            await _written(call, worker_pb2.PutMediaRequest(data=piece.data[at : at + PART]))
        push.sent = True
        await call.done_writing()
        answer = await _read(call)
        if answer is None or not answer.stored:
            self.counts.failed += 1
            return False
        self.counts.brought += 1
        self.counts.bytes += len(piece.data)
        return True


async def _read(call: Any) -> worker_pb2.PutMediaReply | None:
    """The next reply; None if the call ended well without one. Raises AioRpcError if it did not."""
    answer = await call.read()
    return answer if isinstance(answer, worker_pb2.PutMediaReply) else None


async def _written(call: Any, message: worker_pb2.PutMediaRequest) -> None:
    """Write; if the call is over already, raise how it ended."""
    try:
        await call.write(message)
    except asyncio.InvalidStateError:
        await call.read()  # raises the status
        raise
