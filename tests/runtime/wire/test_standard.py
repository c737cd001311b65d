"""Health and reflection answer generic clients, and answer garbage with INVALID_ARGUMENT."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from triptych.runtime.wire.standard import Health, add_health, add_reflection

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
LIST: Any = health_pb2.DESCRIPTOR.services_by_name["Health"].methods_by_name["List"]
GARBAGE = b"\x0a\xff\xff"


def with_server(scenario: Callable[[grpc.aio.Channel, Health], Awaitable[None]]) -> None:
    async def run() -> None:
        server, health = grpc.aio.server(), Health()
        add_health(server, health)
        add_reflection(server, ("grpc.health.v1.Health",))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                await scenario(channel, health)
        finally:
            await server.stop(None)

    asyncio.run(run())


def test_health_is_checked_listed_and_watched() -> None:
    async def scenario(channel: grpc.aio.Channel, health: Health) -> None:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        await health.set("toy", SERVING)
        assert (await stub.Check(health_pb2.HealthCheckRequest(service="toy"))).status == SERVING
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await stub.Check(health_pb2.HealthCheckRequest(service="nobody"))
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
        listed = await stub.List(GetMessageClass(LIST.input_type)())
        assert {name: status.status for name, status in listed.statuses.items()} == {"": SERVING, "toy": SERVING}
        watching = stub.Watch(health_pb2.HealthCheckRequest(service="toy"))
        assert (await watching.read()).status == SERVING
        await health.set("toy", NOT_SERVING)
        assert (await watching.read()).status == NOT_SERVING
        watching.cancel()

    with_server(scenario)


def test_reflection_lists_the_services() -> None:
    async def scenario(channel: grpc.aio.Channel, health: Health) -> None:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # pyright: ignore[reportArgumentType]
        asked = [reflection_pb2.ServerReflectionRequest(list_services="")]
        async for answer in stub.ServerReflectionInfo(iter(asked)):
            names = {service.name for service in answer.list_services_response.service}
            assert names == {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}

    with_server(scenario)


@pytest.mark.parametrize("method", ["Check", "List", "Watch"])
def test_garbage_is_an_invalid_argument_for_health(method: str) -> None:
    async def scenario(channel: grpc.aio.Channel, health: Health) -> None:
        make = channel.unary_stream if method == "Watch" else channel.unary_unary
        call = make(f"/grpc.health.v1.Health/{method}")(GARBAGE)
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT

    with_server(scenario)


def test_garbage_is_an_invalid_argument_for_reflection() -> None:
    async def scenario(channel: grpc.aio.Channel, health: Health) -> None:
        call = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")(iter([GARBAGE]))
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT

    with_server(scenario)
