"""A client that knows nothing but reflection lists the services and calls Generate through descriptors it was told."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.runtime.gateway.calls import run
from tests.runtime.gateway.toy_cluster import TOKENIZER, cluster, reply


class GenericClient:
    """What grpcurl does: ask for descriptors, build messages from JSON, call by name."""

    def __init__(self, channel: grpc.aio.Channel):
        self._channel = channel
        self._stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # pyright: ignore[reportArgumentType]
        self._pool = DescriptorPool()
        self._known: set[str] = set()

    async def services(self) -> list[str]:
        response = await self._ask(reflection_pb2.ServerReflectionRequest(list_services=""))
        return sorted(service.name for service in response.list_services_response.service)

    async def call(self, service: str, method: str, arguments: dict[str, Any]) -> list[dict[str, Any]]:
        await self._learn(service)
        described = self._pool.FindServiceByName(service).methods_by_name[method]
        request = ParseDict(arguments, GetMessageClass(described.input_type)())
        path, data, parse = (
            f"/{service}/{method}",
            request.SerializeToString(),
            GetMessageClass(described.output_type).FromString,
        )
        if not described.server_streaming:
            return [MessageToDict(parse(await self._channel.unary_unary(path)(data)))]
        return [MessageToDict(parse(response)) async for response in self._channel.unary_stream(path)(data)]

    async def _learn(self, symbol: str) -> None:
        response = await self._ask(reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol))
        for data in reversed(response.file_descriptor_response.file_descriptor_proto):
            file = FileDescriptorProto.FromString(data)
            if file.name not in self._known:
                self._known.add(file.name)
                self._pool.Add(file) if hasattr(self._pool, "Add") else self._pool.AddSerializedFile(data)

    async def _ask(self, request: Any) -> Any:
        call = self._stub.ServerReflectionInfo(iter([request]))
        async for response in call:
            return response
        raise AssertionError("reflection gave no answer")


def test_a_generic_client_lists_services_and_generates():
    async def body():
        async with cluster() as c:
            client = GenericClient(c.channel)
            assert await client.services() == [
                "grpc.health.v1.Health",
                "grpc.reflection.v1alpha.ServerReflection",
                "triptych.v1.Inference",
            ]
            arguments = {"prompt": "hello", "sampling": {"maxTokens": 4, "temperature": 0.0}}
            responses = await client.call("triptych.v1.Inference", "Generate", arguments)
            text = "".join(r["delta"].get("text", "") for r in responses if "delta" in r)
            assert text == reply(TOKENIZER.encode("hello"), 0)[:4]
            assert responses[-1]["summary"]["usage"]["completionTokens"] == 4
            assert (await client.call("triptych.v1.Inference", "GetModelInfo", {}))[0]["model"] == "toy"
            health = await client.call("grpc.health.v1.Health", "Check", {"service": "triptych.v1.Inference"})
            assert health == [{"status": "SERVING"}]

    run(body())


def test_health_follows_what_can_be_placed():
    async def body():
        async with cluster() as c:
            client = GenericClient(c.channel)

            async def status() -> str:
                return (await client.call("grpc.health.v1.Health", "Check", {}))[0]["status"]

            assert await status() == "SERVING"
            c.scheduler.announce(())
            async with asyncio.timeout(60):
                while await status() != "NOT_SERVING":
                    await asyncio.sleep(0.01)

    run(body())
