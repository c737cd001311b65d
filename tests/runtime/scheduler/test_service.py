"""The control plane over loopback gRPC: real streams, real client, toy instances."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.runtime.scheduler.fake_instance import Staging
from tests.runtime.scheduler.live import LiveGateway, LiveWorker, control_server, eventually
from tests.runtime.scheduler.world import COMPATIBLE, info, request
from triptych.proto.v1 import common_pb2, control_pb2, control_pb2_grpc
from triptych.runtime.core.control import Completed, Directory, Failed, Placed, Progress
from triptych.runtime.core.errors import ConfigError, IncompatibleError, Status
from triptych.runtime.core.instance import Role
from triptych.runtime.scheduler.server import ControlServerConfig, build_server
from triptych.runtime.wire.convert import encode

P, D, PD = info("p", "p"), info("d", "d"), info("pd", "pd")


@pytest.mark.parametrize("topology", [(P, D), (PD,), (P, D, PD)])
def test_requests_run_to_completion_and_nothing_is_left(topology) -> None:
    async def scenario() -> None:
        async with control_server() as server:
            staging = Staging()
            workers = [await LiveWorker(server, i, staging=staging).start() for i in topology]
            gateway = await LiveGateway(server).start()
            for n in range(20):
                await gateway.submit(request(f"r{n}", deadline=30.0))
            for n in range(20):
                assert isinstance(await gateway.terminal(f"r{n}"), Completed)
            assert len([n for n in gateway.notices if isinstance(n, Placed)]) == 20
            roles = [n.role for n in gateway.notices if isinstance(n, Progress)]
            assert roles.count(Role.PREFILL) == roles.count(Role.DECODE) == 20
            await eventually(lambda: server.control.scheduler.idle)
            assert server.control.scheduler.resources().assigned == 0
            assert not any(w.tasks for w in workers)
            shown = await gateway.stub.GetCluster(control_pb2.GetClusterRequest())
            assert shown.counters["completed"] == 20 and shown.active == shown.queued == 0
            assert {i.info.ref.id for i in shown.instances} == {i.ref.id for i in topology}
            assert all(i.heartbeat_age < 5 and i.tasks == 0 for i in shown.instances)
            for worker in workers:
                await worker.stop()
                assert not worker.lost
            await gateway.close()

    asyncio.run(scenario())


def test_one_worker_may_hold_both_halves_of_a_pair() -> None:
    async def scenario() -> None:
        async with control_server() as server:
            worker = await LiveWorker(
                server, info("p", "p", worker="w"), info("d", "d", worker="w"), staging=Staging()
            ).start()
            gateway = await LiveGateway(server).start()
            await gateway.submit(request("r"))
            assert isinstance(await gateway.terminal("r"), Completed)
            await worker.stop()
            await gateway.close()

    asyncio.run(scenario())


def test_a_cancelled_request_is_aborted_on_its_instances() -> None:
    async def scenario() -> None:
        async with control_server() as server:
            worker = await LiveWorker(server, PD).start()
            worker.frozen = True
            gateway = await LiveGateway(server).start()
            await gateway.submit(request("r"))
            await eventually(lambda: worker.tasks == 1)
            await gateway.cancel("r")
            failure = await gateway.terminal("r")
            assert isinstance(failure, Failed) and failure.status is Status.CANCELLED
            await eventually(lambda: worker.tasks == 0 and server.control.scheduler.idle)
            await worker.stop()
            await gateway.close()

    asyncio.run(scenario())


def test_a_deadline_crosses_the_wire_as_remaining_time_and_is_kept_by_the_ticker() -> None:
    async def scenario() -> None:
        async with control_server() as server:
            worker = await LiveWorker(server, PD).start()
            worker.frozen = True
            gateway = await LiveGateway(server).start()
            await gateway.submit(request("r", deadline=0.3))
            failure = await gateway.terminal("r")
            assert isinstance(failure, Failed) and failure.status is Status.DEADLINE_EXCEEDED
            await eventually(lambda: worker.tasks == 0 and server.control.scheduler.idle)
            await worker.stop()
            await gateway.close()

    asyncio.run(scenario())


def test_a_gateway_that_goes_away_takes_its_requests_with_it() -> None:
    async def scenario() -> None:
        async with control_server() as server:
            worker = await LiveWorker(server, PD).start()
            worker.frozen = True
            gateway = await LiveGateway(server).start()
            await gateway.submit(request("r"))
            await eventually(lambda: worker.tasks == 1)
            await gateway.close()
            await eventually(lambda: worker.tasks == 0 and server.control.scheduler.idle)
            assert not server.control.gateways
            await worker.stop()

    asyncio.run(scenario())


def test_a_worker_that_is_cut_off_fails_its_requests_and_leaves_the_directory() -> None:
    async def scenario() -> None:
        async with control_server() as server:
            worker = await LiveWorker(server, PD).start()
            worker.frozen = True
            gateway = await LiveGateway(server).start()
            await gateway.submit(request("r"))
            await eventually(lambda: worker.tasks == 1)
            assert worker.client._life is not None
            worker.client._life.cancel()  # no good-bye
            failure = await gateway.terminal("r")
            assert (
                isinstance(failure, Failed)
                and failure.status is Status.UNAVAILABLE
                and "instance pd was lost" in failure.reason
            )
            assert [len(n.instances) for n in gateway.notices if isinstance(n, Directory)] == [1, 0]
            await gateway.close()

    asyncio.run(scenario())


def test_a_worker_that_says_good_bye_is_lost_with_that_reason() -> None:
    async def scenario() -> None:
        async with control_server() as server:
            worker = await LiveWorker(server, PD).start()
            worker.frozen = True
            gateway = await LiveGateway(server).start()
            await gateway.submit(request("r"))
            await eventually(lambda: worker.tasks == 1)
            await worker.client.leave("maintenance")
            failure = await gateway.terminal("r")
            assert isinstance(failure, Failed) and failure.reason == "instance pd was lost: maintenance"
            assert not worker.lost and not server.control.workers
            await worker.stop()
            await gateway.close()

    asyncio.run(scenario())


def test_a_silent_worker_is_dropped_although_its_connection_lives() -> None:
    async def scenario() -> None:
        async with control_server(heartbeat_interval=0.05, heartbeat_timeout=0.4) as server:
            channel = grpc.aio.insecure_channel(server.address)
            call = control_pb2_grpc.ControlStub(channel).Worker()
            joined = control_pb2.WorkerMessage()
            joined.worker_joined.worker = "w"
            joined.worker_joined.instances.append(encode(info("pd", "pd", worker="w"), common_pb2.InstanceInfo, 0.0))
            await call.write(joined)
            assert (await call.read()).welcome.heartbeat_interval == pytest.approx(0.05)  # type: ignore[union-attr]
            assert await call.code() is grpc.StatusCode.UNAVAILABLE
            assert "no heartbeat for" in (await call.details() or "")
            assert not server.control.workers
            await channel.close()

    asyncio.run(scenario())


def test_heartbeats_keep_a_worker_and_carry_its_loads() -> None:
    async def scenario() -> None:
        async with control_server(heartbeat_interval=0.05, heartbeat_timeout=0.4) as server:
            worker = await LiveWorker(server, PD).start()
            await asyncio.sleep(1.0)
            assert not worker.lost
            (shown,) = server.control.snapshot().instances
            assert shown.load.free_pages == 9 and shown.heartbeat_age < 0.4
            await worker.stop()

    asyncio.run(scenario())


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


def test_a_worker_that_connects_again_takes_over_from_its_old_stream() -> None:
    async def scenario() -> None:
        async with control_server() as server:
            old = await LiveWorker(server, PD).start()
            new = await LiveWorker(server, replace(PD, ref=replace(PD.ref, epoch=2))).start()
            await eventually(lambda: bool(old.lost))
            assert "superseded" in old.lost[0] and len(old.lost) == 1
            gateway = await LiveGateway(server).start()
            await gateway.submit(request("r"))
            assert isinstance(await gateway.terminal("r"), Completed)
            assert not new.lost
            await new.stop()
            await old.stop()
            await gateway.close()

    asyncio.run(scenario())


def test_a_stopping_scheduler_is_a_loss_for_everybody() -> None:
    async def scenario() -> None:
        async with control_server() as server:
            worker = await LiveWorker(server, PD).start()
            gateway = await LiveGateway(server).start()
        await eventually(lambda: bool(worker.lost) and gateway.ended is not None)
        assert gateway.ended is grpc.StatusCode.UNAVAILABLE
        assert len(worker.lost) == 1 and "shutting down" in worker.lost[0]
        await worker.stop()
        await gateway.close()

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


def test_a_failing_scheduler_stops_the_control_plane_loudly(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with control_server() as server:

            def broken(event: object, now: float) -> list:
                raise ZeroDivisionError("toy bug")

            server.control.scheduler.handle = broken  # type: ignore[method-assign]
            async with asyncio.timeout(5):
                with pytest.raises(ZeroDivisionError, match="toy bug"):
                    await server.wait()
            gateway = LiveGateway(server)
            await gateway.call.write(control_pb2.GatewayMessage(hello=control_pb2.Hello(gateway="g")))
            await eventually(lambda: gateway.ended is not None)
            assert gateway.ended is grpc.StatusCode.UNKNOWN
            await gateway.close()

    asyncio.run(scenario())
    assert "the scheduler failed on SchedulerTick" in caplog.text


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
