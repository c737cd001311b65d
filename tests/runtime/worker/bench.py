"""A real worker with toy instances, commanded by a toy scheduler over the wire, and what it says of each request."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, ClassVar

import grpc

from tests.runtime.worker.test_control_client import WELCOME, ToyScheduler
from triptych.proto.v1 import control_pb2_grpc, worker_pb2, worker_pb2_grpc
from triptych.runtime.core.control import SetRoles
from triptych.runtime.core.instance import InstanceRef, Role, TransportKind
from triptych.runtime.core.request import Request, SampleState, TokenOut
from triptych.runtime.core.tasks import (
    Granted,
    PrefillDone,
    ReserveDecode,
    Staged,
    StartDecode,
    StartLocal,
    StartPrefill,
    TaskEnded,
)
from triptych.runtime.wire.convert import decode, decode_oneof
from triptych.runtime.worker.config import InstancePlan, WorkerConfig
from triptych.runtime.worker.process import WorkerProcess
from triptych.runtime.worker.service import InstanceSnapshot

P, D = frozenset({Role.PREFILL}), frozenset({Role.DECODE})
PATIENCE = 60.0

Samples = dict[int, list[TokenOut]]


class Bench:
    """Instances "p" (which may become a decode instance), "d" and "pd" (both roles)."""

    MODEL = "dummy:toy"
    PLANS: tuple[InstancePlan, ...] = (
        InstancePlan("p", P, switchable=D),
        InstancePlan("d", D),
        InstancePlan("pd", P | D),
    )
    OPTIONS: ClassVar[dict[str, Any]] = {"max_model_len": 96}

    def __init__(self) -> None:
        self.scheduler = ToyScheduler(WELCOME)
        self.prompts: dict[tuple[str, int], Any] = {}
        self.tokens: dict[tuple[str, int], list[TokenOut]] = defaultdict(list)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self.run(self._start())

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(200)

    async def _start(self) -> None:
        self._server = grpc.aio.server()
        control_pb2_grpc.add_ControlServicer_to_server(self.scheduler, self._server)
        port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        self.process = WorkerProcess(
            WorkerConfig(
                "w", f"127.0.0.1:{port}", self.PLANS, self.MODEL, Path("/nonexistent"), "toy",
                max_num_seqs=4, chunk_tokens=16, num_pages=64, transports=(TransportKind.GRPC,),
                **self.OPTIONS,
            )
        )  # fmt: skip
        await self.process.start()
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async with grpc.aio.insecure_channel(self.process.address) as channel:
            stub: Any = worker_pb2_grpc.WorkerStub(channel)  # type: ignore[no-untyped-call]
            async for batch in stub.Subscribe(worker_pb2.SubscribeRequest(gateway="gw")):
                for message in batch.tokens:
                    token = decode(message, TokenOut, 0.0)
                    self.tokens[token.request, token.attempt].append(token)
                for prompt in batch.prompts:
                    self.prompts[prompt.request, prompt.attempt] = prompt.report

    async def _stop(self) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        await self.process.stop(grace=0)
        await self._server.stop(None)

    def close(self) -> None:
        self.run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)

    # ---- what a scheduler does

    def ref(self, name: str) -> InstanceRef:
        return next(i.info.ref for i in self.process.instances if i.info.ref.id == name)

    def send(self, name: str, command: Any) -> None:
        async def send() -> None:
            self.scheduler.send(self.ref(name), command)

        self.run(send())

    def all_reports(self, request: Request) -> list[Any]:
        """What was reported on this attempt so far."""
        reports = [decode_oneof(reported.report, 0.0) for reported in self.scheduler.of("reported")]
        return [report for report in reports if (report.request, report.attempt) == (request.id, request.attempt)]

    def wait_for(self, found: Callable[[], Any]) -> Any:
        """Until `found` gives something, which is returned."""

        async def wait() -> Any:
            async with asyncio.timeout(PATIENCE):
                while not (result := found()):
                    await asyncio.sleep(0.01)
                return result

        return self.run(wait())

    def report(self, request: Request, kind: type, role: Role | None = None) -> Any:
        """Waits for a report on this attempt."""

        def found() -> Any:
            reports = (report for report in self.all_reports(request) if isinstance(report, kind))
            return next((report for report in reports if role in (None, getattr(report, "role", None))), None)

        return self.wait_for(found)

    def run_local(self, request: Request, resumed: tuple[SampleState, ...] = ()) -> Samples:
        self.send("pd", StartLocal(request, resumed))
        return self.finished(request, resumed)

    def run_split(
        self, request: Request, resumed: tuple[SampleState, ...] = (), prefill: str = "p", decode: str = "d"
    ) -> Samples:
        self.send(decode, ReserveDecode(request, 60.0, resumed))
        granted = self.report(request, Granted)
        self.send(prefill, StartPrefill(request, granted.cached_tokens, 60.0, resumed))
        staged = self.report(request, Staged)
        self.send(decode, StartDecode(request.id, staged.handle, request.attempt))
        done = self.report(request, PrefillDone)
        assert not (resumed and done.finished)
        return self.finished(request, resumed)

    def finished(self, request: Request, resumed: tuple[SampleState, ...] = ()) -> Samples:
        ended = self.report(request, TaskEnded, Role.DECODE)
        assert ended.status == 0, ended
        key = (request.id, request.attempt)
        before = {state.sample for state in resumed if state.finish is not None}

        def settled() -> bool:
            """Tokens travel on a stream of their own."""
            ends = {token.sample for token in self.tokens[key] if token.finish is not None}
            return key in self.prompts and len(ends | before) == request.sampling.n

        self.wait_for(settled)
        samples: Samples = defaultdict(list)
        for token in sorted(self.tokens[key], key=lambda token: token.position):
            samples[token.sample].append(token)
        return samples

    # ---- what it holds

    def snapshots(self) -> dict[str, InstanceSnapshot]:
        async def take() -> dict[str, InstanceSnapshot]:
            return {i.info.ref.id: await i.snapshot() for i in self.process.instances}

        return self.run(take())

    def wait_idle(self) -> dict[str, InstanceSnapshot]:
        """Until nothing is held for any request."""

        until = time.monotonic() + PATIENCE
        while True:
            states = self.snapshots()
            held = ("tasks", "staging_keys", "pulls")
            if not any(state.resources[name] for state in states.values() for name in held):
                return states
            assert time.monotonic() < until, {name: state.resources for name, state in states.items()}
            time.sleep(0.02)

    def set_roles(self, name: str, roles: frozenset[Role]) -> None:
        """Sends SetRoles and waits for either answer."""

        async def switch() -> None:
            before = len(self.scheduler.of("instance_reset")) + len(self.scheduler.of("roles_refused"))
            self.scheduler.order(SetRoles(self.ref(name), roles))
            async with asyncio.timeout(PATIENCE):
                while len(self.scheduler.of("instance_reset")) + len(self.scheduler.of("roles_refused")) == before:
                    await asyncio.sleep(0.01)

        self.run(switch())
