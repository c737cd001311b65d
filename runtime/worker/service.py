"""The Worker gRPC service of a process that owns devices: token subscriptions for gateways, exact occupancy for tools and leak checks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Protocol

import grpc

from triptych.proto.v1 import common_pb2, worker_pb2
from triptych.runtime.core.errors import InvalidRequestError, OverloadedError
from triptych.runtime.core.instance import InstanceInfo, Load
from triptych.runtime.wire.convert import encode
from triptych.runtime.worker.outbox import TokenOutboxes


@dataclass(frozen=True)
class InstanceSnapshot:
    """One instance's state at one moment between two steps. Resource and counter names are stable; values are counts or bytes."""

    info: InstanceInfo
    load: Load
    resources: Mapping[str, int] = field(default_factory=dict)
    counters: Mapping[str, int] = field(default_factory=dict)


class SnapshotSource(Protocol):
    """Something that can be inspected: asks its device loop and waits for the answer."""

    async def snapshot(self) -> InstanceSnapshot: ...


class WorkerServicer:
    """Serves `outboxes` and the snapshots of `instances`, asked whenever they are inspected."""

    def __init__(self, outboxes: TokenOutboxes, instances: Callable[[], Sequence[SnapshotSource]]):
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
