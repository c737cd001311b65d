"""Live peers for tests of the gRPC shell: workers with toy instances behind the real client, and a gateway that speaks the raw protocol."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc

from tests.runtime.scheduler.fake_instance import FakeInstance, Staging
from triptych.proto.v1 import control_pb2, control_pb2_grpc
from triptych.runtime.core.control import Cancel, Completed, Failed, GatewayNotice, Submit
from triptych.runtime.core.instance import InstanceInfo, InstanceRef, Load
from triptych.runtime.core.request import Request
from triptych.runtime.core.tasks import TaskCommand
from triptych.runtime.scheduler.config import SchedulerConfig
from triptych.runtime.scheduler.server import ControlServer, ControlServerConfig, build_server
from triptych.runtime.wire.auth import bearer_metadata
from triptych.runtime.wire.convert import decode_oneof, encode_oneof
from triptych.runtime.worker.control_client import ControlClient

PATIENCE = 20.0  # seconds until a wait counts as a hang
STEP = 0.005  # seconds a toy instance takes for one step of a task


async def eventually(holds: Callable[[], bool]) -> None:
    """Wait until `holds()`; fails if it takes too long."""
    async with asyncio.timeout(PATIENCE):
        while not holds():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def control_server(token: str | None = None, **scheduler: Any) -> AsyncIterator[ControlServer]:
    server = build_server(ControlServerConfig(token=token, scheduler=SchedulerConfig(**scheduler)))
    await server.start()
    try:
        yield server
    finally:
        await server.stop(grace=0.2)


class LiveWorker:
    """Toy instances that take a step now and then, behind a ControlClient. `frozen` instances answer commands but do no work."""

    def __init__(
        self,
        server: ControlServer,
        *infos: InstanceInfo,
        staging: Staging | None = None,
        token: str | None = None,
        slots: int = 64,
    ):
        self.fakes = {i.ref: FakeInstance(i, staging or Staging(), slots) for i in infos}
        self.infos = list(infos)
        self.lost: list[str] = []
        self.frozen = False
        self.client = ControlClient(
            server.address,
            token,
            worker=infos[0].worker,
            instances=lambda: tuple(self.infos),
            loads=lambda: {
                ref: Load(running=len(f.tasks), free_pages=9, free_slots=1) for ref, f in self.fakes.items()
            },
            on_command=self.on_command,
            on_lost=self.lost.append,
        )
        self._working: asyncio.Task[None] | None = None

    def on_command(self, ref: InstanceRef, command: TaskCommand) -> None:
        for report in self.fakes[ref].handle(command):
            self.client.report(ref, report)

    async def start(self) -> LiveWorker:
        await self.client.connect()
        self._working = asyncio.create_task(self._work())
        return self

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
                for ref, fake in self.fakes.items():
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

    async def submit(self, request: Request) -> None:
        await self.call.write(encode_oneof(Submit(request), control_pb2.GatewayMessage, 0.0))

    async def cancel(self, request: str) -> None:
        await self.call.write(encode_oneof(Cancel(request, "toy"), control_pb2.GatewayMessage, 0.0))

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
