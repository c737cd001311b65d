"""A follower's half of the stream to its leader: joining, meeting the others, and the leader's calls as they come.

Lives on the asyncio loop on which it is made. The thread that builds the instance calls `meet`; `on_call` gets the device calls, in order, on the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Any

import grpc

from triptych.proto.v1 import hosts_pb2, hosts_pb2_grpc
from triptych.runtime.core.errors import InstanceLostError, InvalidRequestError
from triptych.runtime.transfer.channels import CLIENT_OPTIONS
from triptych.runtime.wire.auth import bearer_client_interceptors
from triptych.runtime.wire.ended import CallEnd
from triptych.runtime.wire.status import typed_error
from triptych.runtime.wire.tls import Tls, open_channel
from triptych.runtime.worker.hosts.config import BEAT, SILENCE, HostsConfig

log = logging.getLogger(__name__)

RETRY = 0.5  # seconds between attempts to join: the leader may start later, or have to notice that this host had died
FAREWELL = 2.0  # seconds that saying why it ends may take

OPTIONS: tuple[tuple[str, int], ...] = (
    *CLIENT_OPTIONS,
    ("grpc.max_receive_message_length", -1),  # the chunks of an offer come in one message, and the leader is trusted
)


class Follower:
    """One follower; `join`, then `listen` until the instance ends.

    Args:
        settings: what decides here what the devices compute (settings.py).
        token, tls: as on other connections inside a deployment.
    """

    def __init__(
        self,
        hosts: HostsConfig,
        settings: Mapping[str, str],
        on_call: Callable[[hosts_pb2.DeviceCall], None],
        *,
        token: str | None = None,
        tls: Tls | None = None,
    ):
        self._hosts, self._settings, self._on_call = hosts, settings, on_call
        self._channel = open_channel(hosts.leader, tls, OPTIONS, bearer_client_interceptors(token))
        self._loop = asyncio.get_running_loop()
        self._call: Any = None
        self._end: CallEnd | None = None
        self._writing = asyncio.Lock()
        self._beating: asyncio.Task[None] | None = None
        self._points: dict[str, asyncio.Future[int]] = {}

    async def join(self) -> int:
        """Until the leader has all its followers: the port of jax's coordination service on the leader's host.

        A leader that is not there yet, or not ready for this host, is asked again. Raises InstanceLostError after the time that a start may take,
        IncompatibleError and the like when it refuses this host.
        """
        last, limit = "no answer", self._hosts.start_seconds
        try:
            async with asyncio.timeout(limit):
                while True:
                    try:
                        return await self._attempt()
                    except InstanceLostError as error:
                        if last != error.message:
                            log.info("host %d of %d waits: %s", self._hosts.index, self._hosts.count, error.message)
                        last = error.message
                        await asyncio.sleep(RETRY)
        except TimeoutError:
            raise InstanceLostError(
                f"host {self._hosts.index} of {self._hosts.count} could not join its leader at {self._hosts.leader} within {limit:g} s: {last}"
            ) from None

    def meet(self, point: str, number: int = 0) -> int:
        """From another thread: wait until every host has come to `point`; the least of their numbers. Without an end if the instance ends first:
        then the process ends, too."""
        return asyncio.run_coroutine_threadsafe(self._met(point, number), self._loop).result()

    async def listen(self) -> str:
        """Until the leader says that it ends: why. Raises InstanceLostError if the leader is lost."""
        try:
            while (message := await self._next()) is not None:
                match message.WhichOneof("kind"):
                    case "call":
                        self._on_call(message.call)
                    case "meet":
                        self._point(message.meet.point).set_result(message.meet.number)
                    case "living":
                        pass
                    case "farewell":
                        return message.farewell.reason
                    case other:
                        raise InvalidRequestError(f"the leader sent {other}, expected a call")
        except InstanceLostError as error:
            raise InstanceLostError(f"the leader at {self._hosts.leader} is lost: {error.message}") from error
        raise InstanceLostError(f"the leader at {self._hosts.leader} closed the stream")

    async def leave(self, reason: str) -> None:
        """Tell the leader why this host ends, if it still listens, and close."""
        if self._call is not None and not self._call.done():
            try:
                async with asyncio.timeout(FAREWELL):
                    await self._write(hosts_pb2.FollowerMessage(farewell=hosts_pb2.Farewell(reason=reason)))
                    await self._call.done_writing()
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError):
                log.debug("the leader could not be told: %s", reason)
        await self._quiet()
        await self._channel.close(FAREWELL)

    # ---- on the loop

    async def _attempt(self) -> int:
        hosts = self._hosts
        self._call = hosts_pb2_grpc.HostsStub(self._channel).Follow()  # type: ignore[no-untyped-call]
        self._end, self._writing = CallEnd(self._call), asyncio.Lock()
        join = hosts_pb2.Join(count=hosts.count, index=hosts.index, settings=self._settings)
        try:
            with contextlib.suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):  # it is over: the read says how
                await self._write(hosts_pb2.FollowerMessage(join=join))
            self._beating = asyncio.create_task(self._beat(), name="signs of life")
            while (message := await self._next()) is not None and message.WhichOneof("kind") == "living":
                pass
            if message is None or message.WhichOneof("kind") != "admitted":
                raise InstanceLostError(f"the leader at {hosts.leader} closed the stream")
            return message.admitted.port
        except BaseException:
            await self._quiet()
            self._call.cancel()
            raise

    async def _next(self) -> hosts_pb2.LeaderMessage | None:
        """What the leader says next; None: nothing any more. Raises the typed error with which it ended the stream, and InstanceLostError when
        nothing is heard of it."""
        assert self._end is not None, "join first"
        try:
            async with asyncio.timeout(SILENCE):
                message = await self._call.read()
        except TimeoutError:
            raise InstanceLostError(f"nothing was heard of it for {SILENCE:g} s") from None
        except grpc.aio.AioRpcError as error:
            raise typed_error(await self._end.error(error)) from error
        return message if isinstance(message, hosts_pb2.LeaderMessage) else None

    async def _write(self, message: hosts_pb2.FollowerMessage) -> None:
        async with self._writing:  # one at a time
            await self._call.write(message)

    async def _beat(self) -> None:
        """Until the stream ends, which reading notices."""
        with contextlib.suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):
            while True:
                await asyncio.sleep(BEAT)
                await self._write(hosts_pb2.FollowerMessage(living=hosts_pb2.Living()))

    async def _quiet(self) -> None:
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.gather(self._beating, return_exceptions=True)

    async def _met(self, point: str, number: int) -> int:
        await self._write(hosts_pb2.FollowerMessage(meet=hosts_pb2.Meet(point=point, number=number)))
        return await self._point(point)

    def _point(self, point: str) -> asyncio.Future[int]:
        """What comes of it."""
        if point not in self._points:
            self._points[point] = self._loop.create_future()
        return self._points[point]
