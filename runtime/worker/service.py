"""The Worker gRPC service of a process that owns devices: token subscriptions for gateways, exact occupancy for tools and leak checks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Protocol

import grpc

from triptych.proto.v1 import common_pb2, worker_pb2
from triptych.runtime.core.errors import InvalidRequestError, NotFoundError, OverloadedError, TransferError
from triptych.runtime.core.instance import InstanceInfo, Load
from triptych.runtime.wire.convert import encode
from triptych.runtime.worker.media_door import IDLE, MediaDoor
from triptych.runtime.worker.outbox import TokenOutboxes


@dataclass(frozen=True)
class InstanceSnapshot:
    """One instance's state at one moment between two steps. Resource and counter names are stable; values are counts or bytes."""

    info: InstanceInfo
    load: Load
    resources: Mapping[str, int] = field(default_factory=dict)
    counters: Mapping[str, int] = field(default_factory=dict)


class ServedInstance(Protocol):
    """What is asked of an instance here. `snapshot` asks its device loop and waits for the answer; `door` is None without an encoder."""

    @property
    def info(self) -> InstanceInfo: ...

    @property
    def door(self) -> MediaDoor | None: ...

    async def snapshot(self) -> InstanceSnapshot: ...


class WorkerServicer:
    """Serves `outboxes`, and of `instances`, asked at every call, the snapshots and the doors for pixels."""

    def __init__(self, outboxes: TokenOutboxes, instances: Callable[[], Sequence[ServedInstance]]):
        self._outboxes = outboxes
        self._instances = instances

    async def Subscribe(
        self, request: worker_pb2.SubscribeRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[worker_pb2.TokenBatch]:
        if not request.gateway:
            raise InvalidRequestError("Subscribe needs the gateway's id")
        # Headers first: the gateway knows that it is subscribed before it submits anything.
        await context.send_initial_metadata(())
        try:
            async with aclosing(self._outboxes.of(request.gateway).batches()) as batches:
                async for batch in batches:
                    yield batch
        except OverloadedError:
            self._outboxes.forget(request.gateway)
            raise

    async def Inspect(
        self, request: worker_pb2.InspectRequest, context: grpc.aio.ServicerContext
    ) -> worker_pb2.InspectReply:
        snapshots = await asyncio.gather(*(instance.snapshot() for instance in self._instances()))
        reply = worker_pb2.InspectReply()
        for snapshot in snapshots:
            state = reply.instances.add(
                info=encode(snapshot.info, common_pb2.InstanceInfo, 0.0),
                load=encode(snapshot.load, common_pb2.Load, 0.0),
            )
            state.resources.update(snapshot.resources)
            state.counters.update(snapshot.counters)
        return reply

    async def PutMedia(
        self, request: AsyncIterator[worker_pb2.PutMediaRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[worker_pb2.PutMediaReply]:
        try:
            async with asyncio.timeout(IDLE):
                first = await anext(request, None)
        except TimeoutError:
            raise TransferError(f"no header came for {IDLE:g} s") from None
        if first is None or first.WhichOneof("kind") != "header":
            raise InvalidRequestError("PutMedia begins with the header of an item")
        async with aclosing(self._door(first.header.owner.id).receive(first.header, request)) as replies:
            async for reply in replies:
                yield reply

    def _door(self, name: str) -> MediaDoor:
        instance = next((instance for instance in self._instances() if instance.info.ref.id == name), None)
        if instance is None:
            raise NotFoundError(f"no instance {name!r} in this process")
        if instance.door is None:
            raise InvalidRequestError(
                f"{name} does not encode; it has the roles {', '.join(sorted(instance.info.roles))}"
            )
        return instance.door
