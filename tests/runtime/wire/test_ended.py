"""A call that is refused while it writes ends with the refusal."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from triptych.runtime.wire.ended import CORE, CallEnd

RACES = 100  # one in two was overwritten


class Refusing(grpc.GenericRpcHandler):
    """Refuses every call at its first message."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        return grpc.stream_stream_rpc_method_handler(self._refuse)

    async def _refuse(self, messages: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> None:
        async for _ in messages:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no room", (("retry-after", "2"),))


async def serving(use: Callable[[grpc.aio.Channel], Any]) -> None:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Refusing(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            await use(channel)
    finally:
        await server.stop(None)


async def refused(channel: grpc.aio.Channel) -> grpc.aio.AioRpcError:
    """Writes until it is told that the call is over."""
    call = channel.stream_stream("/a/b")()
    end = CallEnd(call)
    try:
        while not call.done():
            await call.write(b"x")
        await call.read()
    except grpc.aio.AioRpcError as error:
        return await end.error(error)
    raise AssertionError("it was not refused")


def test_a_refusal_that_meets_a_write_is_told() -> None:
    async def use(channel: grpc.aio.Channel) -> None:
        for _ in range(RACES):
            error = await refused(channel)
            assert (error.code(), error.details()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "no room")
            assert ("retry-after", "2") in tuple(error.trailing_metadata())

    asyncio.run(serving(use))


def test_a_call_that_is_cancelled_here_says_so() -> None:
    async def use(channel: grpc.aio.Channel) -> None:
        call = channel.stream_stream("/a/b")()
        end = CallEnd(call)
        call.cancel()
        await asyncio.sleep(0)
        given = grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, grpc.aio.Metadata(), grpc.aio.Metadata())
        assert (await end.error(given)).code() is grpc.StatusCode.CANCELLED

    asyncio.run(serving(use))


class LateCall:
    """A write has failed, and the peer's status comes after gRPC's own."""

    def __init__(self) -> None:
        self.status = (grpc.StatusCode.INTERNAL, CORE)
        self._told: list[Callable[[Any], None]] = []

    def add_done_callback(self, told: Callable[[Any], None]) -> None:
        self._told.append(told)

    def ends(self, *status: Any) -> None:
        self.status = status
        for told in self._told:
            told(self)

    async def code(self) -> grpc.StatusCode:
        return self.status[0]

    async def details(self) -> str:
        return self.status[1]

    async def trailing_metadata(self) -> tuple[()]:
        return ()


def test_a_status_that_comes_after_the_write_failed_is_waited_for() -> None:
    async def use() -> None:
        call: Any = LateCall()
        end = CallEnd(call)
        call.ends(grpc.StatusCode.INTERNAL, CORE)
        given = grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, grpc.aio.Metadata(), grpc.aio.Metadata(), CORE)
        asking = asyncio.create_task(end.error(given))
        await asyncio.sleep(0)
        call.ends(grpc.StatusCode.RESOURCE_EXHAUSTED, "no room")
        assert (await asking).details() == "no room"

    asyncio.run(use())
