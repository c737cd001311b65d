"""The admin calls of the Control service: instances change roles or leave."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from tests.runtime.scheduler.live import LiveGateway, LiveWorker, control_server, eventually
from tests.runtime.scheduler.world import info, request
from triptych.proto.v1 import control_pb2
from triptych.runtime.core.control import (
    Completed,
)

P, D, PD = info("p", "p"), info("d", "d"), info("pd", "pd")


def test_an_instance_switches_roles_once_its_tasks_have_ended() -> None:
    async def scenario() -> None:
        async with control_server() as server:
            switching = await LiveWorker(server, info("a", "pd", switchable="pd")).start()
            staying = await LiveWorker(server, info("b", "pd")).start()
            gateway = await LiveGateway(server).start()
            switching.frozen = True
            for n in range(4):
                await gateway.submit(request(f"r{n}"))
            await eventually(lambda: switching.tasks > 0)
            asked = gateway.stub.SwitchRole(control_pb2.SwitchRoleRequest(instance="a", roles=["decode"]))
            await eventually(lambda: "draining" in {i.state for i in server.control.snapshot().instances})
            switching.frozen = False
            drained = await asked
            assert 0 < drained.seconds < 20
            shown = await gateway.stub.GetCluster(control_pb2.GetClusterRequest())
            assert {(i.info.ref.id, tuple(i.info.roles), i.state) for i in shown.instances} == {
                ("a", ("decode",), "open"),
                ("b", ("decode", "prefill"), "open"),
            }
            for n in range(4):
                assert isinstance(await gateway.terminal(f"r{n}"), Completed)
            await switching.stop()
            await staying.stop()
            await gateway.close()

    asyncio.run(scenario())


def test_an_instance_is_drained_and_gone() -> None:
    async def scenario() -> None:
        async with control_server() as server:
            one = await LiveWorker(server, info("a", "pd")).start()
            two = await LiveWorker(server, info("b", "pd")).start()
            gateway = await LiveGateway(server).start()
            await gateway.stub.Drain(control_pb2.DrainRequest(instance="a"))
            assert not one.fakes
            with pytest.raises(grpc.aio.AioRpcError) as last:
                await gateway.stub.Drain(control_pb2.DrainRequest(instance="b"))
            assert last.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            with pytest.raises(grpc.aio.AioRpcError) as unknown:
                await gateway.stub.Drain(control_pb2.DrainRequest(instance="a"))
            assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
            await one.stop()
            await two.stop()
            await gateway.close()

    asyncio.run(scenario())


def test_a_switch_that_the_worker_refuses_or_nobody_can_do_is_an_error() -> None:
    async def scenario() -> None:
        async with control_server() as server:
            worker = await LiveWorker(server, info("a", "pd", switchable="pd")).start()
            other = await LiveWorker(server, info("b", "pd")).start()
            worker.refuses_roles = True
            gateway = await LiveGateway(server).start()
            for instance, roles, code in (
                ("a", ["decode"], grpc.StatusCode.FAILED_PRECONDITION),
                ("b", ["encode"], grpc.StatusCode.FAILED_PRECONDITION),
                ("a", ["chef"], grpc.StatusCode.INVALID_ARGUMENT),
                ("a", [], grpc.StatusCode.INVALID_ARGUMENT),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await gateway.stub.SwitchRole(control_pb2.SwitchRoleRequest(instance=instance, roles=roles))
                assert refused.value.code() is code
            await worker.stop()
            await other.stop()
            await gateway.close()

    asyncio.run(scenario())


def test_a_drain_that_is_under_way_ends_with_the_scheduler() -> None:
    async def scenario() -> None:
        async with control_server() as server:
            worker = await LiveWorker(server, info("a", "pd"), info("b", "pd", worker="w-a")).start()
            worker.frozen = True
            gateway = await LiveGateway(server).start()
            for n in range(4):
                await gateway.submit(request(f"r{n}"))
            await eventually(lambda: worker.tasks == 4)
            asked = gateway.stub.Drain(control_pb2.DrainRequest(instance="a"))
            await eventually(lambda: bool(server.control.snapshot().counters["drains"]))
        assert await asked.code() is grpc.StatusCode.UNAVAILABLE
        await worker.stop()
        await gateway.close()

    asyncio.run(scenario())
