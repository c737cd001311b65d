"""What the control plane refuses over gRPC, and with which status: protocols broken, garbage, wrong tokens, wrong configurations."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.runtime.scheduler.live import LiveGateway, LiveWorker, control_server, eventually
from tests.runtime.scheduler.world import COMPATIBLE, info, request
from triptych.proto.v1 import control_pb2, control_pb2_grpc
from triptych.runtime.core.control import Completed, Failed, Submit, WorkerJoined
from triptych.runtime.core.errors import ConfigError, IncompatibleError, Status
from triptych.runtime.core.instance import Role
from triptych.runtime.core.tasks import TaskEnded
from triptych.runtime.scheduler.server import ControlServerConfig, build_server
from triptych.runtime.wire.convert import encode

P, D, PD = info("p", "p"), info("d", "d"), info("pd", "pd")


def test_an_incompatible_worker_is_refused_with_the_difference() -> None:
    async def scenario() -> None:
        async with control_server() as server:
            first = await LiveWorker(server, P).start()
            other = LiveWorker(server, info("d", "d", compatibility=replace(COMPATIBLE, kv_dtype="bfloat16")))
            with pytest.raises(IncompatibleError, match="kv_dtype: 'bfloat16' != 'float32'"):
                await other.start()
            assert not other.lost, "it was never connected"
            assert list(server.control.workers) == [P.worker]
            await first.stop()

    asyncio.run(scenario())


BAD_WORKER = {
    "heartbeat first": (
        [control_pb2.WorkerMessage(heartbeat=control_pb2.Heartbeat(worker="w"))],
        "must be worker_joined",
    ),
    "empty": ([control_pb2.WorkerMessage()], "must be worker_joined"),
    "no name": ([control_pb2.WorkerMessage(worker_joined=control_pb2.WorkerJoined())], "names no worker"),
}


@pytest.mark.parametrize("case", BAD_WORKER)
def test_a_worker_that_breaks_the_protocol_is_told_how(case: str) -> None:
    messages, complaint = BAD_WORKER[case]

    async def scenario() -> None:
        async with control_server() as server, grpc.aio.insecure_channel(server.address) as channel:
            call = control_pb2_grpc.ControlStub(channel).Worker()
            for message in messages:
                await call.write(message)
            assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert complaint in (await call.details() or "")
            assert not server.control.workers

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", ["report", "roles_refused"])
def test_a_worker_that_speaks_for_an_instance_of_another_one_is_cut_off_and_not_believed(kind: str) -> None:
    async def scenario() -> None:
        async with control_server() as server:
            first, second = await LiveWorker(server, P).start(), await LiveWorker(server, D).start()
            gateway = await LiveGateway(server).start()
            first.frozen = second.frozen = True
            await gateway.say(Submit(request("r")))
            await eventually(lambda: server.control.scheduler.resources().tasks == 2)
            if kind == "report":
                second.client.report(P.ref, TaskEnded("r", Role.PREFILL, Status.INVALID_ARGUMENT, "not its own"))
            else:
                second.client.roles_refused(P.ref, "not its own")
            await eventually(lambda: bool(second.lost))
            assert f"instance p of worker {P.worker!r} on the stream of {D.worker!r}" in second.lost[0]
            assert not first.lost and not any(isinstance(notice, Failed) for notice in gateway.notices)
            for peer in (first, second):
                await peer.stop()
            await gateway.close()

    asyncio.run(scenario())


def test_a_gateway_that_breaks_the_protocol_is_told_how() -> None:
    async def scenario() -> None:
        async with control_server() as server:
            silent = LiveGateway(server)
            await silent.submit(request("r"))
            await eventually(lambda: silent.ended is not None)
            assert silent.ended is grpc.StatusCode.INVALID_ARGUMENT and "must be hello" in (silent.details or "")
            liar = await LiveGateway(server).start()
            await liar.submit(request("r", gateway="somebody else"))
            await eventually(lambda: liar.ended is not None)
            assert liar.ended is grpc.StatusCode.INVALID_ARGUMENT and "somebody else" in (liar.details or "")
            await eventually(lambda: not server.control.gateways)
            await silent.close()
            await liar.close()

    asyncio.run(scenario())


def test_without_the_token_nothing_but_health_answers() -> None:
    async def scenario() -> None:
        async with control_server(token="secret") as server, grpc.aio.insecure_channel(server.address) as channel:
            stub = control_pb2_grpc.ControlStub(channel)
            for metadata in (None, (("authorization", "Bearer wrong"),)):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await stub.GetCluster(control_pb2.GetClusterRequest(), metadata=metadata)
                assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
            health: Any = health_pb2_grpc.HealthStub(channel)
            answer = await health.Check(health_pb2.HealthCheckRequest(service="triptych.v1.Control"))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            worker = await LiveWorker(server, PD, token="secret").start()
            gateway = await LiveGateway(server, token="secret").start()
            await gateway.submit(request("r"))
            assert isinstance(await gateway.terminal("r"), Completed)
            await worker.stop()
            await gateway.close()

    asyncio.run(scenario())


def test_reflection_lists_control_and_the_services_that_others_mounted() -> None:
    async def scenario() -> None:
        server = build_server(ControlServerConfig())
        await server.start(services=("triptych.v1.Other",))
        async with grpc.aio.insecure_channel(server.address) as channel:
            stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # pyright: ignore[reportArgumentType]
            call = stub.ServerReflectionInfo()
            await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
            answer = await call.read()
            names = {s.name for s in answer.list_services_response.service}  # type: ignore[union-attr]
            assert {"triptych.v1.Control", "triptych.v1.Other", "grpc.health.v1.Health"} <= names
            call.cancel()
        await server.stop(grace=0.1)

    asyncio.run(scenario())


def test_a_taken_port_and_an_unknown_policy_are_configuration_errors() -> None:
    async def scenario() -> None:
        async with control_server() as server:
            with pytest.raises(ConfigError, match="cannot listen on"):
                build_server(ControlServerConfig(port=server.port))

    asyncio.run(scenario())
    with pytest.raises(ConfigError, match="router is 'best'.*queue_order is 'lifo'"):
        ControlServerConfig(router="best", queue_order="lifo")


GARBAGE = b"\xff\xff\xff"


@pytest.mark.parametrize("method", ["Worker", "Gateway"])
@pytest.mark.parametrize("good", [0, 1])
def test_garbage_on_a_stream_is_refused_as_such(method: str, good: int, caplog: pytest.LogCaptureFixture) -> None:
    first = {
        "Worker": control_pb2.WorkerMessage(
            worker_joined=encode(WorkerJoined(PD.worker, (PD,)), control_pb2.WorkerJoined, 0.0)
        ),
        "Gateway": control_pb2.GatewayMessage(hello=control_pb2.Hello(gateway="g")),
    }[method]

    async def scenario() -> None:
        async with control_server() as server, grpc.aio.insecure_channel(server.address) as channel:
            call = channel.stream_stream(f"/triptych.v1.Control/{method}")()
            if good:
                await call.write(first.SerializeToString())
                await call.read()
            await call.write(GARBAGE)
            assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert f"not a valid {method}Message" in (await call.details() or "")
            await eventually(lambda: not server.control.workers and not server.control.gateways)

    asyncio.run(scenario())
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("method", ["GetCluster", "Drain", "SwitchRole"])
def test_garbage_in_a_call_is_refused_as_such(method: str, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with control_server() as server, grpc.aio.insecure_channel(server.address) as channel:
            call = channel.unary_unary(f"/triptych.v1.Control/{method}")(GARBAGE)
            assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT

    asyncio.run(scenario())
    assert "Traceback" not in caplog.text


def test_values_that_make_no_sense_are_refused_as_such() -> None:
    async def scenario() -> None:
        async with control_server() as server, grpc.aio.insecure_channel(server.address) as channel:
            call = control_pb2_grpc.ControlStub(channel).Worker()
            joined = control_pb2.WorkerMessage(
                worker_joined=encode(WorkerJoined(PD.worker, (PD,)), control_pb2.WorkerJoined, 0.0)
            )
            joined.worker_joined.instances[0].roles[:] = ["chef"]
            await call.write(joined)
            assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "chef" in (await call.details() or "")

    asyncio.run(scenario())
