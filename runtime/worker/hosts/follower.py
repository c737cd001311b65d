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
from triptych.runtime.core.errors import InstanceLostError, InvalidRequestError, Status, TriptychError
from triptych.runtime.transfer.channels import CLIENT_OPTIONS
from triptych.runtime.wire.auth import bearer_client_interceptors
from triptych.runtime.wire.ended import CallEnd
from triptych.runtime.wire.status import typed_error
from triptych.runtime.wire.tls import Tls, open_channel
from triptych.runtime.worker.hosts.config import HostsConfig

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
            while isinstance(message := await self._call.read(), hosts_pb2.LeaderMessage):
                match message.WhichOneof("kind"):
                    case "call":
                        self._on_call(message.call)
                    case "meet":
                        self._point(message.meet.point).set_result(message.meet.number)
                    case "farewell":
                        return message.farewell.reason
                    case other:
                        raise InvalidRequestError(f"the leader sent {other}, expected a call")
        except grpc.aio.AioRpcError as error:
            raise self._leader_lost(error) from error
        raise InstanceLostError(f"the leader at {self._hosts.leader} closed the stream")

    async def leave(self, reason: str) -> None:
        """Tell the leader why this host ends, if it still listens, and close."""
        if self._call is not None and not self._call.done():
            try:
                async with asyncio.timeout(FAREWELL):
                    await self._call.write(hosts_pb2.FollowerMessage(farewell=hosts_pb2.Farewell(reason=reason)))
                    await self._call.done_writing()
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError):
                log.debug("the leader could not be told: %s", reason)
        await self._channel.close(FAREWELL)

    # ---- on the loop

    async def _attempt(self) -> int:
        hosts = self._hosts
        self._call = hosts_pb2_grpc.HostsStub(self._channel).Follow()  # type: ignore[no-untyped-call]
        self._end = CallEnd(self._call)
        join = hosts_pb2.Join(count=hosts.count, index=hosts.index, settings=self._settings)
        try:
            with contextlib.suppress(asyncio.InvalidStateError):  # it is over: the read says how
                await self._call.write(hosts_pb2.FollowerMessage(join=join))
            admitted = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise self._refusal(error) from error
        if not isinstance(admitted, hosts_pb2.LeaderMessage) or admitted.WhichOneof("kind") != "admitted":
            raise InstanceLostError(f"the leader at {hosts.leader} closed the stream")
        return admitted.admitted.port

    def _refusal(self, error: grpc.aio.AioRpcError) -> TriptychError:
        """UNAVAILABLE: it may be otherwise later."""
        assert self._end is not None
        return typed_error(self._end.error(error))

    def _leader_lost(self, error: grpc.aio.AioRpcError) -> TriptychError:
        told = self._refusal(error)
        if told.status is Status.UNAVAILABLE:
            return InstanceLostError(f"the leader at {self._hosts.leader} is lost: {told.message}")
        return told

    async def _met(self, point: str, number: int) -> int:
        meet = hosts_pb2.Meet(point=point, number=number)
        await self._call.write(hosts_pb2.FollowerMessage(meet=meet))
        return await self._point(point)

    def _point(self, point: str) -> asyncio.Future[int]:
        """What comes of it."""
        if point not in self._points:
            self._points[point] = self._loop.create_future()
        return self._points[point]
