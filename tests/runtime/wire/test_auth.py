"""The bearer token guards calls of every arity; clients add it once for a whole channel."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from triptych.runtime.wire.auth import bearer_client_interceptors, bearer_interceptor, bearer_metadata


async def unary(request: bytes, context: Any) -> bytes:
    return request.upper()


async def down(request: bytes, context: Any) -> AsyncIterator[bytes]:
    yield request.upper()


async def up(requests: AsyncIterator[bytes], context: Any) -> bytes:
    return b"".join([r async for r in requests]).upper()


async def both(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    async for request in requests:
        yield request.upper()


HANDLERS = grpc.method_handlers_generic_handler(
    "toy.Echo",
    {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Down": grpc.unary_stream_rpc_method_handler(down),
        "Up": grpc.stream_unary_rpc_method_handler(up),
        "Both": grpc.stream_stream_rpc_method_handler(both),
    },
)


async def ask(channel: grpc.aio.Channel, arity: str, metadata: Any = None) -> bytes:
    path = f"/toy.Echo/{arity}"
    match arity:
        case "Unary":
            return await channel.unary_unary(path)(b"a", metadata=metadata)
        case "Down":
            return b"".join([m async for m in channel.unary_stream(path)(b"a", metadata=metadata)])
        case "Up":
            return await channel.stream_unary(path)(iter([b"a"]), metadata=metadata)
        case _:
            return b"".join([m async for m in channel.stream_stream(path)(iter([b"a"]), metadata=metadata)])


async def serve(*tokens: str) -> tuple[grpc.aio.Server, str]:
    server = grpc.aio.server(interceptors=[bearer_interceptor(*tokens)] if tokens else [])
    server.add_generic_rpc_handlers((HANDLERS,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, f"127.0.0.1:{port}"


@pytest.mark.parametrize("arity", ["Unary", "Down", "Up", "Both"])
def test_only_calls_with_the_token_get_through(arity: str) -> None:
    async def scenario() -> None:
        server, address = await serve("secret")
        async with grpc.aio.insecure_channel(address) as channel:
            for metadata, complaint in (
                (None, "no bearer token"),
                (bearer_metadata("wrong"), "not valid"),
                ((("authorization", "secret"),), "not valid"),
                (bearer_metadata("secret") * 2, "not valid"),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await ask(channel, arity, metadata)
                assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
                assert complaint in (refused.value.details() or "")
            assert await ask(channel, arity, bearer_metadata("secret")) == b"A"
        interceptors = bearer_client_interceptors("secret")
        async with grpc.aio.insecure_channel(address, interceptors=interceptors) as channel:
            assert await ask(channel, arity) == b"A"
            assert await ask(channel, arity, (("other", "kept"),)) == b"A"
        await server.stop(None)

    asyncio.run(scenario())


def test_each_of_several_tokens_gets_through() -> None:
    async def scenario() -> None:
        server, address = await serve("old", "new")
        async with grpc.aio.insecure_channel(address) as channel:
            for token in ("old", "new"):
                assert await ask(channel, "Unary", bearer_metadata(token)) == b"A"
            with pytest.raises(grpc.aio.AioRpcError, match="not valid"):
                await ask(channel, "Unary", bearer_metadata("oldnew"))
        await server.stop(None)

    asyncio.run(scenario())
    with pytest.raises(ValueError, match="refuse every call"):
        bearer_interceptor()


def test_without_a_token_nothing_is_added_and_nothing_is_asked() -> None:
    assert bearer_metadata(None) == () and bearer_client_interceptors(None) == []

    async def scenario() -> None:
        server, address = await serve()
        async with grpc.aio.insecure_channel(address) as channel:
            assert await ask(channel, "Unary") == b"A"
        await server.stop(None)

    asyncio.run(scenario())


@pytest.mark.parametrize("token", ["", "schlüssel", "two\nlines"])
def test_a_token_that_metadata_cannot_carry_is_refused_at_once(token: str) -> None:
    with pytest.raises(ValueError, match="printable ASCII"):
        bearer_metadata(token)
    with pytest.raises(ValueError, match="printable ASCII"):
        bearer_interceptor(token)
