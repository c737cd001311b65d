"""The Control service: a peer's life is the life of its stream.

A worker's or gateway's first message names it; from then on its messages are events and what the scheduler says to it goes down the same
stream. When the stream ends, that end is an event too, which says whether the peer had said good-bye. A peer that connects under a name that is in
use takes over: the old stream cannot be of use to anybody who connects again. Not so a worker none of whose instances is known, while the one
that has the name goes on sending signs of life: these are two processes, and the second is refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import NoReturn, TypeVar

import grpc

from triptych.proto.v1 import common_pb2, control_pb2
from triptych.runtime.core.control import (
    Cancel,
    Declare,
    GatewayJoined,
    GatewayLeft,
    GatewayLost,
    Reported,
    Resume,
    RolesRefused,
    Submit,
    WorkerJoined,
    WorkerLeft,
    WorkerLost,
)
from triptych.runtime.core.errors import IncompatibleError, InstanceLostError, InvalidRequestError, TriptychError
from triptych.runtime.core.instance import InstanceRef, Role
from triptych.runtime.scheduler.control_loop import ControlLoop
from triptych.runtime.wire.convert import decode, decode_oneof, encode
from triptych.runtime.wire.outbox import Outbox

WORKER_OUTBOX = 16_384  # commands; several for each of the most requests that one worker can hold
GATEWAY_OUTBOX = 65_536  # notices; about five a request
MOST_DOUBT = 5.0  # seconds that a worker may have to wait for its welcome; it gives up after 10

M = TypeVar("M")


class ControlServicer:
    """Methods of triptych.v1.Control; mounted by wire.handlers.service_handler, which turns what they raise into statuses."""

    def __init__(self, control: ControlLoop):
        self._control = control

    async def Worker(
        self, request_iterator: AsyncIterator[control_pb2.WorkerMessage], context: grpc.aio.ServicerContext
    ) -> None:
        first = await _first(request_iterator)
        if first.WhichOneof("kind") != "worker_joined":
            raise InvalidRequestError("the first message of a worker must be worker_joined")
        joined = decode(first.worker_joined, WorkerJoined, self._control.now())
        if not joined.worker:
            raise InvalidRequestError("worker_joined names no worker")
        await self._check_name(joined)
        outbox: Outbox[control_pb2.WorkerCommand] = Outbox(f"worker {joined.worker}", WORKER_OUTBOX)
        _take_over(self._control.workers, joined.worker, outbox)
        interval = self._control.scheduler.config.heartbeat_interval
        outbox.put(control_pb2.WorkerCommand(welcome=control_pb2.Welcome(heartbeat_interval=interval)))
        end: WorkerLeft | WorkerLost = WorkerLost(joined.worker, "its stream was cut off")
        try:
            self._control.feed(joined)
            if outbox.error is not None:  # dropped at once: the reason comes instead of a welcome
                raise outbox.error
            end = (
                await outbox.converse(context.write, self._hear_worker(joined.worker, outbox, request_iterator)) or end
            )
        except TriptychError as error:
            end = WorkerLost(joined.worker, error.message)
            raise
        finally:
            if self._control.workers.get(joined.worker) is outbox:
                del self._control.workers[joined.worker]
                self._control.feed(end)

    async def Gateway(
        self, request_iterator: AsyncIterator[control_pb2.GatewayMessage], context: grpc.aio.ServicerContext
    ) -> None:
        first = await _first(request_iterator)
        if first.WhichOneof("kind") != "hello" or not first.hello.gateway:
            raise InvalidRequestError("the first message of a gateway must be hello with its id")
        gateway = first.hello.gateway
        outbox: Outbox[control_pb2.GatewayNotice] = Outbox(f"gateway {gateway}", GATEWAY_OUTBOX)
        _take_over(self._control.gateways, gateway, outbox)
        end: GatewayLeft | GatewayLost = GatewayLost(gateway)
        try:
            self._control.feed(GatewayJoined(gateway))
            end = await outbox.converse(context.write, self._hear_gateway(gateway, outbox, request_iterator)) or end
        finally:
            if self._control.gateways.get(gateway) is outbox:
                del self._control.gateways[gateway]
                self._control.feed(end)

    async def GetCluster(
        self, request: control_pb2.GetClusterRequest, context: grpc.aio.ServicerContext
    ) -> control_pb2.Cluster:
        shown = self._control.snapshot()
        reply = control_pb2.Cluster(queued=shown.queued, active=shown.active, counters=dict(shown.counters))
        for one in shown.instances:
            reply.instances.add(
                info=encode(one.info, common_pb2.InstanceInfo, 0.0),
                load=encode(one.load, common_pb2.Load, 0.0),
                heartbeat_age=max(0.0, one.heartbeat_age),
                tasks=one.tasks,
                state=one.state,
            )
        return reply

    async def Drain(self, request: control_pb2.DrainRequest, context: grpc.aio.ServicerContext) -> control_pb2.Drained:
        seconds = await self._control.drain(request.instance, None, force=request.force)
        return control_pb2.Drained(seconds=seconds)

    async def SwitchRole(
        self, request: control_pb2.SwitchRoleRequest, context: grpc.aio.ServicerContext
    ) -> control_pb2.Drained:
        roles = frozenset(_role(name) for name in request.roles)
        seconds = await self._control.drain(request.instance, roles, force=request.force)
        return control_pb2.Drained(seconds=seconds)

    # ---- workers

    async def _check_name(self, joined: WorkerJoined) -> None:
        """Raises IncompatibleError if another process, alive, has the name of `joined`: it was heard after this one had said hello."""
        holder = self._control.workers.get(joined.worker)
        if holder is None or any(self._control.scheduler.worker_of(i.ref) == joined.worker for i in joined.instances):
            return
        interval = self._control.scheduler.config.heartbeat_interval
        doubt = min(3 * interval, MOST_DOUBT)
        await asyncio.sleep(doubt)
        # A third of the time is for what the old one had sent before it died, and for its stream to end; two heartbeats fit into the rest.
        if self._control.workers.get(joined.worker) is holder and self._control.silence(joined.worker) < doubt * 2 / 3:
            raise IncompatibleError(
                f"another process is registered as worker {joined.worker!r}, and alive; give each worker a name of its own"
            )

    async def _hear_worker(
        self, worker: str, outbox: Outbox[control_pb2.WorkerCommand], messages: AsyncIterator[control_pb2.WorkerMessage]
    ) -> WorkerLeft | WorkerLost:
        """Turn messages into events until the stream ends or is superseded; returns how it did."""
        async for message in messages:
            if self._control.workers.get(worker) is not outbox:  # read before a newer stream said what is true now
                break
            kind = message.WhichOneof("kind")
            if kind == "leave":
                return WorkerLeft(worker, message.leave.reason or "left")
            if kind == "worker_joined":
                raise InvalidRequestError("worker_joined came twice; a new registration needs a new stream")
            event = decode_oneof(message, self._control.now())
            if kind != "reported" and event.worker != worker:
                raise InvalidRequestError(f"{kind} names worker {event.worker!r} on the stream of {worker!r}")
            if isinstance(event, Reported | RolesRefused):
                self._check_owner(kind, worker, event.ref)
            self._control.feed(event)
        return WorkerLost(worker, "its stream ended")

    def _check_owner(self, kind: str, worker: str, ref: InstanceRef) -> None:
        """Raises InvalidRequestError if `ref` is another worker's. One that is nobody's (any more) is the scheduler's to count."""
        owner = self._control.scheduler.worker_of(ref)
        if owner not in (None, worker):
            raise InvalidRequestError(f"{kind} names instance {ref.id} of worker {owner!r} on the stream of {worker!r}")

    # ---- gateways

    async def _hear_gateway(
        self,
        gateway: str,
        outbox: Outbox[control_pb2.GatewayNotice],
        messages: AsyncIterator[control_pb2.GatewayMessage],
    ) -> GatewayLeft | GatewayLost:
        """Turn messages into events until the stream ends or is superseded; returns how it did."""
        async for message in messages:
            if self._control.gateways.get(gateway) is not outbox:
                break
            kind = message.WhichOneof("kind")
            if kind == "leave":
                return GatewayLeft(gateway)
            if kind == "hello":
                raise InvalidRequestError("hello came twice; a new life of a gateway needs a new stream")
            event: Submit | Declare | Resume | Cancel = decode_oneof(message, self._control.now())
            if not isinstance(event, Cancel) and event.request.gateway != gateway:
                raise InvalidRequestError(
                    f"request {event.request.id!r} names gateway {event.request.gateway!r}, not {gateway!r}"
                )
            self._control.feed(event)
        return GatewayLost(gateway)


def _role(name: str) -> Role:
    try:
        return Role(name)
    except ValueError:
        raise InvalidRequestError(f"unknown role {name!r}; expected one of {', '.join(Role)}") from None


async def _first(messages: AsyncIterator[M]) -> M:
    async for message in messages:
        return message
    _no_message()


def _no_message() -> NoReturn:
    raise InvalidRequestError("the stream ended before its first message")


def _take_over(streams: dict[str, Outbox[M]], name: str, outbox: Outbox[M]) -> None:
    old = streams.get(name)
    streams[name] = outbox
    if old is not None:
        old.close(InstanceLostError(f"{name} connected again; this stream is superseded"))
