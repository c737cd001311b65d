"""The worker's side of the control stream: registration, order of reports, deltas of loads, and exactly one loss."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import grpc
import pytest

from tests.runtime.scheduler.live import eventually
from tests.runtime.scheduler.world import info, request
from triptych.proto.v1 import common_pb2, control_pb2, control_pb2_grpc
from triptych.runtime.core.control import Retire, SetRoles
from triptych.runtime.core.errors import InstanceLostError, InvalidRequestError, Status
from triptych.runtime.core.instance import InstanceRef, Load, Role
from triptych.runtime.core.tasks import AbortTask, HeldTask, StartLocal, TaskCommand, TaskEnded
from triptych.runtime.wire.convert import decode, encode, encode_oneof
from triptych.runtime.worker.control_client import ControlClient, WorkerOrder

PD = info("pd", "pd", worker="w")


class ToyScheduler(control_pb2_grpc.ControlServicer):
    """Welcomes a worker and keeps what it says; what it sends down is put into `down` (None ends the stream)."""

    def __init__(self, welcome: control_pb2.WorkerCommand | None):
        self.heard: list[control_pb2.WorkerMessage] = []
        self.down: asyncio.Queue[control_pb2.WorkerCommand | None] = asyncio.Queue()
        if welcome is not None:
            self.down.put_nowait(welcome)

    async def Worker(self, request_iterator, context) -> None:
        hearing = asyncio.create_task(self._hear(request_iterator))
        try:
            while (message := await self.down.get()) is not None:
                await context.write(message)
        finally:
            hearing.cancel()

    async def _hear(self, messages) -> None:
        async for message in messages:
            self.heard.append(message)
            if message.WhichOneof("kind") == "leave":
                self.down.put_nowait(None)

    def of(self, kind: str) -> list:
        return [getattr(m, kind) for m in self.heard if m.WhichOneof("kind") == kind]

    def order(self, order: SetRoles | Retire) -> None:
        self.down.put_nowait(encode_oneof(order, control_pb2.WorkerCommand, 0.0))

    def send(self, ref: InstanceRef, command: TaskCommand) -> None:
        message = control_pb2.InstanceCommand(
            ref=encode(ref, common_pb2.InstanceRef, 0.0), command=encode_oneof(command, control_pb2.TaskCommand, 0.0)
        )
        self.down.put_nowait(control_pb2.WorkerCommand(instance_command=message))


WELCOME = control_pb2.WorkerCommand(welcome=control_pb2.Welcome(heartbeat_interval=0.03))


class Worker:
    def __init__(self, address: str):
        self.infos = [PD]
        self.held: list[HeldTask] = []
        self.load = Load(free_pages=5, free_slots=2)
        self.commands: list[tuple[InstanceRef, WorkerOrder]] = []
        self.lost: list[str] = []
        self.client = ControlClient(
            address,
            worker="w",
            loads=lambda: {i.ref: self.load for i in self.infos},
            on_command=lambda ref, command: self.commands.append((ref, command)),
            on_lost=self.lost.append,
        )

    async def connect(self, timeout: float = 60.0) -> None:
        await self.client.connect(self.infos, self.held, timeout)


@asynccontextmanager
async def toy(welcome: control_pb2.WorkerCommand | None = WELCOME) -> AsyncIterator[tuple[ToyScheduler, Worker]]:
    server = grpc.aio.server()
    scheduler = ToyScheduler(welcome)
    control_pb2_grpc.add_ControlServicer_to_server(scheduler, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    worker = Worker(f"127.0.0.1:{port}")
    try:
        yield scheduler, worker
    finally:
        await worker.client.leave()
        await server.stop(None)


def test_it_registers_what_it_is_given_and_hears_commands_in_order() -> None:
    async def scenario() -> None:
        async with toy() as (scheduler, worker):
            await worker.connect()
            await eventually(lambda: bool(scheduler.of("worker_joined")))  # the toy greets before it listens
            (joined,) = scheduler.of("worker_joined")
            assert joined.worker == "w" and joined.instances[0].ref.id == "pd"
            commands = [StartLocal(request(f"r{n}")) for n in range(5)] + [
                AbortTask("r0", Status.CANCELLED, "x", Role.DECODE)
            ]
            for command in commands:
                scheduler.send(PD.ref, command)
            await eventually(lambda: len(worker.commands) == 6)
            assert worker.commands == [(PD.ref, command) for command in commands]

    asyncio.run(scenario())


def test_reports_from_another_thread_keep_their_order() -> None:
    async def scenario() -> None:
        async with toy() as (scheduler, worker):
            await worker.connect()

            def device_loop() -> None:
                for n in range(300):
                    worker.client.report(PD.ref, TaskEnded(f"r{n}", Role.DECODE, Status.OK))

            thread = threading.Thread(target=device_loop)
            thread.start()
            await eventually(lambda: len(scheduler.of("reported")) == 300)
            thread.join()
            assert [r.report.task_ended.request for r in scheduler.of("reported")] == [f"r{n}" for n in range(300)]

    asyncio.run(scenario())


def test_what_is_held_is_declared_and_reports_made_before_the_stream_stands_follow() -> None:
    async def scenario() -> None:
        async with toy() as (scheduler, worker):
            worker.held = [
                HeldTask(PD.ref, "r0", 2, None, "gw", True),
                HeldTask(PD.ref, "r1", 1, Role.DECODE, "gw", False),
            ]
            worker.client.report(PD.ref, TaskEnded("r0", Role.DECODE, Status.OK, attempt=2))
            await worker.connect()
            await eventually(lambda: bool(scheduler.of("reported")))
            kinds = [message.WhichOneof("kind") for message in scheduler.heard]
            assert kinds[:2] == ["worker_joined", "reported"]
            (joined,) = scheduler.of("worker_joined")
            assert [decode(held, HeldTask, 0.0) for held in joined.held] == worker.held
            assert scheduler.of("reported")[0].report.task_ended.attempt == 2

    asyncio.run(scenario())


def test_orders_about_instances_come_with_their_ref_and_their_answers_go_back() -> None:
    async def scenario() -> None:
        async with toy() as (scheduler, worker):
            await worker.connect()
            orders = [SetRoles(PD.ref, frozenset({Role.DECODE})), Retire(PD.ref, "maintenance")]
            for order in orders:
                scheduler.order(order)
            await eventually(lambda: len(worker.commands) == 2)
            assert worker.commands == [(PD.ref, order) for order in orders]
            worker.client.roles_refused(PD.ref, "busy")
            worker.client.instance_left(PD.ref, "maintenance")
            await eventually(lambda: bool(scheduler.of("instance_left")))
            assert scheduler.of("roles_refused")[0].reason == "busy"

    asyncio.run(scenario())


def test_heartbeats_carry_only_what_changed_and_everything_after_a_reset() -> None:
    async def scenario() -> None:
        async with toy() as (scheduler, worker):
            await worker.connect()
            await eventually(lambda: len(scheduler.of("heartbeat")) >= 4)
            assert [len(h.loads) for h in scheduler.of("heartbeat")][:4] == [1, 0, 0, 0]
            worker.load = Load(running=1)
            await eventually(lambda: sum(len(h.loads) for h in scheduler.of("heartbeat")) == 2)
            fresh = replace(PD, ref=InstanceRef("pd", 2))
            worker.infos = [fresh]
            worker.client.instance_reset(PD.ref, fresh, "pool lost")
            await eventually(lambda: any(e.ref.epoch == 2 for h in scheduler.of("heartbeat") for e in h.loads))
            (reset,) = scheduler.of("instance_reset")
            assert (reset.worker, reset.old.epoch, reset.info.ref.epoch, reset.reason) == ("w", 1, 2, "pool lost")

    asyncio.run(scenario())


def test_the_end_of_the_stream_is_told_exactly_once_and_later_reports_are_dropped() -> None:
    async def scenario() -> None:
        async with toy() as (scheduler, worker):
            await worker.connect()
            scheduler.down.put_nowait(None)
            await eventually(lambda: bool(worker.lost))
            worker.client.report(PD.ref, TaskEnded("r", Role.DECODE, Status.OK))
            await worker.client.leave()
            await asyncio.sleep(0.1)
            (reason,) = worker.lost
            assert "closed the stream" in reason

    asyncio.run(scenario())


def test_a_vanished_scheduler_is_a_loss_with_its_reason() -> None:
    async def scenario() -> None:
        server = grpc.aio.server()
        control_pb2_grpc.add_ControlServicer_to_server(ToyScheduler(WELCOME), server)
        worker = Worker(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
        await server.start()
        await worker.connect()
        await server.stop(None)
        await eventually(lambda: bool(worker.lost))
        assert len(worker.lost) == 1 and worker.lost[0]

    asyncio.run(scenario())


def test_leaving_says_good_bye_and_is_no_loss() -> None:
    async def scenario() -> None:
        async with toy() as (scheduler, worker):
            await worker.connect()
            await worker.client.leave("maintenance")
            await eventually(lambda: bool(scheduler.of("leave")))
            assert scheduler.of("leave")[0].reason == "maintenance" and not worker.lost

    asyncio.run(scenario())


@pytest.mark.parametrize("broken", ["command", "message"])
def test_what_cannot_be_handled_ends_the_stream_instead_of_being_skipped(
    broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with toy() as (scheduler, worker):
            await worker.connect()
            if broken == "command":
                worker.client._on_command = lambda ref, command: worker.infos[7]  # type: ignore[assignment]
                scheduler.send(PD.ref, StartLocal(request("r")))
            else:
                scheduler.down.put_nowait(control_pb2.WorkerCommand(instance_command=control_pb2.InstanceCommand()))
            await eventually(lambda: bool(worker.lost))
            assert ("IndexError" if broken == "command" else "carries nothing") in worker.lost[0]

    asyncio.run(scenario())


def test_loads_that_cannot_be_read_end_the_stream() -> None:
    async def scenario() -> None:
        async with toy() as (_, worker):
            worker.client._loads = lambda: {}[PD.ref]
            await worker.connect()
            await eventually(lambda: bool(worker.lost))
            assert "cannot be read" in worker.lost[0]

    asyncio.run(scenario())


def test_connecting_fails_with_a_typed_error_and_no_loss() -> None:
    async def scenario() -> None:
        nobody = Worker("127.0.0.1:1")
        with pytest.raises(InstanceLostError):
            await nobody.connect()
        async with toy(welcome=None) as (_, worker):
            with pytest.raises(InstanceLostError, match="no welcome .* within 0.2 s"):
                await worker.connect(timeout=0.2)
            assert not worker.lost
        wrong = control_pb2.WorkerCommand(instance_command=control_pb2.InstanceCommand())
        async with toy(welcome=wrong) as (_, worker):
            with pytest.raises(InvalidRequestError, match="expected welcome"):
                await worker.connect()
        async with toy() as (_, worker):
            await worker.connect()
            with pytest.raises(RuntimeError, match="connects once"):
                await worker.connect()

    asyncio.run(scenario())
