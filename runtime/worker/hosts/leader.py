"""The leader's half of the streams to its followers: who has come, how far, and the device calls in their order.

States: *gathering* (followers come, and may go again), *complete* (all are there; the first one that goes takes the instance with it), *ended*. Lives on the
asyncio loop on which it is opened. The thread that builds the instance calls `meet`, its device loop `send`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field

import grpc

from triptych.proto.v1 import hosts_pb2
from triptych.runtime.core.errors import IncompatibleError, InstanceLostError, InvalidRequestError, TriptychError
from triptych.runtime.transfer.channels import SERVER_OPTIONS
from triptych.runtime.wire.auth import bearer_interceptor
from triptych.runtime.wire.handlers import service_handler
from triptych.runtime.wire.listening import listen
from triptych.runtime.wire.outbox import Outbox
from triptych.runtime.wire.tls import Tls
from triptych.runtime.worker.hosts.config import BEAT, SILENCE, HostsConfig
from triptych.runtime.worker.hosts.settings import differences

log = logging.getLogger(__name__)

OUTBOX = 1024  # messages; two steps and the pages that move between them are under way at most, so who falls this far behind stands still
FAREWELL = 2.0  # seconds that followers get to hear how it ended


@dataclass
class _Link:
    """A follower: where it calls from, and the numbers it brought to each point."""

    index: int
    peer: str
    outbox: Outbox[hosts_pb2.LeaderMessage]
    points: dict[str, int] = field(default_factory=dict)


class Leader:
    """Serves triptych.v1.Hosts.

    Args:
        hosts: this host; it listens on the port of `hosts.leader`.
        settings: what followers must have, too (settings.py).
        lost: called once, on the loop, with the reason, when a follower of a complete instance goes.
        host: address to listen on.
        token, tls: as on other connections inside a deployment.
    """

    def __init__(
        self,
        hosts: HostsConfig,
        settings: Mapping[str, str],
        lost: Callable[[str], None],
        *,
        host: str,
        token: str | None = None,
        tls: Tls | None = None,
    ):
        self._hosts, self._settings, self._lost, self._host, self._tls = hosts, settings, lost, host, tls
        self._server = grpc.aio.server(
            interceptors=[] if token is None else [bearer_interceptor(token)], options=SERVER_OPTIONS
        )
        self._loop = asyncio.get_running_loop()
        self._links: dict[int, _Link] = {}
        self._changed = asyncio.Event()
        self._complete = False
        self._ended: str | None = None
        self._order = 0
        self._beating: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Listen. Raises ConfigError if the address is taken."""
        self._server.add_generic_rpc_handlers((service_handler(self, hosts_pb2.DESCRIPTOR.services_by_name["Hosts"]),))
        listen(
            self._server, self._host, self._hosts.port, None if self._tls is None else self._tls.server_credentials()
        )
        await self._server.start()
        self._beating = asyncio.create_task(self._beat(), name="signs of life")

    async def gather(self, job_port: int) -> None:
        """Wait until every follower has come; then tell them where jax's coordination service is. Raises InstanceLostError naming who is missing."""
        await self._wait(lambda: len(self._links) == self._hosts.count - 1, self._missing)
        self._complete = True
        self._tell(hosts_pb2.LeaderMessage(admitted=hosts_pb2.Admitted(port=job_port)))

    def meet(self, point: str, number: int = 0) -> int:
        """From another thread: wait until every host has come to `point`; the least of their numbers. Raises InstanceLostError naming who has not."""
        return asyncio.run_coroutine_threadsafe(self._met(point, number), self._loop).result()

    def send(self, message: hosts_pb2.LeaderMessage) -> None:
        """See `DeviceCalls.send`."""
        message.call.order = self._order
        self._order += 1
        self._loop.call_soon_threadsafe(self._tell, message)

    async def close(self, reason: str, *, failed: bool = False) -> None:
        """The instance ends, and followers with it: in good order, or because something failed."""
        self._end(reason)
        for link in tuple(self._links.values()):
            if failed:
                link.outbox.close(InstanceLostError(reason))
            else:
                link.outbox.put(hosts_pb2.LeaderMessage(farewell=hosts_pb2.Farewell(reason=reason)))
        try:
            async with asyncio.timeout(FAREWELL):
                while self._links:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            log.warning("followers %s did not end within %g s", ", ".join(map(str, self._links)), FAREWELL)
        await self._server.stop(None)
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.gather(self._beating, return_exceptions=True)

    # ---- the service

    async def Follow(
        self, request: AsyncIterator[hosts_pb2.FollowerMessage], context: grpc.aio.ServicerContext
    ) -> None:
        first = await _next(request)
        if first is None or first.WhichOneof("kind") != "join":
            raise InvalidRequestError("a follower begins with join")
        link = self._admit(first.join, context.peer())
        reason = "its stream was cut off"
        try:
            reason = await link.outbox.converse(context.write, self._hear(link, request)) or reason
        except TriptychError as error:
            reason = error.message
            raise
        finally:
            del self._links[link.index]
            self._changed.set()
            if self._complete and self._ended is None:
                self._end(f"host {link.index} of {self._hosts.count} ({link.peer}) is lost: {reason}")
                self._lost(self._ended or "")

    def _admit(self, join: hosts_pb2.Join, peer: str) -> _Link:
        """Raises what a follower is refused with; UNAVAILABLE if it may come again."""
        count, index = self._hosts.count, join.index
        if join.count != count or not 0 < index < count:
            raise IncompatibleError(
                f"host {index} of {join.count} is none of the followers 1 to {count - 1} of this leader"
            )
        if found := differences(self._settings, join.settings):
            raise IncompatibleError(f"host {index} cannot follow this leader: {'; '.join(found)}")
        if self._complete or index in self._links:
            holder = self._links.get(index)
            where = "the instance is ending" if holder is None else f"there is one already, at {holder.peer}"
            raise InstanceLostError(f"host {index} of {count} is not wanted now: {where}")
        link = _Link(index, peer, Outbox(f"host {index}", OUTBOX))
        self._links[index] = link
        self._changed.set()
        log.info("host %d of %d is there, from %s", index, count, peer)
        return link

    async def _hear(self, link: _Link, request: AsyncIterator[hosts_pb2.FollowerMessage]) -> str:
        """Until it says no more: why. Raises InstanceLostError when nothing is heard of it."""
        while (message := await _next(request)) is not None:
            match message.WhichOneof("kind"):
                case "living":
                    pass
                case "meet":
                    link.points[message.meet.point] = message.meet.number
                    self._changed.set()
                case "farewell":
                    return message.farewell.reason
                case other:
                    raise InvalidRequestError(f"host {link.index} sent {other}, expected meet or farewell")
        return "it left"

    # ---- on the loop

    async def _met(self, point: str, number: int) -> int:
        def absent() -> list[int]:
            return [index for index, link in sorted(self._links.items()) if point not in link.points]

        await self._wait(lambda: not absent(), lambda: f"host {_listed(absent())} has not come to the point {point!r}")
        least = min(number, *(link.points[point] for link in self._links.values()))
        self._tell(hosts_pb2.LeaderMessage(meet=hosts_pb2.Meet(point=point, number=least)))
        return least

    async def _wait(self, found: Callable[[], bool], missing: Callable[[], str]) -> None:
        """Raises InstanceLostError after the time that a start may take, or when the instance has ended."""
        limit = self._hosts.start_seconds
        try:
            async with asyncio.timeout(limit):
                while self._ended is None and not found():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise InstanceLostError(f"{missing()} within {limit:g} s") from None
        if self._ended is not None:
            raise InstanceLostError(self._ended)

    def _missing(self) -> str:
        absent = [index for index in range(1, self._hosts.count) if index not in self._links]
        there = "".join(f", {link.index} ({link.peer})" for _, link in sorted(self._links.items()))
        return f"host {_listed(absent)} of {self._hosts.count} has not come to {self._hosts.leader} (there: 0{there})"

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT)
            self._tell(hosts_pb2.LeaderMessage(living=hosts_pb2.Living()))

    def _tell(self, message: hosts_pb2.LeaderMessage) -> None:
        for link in self._links.values():
            link.outbox.put(message)

    def _end(self, reason: str) -> None:
        if self._ended is None:
            self._ended = reason
        self._changed.set()


async def _next(request: AsyncIterator[hosts_pb2.FollowerMessage]) -> hosts_pb2.FollowerMessage | None:
    try:
        async with asyncio.timeout(SILENCE):
            return await anext(request, None)
    except TimeoutError:
        raise InstanceLostError(f"nothing was heard of it for {SILENCE:g} s") from None


def _listed(indices: list[int]) -> str:
    return " and ".join(map(str, indices))
