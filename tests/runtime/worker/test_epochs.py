"""A new epoch is known to the scheduler whenever it begins, and no command for the old one has an effect in it."""

from __future__ import annotations

import asyncio
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest

from tests.runtime.scheduler.live import eventually
from tests.runtime.scheduler.world import info, request
from tests.runtime.worker.test_control_client import WELCOME, ToyScheduler
from triptych.proto.v1 import control_pb2_grpc
from triptych.runtime.core.clock import MonotonicClock
from triptych.runtime.core.errors import EngineError
from triptych.runtime.core.instance import InstanceInfo, InstanceRef, Load
from triptych.runtime.core.tasks import Granted, ReserveDecode, TaskReport
from triptych.runtime.instance.config import InstanceConfig
from triptych.runtime.instance.core import InstanceCore
from triptych.runtime.transfer.header import KvGroupHeader, KvHeader
from triptych.runtime.worker.build import InstanceParts
from triptych.runtime.worker.config import InstancePlan, WorkerConfig
from triptych.runtime.worker.instance import LiveInstance, Surroundings
from triptych.runtime.worker.process import WorkerProcess

INFO = info("i", "pd", worker="w")


class SlowEngine:
    """Takes its time to come back from a failure."""

    def __init__(self) -> None:
        self.config = SimpleNamespace(num_pages=16, max_num_seqs=4)
        self.pools = ()
        self.rebuilding, self.go_on = threading.Event(), threading.Event()

    def rebuild(self) -> None:
        self.rebuilding.set()
        assert self.go_on.wait(10)


class Rig:
    """A real LiveInstance without a device; `reports` and `resets` are what the scheduler would hear."""

    def __init__(self, loop: asyncio.AbstractEventLoop, threads: ThreadPoolExecutor):
        self.engine = SlowEngine()
        self.reports: list[tuple[InstanceRef, TaskReport]] = []
        self.resets: list[InstanceInfo] = []
        header = KvHeader("toy", "1", (KvGroupHeader("self", "full", 2, 8, (0,)),), "float32", 4, 2, ((0, 1),))
        mover = SimpleNamespace(layout=SimpleNamespace(head_unit=1))
        plan = InstancePlan("i", INFO.roles)
        core = InstanceCore(
            InstanceConfig(INFO.ref, INFO.address, "digest", INFO.roles, 16, 4, 4, 64),
            stop_probe=lambda stops: (_ for _ in ()).throw(AssertionError(stops)),
            random=random.Random(1),
        )
        around = Surroundings(
            clock=MonotonicClock(),
            loop=loop,
            threads=threads,
            transports={},
            channels=lambda address: cast(Any, None),
            report=lambda ref, report: self.reports.append((ref, report)),
            emit=lambda message: None,
            reset=lambda old, new, reason: self.resets.append(new),
            died=pytest.fail,
        )
        self.live = LiveInstance(
            InstanceParts(plan, *cast(Any, (None, self.engine, mover, header, 16))), core, INFO, around
        )

    def break_engine(self) -> None:
        def broken() -> None:
            raise EngineError("the device is gone")

        self.live._loop.call(broken)


def test_a_command_for_the_old_epoch_has_no_effect_in_the_new_one() -> None:
    async def scenario() -> None:
        with ThreadPoolExecutor(2) as threads:
            rig = Rig(asyncio.get_running_loop(), threads)
            rig.live.start()
            rig.break_engine()
            assert await asyncio.to_thread(rig.engine.rebuilding.wait, 10)
            rig.live.command(ReserveDecode(request("r"), ttl=60.0))  # the scheduler knows no better yet
            rig.engine.go_on.set()
            await eventually(lambda: bool(rig.resets))
            assert (await rig.live.snapshot()).resources["tasks"] == 0
            assert rig.reports == []
            rig.live.command(ReserveDecode(request("r"), ttl=60.0))
            await eventually(lambda: bool(rig.reports))
            ((ref, report),) = rig.reports
            assert ref == rig.resets[0].ref and isinstance(report, Granted)
            await rig.live.stop()

    asyncio.run(scenario())


class SlowInstance:
    """Like a LiveInstance whose device loop is in the middle of a step: the new epoch comes a moment after `abandon`."""

    def __init__(self, process: WorkerProcess):
        self.info = INFO
        self._process = process

    def load(self) -> Load:
        return Load()

    def abandon(self, reason: str) -> asyncio.Future[None]:
        renewed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def renew() -> None:
            self.renew(reason)
            renewed.set_result(None)

        asyncio.get_running_loop().call_later(0.1, renew)
        return renewed

    async def stop(self) -> None: ...

    def renew(self, reason: str) -> None:
        old, self.info = self.info, replace(self.info, ref=InstanceRef("i", self.info.ref.epoch + 1))
        self._process._on_reset(old.ref, self.info, reason)


def test_what_is_registered_again_is_the_new_epoch_and_a_reset_while_registering_is_told() -> None:
    async def scenario() -> None:
        server = grpc.aio.server()
        scheduler = ToyScheduler(WELCOME)
        control_pb2_grpc.add_ControlServicer_to_server(scheduler, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        plan = InstancePlan("i", INFO.roles)
        process = WorkerProcess(WorkerConfig("w", f"127.0.0.1:{port}", (plan,), "toy", Path("unused"), "toy"))
        instance = SlowInstance(process)
        process._instances["i"] = cast(Any, instance)
        membership = asyncio.create_task(process._stay_registered())
        try:
            await eventually(lambda: process._control is not None)
            scheduler.down.put_nowait(None)  # the stream ends, the scheduler lives
            await eventually(lambda: len(scheduler.of("worker_joined")) == 2)
            epochs = [joined.instances[0].ref.epoch for joined in scheduler.of("worker_joined")]
            assert epochs == [1, 2], "the second registration must name the incarnation that runs"

            instance.renew("its engine failed before the welcome came")
            scheduler.down.put_nowait(WELCOME)
            await eventually(lambda: bool(scheduler.of("instance_reset")))
            (reset,) = scheduler.of("instance_reset")
            assert (reset.old.epoch, reset.info.ref.epoch) == (2, 3)
        finally:
            membership.cancel()
            await asyncio.gather(membership, return_exceptions=True)
            await process.stop()
            await server.stop(None)

    asyncio.run(scenario())
