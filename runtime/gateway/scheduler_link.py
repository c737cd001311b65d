"""The gateway's one stream to the scheduler: submissions and cancellations up, notices down.

The life of the stream is the life of the gateway in the scheduler's eyes: when it breaks, the scheduler aborts everything this gateway
submitted, so here every open request fails at once and the link reconnects with backoff.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Protocol

import grpc

from triptych.proto.v1 import control_pb2, control_pb2_grpc
from triptych.runtime.core.clock import Clock
from triptych.runtime.core.control import Cancel, GatewayNotice, Submit
from triptych.runtime.core.errors import InstanceLostError, InvalidRequestError, OverloadedError
from triptych.runtime.core.request import Request
from triptych.runtime.gateway.config import GatewayConfig
from triptych.runtime.gateway.links import Backoff, Connect, describe
from triptych.runtime.wire.convert import decode_oneof, encode_oneof
from triptych.runtime.wire.status import error_from_call

logger = logging.getLogger(__name__)


class SchedulerListener(Protocol):
    def on_connected(self) -> None: ...

    def on_notice(self, notice: GatewayNotice) -> None: ...

    def on_lost(self, reason: str) -> None: ...


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
        self._outgoing: asyncio.Queue[control_pb2.GatewayMessage] | None = None  # exists while connected
        self._task: asyncio.Task[None] | None = None

    @property
    def connected(self) -> bool:
        return self._outgoing is not None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="scheduler link")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._channel.close()

    def submit(self, request: Request) -> None:
        """Hand a request over. Raises InstanceLostError without a scheduler, OverloadedError if it does not keep up."""
        if self._outgoing is None:
            raise InstanceLostError(
                f"the scheduler at {self._config.scheduler} cannot be reached; retry later", retry_after=1.0
            )
        if self._outgoing.qsize() >= self._config.max_in_flight:
            raise OverloadedError("the scheduler does not keep up; retry later", retry_after=self._config.retry_after)
        self._send(Submit(request))

    def cancel(self, request: str, reason: str) -> None:
        """Tell the scheduler that nobody wants this request any more; without a scheduler there is nothing to tell."""
        if self._outgoing is not None:
            self._send(Cancel(request, reason))

    async def get_cluster(self) -> control_pb2.Cluster:
        """What the scheduler knows. Raises the typed error of a failed call."""
        try:
            return await self._stub.GetCluster(control_pb2.GetClusterRequest(), timeout=5.0, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise error_from_call(error.code(), error.details(), error.trailing_metadata()) from error

    def _send(self, event: Submit | Cancel) -> None:
        assert self._outgoing is not None
        self._outgoing.put_nowait(encode_oneof(event, control_pb2.GatewayMessage, self._clock.now()))

    async def _run(self) -> None:
        backoff = Backoff(self._config)
        while True:
            reason = await self._converse(backoff)
            logger.warning("scheduler %s: %s", self._config.scheduler, reason)
            await asyncio.sleep(backoff.next())

    async def _converse(self, backoff: Backoff) -> str:
        """One life of the stream; returns why it ended."""
        await self._channel.channel_ready()
        outgoing: asyncio.Queue[control_pb2.GatewayMessage] = asyncio.Queue()
        outgoing.put_nowait(control_pb2.GatewayMessage(hello=control_pb2.Hello(gateway=self._gateway)))
        call = self._stub.Gateway(_drain(outgoing), metadata=self._metadata)
        self._outgoing = outgoing
        reason = "the scheduler closed the stream"
        try:
            self._listener.on_connected()
            async for message in call:
                backoff.reset()
                self._listener.on_notice(decode_oneof(message, self._clock.now()))
        except grpc.aio.AioRpcError as error:
            reason = describe(error)
        except InvalidRequestError as error:  # a notice that this version cannot read: the two do not belong together
            reason = error.message
        except (
            Exception
        ) as error:  # the link must survive a defect of whoever listens: a dead one would leave every request waiting
            logger.exception("a notice could not be handled")
            reason = f"a notice could not be handled: {type(error).__name__}"
        finally:
            call.cancel()
            self._outgoing = None
            self._listener.on_lost(reason)
        return reason


async def _drain(queue: asyncio.Queue[control_pb2.GatewayMessage]) -> AsyncIterator[control_pb2.GatewayMessage]:
    while True:
        yield await queue.get()
