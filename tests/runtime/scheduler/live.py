"""Live peers for tests of the gRPC shell: workers with toy instances behind the real client, and a gateway that speaks the raw protocol."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc

from tests.runtime.scheduler.fake_instance import FakeInstance, Staging
from triptych.proto.v1 import control_pb2, control_pb2_grpc
from triptych.runtime.core.control import (
    Cancel,
    Completed,
    Declare,
    Failed,
    GatewayNotice,
    Interrupted,
    Resume,
    Retire,
    SetRoles,
    SetShare,
    Submit,
)
from triptych.runtime.core.instance import InstanceInfo, InstanceRef, Load
from triptych.runtime.core.request import Request
from triptych.runtime.scheduler.config import SchedulerConfig
from triptych.runtime.scheduler.server import ControlServer, ControlServerConfig, build_server
from triptych.runtime.wire.auth import bearer_metadata
from triptych.runtime.wire.convert import decode_oneof, encode_oneof
from triptych.runtime.worker.control_client import ControlClient, WorkerOrder

PATIENCE = 60.0  # seconds until a wait counts as a hang
STEP = 0.005  # seconds a toy instance takes for one step of a task


async def eventually(holds: Callable[[], bool]) -> None:
    """Wait until `holds()`; fails if it takes too long."""
    async with asyncio.timeout(PATIENCE):
        while not holds():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def control_server(token: str | None = None, port: int = 0, **scheduler: Any) -> AsyncIterator[ControlServer]:
    server = build_server(ControlServerConfig(port=port, token=token, scheduler=SchedulerConfig(**scheduler)))
    await server.start()
    try:
        yield server
    finally:
        await server.stop(grace=0.2)


class LiveWorker:
    """Toy instances that take a step now and then, behind a ControlClient. `frozen` instances answer commands but do no work.

    `reconnect` opens a new stream for the same instances, wherever the scheduler is by then.
    """

    def __init__(
        self,
        server: ControlServer,
        *infos: InstanceInfo,
        staging: Staging | None = None,
        token: str | None = None,
        slots: int = 64,
    ):
        self._token = token
        self.fakes = {i.ref: FakeInstance(i, staging or Staging(), slots) for i in infos}
        self.worker = infos[0].worker
        self.lost: list[str] = []
        self.frozen = False
        self.refuses_roles = False
        self.client = self._make_client(server.address)
        self._working: asyncio.Task[None] | None = None

    def _make_client(self, address: str) -> ControlClient:
        return ControlClient(
            address,
            self._token,
            worker=self.worker,
            loads=lambda: {
                ref: Load(running=len(f.tasks), free_pages=9, free_slots=1) for ref, f in self.fakes.items()
            },
            on_command=self.on_command,
            on_lost=self.lost.append,
        )

    def on_command(self, ref: InstanceRef, command: WorkerOrder) -> None:
        match command:
            case SetRoles() if self.refuses_roles:
                self.client.roles_refused(ref, "toy refusal")
            case SetRoles():
                old = self.fakes.pop(ref)
                info = replace(old.info, ref=InstanceRef(ref.id, ref.epoch + 1), roles=command.roles)
                self.fakes[info.ref] = FakeInstance(info, old.staging, old.slots)
                self.client.instance_reset(ref, info, "roles changed")
            case Retire():
                del self.fakes[ref]
                self.client.instance_left(ref, command.reason)
            case SetShare():
                pass  # toy instances take turns as they like
            case _:
                for report in self.fakes[ref].handle(command):
                    self.client.report(ref, report)

    async def start(self) -> LiveWorker:
        await self._connect()
        self._working = asyncio.create_task(self._work())
        return self

    async def reconnect(self, server: ControlServer) -> None:
        self.client = self._make_client(server.address)
        await self._connect()

    async def _connect(self) -> None:
        held = [task for fake in self.fakes.values() for task in fake.held()]
        await self.client.connect([fake.info for fake in self.fakes.values()], held)

    def cut_off(self) -> None:
        """The stream breaks without a good-bye."""
        assert self.client._life is not None
        self.client._life.cancel()

    async def stop(self) -> None:
        if self._working is not None:
            self._working.cancel()
            await asyncio.gather(self._working, return_exceptions=True)
        await self.client.leave()

    @property
    def tasks(self) -> int:
        return sum(len(f.tasks) for f in self.fakes.values())

    async def _work(self) -> None:
        while True:
            await asyncio.sleep(STEP)
            if not self.frozen:
                for ref, fake in list(self.fakes.items()):
                    for report in fake.finish_everything():
                        self.client.report(ref, report)


class LiveGateway:
    """A gateway's stream, message by message."""

    def __init__(self, server: ControlServer, name: str = "g", token: str | None = None):
        self.name = name
        self.notices: list[GatewayNotice] = []
        self.ended: grpc.StatusCode | None = None
        self.details: str | None = None
        self._channel = grpc.aio.insecure_channel(server.address)
        self.stub = control_pb2_grpc.ControlStub(self._channel)
        self.call = self.stub.Gateway(metadata=bearer_metadata(token))
        self._reading = asyncio.create_task(self._read())

    async def start(self) -> LiveGateway:
        await self.call.write(control_pb2.GatewayMessage(hello=control_pb2.Hello(gateway=self.name)))
        await eventually(lambda: bool(self.notices))
        return self

    async def say(self, event: Submit | Declare | Resume | Cancel) -> None:
        await self.call.write(encode_oneof(event, control_pb2.GatewayMessage, 0.0))

    async def submit(self, request: Request) -> None:
        await self.say(Submit(request))

    async def cancel(self, request: str) -> None:
        await self.say(Cancel(request, "toy"))

    async def leave(self) -> None:
        await self.call.write(control_pb2.GatewayMessage(leave=control_pb2.Leave(reason="toy")))

    async def interrupted(self) -> Interrupted:
        """The first interruption."""
        await eventually(lambda: any(isinstance(n, Interrupted) for n in self.notices))
        return next(n for n in self.notices if isinstance(n, Interrupted))

    async def terminal(self, request: str) -> Completed | Failed:
        await eventually(lambda: bool(self._terminal(request)))
        (notice,) = self._terminal(request)
        return notice

    async def close(self) -> None:
        self.call.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        await self._channel.close()

    def _terminal(self, request: str) -> list[Completed | Failed]:
        return [n for n in self.notices if isinstance(n, Completed | Failed) and n.request == request]

    async def _read(self) -> None:
        try:
            async for message in self.call:
                self.notices.append(decode_oneof(message, 0.0))
        except grpc.aio.AioRpcError:
            pass
        self.ended, self.details = await self.call.code(), await self.call.details()
