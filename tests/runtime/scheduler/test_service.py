"""The control plane over loopback gRPC: real streams, real client, toy instances."""

from __future__ import annotations

import asyncio

import pytest

from tests.runtime.scheduler.fake_instance import Staging
from tests.runtime.scheduler.live import LiveGateway, LiveWorker, control_server, eventually
from tests.runtime.scheduler.world import info, request
from triptych.proto.v1 import control_pb2
from triptych.runtime.core.control import (
    Completed,
    Failed,
    Placed,
    Progress,
)
from triptych.runtime.core.errors import Status
from triptych.runtime.core.instance import Role

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


def test_heartbeats_keep_a_worker_and_carry_its_loads() -> None:
    async def scenario() -> None:
        async with control_server(heartbeat_interval=0.05, heartbeat_timeout=2.0) as server:
            worker = await LiveWorker(server, PD).start()
            await asyncio.sleep(2.5)
            assert not worker.lost
            (shown,) = server.control.snapshot().instances
            assert shown.load.free_pages == 9 and shown.heartbeat_age < 2.0
            await worker.stop()

    asyncio.run(scenario())
