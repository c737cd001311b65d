"""Media over loopback gRPC: what the scheduler says of them arrives as it was said, and nothing is left."""

from __future__ import annotations

import asyncio

import pytest

from tests.runtime.scheduler.fake_instance import Staging
from tests.runtime.scheduler.live import LiveGateway, LiveWorker, control_server, eventually
from tests.runtime.scheduler.world import image, info, request
from triptych.proto.v1 import control_pb2
from triptych.runtime.core.control import Completed, Failed, MediaNeeded, Progress
from triptych.runtime.core.errors import Status
from triptych.runtime.core.instance import InstanceRef, Role
from triptych.runtime.core.request import Request

E, P, D = info("e", "e", media_pages=32, max_patches=100), info("p", "p", media_pages=9), info("d", "d")
EP, EPD = info("ep", "ep", media_pages=9, max_patches=100), info("epd", "epd", media_pages=9, max_patches=100)


async def bring(gateway: LiveGateway, workers: list[LiveWorker], requests: list[Request]) -> None:
    """Pixels, to whoever needs them, until cancelled."""
    media = {one.id: one.media for one in requests}
    heard = 0
    fakes = {ref: fake for worker in workers for ref, fake in worker.fakes.items()}
    while True:
        await asyncio.sleep(0.005)
        for notice in gateway.notices[heard:]:
            if isinstance(notice, MediaNeeded):
                assert notice.address == f"{notice.encode.id}:1" and notice.attempt == 1
                fakes[notice.encode].pixels |= {media[notice.request][item].hash for item in notice.items}
        heard = len(gateway.notices)


@pytest.mark.parametrize(
    "topology", [(E, P, D), (EPD,), (EP, D), (E, info("e2", "e", media_pages=32, max_patches=100), P, D)]
)
def test_requests_with_media_run_to_completion_and_nothing_is_left(topology) -> None:
    async def scenario() -> None:
        async with control_server() as server:
            staging = Staging()
            workers = [await LiveWorker(server, i, staging=staging).start() for i in topology]
            gateway = await LiveGateway(server).start()
            shared = [(image(f"h{n % 5}"), image(f"own{n}")) if n % 3 else () for n in range(12)]
            requests = [request(f"r{n}", deadline=30.0, media=media) for n, media in enumerate(shared)]
            bringing = asyncio.create_task(bring(gateway, workers, requests))
            for one in requests:
                await gateway.submit(one)
            for n in range(12):
                assert isinstance(await gateway.terminal(f"r{n}"), Completed)
            assert not bringing.done()
            bringing.cancel()
            await eventually(lambda: server.control.scheduler.idle)
            server.control.scheduler.audit()
            assert server.control.scheduler.resources().assigned == 0 and not any(w.tasks for w in workers)
            assert [n for n in gateway.notices if isinstance(n, Progress) and n.role is Role.ENCODE]
            shown = await gateway.stub.GetCluster(control_pb2.GetClusterRequest())
            assert shown.counters["encodes_started"] >= 8 and shown.counters["items_wanted"] >= 8
            roles = {i.info.ref.id: set(i.info.roles) for i in shown.instances}
            assert roles == {i.ref.id: set(i.roles) for i in topology}
            for worker in workers:
                await worker.stop()
                assert not worker.lost
            await gateway.close()

    asyncio.run(scenario())


def test_an_encode_worker_may_die_while_it_encodes() -> None:
    async def scenario() -> None:
        async with control_server(rejoin_grace=0.05) as server:
            staging = Staging()
            others = [await LiveWorker(server, i, staging=staging).start() for i in (P, D)]
            first = await LiveWorker(server, E, staging=staging).start()
            first.frozen = True
            gateway = await LiveGateway(server).start()
            await gateway.submit(request("r", deadline=30.0, media=(image("cat"),)))
            await eventually(lambda: any(isinstance(n, MediaNeeded) for n in gateway.notices))
            first.fakes[E.ref].die()
            first.cut_off()
            second = await LiveWorker(server, info("e2", "e", media_pages=32, max_patches=100), staging=staging).start()
            second.fakes[InstanceRef("e2", 1)].pixels.add("cat")
            assert isinstance(await gateway.terminal("r"), Completed)
            await eventually(lambda: server.control.scheduler.idle)
            for worker in (*others, second):
                await worker.stop()
            await gateway.close()

    asyncio.run(scenario())


def test_media_that_nobody_takes_are_refused_with_the_reason() -> None:
    async def scenario() -> None:
        async with control_server() as server:
            worker = await LiveWorker(server, info("pd", "pd")).start()
            gateway = await LiveGateway(server).start()
            await gateway.submit(request("r", media=(image("cat"),)))
            failure = await gateway.terminal("r")
            assert isinstance(failure, Failed) and failure.status is Status.INVALID_ARGUMENT
            assert "take no media" in failure.reason
            await worker.stop()
            await gateway.close()

    asyncio.run(scenario())
