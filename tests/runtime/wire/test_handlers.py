"""What a refused call held is freed with it, without a collection."""

from __future__ import annotations

import asyncio
import gc
import warnings
import weakref
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from triptych.proto.v1 import worker_pb2
from triptych.runtime.core.errors import InvalidRequestError
from triptych.runtime.wire.ended import CallEnd
from triptych.runtime.wire.handlers import service_handler

WORKER = worker_pb2.DESCRIPTOR.services_by_name["Worker"]
CALLS = 20


class Held:
    """Stands for what a method has in hand when it refuses."""


class Refusing:
    """Refuses every call. `held` are weak references to what its methods had."""

    def __init__(self) -> None:
        self.held: list[weakref.ref[Held]] = []

    def _refuse(self) -> None:
        held = Held()
        self.held.append(weakref.ref(held))
        raise InvalidRequestError("no")

    async def Subscribe(self, request: Any, context: Any) -> AsyncIterator[worker_pb2.TokenBatch]:
        self._refuse()
        yield worker_pb2.TokenBatch()

    async def Inspect(self, request: Any, context: Any) -> worker_pb2.InspectReply:
        self._refuse()
        return worker_pb2.InspectReply()

    async def PutMedia(self, request: Any, context: Any) -> AsyncIterator[worker_pb2.PutMediaReply]:
        async for _ in request:
            self._refuse()
        yield worker_pb2.PutMediaReply()


async def refused(channel: grpc.aio.Channel, method: str) -> None:
    call: Any = channel.stream_stream(f"/{WORKER.full_name}/{method}")()
    end = CallEnd(call)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call.write(b"")
        await call.done_writing()
        await call.read()
    assert (await end.error(raised.value)).code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("method", ["Subscribe", "Inspect", "PutMedia"])
def test_a_refused_call_leaves_no_circle_of_references(method: str) -> None:
    def calls() -> int:
        """A server keeps one ready for the next call."""
        return sum(type(one).__name__ == "RPCState" for one in gc.get_objects())

    async def scenario() -> None:
        servicer = Refusing()
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((service_handler(servicer, WORKER),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        gc.collect()
        gc.disable()
        before = calls()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                for _ in range(CALLS):
                    await refused(channel, method)
                async with asyncio.timeout(30):  # the last ones may be ending
                    while any(held() is not None for held in servicer.held) or calls() - before >= CALLS // 2:
                        await asyncio.sleep(0.01)
        finally:
            gc.enable()
            await server.stop(None)

    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        gc.collect()  # what other tests left behind
    asyncio.run(scenario())
