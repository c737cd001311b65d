"""The gateway's one stream to the scheduler: submissions, declarations, resumptions and cancellations up, notices down.

The link counts as connected once the scheduler has answered the greeting. When the stream breaks, requests wait and the link reconnects with
backoff, to the same scheduler or to a new one that knows nothing; the listener then tells it of every request that is open.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Protocol

import grpc

from triptych.proto.v1 import control_pb2, control_pb2_grpc
from triptych.runtime.core.clock import Clock
from triptych.runtime.core.control import GatewayNotice
from triptych.runtime.core.errors import InvalidRequestError, OverloadedError
from triptych.runtime.core.standing import Told
from triptych.runtime.gateway.config import GatewayConfig
from triptych.runtime.gateway.links import Backoff, Connect, describe
from triptych.runtime.wire.convert import decode_oneof, encode_oneof
from triptych.runtime.wire.ended import CallEnd
from triptych.runtime.wire.status import typed_error

logger = logging.getLogger(__name__)

GOOD_BYE = 1.0  # seconds that the last messages get on their way out


class SchedulerListener(Protocol):
    def on_connected(self) -> None:
        """The scheduler is there; `send` reaches it."""
        ...

    def on_notice(self, notice: GatewayNotice) -> None: ...

    def on_lost(self) -> None:
        """It was there, and is not any more."""
        ...


class SchedulerLink:
    """Keeps the stream up from `start` to `stop`.

    Args:
        gateway: this gateway's id.
        metadata: sent with every call (authentication).
    """

    def __init__(
        self,
        gateway: str,
        config: GatewayConfig,
        clock: Clock,
        listener: SchedulerListener,
        connect: Connect,
        metadata: tuple[tuple[str, str], ...] = (),
    ):
        self._gateway = gateway
        self._config = config
        self._clock = clock
        self._listener = listener
        self._metadata = metadata
        self._channel = connect(config.scheduler)
        self._stub = control_pb2_grpc.ControlStub(self._channel)
        self._outgoing: asyncio.Queue[control_pb2.GatewayMessage | None] | None = None  # exists while connected
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    @property
    def connected(self) -> bool:
        return self._outgoing is not None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="scheduler link")

    async def stop(self) -> None:
        """Send what is left, say good-bye, close."""
        self._stopping = True
        if self._task is not None:
            if self._outgoing is not None:
                self._outgoing.put_nowait(control_pb2.GatewayMessage(leave=control_pb2.Leave(reason="shutting down")))
                self._outgoing.put_nowait(None)
                await asyncio.wait({self._task}, timeout=GOOD_BYE)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._channel.close()

    def check_backlog(self) -> None:
        """Raises OverloadedError if the scheduler does not keep up with what it is sent."""
        if self._outgoing is not None and self._outgoing.qsize() >= self._config.max_in_flight:
            raise OverloadedError("the scheduler does not keep up; retry later", retry_after=self._config.retry_after)

    def send(self, told: Told) -> None:
        """Send a message to the scheduler, which must be there: see `connected`."""
        assert self._outgoing is not None, "not connected"
        self._outgoing.put_nowait(encode_oneof(told, control_pb2.GatewayMessage, self._clock.now()))

    async def get_cluster(self) -> control_pb2.Cluster:
        """What the scheduler knows. Raises the typed error of a failed call."""
        try:
            return await self._stub.GetCluster(control_pb2.GetClusterRequest(), timeout=5.0, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise typed_error(error) from error

    async def _run(self) -> None:
        backoff = Backoff(self._config)
        while True:
            reason = await self._converse(backoff)
            if self._stopping:
                return
            logger.warning("scheduler %s: %s", self._config.scheduler, reason)
            await asyncio.sleep(backoff.next())

    async def _converse(self, backoff: Backoff) -> str:
        """One life of the stream; returns why it ended."""
        await self._channel.channel_ready()
        outgoing: asyncio.Queue[control_pb2.GatewayMessage | None] = asyncio.Queue()
        outgoing.put_nowait(control_pb2.GatewayMessage(hello=control_pb2.Hello(gateway=self._gateway)))
        call = self._stub.Gateway(_drain(outgoing), metadata=self._metadata)
        end = CallEnd(call)
        reason = "the scheduler closed the stream"
        try:
            async for message in call:
                if self._outgoing is None:  # it answers the greeting with the directory
                    backoff.reset()
                    self._outgoing = outgoing
                    self._listener.on_connected()
                self._listener.on_notice(decode_oneof(message, self._clock.now()))
        except grpc.aio.AioRpcError as error:
            reason = describe(await end.error(error))
        except InvalidRequestError as error:  # a notice that this version cannot read: the two do not belong together
            reason = error.message
        except (
            Exception
        ) as error:  # the link must survive a defect of whoever listens: a dead one would leave every request waiting
            logger.exception("a notice could not be handled")
            reason = f"a notice could not be handled: {type(error).__name__}"
        finally:
            call.cancel()
            outgoing.put_nowait(None)  # or what feeds the call waits for ever: gRPC does not end it with the call
            if self._outgoing is not None:
                self._outgoing = None
                self._listener.on_lost()
        return reason


async def _drain(queue: asyncio.Queue[control_pb2.GatewayMessage | None]) -> AsyncIterator[control_pb2.GatewayMessage]:
    while (message := await queue.get()) is not None:
        yield message
