"""Streams that break, end in order, or are superseded, over loopback gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import grpc
import pytest

from tests.runtime.scheduler.live import LiveGateway, LiveWorker, control_server, eventually
from tests.runtime.scheduler.world import info, request, seen
from triptych.proto.v1 import common_pb2, control_pb2, control_pb2_grpc
from triptych.runtime.core.control import (
    Completed,
    Declare,
    Directory,
    Placed,
    Resume,
    WorkerJoined,
    WorkerLost,
)
from triptych.runtime.core.errors import IncompatibleError
from triptych.runtime.scheduler.service import ControlServicer
from triptych.runtime.wire.convert import encode, encode_oneof
from triptych.runtime.wire.outbox import Outbox

P, D, PD = info("p", "p"), info("d", "d"), info("pd", "pd")


def test_a_gateway_that_leaves_takes_its_requests_with_it() -> None:
    async def scenario() -> None:
        async with control_server() as server:
            worker = await LiveWorker(server, PD).start()
            worker.frozen = True
            gateway = await LiveGateway(server).start()
            await gateway.submit(request("r"))
            await eventually(lambda: worker.tasks == 1)
            await gateway.leave()
            await eventually(lambda: worker.tasks == 0 and server.control.scheduler.idle)
            assert not server.control.gateways
            await gateway.close()
            await worker.stop()

    asyncio.run(scenario())


def test_a_gateway_that_is_cut_off_and_stays_away_takes_its_requests_with_it() -> None:
    async def scenario() -> None:
        async with control_server(gateway_grace=0.2) as server:
            worker = await LiveWorker(server, PD).start()
            worker.frozen = True
            gateway = await LiveGateway(server).start()
            await gateway.submit(request("r"))
            await eventually(lambda: worker.tasks == 1)
            await gateway.close()
            await eventually(lambda: worker.tasks == 0 and server.control.scheduler.idle)
            await worker.stop()

    asyncio.run(scenario())


def test_a_gateway_that_is_cut_off_and_declares_its_request_goes_on() -> None:
    async def scenario() -> None:
        async with control_server(gateway_grace=2.0) as server:
            worker = await LiveWorker(server, PD).start()
            worker.frozen = True
            first = await LiveGateway(server).start()
            await first.submit(request("r"))
            await eventually(lambda: worker.tasks == 1)
            await first.close()
            second = await LiveGateway(server).start()
            await second.say(Declare(request("r")))
            await asyncio.sleep(2.5)
            worker.frozen = False
            assert isinstance(await second.terminal("r"), Completed)
            assert server.control.scheduler.counters["interrupted"] == 0
            await second.close()
            await worker.stop()

    asyncio.run(scenario())


def test_a_worker_that_is_cut_off_leaves_the_directory_and_its_requests_go_on_elsewhere() -> None:
    async def scenario() -> None:
        async with control_server() as server:
            worker = await LiveWorker(server, PD).start()
            worker.frozen = True
            gateway = await LiveGateway(server).start()
            await gateway.submit(request("r"))
            await eventually(lambda: worker.tasks == 1)
            worker.cut_off()
            interrupted = await gateway.interrupted()
            assert interrupted.attempt == 2 and "instance pd was lost" in interrupted.reason
            await eventually(lambda: [len(n.instances) for n in gateway.notices if isinstance(n, Directory)] == [1, 0])
            await gateway.say(Resume(request("r", attempt=2), seen(3)))
            other = await LiveWorker(server, info("pd2", "pd")).start()
            assert isinstance(await gateway.terminal("r"), Completed)
            await other.stop()
            await gateway.close()

    asyncio.run(scenario())


def test_a_worker_that_is_cut_off_and_back_at_once_goes_on() -> None:
    async def scenario() -> None:
        async with control_server(rejoin_grace=10.0) as server:
            worker = await LiveWorker(server, PD).start()
            worker.frozen = True
            gateway = await LiveGateway(server).start()
            await gateway.submit(request("r"))
            await eventually(lambda: any(isinstance(n, Placed) for n in gateway.notices))
            worker.cut_off()
            await eventually(lambda: not server.control.workers)
            await worker.reconnect(server)
            worker.frozen = False
            assert isinstance(await gateway.terminal("r"), Completed)
            assert server.control.scheduler.counters["interrupted"] == 0
            await worker.stop()
            await gateway.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("worker_first", [True, False])
def test_a_scheduler_that_starts_anew_finds_what_was_running(worker_first: bool) -> None:
    async def scenario() -> None:
        async with control_server() as old:
            port = old.port
            worker = await LiveWorker(old, PD).start()
            worker.frozen = True
            before = await LiveGateway(old).start()
            await before.submit(request("r"))
            await eventually(lambda: any(isinstance(n, Placed) for n in before.notices))
        await before.close()
        async with control_server(port=port, adopt_grace=60.0) as new:
            if worker_first:
                await worker.reconnect(new)
            gateway = await LiveGateway(new).start()
            await gateway.say(Declare(request("r")))
            await asyncio.sleep(0.1)
            if not worker_first:
                await worker.reconnect(new)
            await eventually(lambda: new.control.scheduler.counters["adopted"] == 1)
            worker.frozen = False
            assert isinstance(await gateway.terminal("r"), Completed)
            assert new.control.scheduler.counters["interrupted"] == 0
            await worker.stop()
            await gateway.close()

    asyncio.run(scenario())


def test_a_worker_that_says_good_bye_is_lost_at_once_with_that_reason() -> None:
    async def scenario() -> None:
        async with control_server(rejoin_grace=1000.0) as server:
            worker = await LiveWorker(server, PD).start()
            worker.frozen = True
            gateway = await LiveGateway(server).start()
            await gateway.submit(request("r"))
            await eventually(lambda: worker.tasks == 1)
            await worker.client.leave("maintenance")
            assert (await gateway.interrupted()).reason == "instance pd was lost: maintenance"
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


AGAIN = replace(PD, ref=replace(PD.ref, epoch=2))


def test_a_second_process_under_a_living_workers_name_is_refused() -> None:
    async def scenario() -> None:
        async with control_server() as server:
            first = await LiveWorker(server, PD).start()
            second = LiveWorker(server, AGAIN)
            with pytest.raises(IncompatibleError, match="another process is registered as worker 'w-pd'"):
                await second.start()
            assert not first.lost and not second.lost
            await first.stop()
            await second.start()  # the name is free
            await second.stop()

    asyncio.run(scenario())


def test_a_restarted_worker_takes_over_from_a_stream_that_nobody_ended() -> None:
    async def scenario() -> None:
        async with control_server(heartbeat_interval=0.1) as server, grpc.aio.insecure_channel(server.address) as gone:
            joined = encode_oneof(WorkerJoined(PD.worker, (PD,)), control_pb2.WorkerMessage, 0.0)
            call = control_pb2_grpc.ControlStub(gone).Worker()
            await call.write(joined)
            await eventually(lambda: PD.worker in server.control.workers)
            worker = await LiveWorker(server, AGAIN).start()
            owner = server.control.scheduler.worker_of
            assert owner(AGAIN.ref) == PD.worker and owner(PD.ref) is None
            await worker.stop()
            call.cancel()

    asyncio.run(scenario())


def test_a_worker_that_connects_again_takes_over_from_its_old_stream() -> None:
    async def scenario() -> None:
        async with control_server() as server:
            old = await LiveWorker(server, PD).start()
            new = await LiveWorker(server, PD).start()  # the same epoch: the same process
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


def test_a_failing_scheduler_stops_the_control_plane_loudly(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with control_server() as server:

            def broken(event: object, now: float) -> list:
                raise ZeroDivisionError("toy bug")

            server.control.scheduler.handle = broken  # type: ignore[method-assign]
            async with asyncio.timeout(60):
                with pytest.raises(ZeroDivisionError, match="toy bug"):
                    await server.wait()
            gateway = LiveGateway(server)
            await gateway.call.write(control_pb2.GatewayMessage(hello=control_pb2.Hello(gateway="g")))
            await eventually(lambda: gateway.ended is not None)
            assert gateway.ended is grpc.StatusCode.UNAVAILABLE, "there may be another scheduler soon"
            await gateway.close()

    asyncio.run(scenario())
    assert "the scheduler failed on SchedulerTick" in caplog.text


def test_a_message_read_before_a_newer_stream_registered_is_not_heard() -> None:
    """Whatever it says, the newer registration has said what is true now."""

    async def scenario() -> None:
        async with control_server() as server:
            worker = await LiveWorker(server, PD).start()
            stale = control_pb2.WorkerMessage(heartbeat=control_pb2.Heartbeat(worker=PD.worker))
            age = server.control.snapshot().instances[0].heartbeat_age

            async def read() -> AsyncIterator[control_pb2.WorkerMessage]:
                yield stale

            before = server.control.scheduler.counters["stale_reports"]
            outbox: Outbox[control_pb2.WorkerCommand] = Outbox("an older stream", 1)
            end = await ControlServicer(server.control)._hear_worker(PD.worker, outbox, read())
            assert isinstance(end, WorkerLost) and server.control.scheduler.counters["stale_reports"] == before
            assert server.control.snapshot().instances[0].heartbeat_age >= age
            await worker.stop()

    asyncio.run(scenario())
